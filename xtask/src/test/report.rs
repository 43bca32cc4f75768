//! The steps of a test run: a heading for each as it starts, and a table of all at the end.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::counts::Counts;
use crate::progress::Seconds;

/// How a step that did not fail ended.
pub enum Outcome {
    Passed,
    /// It could not be done here, for this reason.
    Skipped(String),
}

/// A step failed, and was reported.
pub struct Failed;

/// What has been run so far.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    counts: Counts,
}

struct Row {
    name: &'static str,
    result: String,
    time: Duration,
}

impl Report {
    /// Runs a step that adds to the counts or yields something for a later one.
    pub fn step<T>(
        &mut self,
        name: &'static str,
        action: impl FnOnce(&mut Counts) -> Result<T>,
    ) -> Result<T, Failed> {
        self.run(name, |counts| Ok((action(counts)?, Outcome::Passed)))
    }

    /// Runs a step that passes or fails.
    pub fn check(
        &mut self,
        name: &'static str,
        action: impl FnOnce() -> Result<()>,
    ) -> Result<(), Failed> {
        self.step(name, |_| action())
    }

    /// Runs a step that may turn out to be impossible here.
    pub fn check_or_skip(
        &mut self,
        name: &'static str,
        action: impl FnOnce() -> Result<Outcome>,
    ) -> Result<(), Failed> {
        self.step_or_skip(name, |_| action())
    }

    /// The same, of one that adds to the counts.
    pub fn step_or_skip(
        &mut self,
        name: &'static str,
        action: impl FnOnce(&mut Counts) -> Result<Outcome>,
    ) -> Result<(), Failed> {
        self.run(name, |counts| Ok(((), action(counts)?)))
    }

    fn run<T>(
        &mut self,
        name: &'static str,
        action: impl FnOnce(&mut Counts) -> Result<(T, Outcome)>,
    ) -> Result<T, Failed> {
        println!("\n==== {name}");
        let started = Instant::now();
        let outcome = action(&mut self.counts);
        let (result, value) = match outcome {
            Ok((value, Outcome::Passed)) => ("ok".to_owned(), Ok(value)),
            Ok((value, Outcome::Skipped(reason))) => {
                println!("SKIPPED: {reason}");
                (format!("SKIPPED: {reason}"), Ok(value))
            }
            Err(error) => {
                eprintln!("FAILED: {error:#}");
                ("FAILED".to_owned(), Err(Failed))
            }
        };
        self.rows.push(Row {
            name,
            result,
            time: started.elapsed(),
        });
        value
    }

    /// Prints the table, and the sum of all tests alone on the last line.
    pub fn print(&self) {
        println!("\n==== summary");
        let width = self
            .rows
            .iter()
            .map(|row| row.name.len())
            .max()
            .unwrap_or(0);
        for Row { name, result, time } in &self.rows {
            println!(
                "{name:width$}  {:>12}  {result}",
                Seconds(*time).to_string()
            );
        }
        println!("{}", self.counts);
    }
}
