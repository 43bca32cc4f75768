//! What `cargo xtask vm` and the first process of its virtual machines say to each other.
//!
//! The host puts a [`Plan`] beside the program into the initramfs. What the plan's jobs print, and [`Event`]s between it,
//! come back through one port of the machine; the kernel's messages go another way, the serial line.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The name of the virtio port that leads to the host.
pub const PORT: &str = "pendguard";

/// Where the plan is in the initramfs.
pub const PLAN: &str = "/plan.json";

/// Where the modules are in the initramfs.
pub const MODULES: &str = "/modules";

/// Begins a line that is an event: the record separator, which no test prints.
const MARK: char = '\u{1e}';

/// What the machine is to do.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Files in [`MODULES`], each after those that it needs.
    pub modules: Vec<String>,
    /// The block device that has the root file system.
    pub root: String,
    /// One after another.
    pub jobs: Vec<Job>,
}

/// A program to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What it is, to a person.
    pub name: String,
    /// Its path on the root file system.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// Where it starts.
    pub directory: String,
    /// It is killed after this many seconds.
    pub limit: u64,
}

/// What happens in the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The file systems are there.
    Booted {
        /// The kernel's release.
        kernel: String,
    },
    /// A job begins.
    Begin {
        /// Its place in the plan.
        job: usize,
    },
    /// A job ended.
    End {
        /// Its place in the plan.
        job: usize,
        /// How.
        end: End,
        /// How long it took, by the machine's clock.
        seconds: f64,
    },
    /// The machine can't do what it is to do.
    Failed {
        /// Why.
        message: String,
    },
    /// All jobs have ended.
    Finished,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It was killed when its time was over.
    TimedOut,
    /// It could not be started.
    NotStarted(String),
}

impl Event {
    /// The line that says so.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Nothing in an event has a form that JSON lacks.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{MARK}{json}\n")
    }

    /// The event in a line; `None` is what a job printed.
    #[must_use]
    pub fn of_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(MARK)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_its_line() {
        for event in [
            Event::Booted {
                kernel: "6.1.0".into(),
            },
            Event::End {
                job: 3,
                end: End::NotStarted("no such \"file\"\n".into()),
                seconds: 1.5,
            },
            Event::Finished,
        ] {
            let line = event.to_line();
            assert_eq!(line.find('\n'), Some(line.len() - 1), "{line:?}");
            assert_eq!(Event::of_line(&line), Some(event));
        }
        assert_eq!(Event::of_line("{\"event\":\"finished\"}\n"), None);
    }
}
