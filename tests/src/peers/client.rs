//! A client as a child process, whatever it is written in.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use super::locate::{self, Program};
use super::process::Process;
use super::{Launch, PeerError};
use crate::client::connect::Target;
use crate::protocol::{Background, Called, Command, Event, Every, Method, Ready};

/// How long a command may take by default; see [`ClientOptions::limit`].
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// What each call of a `call` command may add to that: many times what the slowest client needs.
const LIMIT_PER_CALL: Duration = Duration::from_millis(5);

/// The gRPC implementations: each has an encoder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// Rust: Numaflow's Rust data plane. Never indexes the path.
    Tonic,
    /// Go: Numaflow's Go data plane. Indexes the path.
    GrpcGo,
    /// The C core, through Python. Indexes the path, in plain strings.
    GrpcCore,
    /// Node, whose HTTP/2 is nghttp2's.
    GrpcJs,
}

impl ClientKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tonic, Self::GrpcGo, Self::GrpcCore, Self::GrpcJs];

    /// What the client calls itself.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tonic => "tonic",
            Self::GrpcGo => "grpc-go",
            Self::GrpcCore => "grpc-c-core",
            Self::GrpcJs => "grpc-js",
        }
    }

    fn program(self) -> Result<Program, PeerError> {
        match self {
            Self::Tonic => locate::tonic(),
            Self::GrpcGo => locate::go(&[]),
            Self::GrpcCore => locate::python("client.py"),
            Self::GrpcJs => locate::node("client.js"),
        }
    }
}

impl fmt::Display for ClientKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How to start a client.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Unary calls in flight; `None` is the program's default.
    pub concurrency: Option<usize>,
    /// Records of a read request; `None` is the program's default.
    pub batch: Option<u64>,
    /// When calls of a `call` command are given up, in milliseconds. Only tonic's client does that.
    pub give_up: Option<u64>,
    /// How long a command may take; `call` gets more for each call.
    pub limit: Duration,
    /// The process.
    pub launch: Launch,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            concurrency: None,
            batch: None,
            give_up: None,
            limit: ANSWER_LIMIT,
            launch: Launch::default(),
        }
    }
}

impl ClientOptions {
    /// Sets a variable of the process.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.launch.env.insert(name.into(), value.into());
        self
    }

    fn arguments(&self, target: &Target) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = match target {
            Target::Unix(path) => vec!["--socket".into(), path.into()],
            Target::Tcp(address) => vec!["--tcp".into(), address.into()],
        };
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                arguments.push(name.into());
                arguments.push(value.into());
            }
        };
        option("--concurrency", self.concurrency.map(|n| n.to_string()));
        option("--batch", self.batch.map(|n| n.to_string()));
        option("--give-up", self.give_up.map(|n| n.to_string()));
        arguments
    }
}

/// A running client, connected.
#[derive(Debug)]
pub struct Client {
    process: Process,
    ready: Ready,
    limit: Duration,
}

impl Client {
    /// Starts a client, and returns when its source answered IsReady.
    ///
    /// # Errors
    /// It could not be started, or does not reach the source.
    pub async fn start(
        kind: ClientKind,
        target: &Target,
        options: &ClientOptions,
    ) -> Result<Self, PeerError> {
        let arguments = options.arguments(target);
        let (process, first) =
            Process::start(kind.name(), kind.program()?, &options.launch, arguments).await?;
        match first {
            Event::Ready(ready) => Ok(Self {
                process,
                ready,
                limit: options.limit,
            }),
            event => Err(process.unexpected("its start", event)),
        }
    }

    /// The client's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it said when it started.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Makes `count` calls of a method.
    ///
    /// # Errors
    /// They were not all answered in time.
    pub async fn call(&mut self, method: Method, count: u64) -> Result<Called, PeerError> {
        self.calls(Command::Call { method, count }, count).await
    }

    /// Makes `count` calls of any path, such as one that the source doesn't have.
    ///
    /// # Errors
    /// They were not all answered in time.
    pub async fn call_path(&mut self, path: &str, count: u64) -> Result<Called, PeerError> {
        let path = path.to_owned();
        self.calls(Command::CallPath { path, count }, count).await
    }

    async fn calls(&mut self, command: Command, count: u64) -> Result<Called, PeerError> {
        let calls = u32::try_from(count).unwrap_or(u32::MAX);
        let limit = self.limit + LIMIT_PER_CALL.saturating_mul(calls);
        match self.ask(command, limit).await? {
            (_, Event::Called(called)) => Ok(called),
            (command, event) => Err(self.process.unexpected(&command, event)),
        }
    }

    /// Opens as many more connections, on each of which IsReady is asked and answered. Only grpc-go's client does that.
    ///
    /// # Errors
    /// It doesn't.
    pub async fn open(&mut self, connections: u64) -> Result<(), PeerError> {
        let command = format!("open {connections}");
        let limit = self.limit;
        match self.process.ask(&command, limit).await? {
            Event::Called(_) => Ok(()),
            event => Err(self.process.unexpected(&command, event)),
        }
    }

    /// Makes `count` calls of a method on each of these, one after another.
    ///
    /// # Errors
    /// They were not all answered in time.
    pub async fn fan(&mut self, method: Method, count: u64) -> Result<Called, PeerError> {
        let command = format!("fan {method} {count}");
        let limit = self.limit;
        match self.process.ask(&command, limit).await? {
            Event::Called(called) => Ok(called),
            event => Err(self.process.unexpected(&command, event)),
        }
    }

    /// Starts reading and acknowledging, at `rate` messages per second (0: as fast as possible), and asking IsReady.
    /// Returns when the first batch has been read.
    ///
    /// # Errors
    /// Reading didn't start.
    pub async fn background_on(&mut self, rate: u64) -> Result<(), PeerError> {
        let command = Command::BackgroundOn { rate };
        match self.ask(command, self.limit).await? {
            (_, Event::Reading) => Ok(()),
            (command, event) => Err(self.process.unexpected(&command, event)),
        }
    }

    /// Stops that; what came of it.
    ///
    /// # Errors
    /// It doesn't answer. (What went wrong in the background is in the report.)
    pub async fn background_off(&mut self) -> Result<Background, PeerError> {
        match self.ask(Command::BackgroundOff, self.limit).await? {
            (_, Event::Background(report)) => Ok(report),
            (command, event) => Err(self.process.unexpected(&command, event)),
        }
    }

    /// Calls PendingFn at an interval of at least a millisecond, until told to stop.
    ///
    /// # Errors
    /// It doesn't answer.
    pub async fn every(&mut self, period: Duration) -> Result<(), PeerError> {
        let millis = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        let command = Command::Every { millis };
        match self.ask(command, self.limit).await? {
            (_, Event::Ticking) => Ok(()),
            (command, event) => Err(self.process.unexpected(&command, event)),
        }
    }

    /// Stops that; what came of it.
    ///
    /// # Errors
    /// It doesn't answer.
    pub async fn every_off(&mut self) -> Result<Every, PeerError> {
        match self.ask(Command::EveryOff, self.limit).await? {
            (_, Event::Every(every)) => Ok(every),
            (command, event) => Err(self.process.unexpected(&command, event)),
        }
    }

    /// Ends the client in good order.
    ///
    /// # Errors
    /// It doesn't end, or not well.
    pub async fn quit(mut self) -> Result<(), PeerError> {
        match self.ask(Command::Quit, self.limit).await {
            // The end of its output is the answer.
            Err(PeerError::Ended { .. }) => self.process.ended().await,
            Err(error) => Err(error),
            Ok((command, event)) => Err(self.process.unexpected(&command, event)),
        }
    }

    async fn ask(
        &mut self,
        command: Command,
        limit: Duration,
    ) -> Result<(String, Event), PeerError> {
        let command = command.to_string();
        let event = self.process.ask(&command, limit).await?;
        Ok((command, event))
    }
}
