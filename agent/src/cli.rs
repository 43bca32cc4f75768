//! The command line and its environment variables.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{
    ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
};

use crate::export::otlp::Endpoint;
use crate::model::{Answer, Mode, Replica};
use crate::policy::{self, Selector};
use crate::version;

/// Exit status of a command line, an environment or a configuration that can't be followed (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;

/// Where `/metrics` is served.
pub const METRICS_LISTEN: &str = "127.0.0.1:9470";
/// Where the gRPC API is served.
pub const API_SOCKET: &str = "/run/pendguard/api.sock";
/// Where enforcement is pinned.
pub const PIN_DIR: &str = "/sys/fs/bpf/pendguard";
/// How long enforcement goes on without the agent.
pub const LEASE: &str = "1h";
/// The shortest lease: the agent renews it from time to time, and must not come too late on a busy node.
const LEASE_MIN: Duration = Duration::from_secs(10);
/// The shortest interval of `pendguard top`: more often would cost more than it shows.
const INTERVAL_MIN: Duration = Duration::from_millis(200);
/// The longest interval of `pendguard top`.
const INTERVAL_MAX: Duration = Duration::from_secs(60 * 60);
/// The longest lease: no node enforces for ever what nobody looks after.
const LEASE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How often metrics are sent over OTLP.
pub const OTLP_INTERVAL: &str = "60s";
/// The most often: each time, everything is read from the kernel.
const OTLP_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The most seldom: a collector takes what it hasn't heard of for longer for gone.
const OTLP_INTERVAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The environment variable with the node's name. Manifests call it so everywhere.
pub const NODE_NAME: &str = "NODE_NAME";

/// Octets of a Unix socket's path at most: `sun_path` has 108, the last of them 0.
pub const SOCKET_PATH_MAX: usize = 107;

/// Counts and rejects, on the node and without touching the pods, needless calls of a Numaflow source's replicas.
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
    /// Show the replicas of this node and their calls, live
    ///
    /// Rates and durations are those of the last interval; where it had no answer, durations are those since the replica was found,
    /// and shown with a `~`. The key ? shows the keys. NO_COLOR turns colours off. Exit status: 0, or 1 if standard output is no
    /// terminal. While no agent answers, it goes on trying.
    Top(TopArgs),
    /// Show calls of watched methods as they happen, a line each
    ///
    /// A call is shown when its answer has ended: when it was sent (UTC), whose it was, the method, the verdict, how it ended, how long that
    /// took, the pending count that it was answered, and pid:fd/stream of its connection. What could not be shown is counted in a line of its
    /// own. Exit status: 0 after Ctrl-C or when the reader has gone, 1 if no agent answers or it ends, 64 for bad usage.
    Watch(WatchArgs),
    /// Show what this node allows, and what would be used
    ///
    /// Changes nothing, and needs no running agent. Exit status: 0 if audit and enforcement are possible, 1 if only audit
    /// is, 2 if neither is.
    Doctor(DoctorArgs),
    /// Set the mode at run time: of the node, or of some of its replicas
    ///
    /// Without --namespace and --pod it is for every replica, wins over the rules of the configuration file, and replaces
    /// everything set at run time before. With either it is for the replicas that match, now and to come; what is set later
    /// wins. In effect when the command returns, and until the agent ends: what is to last belongs into the configuration
    /// file. Exit status: 0, 1 if no agent answers or it refuses, 64 for bad usage.
    Mode(ModeArgs),
    /// Take everything out of the kernel that is pinned, once the agent has stopped
    ///
    /// First nothing is rejected any more, then the hooks go. What the gate stands before stays until the connections close,
    /// because the kernel would throw away what they have queued; they pass untouched, and a later `detach` removes the rest.
    /// Exit status: 0 if nothing is left, 1 if something had to stay, an agent runs, or it fails.
    Detach(DetachArgs),
    /// Print the seccomp profile that a container of the agent needs, or install it for the kubelet
    ///
    /// Needs no privilege but to write there. Exit status: 0, or 1 if it can't be installed.
    Seccomp(SeccompArgs),
}

/// Flags of `pendguard seccomp`.
#[derive(Debug, Args)]
pub struct SeccompArgs {
    /// Write it to this directory as pendguard.json, instead: the kubelet's is /var/lib/kubelet/seccomp
    #[arg(long, value_name = "DIR")]
    pub install: Option<PathBuf>,
}

/// Flags of `pendguard detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Go on until nothing is left: wait for an agent that runs, and for connections that are behind the gate
    #[arg(long, conflicts_with = "json")]
    pub wait: bool,

    /// The same, and then do nothing until SIGTERM or SIGINT: for a DaemonSet, whose containers must not end
    #[arg(long, conflicts_with = "json")]
    pub stay: bool,

    /// Where the agent pinned; an absolute path
    #[arg(long, value_name = "PATH", env = "PENDGUARD_PIN_DIR", default_value = PIN_DIR, value_parser = pin_dir)]
    pub pin_dir: PathBuf,
}

/// Flags of `pendguard run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The mode where no rule says otherwise [default: audit]
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

    /// How calls are rejected, where the mode is enforce
    #[arg(
        long,
        value_enum,
        value_name = "ENFORCER",
        env = "PENDGUARD_ENFORCER",
        default_value = "auto"
    )]
    pub enforcer: Enforcer,

    /// How a rejected call ends, where no rule says otherwise; `quiet` is `unimplemented` wherever it isn't proven safe: with the
    /// enforcer gate, for clients that aren't tonic's, with --no-answers
    #[arg(
        long,
        value_enum,
        value_name = "ANSWER",
        env = "PENDGUARD_ANSWER",
        default_value = "quiet"
    )]
    pub answer: Answer,

    /// Where replicas are discovered
    #[arg(
        long,
        value_enum,
        value_name = "SOURCE",
        env = "PENDGUARD_DISCOVER",
        default_value = "auto"
    )]
    pub discover: Discover,

    /// The node's name in Kubernetes, for discovery kube: in a pod, spec.nodeName (downward API)
    #[arg(long, value_name = "NAME", env = NODE_NAME)]
    pub node_name: Option<String>,

    /// IP address and port of /metrics, /healthz and /readyz; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", env = "PENDGUARD_METRICS_LISTEN", default_value = METRICS_LISTEN, value_parser = listen_address)]
    pub metrics_listen: SocketAddr,

    /// Unix socket of the gRPC API, for root only; at most 107 octets
    #[arg(long, value_name = "PATH", env = "PENDGUARD_API_SOCKET", default_value = API_SOCKET, value_parser = SocketPath)]
    pub api_socket: PathBuf,

    /// Directory in a BPF file system in which enforcement is pinned; an absolute path
    #[arg(long, value_name = "PATH", env = "PENDGUARD_PIN_DIR", default_value = PIN_DIR, value_parser = pin_dir)]
    pub pin_dir: PathBuf,

    /// How long enforcement goes on when the agent has ended or hangs (10s, 15m, 1h 30m); from 10s to 7d
    #[arg(long, value_name = "DURATION", env = "PENDGUARD_LEASE", default_value = LEASE, value_parser = lease)]
    pub lease: Duration,

    /// Don't follow answers: no durations, no codes, no pending counts, and none of what that costs
    #[arg(long, env = "PENDGUARD_NO_ANSWERS", value_parser = clap::builder::BoolishValueParser::new())]
    pub no_answers: bool,

    /// Put a Kubernetes Event on a pod, once, when its calls begin to be rejected; with discovery kube, and a service account that may create events
    #[arg(long, env = "PENDGUARD_KUBE_EVENTS", value_parser = clap::builder::BoolishValueParser::new())]
    pub kube_events: bool,

    /// OpenTelemetry collector to which the metrics are sent over OTLP/gRPC, too: http://HOST:PORT [default: none]
    #[arg(long, value_name = "URL", env = "PENDGUARD_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<Endpoint>,

    /// How often metrics are sent to the collector (30s, 5m); from 1s to 1d
    #[arg(long, value_name = "DURATION", env = "PENDGUARD_OTLP_INTERVAL", default_value = OTLP_INTERVAL, value_parser = otlp_interval)]
    pub otlp_interval: Duration,

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

/// Flags of `pendguard top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// How often it is refreshed (500ms, 1s, 1m); from 200ms to 1h
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,

    /// Unix socket of the agent's gRPC API; at most 107 octets
    #[arg(long, value_name = "PATH", env = "PENDGUARD_API_SOCKET", default_value = API_SOCKET, value_parser = SocketPath)]
    pub api_socket: PathBuf,
}

/// Flags of `pendguard watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,

    /// Only in the namespaces that match this glob
    #[arg(long, value_name = "NS", value_parser = namespace)]
    pub namespace: Option<String>,

    /// Only of the MonoVertices and Pipelines that match this glob
    #[arg(long, value_name = "W", value_parser = workload)]
    pub workload: Option<String>,

    /// Only of the replica with this number, or of those without one: unknown
    #[arg(long, value_name = "N|unknown")]
    pub replica: Option<Replica>,

    /// Only with one of these verdicts, separated by commas
    #[arg(long, value_enum, value_name = "V", value_delimiter = ',')]
    pub verdict: Vec<Verdict>,

    /// Unix socket of the agent's gRPC API; at most 107 octets
    #[arg(long, value_name = "PATH", env = "PENDGUARD_API_SOCKET", default_value = API_SOCKET, value_parser = SocketPath)]
    pub api_socket: PathBuf,
}

/// What became of a call, as `pendguard watch` is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Verdict {
    /// It went through
    Admitted,
    /// It went through; enforcement would have rejected it
    WouldReject,
    /// The source never saw it
    Rejected,
}

/// Flags of `pendguard doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Directory in which `pendguard run` would pin enforcement; an absolute path
    #[arg(long, value_name = "PATH", env = "PENDGUARD_PIN_DIR", default_value = PIN_DIR, value_parser = pin_dir)]
    pub pin_dir: PathBuf,

    /// What it shares with the verbs that report.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// Flags of `pendguard mode`.
#[derive(Debug, Args)]
pub struct ModeArgs {
    /// The mode
    #[arg(value_enum, value_name = "MODE")]
    pub mode: Mode,

    /// How rejected calls end, of mode enforce; without it, as the agent's configuration says
    #[arg(long, value_enum, value_name = "ANSWER")]
    pub answer: Option<Answer>,

    /// Only replicas in the namespaces that match this glob
    #[arg(long, value_name = "NS", value_parser = namespace)]
    pub namespace: Option<String>,

    /// Only the replica in the pod of this name
    #[arg(long, value_name = "POD", value_parser = pod)]
    pub pod: Option<String>,

    /// What it shares with the verbs that report.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// How calls are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Enforcer {
    /// rewrite where the kernel allows it, else gate
    Auto,
    /// In the sender's buffer, put back when the system call is over (CAP_SYS_ADMIN, no lockdown)
    Rewrite,
    /// Before the source's end of the connection: Unix sockets (CAP_NET_ADMIN)
    Gate,
}

/// How sends are observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tap {
    /// fentry where the kernel allows it, else tracepoint
    Auto,
    /// The functions behind the system calls (fentry, fexit): no other system call pays
    Fentry,
    /// The tracepoints of the system calls (Linux 5.15)
    Tracepoint,
}

/// Where replicas are discovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Discover {
    /// kube in a pod with a service account, else proc
    Auto,
    /// The processes of this node and their environment
    Proc,
    /// The same, and whose their pods are by the API server; as the pod's service account, elsewhere as KUBECONFIG says
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

    /// How the setting was written: `--discover kube`, or `PENDGUARD_DISCOVER=kube`.
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
    /// Of `--enforcer`.
    pub enforcer: Origin,
    /// Of `--answer`.
    pub answer: Origin,
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
            enforcer: Origin::of(matches, "enforcer"),
            answer: Origin::of(matches, "answer"),
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
    if flag == "node-name" {
        return NODE_NAME.to_owned();
    }
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

/// Only numbers: the agent looks up no names. An IPv6 address needs no brackets: Kubernetes gives a pod its own without any, and there is always a
/// port behind the last colon.
fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    let bare = || {
        let (address, port) = text.rsplit_once(':')?;
        let address: Ipv6Addr = address.parse().ok()?;
        Some(SocketAddr::from((address, port.parse::<u16>().ok()?)))
    };
    text.parse().ok().or_else(bare).ok_or(
        "not an IP address and a port, such as 127.0.0.1:9470 or [::]:9470 (names aren't looked up)",
    )
}

fn pin_dir(text: &str) -> Result<PathBuf, &'static str> {
    // The agent and whoever detaches later must mean the same, wherever they were started.
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("not an absolute path, such as /sys/fs/bpf/pendguard")
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("no duration, such as 90s, 15m or 1h 30m: {error}"))
}

fn otlp_interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < OTLP_INTERVAL_MIN {
        Err("shorter than 1s".to_owned())
    } else if interval > OTLP_INTERVAL_MAX {
        Err("longer than 1d".to_owned())
    } else {
        Ok(interval)
    }
}

fn lease(text: &str) -> Result<Duration, String> {
    let lease = duration(text)?;
    if lease < LEASE_MIN {
        Err("shorter than 10s: the agent could not renew it in time on a busy node".to_owned())
    } else if lease > LEASE_MAX {
        Err(
            "longer than 7d: a node must not go on for ever with what no agent looks after"
                .to_owned(),
        )
    } else {
        Ok(lease)
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text)
        .map_err(|error| format!("no duration, such as 500ms, 1s or 1m: {error}"))?;
    if interval < INTERVAL_MIN {
        Err("shorter than 200ms: it would cost more than it shows".to_owned())
    } else if interval > INTERVAL_MAX {
        Err("longer than 1h: that isn't live".to_owned())
    } else {
        Ok(interval)
    }
}

fn workload(text: &str) -> Result<String, String> {
    policy::glob("workload", text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

fn namespace(text: &str) -> Result<String, String> {
    selects(Selector::new(Some(text), None), text)
}

fn pod(text: &str) -> Result<String, String> {
    selects(Selector::new(None, Some(text)), text)
}

fn selects(
    selector: Result<Selector, policy::SelectorError>,
    text: &str,
) -> Result<String, String> {
    selector
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
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
        assert_eq!(run.enforcer, Enforcer::Auto);
        assert_eq!(run.answer, Answer::Quiet);
        assert_eq!(run.pin_dir.to_str(), Some("/sys/fs/bpf/pendguard"));
        assert_eq!(run.lease, Duration::from_secs(3600));
        assert_eq!(run.otlp_endpoint, None);
        assert_eq!(run.otlp_interval, Duration::from_secs(60));
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
            (&["--enforcer", "tap"], "--enforcer"),
            (&["--answer", "loud"], "--answer"),
            (&["--pin-dir", ""], "--pin-dir"),
            (&["--pin-dir", "sys/fs/bpf"], "absolute"),
            (&["--lease", "soon"], "--lease"),
            (&["--lease", "3600"], "--lease"),
            (&["--lease=-1h"], "--lease"),
            (&["--lease", "9s"], "shorter than 10s"),
            (&["--lease", "9s 999ms"], "shorter than 10s"),
            (&["--lease", "0s"], "shorter than 10s"),
            (&["--lease", "7d 1s"], "longer than 7d"),
            (&["--lease", "99999999999999999999y"], "--lease"),
            (&["--otlp-endpoint", ""], "--otlp-endpoint"),
            (&["--otlp-endpoint", "collector:4317"], "--otlp-endpoint"),
            (&["--otlp-endpoint", "https://a:4317"], "without TLS"),
            (&["--otlp-endpoint", "http://a"], "no port"),
            (&["--otlp-interval", "0s"], "--otlp-interval"),
            (&["--otlp-interval", "999ms"], "shorter than 1s"),
            (&["--otlp-interval", "25h"], "longer than 1d"),
            (&["--otlp-interval", "60"], "--otlp-interval"),
            (&["--top"], "--top"),
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
        let run = run(&["--discover", "kube"]).unwrap();
        assert_eq!(run.origins.discover, Origin::Flag);
        assert_eq!(run.origins.mode, Origin::Default);
        assert_eq!(Origin::Flag.written("discover", "kube"), "--discover kube");
        assert_eq!(
            Origin::Environment.written("discover", "kube"),
            "PENDGUARD_DISCOVER=kube"
        );
    }

    #[test]
    fn where_metrics_are_served() {
        for (text, address) in [
            ("10.0.0.7:9470", "10.0.0.7:9470"),
            ("[fd00::7]:9470", "[fd00::7]:9470"),
            // $(POD_IP):9470
            ("fd00::7:9470", "[fd00::7]:9470"),
            ("2001:db8:1:2:3:4:5:6:9470", "[2001:db8:1:2:3:4:5:6]:9470"),
            (":::9470", "[::]:9470"),
        ] {
            let listen = run(&["--metrics-listen", text]).unwrap().metrics_listen;
            assert_eq!(listen.to_string(), address, "{text}");
        }
        for text in [
            "fd00::7",
            "2001:db8:1:2:3:4:5:6",
            ":9470",
            "fd00::7:",
            "fd00::7:65536",
        ] {
            assert!(
                refused(&["--metrics-listen", text]).contains("--metrics-listen"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_accepted() {
        for (text, seconds) in [
            ("10s", 10),
            ("90s", 90),
            ("15m", 900),
            ("1h 30m", 5400),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("1week", 604_800),
        ] {
            let lease = run(&["--lease", text]).unwrap().lease;
            assert_eq!(lease, Duration::from_secs(seconds), "{text}");
        }
        let run = run(&["--enforcer", "gate", "--tap", "fentry", "--pin-dir", "/a"]).unwrap();
        assert_eq!((run.enforcer, run.tap), (Enforcer::Gate, Tap::Fentry));
        assert_eq!(run.pin_dir.to_str(), Some("/a"));
    }

    #[test]
    fn a_mode_for_whom() {
        let mode = |arguments: &[&str]| -> Result<ModeArgs, Stop> {
            let all = ["pendguard", "mode"].iter().chain(arguments);
            match parse(all.map(OsString::from).collect())?.command {
                Command::Mode(mode) => Ok(mode),
                other => panic!("{other:?}"),
            }
        };
        let all = mode(&["off"]).unwrap();
        assert_eq!((all.mode, all.namespace, all.pod), (Mode::Off, None, None));
        assert_eq!(all.report.api_socket.to_str(), Some(API_SOCKET));
        let arguments = ["enforce", "--namespace", "a-*", "--pod", "p", "--json"];
        let some = mode(&arguments).unwrap();
        assert_eq!(some.mode, Mode::Enforce);
        assert_eq!(some.namespace.as_deref(), Some("a-*"));
        assert_eq!((some.pod.as_deref(), some.report.json), (Some("p"), true));
        for (arguments, named) in [
            (&[][..], "<MODE>"),
            (&["loud"], "loud"),
            (&["off", "audit"], "audit"),
            (&["off", "--namespace", ""], "--namespace"),
            (&["off", "--namespace", "a["], "--namespace"),
            (&["off", "--pod", ""], "--pod"),
            (&["off", "--pod", &"p".repeat(254)], "254 octets"),
        ] {
            let stop = mode(arguments).expect_err("must be refused");
            let text = stop.error.to_string();
            assert!(text.contains(named), "{arguments:?}: {text}");
            assert!(stop.error.use_stderr());
        }
    }

    #[test]
    fn which_calls_to_watch() {
        let watch = |arguments: &[&str]| -> Result<WatchArgs, Stop> {
            let all = ["pendguard", "watch"].iter().chain(arguments);
            match parse(all.map(OsString::from).collect())?.command {
                Command::Watch(watch) => Ok(watch),
                other => panic!("{other:?}"),
            }
        };
        let all = watch(&[]).unwrap();
        assert_eq!((all.json, all.namespace, all.workload), (false, None, None));
        assert_eq!((all.replica, &all.verdict[..]), (None, &[][..]));
        assert_eq!(all.api_socket.to_str(), Some(API_SOCKET));
        let some = watch(&[
            "--json",
            "--namespace=a-*",
            "--workload={b,c}",
            "--replica=unknown",
            "--verdict=would_reject,rejected",
        ])
        .unwrap();
        assert!(some.json);
        assert_eq!(some.namespace.as_deref(), Some("a-*"));
        assert_eq!(some.workload.as_deref(), Some("{b,c}"));
        assert_eq!(some.replica, Some(Replica::Unknown));
        assert_eq!(some.verdict, [Verdict::WouldReject, Verdict::Rejected]);
        let number = watch(&["--replica", "7"]).unwrap();
        assert_eq!(number.replica, Some(Replica::Number(7)));
        for (arguments, named) in [
            (&["--namespace", ""][..], "--namespace"),
            (&["--workload", "a["], "workload is no glob"),
            (&["--replica", "one"], "neither a number nor"),
            (&["--replica=-1"], "neither a number nor"),
            (&["--replica", "+1"], "neither a number nor"),
            (&["--verdict", "loud"], "--verdict"),
            (&["--verdict", "admitted,"], "--verdict"),
            (&["extra"], "extra"),
        ] {
            let stop = watch(arguments).expect_err("must be refused");
            let text = stop.error.to_string();
            assert!(text.contains(named), "{arguments:?}: {text}");
            assert!(stop.error.use_stderr());
        }
    }

    #[test]
    fn how_often_to_look() {
        let top = |arguments: &[&str]| -> Result<Duration, Stop> {
            let all = ["pendguard", "top"].iter().chain(arguments);
            match parse(all.map(OsString::from).collect())?.command {
                Command::Top(top) => Ok(top.interval),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(top(&[]).unwrap(), Duration::from_secs(1));
        assert_eq!(top(&["--interval", "200ms"]).unwrap(), INTERVAL_MIN);
        for (text, named) in [
            ("199ms", "shorter than 200ms"),
            ("2h", "longer than 1h"),
            ("1", "--interval"),
            ("often", "--interval"),
        ] {
            let error = top(&["--interval", text]).expect_err("must be refused");
            let error = error.error.to_string();
            assert!(error.contains(named), "{error}");
        }
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
