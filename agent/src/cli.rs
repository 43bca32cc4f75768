//! The command line and its environment variables.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{
    ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
};

use crate::model::Mode;
use crate::version;

/// Exit status of a command line, an environment or a configuration that can't be followed (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;

/// Where `/metrics` is served.
pub const METRICS_LISTEN: &str = "127.0.0.1:9470";
/// Where the gRPC API is served.
pub const API_SOCKET: &str = "/run/pendguard/api.sock";

/// Octets of a Unix socket's path at most: `sun_path` has 108, the last of them 0.
pub const SOCKET_PATH_MAX: usize = 107;

/// Counts, on the node and without touching the pods, which replicas of a Numaflow source ask for its pending count.
#[derive(Debug, Parser)]
#[command(name = "pendguard", version = version::LONG, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent on this node, until SIGTERM or SIGINT
    ///
    /// Every flag can also be given as the environment variable named beside it; a flag wins over its variable, and both
    /// win over the configuration file. Exit status: 0 after a clean stop, 1 if the agent can't start or has failed, 64
    /// for flags, variables or a configuration that can't be followed.
    Run(RunArgs),
    /// Show the replicas of this node, their calls, and the state of the agent
    ///
    /// Asks the running agent over its API socket. Exit status: 0, or 1 if no agent answers.
    Status(ReportArgs),
    /// Show what this node allows, and what would be used
    ///
    /// Changes nothing, and needs no running agent. Exit status: 0 if audit and enforcement are possible, 1 if only audit
    /// is, 2 if neither is. This version has no enforcement, so 1 is the best.
    Doctor(ReportArgs),
}

/// Flags of `pendguard run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The mode where no rule says otherwise; this version refuses enforce [default: audit]
    #[arg(long, value_enum, value_name = "MODE", env = "PENDGUARD_MODE")]
    pub mode: Option<Mode>,

    /// How the send system calls of watched processes are observed
    #[arg(
        long,
        value_enum,
        value_name = "TAP",
        env = "PENDGUARD_TAP",
        default_value = "auto"
    )]
    pub tap: Tap,

    /// Where replicas are discovered
    #[arg(
        long,
        value_enum,
        value_name = "SOURCE",
        env = "PENDGUARD_DISCOVER",
        default_value = "auto"
    )]
    pub discover: Discover,

    /// IP address and port of /metrics, /healthz and /readyz; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", env = "PENDGUARD_METRICS_LISTEN", default_value = METRICS_LISTEN, value_parser = listen_address)]
    pub metrics_listen: SocketAddr,

    /// Unix socket of the gRPC API, for root only; at most 107 octets
    #[arg(long, value_name = "PATH", env = "PENDGUARD_API_SOCKET", default_value = API_SOCKET, value_parser = SocketPath)]
    pub api_socket: PathBuf,

    /// Configuration file (TOML): mode, allowed_replicas, methods and [[rule]]
    #[arg(long, value_name = "FILE", env = "PENDGUARD_CONFIG")]
    pub config: Option<PathBuf>,

    /// Form of the log on standard error; RUST_LOG says how much is logged [default: info]
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        env = "PENDGUARD_LOG_FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,

    /// Which of these came from where.
    #[arg(skip)]
    pub origins: Origins,
}

/// Flags of the verbs that report.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Print JSON, with all there is to know
    #[arg(long)]
    pub json: bool,

    /// Unix socket of the agent's gRPC API; at most 107 octets
    #[arg(long, value_name = "PATH", env = "PENDGUARD_API_SOCKET", default_value = API_SOCKET, value_parser = SocketPath)]
    pub api_socket: PathBuf,
}

/// How sends are observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tap {
    /// The best that this node allows: in this version, tracepoints
    Auto,
    /// Not in this version.
    #[value(hide = true)]
    Fentry,
    /// The tracepoints of the system calls (Linux 5.15)
    Tracepoint,
}

/// Where replicas are discovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Discover {
    /// The best that there is: in this version, /proc
    Auto,
    /// The processes of this node and their environment
    Proc,
    /// Not in this version.
    #[value(hide = true)]
    Kube,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// Where a setting comes from, for messages about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody has said anything.
    #[default]
    Default,
    /// The command line.
    Flag,
    /// An environment variable.
    Environment,
}

impl Origin {
    fn of(matches: &ArgMatches, id: &str) -> Self {
        match matches.value_source(id) {
            Some(ValueSource::CommandLine) => Self::Flag,
            Some(ValueSource::EnvVariable) => Self::Environment,
            _ => Self::Default,
        }
    }

    /// How the setting was written: `--tap fentry`, or `PENDGUARD_TAP=fentry`.
    pub fn written(self, flag: &str, value: &str) -> String {
        match self {
            Self::Environment => format!("{}={value}", variable(flag)),
            Self::Default | Self::Flag => format!("--{flag} {value}"),
        }
    }
}

/// Where the settings that may be refused later come from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origins {
    /// Of `--mode`.
    pub mode: Origin,
    /// Of `--tap`.
    pub tap: Origin,
    /// Of `--discover`.
    pub discover: Origin,
}

/// What the command line came to, where it isn't a command: help, a version or an error.
#[derive(Debug)]
pub struct Stop {
    error: clap::Error,
    note: Option<String>,
}

impl Stop {
    /// Prints it where it belongs, and says the exit status.
    pub fn report(&self) -> u8 {
        // A closed standard output or error is no reason to fail differently.
        let _ = self.error.print();
        if let Some(note) = &self.note {
            eprintln!("{note}");
        }
        if self.error.use_stderr() {
            EXIT_USAGE
        } else {
            0
        }
    }
}

/// Reads a command line, the program's name first, and the environment.
pub fn parse(arguments: Vec<OsString>) -> Result<Cli, Stop> {
    let stop = |error: clap::Error| {
        let note = from_environment(&error, &arguments);
        Stop { error, note }
    };
    let matches = Cli::command()
        .try_get_matches_from(&arguments)
        .map_err(stop)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(stop)?;
    if let (Command::Run(run), Some((_, matches))) = (&mut cli.command, matches.subcommand()) {
        run.origins = Origins {
            mode: Origin::of(matches, "mode"),
            tap: Origin::of(matches, "tap"),
            discover: Origin::of(matches, "discover"),
        };
    }
    Ok(cli)
}

/// The environment variables that begin like ours and are none of ours: a slip of the pen that would otherwise go
/// unnoticed. Those that Kubernetes makes for a Service named `pendguard…` are not meant.
pub fn unknown_variables(names: impl Iterator<Item = OsString>) -> Vec<String> {
    let command = Cli::command();
    let known: Vec<&OsStr> = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .filter_map(clap::Arg::get_env)
        .chain(["PENDGUARD_BPF_OBJ", "PENDGUARD_REVISION"].map(OsStr::new))
        .collect();
    let mut unknown: Vec<String> = names
        .filter(|name| {
            name.as_bytes().starts_with(b"PENDGUARD_") && !known.contains(&name.as_os_str())
        })
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| !name.contains("_SERVICE_") && !name.contains("_PORT"))
        .collect();
    unknown.sort();
    unknown
}

fn variable(flag: &str) -> String {
    format!("PENDGUARD_{}", flag.replace('-', "_").to_uppercase())
}

/// clap names the flag even where its value came from the environment; this tells.
fn from_environment(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let flag = argument.split([' ', '=']).next()?.strip_prefix("--")?;
    let given = arguments.iter().any(|a| {
        a.to_str()
            .and_then(|a| a.strip_prefix("--"))
            .and_then(|a| a.strip_prefix(flag))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    });
    let variable = variable(flag);
    (!given && std::env::var_os(&variable).is_some())
        .then(|| format!("note: the value comes from the environment variable {variable}"))
}

/// Only numbers: the agent looks up no names.
fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "not an IP address and a port, such as 127.0.0.1:9470 or [::]:9470 (names aren't looked up)")
}

/// Parses the path of a Unix socket, and says so if no socket can have it.
#[derive(Clone)]
struct SocketPath;

impl clap::builder::TypedValueParser for SocketPath {
    type Value = PathBuf;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<PathBuf, clap::Error> {
        let length = value.len();
        let reason = if length == 0 {
            "it is empty".to_owned()
        } else if length > SOCKET_PATH_MAX {
            format!("it has {length} octets, and a Unix socket's path at most {SOCKET_PATH_MAX}")
        } else {
            return Ok(PathBuf::from(value));
        };
        let mut error = clap::Error::new(clap::error::ErrorKind::ValueValidation).with_cmd(command);
        if let Some(argument) = argument {
            error.insert(
                ContextKind::InvalidArg,
                ContextValue::String(argument.to_string()),
            );
        }
        error.insert(
            ContextKind::InvalidValue,
            ContextValue::String(value.to_string_lossy().into_owned()),
        );
        error.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![clap::builder::StyledStr::from(reason)]),
        );
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<RunArgs, Stop> {
        let all = ["pendguard", "run"].iter().chain(arguments);
        match parse(all.map(OsString::from).collect())?.command {
            Command::Run(run) => Ok(run),
            other => panic!("{other:?}"),
        }
    }

    fn refused(arguments: &[&str]) -> String {
        let stop = run(arguments).expect_err("must be refused");
        assert!(stop.error.use_stderr());
        stop.error.to_string()
    }

    #[test]
    fn clap_finds_nothing_wrong_with_it() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_contract() {
        let run = run(&[]).unwrap();
        assert_eq!(run.mode, None);
        assert_eq!((run.tap, run.discover), (Tap::Auto, Discover::Auto));
        assert_eq!(run.metrics_listen.to_string(), METRICS_LISTEN);
        assert_eq!(run.api_socket.to_str(), Some(API_SOCKET));
        assert_eq!(run.config, None);
        assert_eq!(run.log_format, LogFormat::Text);
    }

    #[test]
    fn every_flag_of_run_has_a_variable_of_its_name() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for argument in run.get_arguments().filter(|a| a.get_long() != Some("help")) {
            let flag = argument.get_long().unwrap();
            assert_eq!(
                argument.get_env().and_then(OsStr::to_str),
                Some(variable(flag).as_str())
            );
        }
    }

    #[test]
    fn bad_flags_are_named() {
        for (arguments, named) in [
            (&["--mode", "loud"][..], "--mode"),
            (&["--mode"], "--mode"),
            (&["--tap", "kprobe"], "--tap"),
            (&["--discover", "dns"], "--discover"),
            (&["--metrics-listen", "localhost:9470"], "--metrics-listen"),
            (&["--metrics-listen", "127.0.0.1"], "--metrics-listen"),
            (&["--metrics-listen", "127.0.0.1:70000"], "--metrics-listen"),
            (&["--api-socket", ""], "--api-socket"),
            (&["--api-socket", &"x".repeat(108)], "--api-socket"),
            (&["--log-format", "xml"], "--log-format"),
            (&["--lease", "1h"], "--lease"),
            (&["--mode", "audit", "--mode", "off"], "--mode"),
            (&["extra"], "extra"),
        ] {
            let text = refused(arguments);
            assert!(text.contains(named), "{arguments:?}: {text}");
        }
        assert!(refused(&["--api-socket", &"x".repeat(108)]).contains("108 octets"));
        assert!(run(&["--api-socket", &"x".repeat(107)]).is_ok());
    }

    #[test]
    fn where_a_setting_comes_from() {
        let run = run(&["--tap", "fentry"]).unwrap();
        assert_eq!(run.origins.tap, Origin::Flag);
        assert_eq!(run.origins.mode, Origin::Default);
        assert_eq!(Origin::Flag.written("tap", "fentry"), "--tap fentry");
        assert_eq!(
            Origin::Environment.written("tap", "fentry"),
            "PENDGUARD_TAP=fentry"
        );
    }

    #[test]
    fn variables_that_nobody_reads() {
        let names = [
            "PATH",
            "PENDGUARD_MODE",
            "PENDGUARD_MOED",
            "PENDGUARD_API_SOCKET",
            "PENDGUARD_SERVICE_HOST",
            "PENDGUARD_PORT",
            "PENDGUARD_METRICS_PORT_9470_TCP_ADDR",
        ];
        assert_eq!(
            unknown_variables(names.iter().map(OsString::from)),
            ["PENDGUARD_MOED"]
        );
    }
}
