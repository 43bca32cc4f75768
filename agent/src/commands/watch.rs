//! `pendguard watch`.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::pin::pin;
use std::thread;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use tokio::sync::oneshot;

use super::report::{kind, verdict};
use super::{block_on, clean, complain, pending, took_or_dash, workload};
use crate::api::client::{self, Event};
use crate::api::pb;
use crate::cli::{Verdict, WatchArgs};

/// Prints calls until it is interrupted or nobody reads. 0, or 1 if there is no agent or it ends.
pub fn run(arguments: &WatchArgs) -> u8 {
    match block_on(watch(arguments)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) | Err(error) => {
            complain(&error);
            1
        }
    }
}

async fn watch(arguments: &WatchArgs) -> anyhow::Result<()> {
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut unread = pin!(unread()?);
    let mut lines = Lines::new(arguments.json);
    let mut calls = tokio::select! {
        calls = client::watch(&arguments.api_socket, request(arguments)) => calls?,
        result = &mut interrupt => return result.context("can't wait for Ctrl-C"),
    };
    loop {
        let event = tokio::select! {
            biased;
            result = &mut interrupt => return result.context("can't wait for Ctrl-C"),
            _ = &mut unread => return Ok(()),
            event = calls.next() => event?,
        };
        match lines.line(event) {
            Line::Error(line) => {
                let _ = writeln!(io::stderr(), "{line}");
            }
            Line::Out(line) => {
                let mut out = io::stdout().lock();
                match writeln!(out, "{line}").and_then(|()| out.flush()) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    result => result.context("can't write to standard output")?,
                }
            }
        }
    }
}

/// Until nobody reads standard output any more (`| head`). A write would tell only when the next call comes.
fn unread() -> anyhow::Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    let wait = move || {
        let stdout = io::stdout();
        // Errors and hang-ups are always told.
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        while poll(&mut polled, None) == Err(rustix::io::Errno::INTR) {}
        let _ = sender.send(());
    };
    thread::Builder::new()
        .name("unread".to_owned())
        .spawn(wait)
        .context("can't start a thread")?;
    Ok(receiver)
}

fn request(arguments: &WatchArgs) -> pb::WatchCallsRequest {
    pb::WatchCallsRequest {
        namespace: arguments.namespace.clone(),
        workload: arguments.workload.clone(),
        replica: arguments.replica.map(|replica| replica.to_string()),
        verdicts: arguments
            .verdict
            .iter()
            .map(|verdict| {
                match verdict {
                    Verdict::Admitted => pb::Verdict::Admitted,
                    Verdict::WouldReject => pb::Verdict::WouldReject,
                    Verdict::Rejected => pb::Verdict::Rejected,
                }
                .into()
            })
            .collect(),
    }
}

/// A line, and where it belongs.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Out(String),
    Error(String),
}

/// Makes lines. Columns for people are as wide as the widest that there was: what comes is not known.
struct Lines {
    json: bool,
    widths: [usize; COLUMNS],
}

const COLUMNS: usize = 10;
/// What most calls need, so that the first lines are aligned, too.
const WIDTHS: [usize; COLUMNS] = [13, 16, 2, 20, 9, 12, 2, 6, 5, 0];
/// Numbers stand on the right.
const RIGHT: [bool; COLUMNS] = [
    false, false, true, false, false, false, false, true, true, false,
];

impl Lines {
    fn new(json: bool) -> Self {
        Self {
            json,
            widths: WIDTHS,
        }
    }

    fn line(&mut self, event: Event) -> Line {
        match event {
            Event::Call(call) if self.json => Line::Out(json(&Call::from(call))),
            Event::Lost(lost) if self.json => Line::Out(json(&Lost { lost })),
            Event::Call(call) => Line::Out(self.align(&cells(&call))),
            Event::Lost(lost) => Line::Error(format!(
                "pendguard: {lost} calls are missing here: there were more than could be told"
            )),
        }
    }

    fn align(&mut self, cells: &[String; COLUMNS]) -> String {
        let mut line = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let width = &mut self.widths[i];
            *width = (*width).max(cell.chars().count());
            if i > 0 {
                line.push_str("  ");
            }
            line += &match RIGHT[i] {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            };
        }
        line.truncate(line.trim_end().len());
        line
    }
}

fn cells(call: &pb::Call) -> [String; COLUMNS] {
    let method = call.method.rsplit('/').next().unwrap_or_default();
    let or_dash = |text: &str| match text {
        "" => "-".to_owned(),
        text => clean(text).into_owned(),
    };
    [
        time(call.sent),
        workload(&call.namespace, &call.workload, &call.vertex),
        call.replica
            .map_or_else(|| "unknown".to_owned(), |number| number.to_string()),
        clean(&call.pod).into_owned(),
        or_dash(method),
        verdict(call.verdict()).to_owned(),
        or_dash(&call.code),
        took_or_dash(call.duration.and_then(|took| took.try_into().ok())),
        pending(call.pending),
        format!("{}:{}/{}", call.pid, call.fd, call.stream),
    ]
}

/// The time of the day, UTC: `22:13:21.234Z`.
fn time(time: Option<prost_types::Timestamp>) -> String {
    let Some(time) = time else {
        return "-".to_owned();
    };
    let second = time.seconds.rem_euclid(86_400);
    let (hours, minutes, seconds) = (second / 3_600, second / 60 % 60, second % 60);
    let millis = time.nanos.clamp(0, 999_999_999) / 1_000_000;
    format!("{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}

/// What `pendguard watch --json` prints of a call. Names are fixed: scripts hold on to them.
#[derive(Debug, Serialize)]
struct Call {
    /// When it was sent (RFC 3339).
    time: Option<String>,
    namespace: String,
    kind: &'static str,
    workload: String,
    /// Empty for a MonoVertex.
    vertex: String,
    pod: String,
    /// `null` if it has none that is a number.
    replica: Option<u32>,
    /// Full path.
    method: String,
    /// `admitted`, `would_reject` or `rejected`.
    verdict: &'static str,
    /// How it ended; `null` where answers aren't followed.
    code: Option<String>,
    /// How long it took until the answer had ended; `null` where that is not known.
    duration_seconds: Option<f64>,
    /// The pending count that it was answered; `null` if it was none.
    pending: Option<i64>,
    pid: u32,
    fd: u32,
    /// The call's HTTP/2 stream.
    stream: u32,
}

/// What it prints where calls are missing.
#[derive(Debug, Serialize)]
struct Lost {
    lost: u64,
}

impl From<pb::Call> for Call {
    fn from(call: pb::Call) -> Self {
        let duration = call.duration.map(std::time::Duration::try_from);
        Self {
            time: call.sent.map(|time| time.to_string()),
            kind: kind(call.kind()),
            verdict: verdict(call.verdict()),
            namespace: call.namespace,
            workload: call.workload,
            vertex: call.vertex,
            pod: call.pod,
            replica: call.replica,
            method: call.method,
            code: Some(call.code).filter(|code| !code.is_empty()),
            duration_seconds: duration.and_then(Result::ok).map(|took| took.as_secs_f64()),
            pending: call.pending,
            pid: call.pid,
            fd: call.fd,
            stream: call.stream,
        }
    }
}

fn json(value: &impl Serialize) -> String {
    // Structs of text and numbers can always be written.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> pb::Call {
        pb::Call {
            sent: Some(prost_types::Timestamp {
                seconds: 1_700_000_001,
                nanos: 234_567_000,
            }),
            namespace: "payments".to_owned(),
            kind: pb::Kind::MonoVertex.into(),
            workload: "orders".to_owned(),
            vertex: String::new(),
            pod: "orders-mv-1-abcde".to_owned(),
            replica: Some(1),
            method: "/source.v1.Source/PendingFn".to_owned(),
            verdict: pb::Verdict::WouldReject.into(),
            code: "OK".to_owned(),
            duration: Some(prost_types::Duration {
                seconds: 0,
                nanos: 3_250_000,
            }),
            pending: Some(42),
            pid: 4711,
            fd: 9,
            stream: 17,
        }
    }

    fn bare() -> pb::Call {
        pb::Call {
            sent: None,
            kind: pb::Kind::Pipeline.into(),
            vertex: "in".to_owned(),
            pod: "a-pod-with-a-longer-name\u{1b}[2J".to_owned(),
            replica: None,
            verdict: 99,
            code: String::new(),
            duration: None,
            pending: None,
            ..call()
        }
    }

    #[test]
    fn lines_for_people_are_aligned() {
        let mut lines = Lines::new(false);
        let mut text = String::new();
        let unavailable = pb::Call {
            pending: Some(-1),
            ..call()
        };
        for call in [call(), bare(), unavailable] {
            match lines.line(Event::Call(call)) {
                Line::Out(line) => text += &(line + "\n"),
                Line::Error(line) => panic!("{line}"),
            }
        }
        let expected = "\
22:13:21.234Z  payments/orders    1  orders-mv-1-abcde     PendingFn  would_reject  OK  3.25ms     42  4711:9/17
-              payments/orders/in  unknown  a-pod-with-a-longer-name\u{fffd}[2J  PendingFn  unknown       -        -      -  4711:9/17
22:13:21.234Z  payments/orders           1  orders-mv-1-abcde             PendingFn  would_reject  OK  3.25ms    n/a  4711:9/17
";
        assert_eq!(text, expected);
    }

    #[test]
    fn lost_calls_are_a_line_of_their_own() {
        let Line::Error(line) = Lines::new(false).line(Event::Lost(7)) else {
            panic!("not to standard output")
        };
        assert!(line.contains("7 calls are missing"), "{line}");
        let json = Lines::new(true).line(Event::Lost(7));
        assert_eq!(json, Line::Out("{\"lost\":7}".to_owned()));
    }

    #[test]
    fn json_has_stable_names() {
        let json = |call| match Lines::new(true).line(Event::Call(call)) {
            Line::Out(line) => serde_json::from_str::<serde_json::Value>(&line).unwrap(),
            Line::Error(line) => panic!("{line}"),
        };
        assert_eq!(
            json(call()),
            serde_json::json!({
                "time": "2023-11-14T22:13:21.234567Z", "namespace": "payments", "kind": "MonoVertex", "workload": "orders",
                "vertex": "", "pod": "orders-mv-1-abcde", "replica": 1, "method": "/source.v1.Source/PendingFn",
                "verdict": "would_reject", "code": "OK", "duration_seconds": 0.00325, "pending": 42,
                "pid": 4711, "fd": 9, "stream": 17,
            })
        );
        let bare = json(bare());
        for key in ["time", "replica", "code", "duration_seconds", "pending"] {
            assert_eq!(bare[key], serde_json::Value::Null, "{key}");
        }
    }
}
