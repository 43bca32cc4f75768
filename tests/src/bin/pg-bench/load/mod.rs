//! The load: a tonic source and a tonic client, each a process of its own with one thread, and what they and the one who
//! measures say to each other, a line of JSON at a time.
//!
//! Leaner than Numaflow's SDK: messages are made by cloning, and the client checks no more than their number and length. What
//! is compared with this load is not hidden behind the work of a real source.

pub mod client;
pub mod driver;
pub mod source;

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Bytes of each message's payload.
pub const PAYLOAD: usize = 1024;
/// Messages of a read request, as in Numaflow's data plane.
pub const BATCH: u64 = 500;
/// Between two calls of PendingFn beside reading.
pub const PENDING_EVERY: std::time::Duration = std::time::Duration::from_millis(100);

/// What a process is told to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// To the client: call this path for so long, as many calls at a time.
    Call {
        path: String,
        millis: u64,
        in_flight: usize,
    },
    /// To the client: begin to read and acknowledge, and to call PendingFn ten times a second beside it. Messages a second; 0: as many as
    /// there are.
    Read { rate: u64 },
    /// To the client: how much has been read?
    Mark,
    /// To the client: stop reading.
    Stop,
    /// To the source: put the connections before an empty verdict program, or take them away from it.
    Empty { on: bool },
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It has started.
    Ready,
    /// To [`Order::Call`].
    Called(Called),
    /// To [`Order::Read`], when the first batch has been read, and to [`Order::Empty`].
    Done,
    /// To [`Order::Mark`] and [`Order::Stop`].
    Mark {
        /// Since some moment.
        nanos: u64,
        /// Since the reading began.
        messages: u64,
    },
}

impl Answer {
    fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(self)?)?;
        Ok(out.flush()?)
    }
}

/// How calls went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Called {
    /// By status.
    pub statuses: BTreeMap<String, u64>,
    /// From the first call's beginning to the last one's end.
    pub seconds: f64,
    /// The median of the calls' durations, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
}

impl Called {
    /// Calls a second.
    pub fn rate(&self) -> f64 {
        self.statuses.values().sum::<u64>() as f64 / self.seconds
    }

    /// Whether all ended with this status.
    pub fn all(&self, status: &str) -> bool {
        self.statuses.keys().all(|name| name == status) && !self.statuses.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_wire() {
        for order in [
            Order::Call {
                path: "/a".to_owned(),
                millis: 3,
                in_flight: 4,
            },
            Order::Read { rate: 0 },
            Order::Mark,
            Order::Stop,
            Order::Empty { on: true },
        ] {
            let line = serde_json::to_string(&order).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
        }
    }

    #[test]
    fn calls_that_all_ended_alike() {
        let mut called = Called {
            seconds: 2.0,
            ..Called::default()
        };
        assert!(!called.all("OK"));
        called.statuses.insert("OK".to_owned(), 10);
        assert!(called.all("OK") && called.rate() == 5.0);
        called.statuses.insert("UNAVAILABLE".to_owned(), 1);
        assert!(!called.all("OK"));
    }
}
