//! What the agent runs with: defaults, the configuration file, environment variables and flags, each winning over those
//! before it.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::cli::{Discover, RunArgs, Tap};
use crate::config::{self, ConfigError, File};
use crate::model::Mode;
use crate::policy::{Policy, Rule};

/// The method that is watched if the configuration names none.
pub const DEFAULT_METHOD: &str = "/source.v1.Source/PendingFn";

/// Everything that the agent runs with, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Modes, rules and allowed replicas. No mode in it is [`Mode::Enforce`].
    pub policy: Policy,
    /// Watched methods: 1 to 8 full paths that can be watched, no two alike.
    pub methods: Vec<String>,
    /// Where `/metrics` is served.
    pub metrics_listen: SocketAddr,
    /// Where the gRPC API is served.
    pub api_socket: PathBuf,
    /// The configuration file that was read.
    pub config: Option<PathBuf>,
}

/// Why the agent can't run with what it was told. Exit status 64.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Enforcement.
    #[error(
        "{place}: this version audits only, it can't enforce; \"audit\" counts what would be rejected"
    )]
    Enforce {
        /// The flag, the variable, or the line and the key.
        place: String,
    },
    /// A tap that doesn't exist yet.
    #[error("{place}: this version observes by tracepoints only")]
    Tap {
        /// The flag or the variable.
        place: String,
    },
    /// A discovery that doesn't exist yet.
    #[error("{place}: this version discovers replicas in /proc only")]
    Discover {
        /// The flag or the variable.
        place: String,
    },
}

impl Settings {
    /// Reads the configuration file, if one is named, and puts everything together.
    pub fn resolve(arguments: &RunArgs) -> Result<Self, SettingsError> {
        let file = match &arguments.config {
            Some(path) => config::read(path)?,
            None => File::default(),
        };
        Self::merge(arguments, file)
    }

    fn merge(arguments: &RunArgs, file: File) -> Result<Self, SettingsError> {
        let origins = arguments.origins;
        if arguments.tap == Tap::Fentry {
            let place = origins.tap.written("tap", "fentry");
            return Err(SettingsError::Tap { place });
        }
        if arguments.discover == Discover::Kube {
            let place = origins.discover.written("discover", "kube");
            return Err(SettingsError::Discover { place });
        }
        let (mode, place) = match (arguments.mode, file.mode) {
            (Some(mode), _) => (mode, origins.mode.written("mode", mode.name())),
            (None, Some(mode)) => (mode.value, mode.place.to_string()),
            (None, None) => (Mode::Audit, String::new()),
        };
        let mut policy = Policy::new(refuse_enforce(mode, place)?);
        for rule in file.rules {
            policy.rules.push(Rule {
                namespace: rule.namespace,
                workload: rule.workload,
                mode: refuse_enforce(rule.mode.value, rule.mode.place.to_string())?,
            });
        }
        if let Some(allowed) = file.allowed_replicas {
            policy.allowed = allowed;
        }
        Ok(Self {
            policy,
            methods: file
                .methods
                .unwrap_or_else(|| vec![DEFAULT_METHOD.to_owned()]),
            metrics_listen: arguments.metrics_listen,
            api_socket: arguments.api_socket.clone(),
            config: arguments.config.clone(),
        })
    }
}

fn refuse_enforce(mode: Mode, place: String) -> Result<Mode, SettingsError> {
    match mode {
        Mode::Enforce => Err(SettingsError::Enforce { place }),
        Mode::Off | Mode::Audit => Ok(mode),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsString;
    use std::path::Path;

    use super::*;
    use crate::cli::{self, Command};

    fn resolve(flags: &[&str], file: &str) -> Result<Settings, SettingsError> {
        let arguments = ["pendguard", "run"].iter().chain(flags);
        let cli = cli::parse(arguments.map(OsString::from).collect()).unwrap();
        let Command::Run(run) = cli.command else {
            panic!("run")
        };
        Settings::merge(&run, config::parse(Path::new("p.toml"), file).unwrap())
    }

    #[test]
    fn defaults() {
        let settings = resolve(&[], "").unwrap();
        assert_eq!(settings.policy.default, Mode::Audit);
        assert_eq!(settings.policy.allowed, BTreeSet::from([0]));
        assert_eq!(settings.methods, [DEFAULT_METHOD]);
        assert!(settings.policy.rules.is_empty());
    }

    #[test]
    fn the_default_method_can_be_watched() {
        assert_eq!(agent_common::h2::paths::check(DEFAULT_METHOD), Ok(()));
    }

    #[test]
    fn the_file_wins_over_defaults() {
        let settings = resolve(
            &[],
            "mode = \"off\"\nallowed_replicas = [0, 1]\nmethods = [\"/a.B/C\"]",
        )
        .unwrap();
        assert_eq!(settings.policy.default, Mode::Off);
        assert_eq!(settings.policy.allowed, BTreeSet::from([0, 1]));
        assert_eq!(settings.methods, ["/a.B/C"]);
    }

    #[test]
    fn flags_win_over_the_file() {
        let settings = resolve(&["--mode", "off"], "mode = \"audit\"").unwrap();
        assert_eq!(settings.policy.default, Mode::Off);
        // What loses isn't judged.
        let settings = resolve(&["--mode", "audit"], "mode = \"enforce\"").unwrap();
        assert_eq!(settings.policy.default, Mode::Audit);
    }

    #[test]
    fn what_this_version_has_not_is_refused_by_name() {
        for (flags, file, place) in [
            (&["--mode", "enforce"][..], "", "--mode enforce: "),
            (&[], "\nmode = \"enforce\"", "p.toml:2: mode: "),
            (
                &["--mode", "audit"],
                "[[rule]]\nmode = \"enforce\"",
                "p.toml:2: rule[0].mode: ",
            ),
            (&["--tap", "fentry"], "", "--tap fentry: "),
            (&["--discover", "kube"], "", "--discover kube: "),
        ] {
            let error = resolve(flags, file).unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
            assert!(error.contains("this version"), "{error}");
        }
        assert!(resolve(&["--tap", "tracepoint", "--discover", "proc"], "").is_ok());
    }
}
