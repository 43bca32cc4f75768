//! The verbs but `run`: each asks the agent or does its work, prints, and says the exit status.
#![forbid(unsafe_code)]

pub mod detach;
pub mod doctor;
pub mod mode;
pub mod report;
pub mod savings;
pub mod seccomp;
pub mod status;
pub mod top;
pub mod watch;

use std::borrow::Cow;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::errors::chain;

/// Runs what a verb has to wait for.
fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the asynchronous runtime")?;
    Ok(runtime.block_on(future))
}

/// Writes to standard output. A reader that has gone (`| head`) is no failure.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes an error to standard error.
fn complain(error: &anyhow::Error) {
    let _ = writeln!(
        std::io::stderr(),
        "pendguard: {}",
        clean(&chain(error.as_ref()))
    );
}

/// Text that others have written, for a terminal: without control characters, which could do anything to it.
fn clean(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        Cow::Owned(text.replace(char::is_control, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A table without lines around it, columns two spaces apart.
fn table() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}

/// A short time with three digits: `850µs`, `3.25ms`, `12.4s`.
fn took(duration: Duration) -> String {
    let ns = duration.as_secs_f64() * 1e9;
    // What would be rounded to 1000 of one unit is 1.00 of the next.
    let (value, unit) = match ns {
        _ if ns < 999.5e3 => (ns / 1e3, "µs"),
        _ if ns < 999.5e6 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = match value {
        _ if value < 9.995 => 2,
        _ if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{unit}")
}

/// [`took`], where it is known.
fn took_or_dash(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), took)
}

/// A pending count, as the source answered it: `-` before the first answer, `n/a` where it said that it has none.
fn pending(value: Option<i64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(-1) => "n/a".to_owned(),
        Some(count) => count.to_string(),
    }
}

/// Whose calls are meant: `payments/orders`, `payments/orders/in`.
fn workload(namespace: &str, workload: &str, vertex: &str) -> String {
    let mut name = format!("{}/{}", clean(namespace), clean(workload));
    if !vertex.is_empty() {
        name.push('/');
        name.push_str(&clean(vertex));
    }
    name
}

/// `3 d 4 h`, `2 h 5 min`, `7 min`, `12 s`.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3_599, "59 min"),
            (3_600, "1 h 0 min"),
            (90_061, "1 d 1 h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn short_times_have_three_digits() {
        for (ns, text) in [
            (0, "0.00µs"),
            (9_994, "9.99µs"),
            (9_996, "10.0µs"),
            (850_000, "850µs"),
            (999_600, "1.00ms"),
            (3_250_000, "3.25ms"),
            (99_960_000, "100ms"),
            (999_600_000, "1.00s"),
            (12_400_000_000, "12.4s"),
            (4_000_000_000_000, "4000s"),
        ] {
            assert_eq!(took(Duration::from_nanos(ns)), text);
        }
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(clean("payments/ø"), "payments/ø");
    }
}
