//! `pg-stress` as the processes of a pod.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{reader, sender};
use crate::agent::Pod;
use crate::peers::stress_program;
use crate::wait::{WAIT_LIMIT, wait_for, within};

/// How long a sender may take that has a limit of its own.
const SEND_LIMIT: Duration = Duration::from_secs(90);
/// Looks that find the same, until a sender is taken to stand still: its pauses are far shorter.
const STILL: u32 = 15;

/// A pod whose two ends are `pg-stress`.
pub struct Pair {
    /// Who it is.
    pub pod: Pod,
    directory: TempDir,
    reader: Child,
    calls: bool,
}

impl Pair {
    /// Starts the end of the source. `calls`: there will be nothing but calls.
    ///
    /// # Errors
    /// It can't be started, or doesn't listen.
    pub async fn start(pod: Pod, calls: bool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("source.sock");
        let mut reader = command(&directory, calls, pod.udsource())?;
        let mut reader = reader.arg("read").stdin(Stdio::piped()).spawn()?;
        wait_for("it listens", WAIT_LIMIT, async || {
            let ended = reader.try_wait()?;
            ensure!(ended.is_none(), "the reader ended: {ended:?}");
            Ok(path.exists().then_some(()))
        })
        .await?;
        Ok(Self {
            pod,
            directory,
            reader,
            calls,
        })
    }

    /// Makes `together` times `count` connections, of which the first has the number `first`; returns when they have ended.
    ///
    /// # Errors
    /// One of them was cut off, or it takes longer than `limit`.
    pub async fn send(
        &self,
        together: u64,
        count: u64,
        first: u64,
        limit: Duration,
    ) -> Result<sender::Report> {
        let mut command = command(&self.directory, self.calls, self.pod.numa())?;
        let arguments = [
            format!("--together={together}"),
            format!("--count={count}"),
            format!("--first={first}"),
        ];
        let sender = command.arg("send").args(arguments).spawn()?;
        let output = within("all is sent", limit, sender.wait_with_output()).await??;
        report(&output).context("the sender")
    }

    /// The reader's process.
    #[must_use]
    pub fn reader(&self) -> Option<u32> {
        self.reader.id()
    }

    /// Begins one connection that goes on for so many sends.
    ///
    /// # Errors
    /// It can't be started.
    pub fn send_items(&self, items: u64) -> Result<Sending> {
        let mut command = command(&self.directory, self.calls, self.pod.numa())?;
        let arguments = ["send", "--count=1", "--first=1"];
        let child = command
            .args(arguments)
            .arg(format!("--items={items}"))
            .spawn()?;
        Ok(Sending { child })
    }

    /// Ends the source's end; what it read.
    ///
    /// # Errors
    /// It doesn't end, or not well.
    pub async fn read(mut self) -> Result<reader::Report> {
        drop(self.reader.stdin.take());
        let output = self.reader.wait_with_output();
        let output = within("all is read", WAIT_LIMIT, output).await??;
        report(&output).context("the reader")
    }
}

/// A sender at work.
pub struct Sending {
    child: Child,
}

impl Sending {
    /// Waits until it sends no more: it has sent all, or can't.
    ///
    /// # Errors
    /// It goes on, or has ended.
    pub async fn stands_still(&self) -> Result<()> {
        let pid = self.child.id().context("the sender has ended")?;
        let mut last = (String::new(), 0);
        wait_for("it stands still", WAIT_LIMIT, async || {
            // The number of system calls that wrote, and what they wrote.
            let now = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
            let same = now == last.0;
            last = (now, if same { last.1 + 1 } else { 0 });
            Ok((last.1 == STILL).then_some(()))
        })
        .await
    }

    /// Waits for its end; what it sent.
    ///
    /// # Errors
    /// It was cut off.
    pub async fn ended(self) -> Result<sender::Report> {
        let output = self.child.wait_with_output();
        let output = within("all is sent", SEND_LIMIT, output).await??;
        report(&output).context("the sender")
    }
}

fn command<'a>(
    directory: &TempDir,
    calls: bool,
    env: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Command> {
    let mut command = Command::new(stress_program()?);
    command
        .arg("--socket")
        .arg(directory.path().join("source.sock"))
        .args(calls.then_some("--calls"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .envs(env)
        .kill_on_drop(true);
    Ok(command)
}

fn report<T: DeserializeOwned>(output: &Output) -> Result<T> {
    ensure!(output.status.success(), "it ended with {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}
