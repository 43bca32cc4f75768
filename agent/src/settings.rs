//! What the agent runs with: defaults, the configuration file, environment variables and flags, each winning over those
//! before it.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::{self, Discover, Origin, RunArgs};
use crate::config::{self, ConfigError, File};
use crate::discovery::identity;
use crate::discovery::kube::access::{self, Access};
use crate::export::otlp::Target;
use crate::model::Mode;
use crate::policy::{Policy, Rule, unenforceable};

/// The method that is watched if the configuration names none.
pub const DEFAULT_METHOD: &str = "/source.v1.Source/PendingFn";

/// Everything that the agent runs with, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Modes, rules and allowed replicas.
    pub policy: Policy,
    /// Watched methods: 1 to 8 full paths that can be watched, no two alike. If the policy enforces, each of them may be
    /// rejected.
    pub methods: Vec<String>,
    /// Whether answers are followed.
    pub answers: bool,
    /// Whether pods are told that their calls are rejected, by an event.
    pub kube_events: bool,
    /// Where replicas are discovered.
    pub discovery: Discovery,
    /// How sends are to be observed.
    pub tap: cli::Tap,
    /// How calls are to be rejected.
    pub enforcer: cli::Enforcer,
    /// Where enforcement is pinned: an absolute path.
    pub pin_dir: PathBuf,
    /// How long enforcement goes on without the agent: 10 seconds to 7 days.
    pub lease: Duration,
    /// Where `/metrics` is served.
    pub metrics_listen: SocketAddr,
    /// Where the gRPC API is served.
    pub api_socket: PathBuf,
    /// Where metrics are sent over OTLP, if anywhere.
    pub otlp: Option<Target>,
    /// The configuration file that was read.
    pub config: Option<PathBuf>,
}

/// Where replicas are discovered.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// In `/proc`. Perhaps something kept the agent from more, which is worth a warning.
    Proc(Option<String>),
    /// There, and by what the API server says.
    Kube {
        /// How it is reached.
        access: Access,
        /// The node's name.
        node: String,
    },
}

impl Discovery {
    /// As it is written.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Proc(_) => "proc",
            Self::Kube { .. } => "kube",
        }
    }
}

/// What is found where the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Whether this is a container of a cluster, with a service account.
    pub in_cluster: bool,
    /// What `KUBECONFIG` names.
    pub kubeconfig: Option<PathBuf>,
}

impl Surroundings {
    fn look() -> Self {
        let kubeconfig = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
        Self {
            in_cluster: access::in_cluster(),
            kubeconfig: kubeconfig.map(PathBuf::from),
        }
    }
}

/// Why the agent can't run with what it was told. Exit status 64.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A method that must not be rejected, where something is to be enforced.
    #[error(
        "{method}: of source.v1.Source only PendingFn can be enforced, and enforcement is asked for ({asked}); watch the \
         method with mode audit, or don't watch it"
    )]
    Method {
        /// The line, the key and the method.
        method: String,
        /// The flag, the variable, or the line and the key of the mode.
        asked: String,
    },
    /// Nobody has said which node this is.
    #[error(
        "{place}: the environment variable NODE_NAME (or --node-name) must say which node this is; in a pod it is the field \
         spec.nodeName"
    )]
    NodeName {
        /// The flag or the variable.
        place: String,
    },
    /// No API server to ask.
    #[error(
        "{place}: this is no pod with a service account (KUBERNETES_SERVICE_HOST and its token), and KUBECONFIG names no file"
    )]
    NoCluster {
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
        Self::merge(arguments, file, Surroundings::look())
    }

    fn merge(
        arguments: &RunArgs,
        file: File,
        surroundings: Surroundings,
    ) -> Result<Self, SettingsError> {
        let origins = arguments.origins;
        let discovery = discovery(arguments, surroundings)?;
        let (mode, place) = match (arguments.mode, file.mode) {
            (Some(mode), _) => (mode, origins.mode.written("mode", mode.name())),
            (None, Some(mode)) => (mode.value, mode.place.to_string()),
            (None, None) => (Mode::Audit, String::new()),
        };
        let mut enforcing = (mode == Mode::Enforce).then_some(place);
        let mut policy = Policy::new(mode);
        policy.answer = (origins.answer != Origin::Default).then_some(arguments.answer);
        for rule in file.rules {
            if rule.mode.value == Mode::Enforce {
                enforcing.get_or_insert_with(|| rule.mode.place.to_string());
            }
            policy.rules.push(Rule {
                namespace: rule.namespace,
                workload: rule.workload,
                mode: rule.mode.value,
                answer: rule.answer,
            });
        }
        if let Some(allowed) = file.allowed_replicas {
            policy.allowed = allowed;
        }
        let placed = file.methods.unwrap_or_default();
        let mut methods: Vec<String> = placed.iter().map(|m| m.value.clone()).collect();
        if let Some(asked) = enforcing
            && let Some(method) = unenforceable(&methods).and_then(|i| placed.get(i))
        {
            return Err(SettingsError::Method {
                method: format!("{}: {:?}", method.place, method.value),
                asked,
            });
        }
        if methods.is_empty() {
            methods.push(DEFAULT_METHOD.to_owned());
        }
        Ok(Self {
            policy,
            methods,
            answers: !arguments.no_answers,
            kube_events: arguments.kube_events,
            discovery,
            tap: arguments.tap,
            enforcer: arguments.enforcer,
            pin_dir: arguments.pin_dir.clone(),
            lease: arguments.lease,
            metrics_listen: arguments.metrics_listen,
            api_socket: arguments.api_socket.clone(),
            otlp: arguments.otlp_endpoint.clone().map(|endpoint| Target {
                endpoint,
                interval: arguments.otlp_interval,
            }),
            config: arguments.config.clone(),
        })
    }
}

fn discovery(arguments: &RunArgs, surroundings: Surroundings) -> Result<Discovery, SettingsError> {
    let place = || arguments.origins.discover.written("discover", "kube");
    // The variable is nobody's own: what it says to others is no reason not to start.
    let node = arguments.node_name.clone();
    let node = node.filter(|name| identity::is_name(name));
    let access = match (surroundings.in_cluster, surroundings.kubeconfig) {
        (true, _) => Some(Access::ServiceAccount),
        (false, Some(path)) => Some(Access::Kubeconfig(path)),
        (false, None) => None,
    };
    match arguments.discover {
        Discover::Proc => Ok(Discovery::Proc(None)),
        Discover::Kube => match (access, node) {
            (None, _) => Err(SettingsError::NoCluster { place: place() }),
            (_, None) => Err(SettingsError::NodeName { place: place() }),
            (Some(access), Some(node)) => Ok(Discovery::Kube { access, node }),
        },
        Discover::Auto if !surroundings.in_cluster => Ok(Discovery::Proc(None)),
        Discover::Auto => Ok(match node {
            Some(node) => Discovery::Kube {
                access: Access::ServiceAccount,
                node,
            },
            // Such a pod has worked before there was anything else.
            None => Discovery::Proc(Some(
                "replicas are discovered in /proc alone: the environment variable NODE_NAME is not set (spec.nodeName), without \
                 which the API server can't be asked about this node's pods"
                    .to_owned(),
            )),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsString;
    use std::path::Path;

    use super::*;
    use crate::cli::{self, Command};
    use crate::model::Answer;

    fn resolve(flags: &[&str], file: &str) -> Result<Settings, SettingsError> {
        resolve_in(flags, file, Surroundings::default())
    }

    fn resolve_in(
        flags: &[&str],
        file: &str,
        surroundings: Surroundings,
    ) -> Result<Settings, SettingsError> {
        let arguments = ["pendguard", "run"].iter().chain(flags);
        let cli = cli::parse(arguments.map(OsString::from).collect()).unwrap();
        let Command::Run(run) = cli.command else {
            panic!("run")
        };
        let file = config::parse(Path::new("p.toml"), file).unwrap();
        Settings::merge(&run, file, surroundings)
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
    fn the_file_that_is_shipped_says_the_defaults() {
        let shipped = resolve(&[], include_str!("../../deploy/pendguard.toml")).unwrap();
        let defaults = resolve(&[], "").unwrap();
        assert_eq!(shipped.policy.default, defaults.policy.default);
        assert_eq!(shipped.policy.allowed, defaults.policy.allowed);
        assert_eq!(shipped.methods, defaults.methods);
        let [rule] = &shipped.policy.rules[..] else {
            panic!("one rule")
        };
        assert_eq!(rule.mode, defaults.policy.default);
        assert_eq!(rule.answer, Some(Answer::default()));
    }

    #[test]
    fn the_manifests_count_and_reject_nothing() {
        let file = include_str!("../../deploy/kustomize/base/pendguard.toml");
        let settings = resolve(&[], file).unwrap();
        assert!(!settings.policy.enforces());
        assert_eq!(settings.policy.default, Mode::Audit);
        assert_eq!(settings.methods, [DEFAULT_METHOD]);
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
        assert!(!settings.policy.enforces());
    }

    #[test]
    fn enforcement_comes_from_a_flag_the_file_or_a_rule() {
        for (flags, file) in [
            (&["--mode", "enforce"][..], "mode = \"off\""),
            (&[], "mode = \"enforce\""),
            (
                &["--mode", "audit"],
                "[[rule]]\nmode = \"enforce\"\nanswer = \"unimplemented\"",
            ),
        ] {
            assert!(resolve(flags, file).unwrap().policy.enforces());
        }
    }

    #[test]
    fn how_it_is_done_is_passed_on() {
        let defaults = resolve(&[], "").unwrap();
        assert_eq!(defaults.tap, cli::Tap::Auto);
        assert_eq!(defaults.enforcer, cli::Enforcer::Auto);
        assert_eq!(defaults.pin_dir.to_str(), Some(cli::PIN_DIR));
        assert_eq!(defaults.lease, Duration::from_secs(3600));
        let flags = [
            "--tap",
            "tracepoint",
            "--enforcer",
            "gate",
            "--lease",
            "10s",
            "--pin-dir",
            "/a",
        ];
        let settings = resolve(&flags, "").unwrap();
        assert_eq!(settings.tap, cli::Tap::Tracepoint);
        assert_eq!(settings.enforcer, cli::Enforcer::Gate);
        assert_eq!(settings.lease, Duration::from_secs(10));
        assert_eq!(settings.pin_dir.to_str(), Some("/a"));
    }

    #[test]
    fn metrics_are_sent_only_where_to_is_said() {
        let interval = &["--otlp-interval", "5m"][..];
        assert_eq!(resolve(interval, "").unwrap().otlp, None);
        let both = [interval, &["--otlp-endpoint", "http://10.0.0.1:4317"]].concat();
        let target = resolve(&both, "").unwrap().otlp.unwrap();
        assert_eq!(target.endpoint.to_string(), "http://10.0.0.1:4317");
        assert_eq!(target.interval, Duration::from_secs(300));
    }

    #[test]
    fn what_must_not_be_enforced_is_named_with_line_and_key() {
        let methods =
            "methods = [\"/source.v1.Source/PendingFn\",\n\"/source.v1.Source/ReadFn\"]\n";
        let place = "p.toml:2: methods[1]: \"/source.v1.Source/ReadFn\": of source.v1.Source";
        for (flags, file, asked) in [
            (&["--mode", "enforce"][..], "", "(--mode enforce)"),
            (&[], "mode = \"enforce\"", "(p.toml:3: mode)"),
            (
                &["--mode", "off"],
                "[[rule]]\nmode = \"enforce\"",
                "(p.toml:4: rule[0].mode)",
            ),
        ] {
            let error = resolve(flags, &format!("{methods}{file}")).unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with(place), "{error}");
            assert!(error.contains(asked), "{error}");
        }
        // Watched, but not enforced; and methods of other services.
        assert!(resolve(&[], methods).is_ok());
        let other = "methods = [\"/a.B/C\"]\nmode = \"enforce\"";
        assert!(resolve(&[], other).is_ok());
    }

    #[test]
    fn answers_are_those_of_the_flag_where_no_rule_says_otherwise() {
        assert_eq!(resolve(&[], "").unwrap().policy.answer, None);
        let rules =
            "[[rule]]\nmode = \"off\"\n[[rule]]\nmode = \"off\"\nanswer = \"unimplemented\"";
        let quiet = resolve(&["--answer", "quiet"], rules).unwrap().policy;
        let of_rules: Vec<_> = quiet.rules.iter().map(|rule| rule.answer).collect();
        assert_eq!(quiet.answer, Some(Answer::Quiet));
        assert_eq!(of_rules, [None, Some(Answer::Unimplemented)]);
        assert!(resolve(&["--tap", "fentry", "--discover", "proc"], "").is_ok());
    }

    #[test]
    fn where_replicas_are_discovered() {
        let cluster = || Surroundings {
            in_cluster: true,
            kubeconfig: None,
        };
        let outside = || Surroundings {
            in_cluster: false,
            kubeconfig: Some("/k".into()),
        };
        let nowhere = Surroundings::default;
        let node = &["--node-name", "node-1"][..];
        let of = |flags: &[&str], node: &[&str], surroundings| {
            resolve_in(&[flags, node].concat(), "", surroundings).map(|s| s.discovery)
        };
        const KUBE: &[&str] = &["--discover", "kube"];
        const PROC: &[&str] = &["--discover", "proc"];
        for (flags, node, surroundings, expected) in [
            (&[][..], node, nowhere(), "proc"),
            (&[], node, outside(), "proc"),
            (&[], node, cluster(), "kube"),
            (PROC, node, cluster(), "proc"),
            (KUBE, node, cluster(), "kube"),
            (KUBE, node, outside(), "kube"),
        ] {
            let discovery = of(flags, node, surroundings).unwrap();
            assert_eq!(discovery.name(), expected, "{flags:?}");
            assert!(!matches!(discovery, Discovery::Proc(Some(_))));
        }
        // An agent that has not been told its node goes on as it did, and says what is missing; one that was told to ask doesn't start.
        match of(&[], &[], cluster()) {
            Ok(Discovery::Proc(Some(why))) => assert!(why.contains("NODE_NAME"), "{why}"),
            other => panic!("{other:?}"),
        }
        for node in [&[][..], &["--node-name", ""], &["--node-name", "My Node"]] {
            let error = of(KUBE, node, cluster()).unwrap_err().to_string();
            assert!(error.starts_with("--discover kube: "), "{error}");
            assert!(error.contains("NODE_NAME"), "{error}");
            assert!(of(PROC, node, cluster()).is_ok());
        }
        let error = of(KUBE, node, nowhere()).unwrap_err().to_string();
        assert!(error.contains("KUBERNETES_SERVICE_HOST"), "{error}");
    }
}
