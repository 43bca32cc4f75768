//! How far it is: a bar on a terminal, a line a step elsewhere.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// The steps of a run.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub fn new(steps: u64) -> Result<Self> {
        let bar = ProgressBar::new(steps);
        bar.set_style(ProgressStyle::with_template(
            "{bar:30} {pos}/{len} {elapsed} (about {eta} more) {msg}",
        )?);
        Ok(Self { bar })
    }

    /// A step begins.
    pub fn begin(&self, what: String) {
        if self.bar.is_hidden() {
            let (at, of) = (self.bar.position() + 1, self.bar.length().unwrap_or(0));
            eprintln!("{at}/{of} {what}");
        }
        self.bar.set_message(what);
    }

    /// It has ended.
    pub fn done(&self) {
        self.bar.inc(1);
    }

    /// All have.
    pub fn end(self) {
        self.bar.finish_and_clear();
    }
}
