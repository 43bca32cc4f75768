//! The lines of standard input.

use std::io::BufRead as _;

use tokio::sync::mpsc;

/// Reads standard input on a thread of its own; the channel ends when the input does.
///
/// tokio's own standard input blocks a runtime thread that nothing can interrupt, so that a process told to stop by
/// a signal would wait for its next line. This thread ends with the process.
#[must_use]
pub fn stdin() -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
