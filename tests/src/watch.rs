//! `pendguard watch --json` as a child process.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::agent::{Agent, binary};
use crate::wait::{WAIT_LIMIT, wait_for, within};

/// How long a call is waited for until another one is made.
const PATIENCE: Duration = Duration::from_millis(500);

/// It, running until it is dropped.
pub struct Watch {
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    /// Watches an agent's calls, of which `arguments` say which.
    ///
    /// # Errors
    /// It doesn't start.
    pub fn start(agent: &Agent, arguments: &[&str]) -> Result<Self> {
        let mut process = Command::new(binary()?)
            .args(["watch", "--json"])
            .args(arguments)
            .arg("--api-socket")
            .arg(agent.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        Ok(Self {
            _process: process,
            lines,
        })
    }

    /// The first line that it prints. Until the kernel has been told that somebody watches no call is told of, so `call` makes single ones.
    ///
    /// # Errors
    /// None was told within the limit, a call failed, or it has ended.
    pub async fn first(&mut self, mut call: impl AsyncFnMut() -> Result<()>) -> Result<String> {
        wait_for("the first call is told", WAIT_LIMIT, async || {
            call().await?;
            match tokio::time::timeout(PATIENCE, self.lines.next_line()).await {
                Ok(line) => Ok(Some(line?.context("watch has ended")?)),
                Err(_) => Ok(None),
            }
        })
        .await
    }

    /// The next call.
    ///
    /// # Errors
    /// None was told within the limit, or it has ended.
    pub async fn next(&mut self) -> Result<serde_json::Value> {
        let line = within("a call is told", WAIT_LIMIT, self.lines.next_line()).await??;
        Ok(serde_json::from_str(&line.context("watch has ended")?)?)
    }
}
