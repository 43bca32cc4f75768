//! The source as a child process.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::locate::{self, Program};
use super::process::Process;
use super::{Launch, PeerError};
use crate::client::connect::Target;
use crate::protocol::{Event, Listening, Stats};
use crate::source::generator::Faults;

/// How long the source may take to tell its counters.
const STATS_LIMIT: Duration = Duration::from_secs(20);
/// The state of a connected socket in `/proc/net/unix` (`SS_CONNECTED`).
const CONNECTED: &str = "03";

/// The gRPC servers that sources have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceKind {
    /// tonic: Numaflow's Rust SDK.
    #[default]
    Rust,
    /// The C core: Numaflow's Python SDK.
    Python,
    /// grpc-js, on Node's nghttp2.
    Node,
    /// grpc-go.
    Go,
}

impl SourceKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rust, Self::Python, Self::Node, Self::Go];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust-source",
            Self::Python => "python-source",
            Self::Node => "node-source",
            Self::Go => "go-source",
        }
    }

    fn program(self) -> Result<Program, PeerError> {
        match self {
            Self::Rust => locate::source(),
            Self::Python => locate::python("source.py"),
            Self::Node => locate::node("source.js"),
            Self::Go => locate::go(&["source"]),
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How to start a source.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Which source. What is marked with *Rust* below, the others refuse.
    pub kind: SourceKind,
    /// The Unix socket to listen on. The SDK's server-info file goes beside it.
    pub socket: PathBuf,
    /// Listen on loopback TCP too, at a port that the kernel chooses. *Rust*
    pub also_tcp: bool,
    /// Bytes of each payload; `None` is the program's default.
    pub message_bytes: Option<usize>,
    /// What PendingFn answers; `None` is what is left of `total`, or "not available".
    pub pending_value: Option<i64>,
    /// How long PendingFn's handler takes, at least and at most, in milliseconds. *Rust*
    pub pending_delay: Option<(u64, u64)>,
    /// Messages there are; `None` is without end. *Rust*
    pub total: Option<u64>,
    /// Damage done on purpose. *Rust*
    pub faults: Faults,
    /// The process.
    pub launch: Launch,
}

impl SourceOptions {
    /// The defaults, on this socket: the Rust source.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            kind: SourceKind::default(),
            socket: socket.into(),
            also_tcp: false,
            message_bytes: None,
            pending_value: None,
            pending_delay: None,
            total: None,
            faults: Faults::default(),
            launch: Launch::default(),
        }
    }

    /// Sets a variable of the process.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.launch.env.insert(name.into(), value.into());
        self
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec!["--socket".into(), self.socket.clone().into_os_string()];
        let mut option = |name: &str, value: String| {
            // One word: Node takes a negative number that stands alone for an option.
            arguments.push(format!("{name}={value}").into());
        };
        if self.also_tcp {
            option("--also-tcp", "127.0.0.1:0".to_owned());
        }
        if let Some(bytes) = self.message_bytes {
            option("--message-bytes", bytes.to_string());
        }
        if let Some(value) = self.pending_value {
            option("--pending-value", value.to_string());
        }
        if let Some((least, most)) = self.pending_delay {
            option("--pending-delay", format!("{least}-{most}"));
        }
        if let Some(total) = self.total {
            option("--total", total.to_string());
        }
        for (name, message) in [
            ("--corrupt", self.faults.corrupt),
            ("--lose", self.faults.lose),
        ] {
            if let Some(message) = message {
                option(name, message.to_string());
            }
        }
        arguments
    }
}

/// A running source.
#[derive(Debug)]
pub struct Source {
    process: Process,
    listening: Listening,
}

impl Source {
    /// Starts a source, and returns when it listens.
    ///
    /// # Errors
    /// It could not be started, or does not listen.
    pub async fn start(options: &SourceOptions) -> Result<Self, PeerError> {
        let kind = options.kind;
        let arguments = options.arguments();
        let (process, first) =
            Process::start(kind.name(), kind.program()?, &options.launch, arguments).await?;
        match first {
            Event::Listening(listening) => Ok(Self { process, listening }),
            event => Err(process.unexpected("its start", event)),
        }
    }

    /// What it said when it started.
    #[must_use]
    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// The source's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where to connect.
    #[must_use]
    pub fn unix(&self) -> Target {
        Target::Unix(self.listening.socket.clone().into())
    }

    /// Where to connect by TCP, if it was started with that.
    #[must_use]
    pub fn tcp(&self) -> Option<Target> {
        self.listening.tcp.clone().map(Target::Tcp)
    }

    /// How many connections the Unix socket has now, as the kernel sees it: the SDK can't be asked.
    ///
    /// # Errors
    /// The process is gone.
    pub fn connections(&self) -> std::io::Result<usize> {
        // An accepted socket carries the listener's path; it is in the list of the process's network namespace.
        let table = std::fs::read_to_string(format!("/proc/{}/net/unix", self.pid()))?;
        // pynumaflow's has three slashes at its beginning: it asks the C core for `unix://` and the path.
        let bare = |path: &str| path.trim_start_matches('/').to_owned();
        let socket = bare(&self.listening.socket);
        let accepted = |line: &&str| {
            let mut columns = line.split_ascii_whitespace();
            columns.nth(5) == Some(CONNECTED) && columns.nth(1).map(bare).as_ref() == Some(&socket)
        };
        Ok(table.lines().filter(accepted).count())
    }

    /// The counters so far.
    ///
    /// # Errors
    /// It doesn't answer.
    pub async fn stats(&mut self) -> Result<Stats, PeerError> {
        self.ask("stats").await
    }

    /// Stops the source; its counters at the end.
    ///
    /// # Errors
    /// It doesn't end, or not well.
    pub async fn quit(mut self) -> Result<Stats, PeerError> {
        let stats = self.ask("quit").await?;
        self.process.ended().await?;
        Ok(stats)
    }

    /// Waits for the counters at the end of a source that was told to stop in another way, by a signal.
    ///
    /// # Errors
    /// It doesn't end, or not well.
    pub async fn stopped(mut self) -> Result<Stats, PeerError> {
        match self.process.receive("the end", STATS_LIMIT).await? {
            Event::Stats(stats) => {
                self.process.ended().await?;
                Ok(stats)
            }
            event => Err(self.process.unexpected("the end", event)),
        }
    }

    async fn ask(&mut self, command: &str) -> Result<Stats, PeerError> {
        match self.process.ask(command, STATS_LIMIT).await? {
            Event::Stats(stats) => Ok(stats),
            event => Err(self.process.unexpected(command, event)),
        }
    }
}
