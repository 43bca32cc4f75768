//! The verbs that ask the agent: each asks, prints, and says the exit status.
#![forbid(unsafe_code)]

pub mod detach;
pub mod doctor;
pub mod mode;
pub mod report;
pub mod status;

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
    fn a_terminal_gets_no_control_characters() {
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(clean("payments/ø"), "payments/ø");
    }
}
