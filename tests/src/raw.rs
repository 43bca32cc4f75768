//! `peers/raw/raw.py` as a child process: sends exactly what it is told to.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::wait::within;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The script.
pub fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers/raw/raw.py")
}

/// A command that runs the script with this environment and no other `NUMAFLOW_*` variable.
pub fn command<'a>(env: impl IntoIterator<Item = (&'a str, &'a str)>) -> Command {
    command_behind(&[], env)
}

/// The same, of a program that becomes it: the first of `launcher`, with the others and the script's own as its arguments.
pub fn command_behind<'a>(
    launcher: &[&str],
    env: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Command {
    let words = [launcher, &["python3"]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
        .arg(script())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The script, running.
pub struct Raw {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Raw {
    /// Starts it and waits until it reads commands.
    pub async fn start<'a>(env: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        Self::of(command(env)).await
    }

    /// The same of a command that becomes it.
    pub async fn of(mut command: Command) -> Result<Self> {
        let mut child = command.spawn().context("python3")?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut raw = Self {
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
        };
        raw.line("ready").await?;
        Ok(raw)
    }

    async fn line(&mut self, prefix: &str) -> Result<String> {
        let line = within("raw.py answers", LIMIT, self.lines.next_line())
            .await??
            .context("raw.py ended")?;
        match line.strip_prefix(prefix) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => bail!("raw.py says {line:?}"),
        }
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Runs a command and returns its answer.
    pub async fn run(&mut self, command: &str) -> Result<String> {
        self.stdin
            .write_all(format!("{command}\n").as_bytes())
            .await?;
        self.line("ok")
            .await
            .with_context(|| command.chars().take(80).collect::<String>())
    }

    /// Runs `exec` and waits until the new program reads commands.
    pub async fn exec(&mut self) -> Result<()> {
        self.stdin.write_all(b"exec\n").await?;
        self.line("ready").await?;
        Ok(())
    }

    /// A connection that has begun: its descriptor.
    pub async fn connection(&mut self, kind: &str) -> Result<String> {
        let fd = self.run(&format!("connect {kind}")).await?;
        self.run(&format!("start {fd}")).await?;
        Ok(fd)
    }

    /// Ends it.
    pub async fn end(mut self) -> Result<()> {
        drop(self.stdin);
        self.child.wait().await?;
        Ok(())
    }
}
