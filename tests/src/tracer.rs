//! strace(1), which ends a process right before a system call: faults at a chosen moment.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::wait::{WAIT_LIMIT, within};

/// A tracer that is attached.
pub struct Tracer {
    child: Child,
    directory: TempDir,
}

impl Tracer {
    /// Attaches to all threads of a process. The first that begins its `n`th system call of those that `calls` names (separated by commas)
    /// ends the process, and does nothing of that call.
    ///
    /// # Errors
    /// There is no strace, or it can't attach.
    pub async fn kill_before(pid: u32, calls: &str, n: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut child = Command::new("strace")
            .args(["-f", "-s", "0", "-p", &pid.to_string()])
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:signal=SIGKILL:when={n}")])
            .arg("-o")
            .arg(directory.path().join("calls"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("strace")?;
        let stderr = child.stderr.take().context("its standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let line = within("strace is attached", WAIT_LIMIT, lines.next_line())
            .await??
            .context("strace ended")?;
        ensure!(line.contains("attached"), "{line}");
        // What else it says must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, directory })
    }

    /// What the process was about to do when it was ended: the call's name and first argument.
    ///
    /// # Errors
    /// It still runs.
    pub async fn ended_before(mut self) -> Result<String> {
        within("strace ends", WAIT_LIMIT, self.child.wait()).await??;
        let path: PathBuf = self.directory.path().join("calls");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        // Its end is on the same line, or missing; or on a line of its own that begins with `<...`.
        let mut calls = text
            .lines()
            .filter_map(|line| Some(line.split_once(' ')?.1.trim()));
        let call = calls
            .rfind(|call| call.contains('(') && !call.starts_with("<..."))
            .with_context(|| format!("no call was seen: {text}"))?;
        let end = call.match_indices(',').map(|(at, _)| at);
        let end = end
            .take(if call.starts_with("ioctl") { 2 } else { 1 })
            .last();
        Ok(call[..end.unwrap_or(call.len())].to_owned())
    }
}
