//! What a person sees while steps run: a live line on a terminal, one line per step anywhere else.

use std::fmt;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the live line moves.
const TICK: Duration = Duration::from_millis(120);

/// A numbered list of steps, one of which is running.
pub struct Progress {
    bar: ProgressBar,
    title: String,
    started: Instant,
}

impl Progress {
    /// Starts a list of `steps` steps.
    pub fn start(title: impl Into<String>, steps: u64) -> Self {
        // On anything but a terminal the bar draws nothing.
        let bar = ProgressBar::new(steps);
        let style =
            ProgressStyle::with_template("{spinner} [{pos}/{len}] {prefix} ({elapsed}) {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.enable_steady_tick(TICK);
        Self {
            bar,
            title: title.into(),
            started: Instant::now(),
        }
    }

    /// A list beside others, for which a terminal has no place: it says what begins and what is done, and draws nothing.
    pub fn beside_others(title: impl Into<String>, steps: u64) -> Self {
        let progress = Self::start(title, steps);
        progress.bar.set_draw_target(ProgressDrawTarget::hidden());
        progress
    }

    /// Prints a line that stays.
    pub fn say(&self, line: impl fmt::Display) {
        self.bar.suspend(|| eprintln!("{}: {line}", self.title));
    }

    /// Says that a step begins, and what it does.
    pub fn begin(&mut self, name: &str, plan: &str) {
        self.started = Instant::now();
        self.bar.set_prefix(name.to_owned());
        self.bar.reset_elapsed();
        self.say(format_args!("{name}: {plan} …"));
    }

    /// Shows the latest line of what the running step prints.
    pub fn live(&self, line: &str) {
        let line = line.trim();
        if !line.is_empty() {
            self.bar.set_message(line.to_owned());
        }
    }

    /// The running step is done; `result` is what is there now.
    pub fn done(&self, name: &str, result: &str) {
        let took = Seconds(self.started.elapsed());
        self.say(format_args!("{name}: {result} ({took})"));
        self.advance();
    }

    /// The step had nothing to do; `found` is what was there.
    pub fn already(&self, name: &str, found: &str) {
        self.say(format_args!("{name}: {found} (already there)"));
        self.advance();
    }

    /// Says that a step begins beside other steps of the list, and what it does.
    pub fn beside(&self, name: &str, plan: &str) -> Beside<'_> {
        self.say(format_args!("{name}: {plan} …"));
        Beside {
            progress: self,
            name: name.to_owned(),
            started: Instant::now(),
        }
    }

    /// Takes the live line away while `action` writes to the terminal.
    pub fn suspend<T>(&self, action: impl FnOnce() -> T) -> T {
        self.bar.suspend(action)
    }

    fn advance(&self) {
        self.bar.set_message("");
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A step that runs beside others of its list.
pub struct Beside<'a> {
    progress: &'a Progress,
    name: String,
    started: Instant,
}

impl Beside<'_> {
    /// Shows the latest line of what it prints, in place of what another printed.
    pub fn live(&self, line: &str) {
        let line = line.trim();
        if !line.is_empty() {
            self.progress.live(&format!("{}: {line}", self.name));
        }
    }

    /// It is done; `result` is what is there now.
    pub fn done(self, result: &str) {
        let took = Seconds(self.started.elapsed());
        self.progress
            .say(format_args!("{}: {result} ({took})", self.name));
        self.progress.advance();
    }
}

/// A duration as a person reads it.
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (minutes, seconds) = (self.0.as_secs() / 60, self.0.as_secs() % 60);
        if minutes > 0 {
            write!(f, "{minutes} min {seconds:02} s")
        } else {
            write!(f, "{:.1} s", self.0.as_secs_f64())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_readable() {
        assert_eq!(Seconds(Duration::from_millis(1_240)).to_string(), "1.2 s");
        assert_eq!(Seconds(Duration::from_secs(62)).to_string(), "1 min 02 s");
    }
}
