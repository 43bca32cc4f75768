//! The processes of the load, as the one who measures sees them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pendguard_tests::wait::within;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{Answer, Called, Order};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A process that takes orders.
pub struct Process {
    child: Child,
    pid: u32,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

/// How much has been read, and when.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub nanos: u64,
    pub messages: u64,
}

impl Mark {
    /// Messages a second since another one.
    pub fn rate_since(self, before: Self) -> f64 {
        (self.messages - before.messages) as f64 * 1e9 / (self.nanos - before.nanos) as f64
    }
}

impl Process {
    /// Starts this program with other arguments, and waits until it is ready.
    pub async fn start<'a>(
        verb: &str,
        socket: &Path,
        options: &[&str],
        env: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // A replica is one by what it is given here, and by nothing else.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NUMAFLOW_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .arg(verb)
            .arg(socket)
            .args(options)
            .envs(env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| verb.to_owned())?;
        let mut process = Self {
            pid: child.id().context("it has ended")?,
            stdin: child.stdin.take().context("no standard input")?,
            lines: BufReader::new(child.stdout.take().context("no standard output")?).lines(),
            child,
        };
        let first = process.answer().await.with_context(|| verb.to_owned())?;
        ensure!(first == Answer::Ready, "{verb} says {first:?}");
        Ok(process)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    async fn answer(&mut self) -> Result<Answer> {
        let line = within("an answer", LIMIT, self.lines.next_line()).await??;
        // Why it ended stands on standard error.
        let line = line.context("the process has ended")?;
        serde_json::from_str(&line).with_context(|| line.clone())
    }

    async fn ask(&mut self, order: &Order) -> Result<Answer> {
        let line = serde_json::to_string(order)? + "\n";
        self.stdin.write_all(line.as_bytes()).await?;
        self.answer()
            .await
            .with_context(|| format!("told to {order:?}"))
    }

    /// Calls a path for so long.
    pub async fn call(&mut self, path: &str, limit: Duration, in_flight: usize) -> Result<Called> {
        let order = Order::Call {
            path: path.to_owned(),
            millis: limit.as_millis() as u64,
            in_flight,
        };
        match self.ask(&order).await? {
            Answer::Called(called) => Ok(called),
            other => bail!("{order:?} is answered {other:?}"),
        }
    }

    /// Begins to read.
    pub async fn read(&mut self, rate: u64) -> Result<()> {
        self.done(Order::Read { rate }).await
    }

    /// Puts a source's connections before an empty verdict program, or takes them away.
    pub async fn empty(&mut self, on: bool) -> Result<()> {
        self.done(Order::Empty { on }).await
    }

    async fn done(&mut self, order: Order) -> Result<()> {
        let answer = self.ask(&order).await?;
        ensure!(answer == Answer::Done, "{order:?} is answered {answer:?}");
        Ok(())
    }

    /// How much has been read.
    pub async fn mark(&mut self) -> Result<Mark> {
        self.marked(Order::Mark).await
    }

    /// Ends the reading.
    pub async fn stop(&mut self) -> Result<Mark> {
        self.marked(Order::Stop).await
    }

    async fn marked(&mut self, order: Order) -> Result<Mark> {
        match self.ask(&order).await? {
            Answer::Mark { nanos, messages } => Ok(Mark { nanos, messages }),
            other => bail!("{order:?} is answered {other:?}"),
        }
    }

    /// Ends it in good order.
    pub async fn end(mut self) -> Result<()> {
        drop(self.stdin);
        let status = within("the end of a process", LIMIT, self.child.wait()).await??;
        ensure!(status.success(), "a process of the load: {status}");
        Ok(())
    }
}
