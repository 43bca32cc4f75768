//! What a peer and its driver say to each other: commands on standard input, one JSON object a line on standard
//! output. The same for all sources and all clients; peers/README.md shows it by example.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How often each key was seen.
pub type Tally = BTreeMap<String, u64>;

/// The most errors that a report spells out; a broken connection would otherwise fill the line.
pub const MAX_ERRORS: usize = 8;

/// A line that a peer prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The source accepts connections.
    Listening(Listening),
    /// The source's counters: the answer to `stats`, and its last line.
    Stats(Stats),
    /// The client's connection works.
    Ready(Ready),
    /// The answer to `call`.
    Called(Called),
    /// The answer to `background on`: the first batch has been read.
    Reading,
    /// The answer to `background off`.
    Background(Background),
    /// The answer to `every MS`.
    Ticking,
    /// The answer to `every off`.
    Every(Every),
    /// Something went wrong; the process exits with a status that isn't 0.
    Error {
        /// What.
        message: String,
    },
}

impl Event {
    /// Prints the event as a line of its own.
    ///
    /// # Errors
    /// Standard output is gone.
    pub fn print(&self) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        out.write_all(&line)?;
        out.flush()
    }
}

/// The end of a peer's `main`: what went wrong is its last event.
#[must_use]
pub fn exit(program: &str, ended: anyhow::Result<()>) -> ExitCode {
    let Err(error) = ended else {
        return ExitCode::SUCCESS;
    };
    let message = format!("{error:#}");
    // Whoever reads standard output may be gone; then standard error is all there is.
    if (Event::Error { message }).print().is_err() {
        eprintln!("{program}: {error:#}");
    }
    ExitCode::FAILURE
}

/// Where a source listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// The Unix socket.
    pub socket: String,
    /// The TCP address, if there is one.
    pub tcp: Option<String>,
    /// The source's process.
    pub pid: u32,
    /// What serves the Unix socket, and its version.
    pub sdk: String,
}

/// What a source's handlers saw, since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Times the pending handler was entered.
    pub pending: u64,
    /// Times the read handler was entered.
    pub read: u64,
    /// Times the ack handler was entered.
    pub ack: u64,
    /// Times the nack handler was entered.
    pub nack: u64,
    /// Times the partitions handler was entered.
    pub partitions: u64,
    /// Messages handed out.
    pub messages: u64,
    /// Bytes of payload handed out.
    pub bytes: u64,
    /// Messages acknowledged, each once, in order, with the offset that was handed out.
    pub acked: u64,
    /// Acknowledged offsets that were not handed out, or not in that form, or twice.
    pub ack_mismatches: u64,
    /// Messages that were passed over: later ones are acknowledged.
    pub abandoned: u64,
}

/// A client that reached its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The gRPC implementation.
    pub client: String,
    /// Its version.
    pub version: String,
    /// The client's process.
    pub pid: u32,
    /// IsReady calls that it took, the successful one included.
    pub attempts: u64,
}

/// How a number of calls ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Called {
    /// The method's name, or the path.
    pub method: String,
    /// Calls answered OK.
    pub ok: u64,
    /// Other statuses, by name (`UNIMPLEMENTED`, …).
    pub errors: Tally,
    /// What OK answers said: PendingFn the count, or `absent` without a result; IsReady `true` or `false`;
    /// PartitionsFn the numbers, separated by commas; a path `answered`.
    pub values: Tally,
    /// Time from the first call's start to the last one's end.
    pub seconds: f64,
    /// The median and the 99th percentile of how long a call took, in seconds; only tonic's client tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantiles: Option<(f64, f64)>,
}

impl Called {
    /// How many calls ended with which status, `OK` among them: `{"UNIMPLEMENTED": 10000}`.
    #[must_use]
    pub fn statuses(&self) -> Tally {
        statuses(self.ok, &self.errors)
    }
}

/// One tally of all statuses, without zeros.
fn statuses(ok: u64, errors: &Tally) -> Tally {
    let mut all = errors.clone();
    if ok > 0 {
        all.insert("OK".to_owned(), ok);
    }
    all
}

/// What reading in the background came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Background {
    /// Messages read.
    pub messages: u64,
    /// Their bytes of payload.
    pub bytes: u64,
    /// Messages whose acknowledgement was answered.
    pub acked: u64,
    /// IsReady calls answered with "ready".
    pub is_ready: u64,
    /// The first [`MAX_ERRORS`] things that went wrong.
    pub errors: Vec<String>,
    /// Whether every message was the one that had to come next, see [`crate::payload`].
    pub intact: bool,
}

/// What calling PendingFn at an interval came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Every {
    /// Calls made.
    pub count: u64,
    /// See [`Called::ok`].
    pub ok: u64,
    /// See [`Called::errors`].
    pub errors: Tally,
    /// See [`Called::values`].
    pub values: Tally,
}

impl Every {
    /// See [`Called::statuses`].
    #[must_use]
    pub fn statuses(&self) -> Tally {
        statuses(self.ok, &self.errors)
    }
}

/// A method that `call` can call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// The method that Pendguard is about.
    PendingFn,
    /// Answered by the SDK from memory.
    IsReady,
    /// A unary call with a handler of its own.
    PartitionsFn,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PendingFn, Self::IsReady, Self::PartitionsFn];

    /// The method's name in the service.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PendingFn => "PendingFn",
            Self::IsReady => "IsReady",
            Self::PartitionsFn => "PartitionsFn",
        }
    }

    /// The value of `:path` in a call.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::PendingFn => "/source.v1.Source/PendingFn",
            Self::IsReady => "/source.v1.Source/IsReady",
            Self::PartitionsFn => "/source.v1.Source/PartitionsFn",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A line that is not a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown command: {0:?}")]
pub struct UnknownCommand(String);

/// A line that a client reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `call METHOD N`
    Call {
        /// Which method.
        method: Method,
        /// How many calls.
        count: u64,
    },
    /// `call PATH N`: any `:path`, whether or not the source has such a method. The request is empty.
    CallPath {
        /// Begins with a slash.
        path: String,
        /// How many calls.
        count: u64,
    },
    /// `background on RATE`
    BackgroundOn {
        /// Messages per second; 0 is as fast as possible.
        rate: u64,
    },
    /// `background off`
    BackgroundOff,
    /// `every MS`
    Every {
        /// Milliseconds between the calls.
        millis: u64,
    },
    /// `every off`
    EveryOff,
    /// `quit`
    Quit,
}

impl FromStr for Command {
    type Err = UnknownCommand;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownCommand(line.to_owned());
        let number = |word: &str| word.parse::<u64>().map_err(|_| unknown());
        let words: Vec<&str> = line.split_whitespace().collect();
        Ok(match words[..] {
            ["call", path, count] if path.starts_with('/') => Self::CallPath {
                path: path.to_owned(),
                count: number(count)?,
            },
            ["call", method, count] => Self::Call {
                method: Method::ALL
                    .into_iter()
                    .find(|known| known.name() == method)
                    .ok_or_else(unknown)?,
                count: number(count)?,
            },
            ["background", "on", rate] => Self::BackgroundOn {
                rate: number(rate)?,
            },
            ["background", "off"] => Self::BackgroundOff,
            ["every", "off"] => Self::EveryOff,
            ["every", millis] => Self::Every {
                millis: number(millis)?.max(1),
            },
            ["quit"] => Self::Quit,
            _ => return Err(unknown()),
        })
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call { method, count } => write!(f, "call {method} {count}"),
            Self::CallPath { path, count } => write!(f, "call {path} {count}"),
            Self::BackgroundOn { rate } => write!(f, "background on {rate}"),
            Self::BackgroundOff => f.write_str("background off"),
            Self::Every { millis } => write!(f, "every {millis}"),
            Self::EveryOff => f.write_str("every off"),
            Self::Quit => f.write_str("quit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_wire() {
        for command in [
            Command::Call {
                method: Method::PartitionsFn,
                count: 7,
            },
            Command::CallPath {
                path: "/source.v1.Source/NoSuchFn".to_owned(),
                count: 8,
            },
            Command::BackgroundOn { rate: 0 },
            Command::BackgroundOff,
            Command::Every { millis: 5 },
            Command::EveryOff,
            Command::Quit,
        ] {
            assert_eq!(command.to_string().parse(), Ok(command.clone()));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            "",
            "call",
            "call PendingFn",
            "call ReadFn 1",
            "call PendingFn x",
            "call / x",
            "stop",
        ] {
            assert!(line.parse::<Command>().is_err(), "{line:?}");
        }
    }

    #[test]
    fn statuses_are_all_that_occurred() {
        let tally = |name: &str, n| Tally::from([(name.to_owned(), n)]);
        let called = |ok, errors| Called {
            ok,
            errors,
            ..Called::default()
        };
        assert_eq!(called(3, Tally::new()).statuses(), tally("OK", 3));
        let refused = tally("UNIMPLEMENTED", 2);
        assert_eq!(called(0, refused.clone()).statuses(), refused);
        assert_eq!(called(1, refused).statuses().len(), 2);
    }

    #[test]
    fn events_are_the_documented_lines() {
        let called = Event::Called(Called {
            method: "PendingFn".to_owned(),
            ok: 1,
            errors: Tally::from([("UNIMPLEMENTED".to_owned(), 2)]),
            values: Tally::from([("42".to_owned(), 1)]),
            seconds: 0.5,
            quantiles: None,
        });
        assert_eq!(
            serde_json::to_string(&called).unwrap(),
            r#"{"event":"called","method":"PendingFn","ok":1,"errors":{"UNIMPLEMENTED":2},"values":{"42":1},"seconds":0.5}"#
        );
        assert_eq!(
            serde_json::to_string(&Event::Reading).unwrap(),
            r#"{"event":"reading"}"#
        );
    }
}
