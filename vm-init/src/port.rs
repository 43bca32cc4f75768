//! The way to the host.

use std::fs::{self, File};
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use vm_init::{Event, PORT};

/// Where the kernel lists the ports.
const PORTS: &str = "/sys/class/virtio-ports";

/// How long the port may take to appear after its driver.
const LIMIT: Duration = Duration::from_secs(20);

/// The virtio port that leads to the host.
pub struct Port {
    file: File,
    /// What was written last ended a line.
    at_line_start: bool,
}

impl Port {
    /// Opens it, as soon as it is there.
    pub fn open() -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(device) = find() {
                let path = format!("/dev/{device}");
                let file = File::options().write(true).open(&path).context(path)?;
                return Ok(Self {
                    file,
                    at_line_start: true,
                });
            }
            if Instant::now() > deadline {
                bail!("no port {PORT} in {PORTS}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends an event, on a line of its own.
    pub fn tell(&mut self, event: &Event) -> Result<()> {
        let separator = if self.at_line_start { "" } else { "\n" };
        let line = format!("{separator}{}", event.to_line());
        self.send(line.as_bytes())
    }

    /// Sends what a job printed.
    pub fn send(&mut self, output: &[u8]) -> Result<()> {
        self.file.write_all(output).context("the port")?;
        if let Some(last) = output.last() {
            self.at_line_start = *last == b'\n';
        }
        Ok(())
    }
}

fn find() -> Option<String> {
    fs::read_dir(PORTS).ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim() == PORT).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}
