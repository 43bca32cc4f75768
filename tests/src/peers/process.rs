//! A child process that answers commands by JSON lines.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::locate::Program;
use super::{Launch, PeerError, QUIT_LIMIT, START_LIMIT};
use crate::protocol::Event;
use crate::wait::scaled;

/// The variables that say who a replica is; a peer gets its own or none.
const IDENTITY_PREFIX: &str = "NUMAFLOW_";

/// A running peer. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts a peer, and waits for its first event. Its standard error is this process's.
    pub async fn start(
        name: &str,
        program: Program,
        launch: &Launch,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<(Self, Event), PeerError> {
        let mut words = launch
            .launcher
            .iter()
            .cloned()
            .chain([program.executable.into_os_string()])
            .chain(program.arguments);
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with(IDENTITY_PREFIX) {
                command.env_remove(variable);
            }
        }
        command.envs(&launch.env);

        let start_error = |error| PeerError::Start {
            name: name.to_owned(),
            error,
        };
        let mut child = command.spawn().map_err(start_error)?;
        let missing = || start_error(std::io::ErrorKind::BrokenPipe.into());
        let pid = child.id().ok_or_else(missing)?;
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let mut process = Self {
            name: name.to_owned(),
            pid,
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
        };
        let first = process.receive("its start", START_LIMIT).await?;
        Ok((process, first))
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a command and waits for its answer.
    pub async fn ask(&mut self, command: &str, limit: Duration) -> Result<Event, PeerError> {
        let line = format!("{command}\n");
        // A peer that failed has said why before it went; that is the better error.
        let sent = self.stdin.write_all(line.as_bytes()).await;
        match (self.receive(command, limit).await, sent) {
            (Err(PeerError::Ended { name, .. }), Err(error)) => {
                Err(PeerError::Pipe { name, error })
            }
            (received, _) => received,
        }
    }

    /// The error for an event that is not the answer.
    pub fn unexpected(&self, waiting_for: &str, event: Event) -> PeerError {
        PeerError::Unexpected {
            name: self.name.clone(),
            waiting_for: waiting_for.to_owned(),
            event: Box::new(event),
        }
    }

    /// Waits until the process ended, which it was told to do. Kills it if it doesn't.
    pub async fn ended(self) -> Result<(), PeerError> {
        let Self {
            name,
            mut child,
            stdin,
            ..
        } = self;
        drop(stdin);
        let limit = scaled(QUIT_LIMIT);
        let Ok(status) = timeout(limit, child.wait()).await else {
            return Err(PeerError::TimedOut {
                name,
                waiting_for: "quit".to_owned(),
                limit,
            });
        };
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(PeerError::Status { name, status }),
            Err(error) => Err(PeerError::Pipe { name, error }),
        }
    }

    /// Waits for an event.
    pub async fn receive(
        &mut self,
        waiting_for: &str,
        limit: Duration,
    ) -> Result<Event, PeerError> {
        let name = self.name.clone();
        let waiting_for = waiting_for.to_owned();
        let limit = scaled(limit);
        let Ok(line) = timeout(limit, self.lines.next_line()).await else {
            return Err(PeerError::TimedOut {
                name,
                waiting_for,
                limit,
            });
        };
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return Err(PeerError::Ended { name, waiting_for }),
            Err(error) => return Err(PeerError::Pipe { name, error }),
        };
        match serde_json::from_str(&line) {
            Ok(Event::Error { message }) => Err(PeerError::Failed { name, message }),
            Ok(event) => Ok(event),
            Err(_) => Err(PeerError::Garbled { name, line }),
        }
    }
}
