//! A terminal that a program runs in, for tests and pictures: what it would show, and keys to press.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::{Child, Command};
use vt100::{Parser, Screen};

use crate::wait::{WAIT_LIMIT, wait_for, within};

/// A terminal.
pub struct Terminal {
    control: File,
    parser: Arc<Mutex<Parser>>,
    child: Child,
}

impl Terminal {
    /// Runs `program` in one of this size. Its standard error goes there too.
    ///
    /// # Errors
    /// There is no pseudoterminal, or the program can't be started.
    pub fn run(program: Command, rows: u16, columns: u16) -> Result<Self> {
        let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("a pseudoterminal")?;
        grantpt(&control)?;
        unlockpt(&control)?;
        let name = ptsname(&control, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let end = rustix::fs::open(&name, flags, Mode::empty()).context("its other end")?;
        tcsetwinsize(&control, size(rows, columns))?;
        // In a session of its own, so that it is told when the size changes.
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--"])
            .arg(program.as_std().get_program())
            .args(program.as_std().get_args())
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .stdin(Stdio::from(end.try_clone()?))
            .stdout(Stdio::from(end.try_clone()?))
            .stderr(Stdio::from(end))
            .kill_on_drop(true);
        let child = command.spawn().context("setsid")?;
        // The command holds the program's end of the terminal, which is over when that is closed.
        drop(command);
        let parser = Arc::new(Mutex::new(Parser::new(rows, columns, 0)));
        let mut output = File::from(OwnedFd::try_clone(&control)?);
        let shown = Arc::clone(&parser);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut bytes) {
                let mut parser = shown.lock().unwrap_or_else(PoisonError::into_inner);
                parser.process(&bytes[..n]);
            }
        });
        Ok(Self {
            control: control.into(),
            parser,
            child,
        })
    }

    /// What it shows.
    #[must_use]
    pub fn screen(&self) -> Screen {
        let parser = self.parser.lock().unwrap_or_else(PoisonError::into_inner);
        parser.screen().clone()
    }

    /// Its lines.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let screen = self.screen();
        let (_, columns) = screen.size();
        screen.rows(0, columns).collect()
    }

    /// Presses keys.
    ///
    /// # Errors
    /// The program has ended.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.control.write_all(keys.as_bytes())?)
    }

    /// Has another size from now on.
    ///
    /// # Errors
    /// The program has ended.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let mut parser = self.parser.lock().unwrap_or_else(PoisonError::into_inner);
        parser.screen_mut().set_size(rows, columns);
        Ok(tcsetwinsize(&self.control, size(rows, columns))?)
    }

    /// Waits until it shows what is wanted.
    ///
    /// # Errors
    /// It doesn't.
    pub async fn until(&self, what: &str, shown: impl Fn(&[String]) -> bool) -> Result<()> {
        let mut lines = Vec::new();
        wait_for(what, WAIT_LIMIT, async || {
            lines = self.lines();
            Ok(shown(&lines).then_some(()))
        })
        .await
        .with_context(|| format!("the terminal shows:\n{}", lines.join("\n")))
    }

    /// Waits for the program's end, which must be a good one.
    ///
    /// # Errors
    /// It isn't, or doesn't come.
    pub async fn ended(mut self) -> Result<()> {
        let status = within("the program ends", WAIT_LIMIT, self.child.wait()).await??;
        ensure!(status.success(), "{status}: {}", self.lines().join("\n"));
        Ok(())
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
