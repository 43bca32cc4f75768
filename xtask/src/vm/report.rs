//! What came of it: a line for each kernel, tap and enforcer.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Variant;
use crate::progress::Seconds;
use crate::test::Counts;

/// A kernel and a variant of the agent, and what the tests said of it.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The kernel, as it was asked for.
    pub kernel: String,
    /// What it calls itself.
    pub release: String,
    /// How the agent worked.
    #[serde(flatten)]
    pub variant: Variant,
    /// How many tests passed, failed, were left out.
    #[serde(flatten)]
    pub counts: Counts,
    /// How long the programs ran.
    pub seconds: f64,
    /// What went wrong, each in a few words: the names of tests, and programs that ended badly.
    pub failures: Vec<String>,
}

impl Row {
    /// Whether everything went well.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// The rows as a person reads them.
pub fn table(rows: &[Row]) -> String {
    let heading = [
        "kernel", "tap", "enforcer", "passed", "failed", "time", "result",
    ]
    .map(str::to_owned);
    let lines: Vec<_> = std::iter::once(heading)
        .chain(rows.iter().map(|row| {
            [
                row.kernel.clone(),
                row.variant.tap.to_owned(),
                row.variant.enforcer.to_owned(),
                row.counts.passed.to_string(),
                row.counts.failed.to_string(),
                Seconds(Duration::from_secs_f64(row.seconds)).to_string(),
                if row.passed() { "ok" } else { "FAILED" }.to_owned(),
            ]
        }))
        .collect();
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let width = lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0);
            // Writing to a string does not fail.
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    for row in rows {
        for failure in &row.failures {
            let Variant { tap, enforcer } = row.variant;
            let _ = writeln!(text, "FAILED: {}, {tap}/{enforcer}: {failure}", row.kernel);
        }
    }
    text
}

/// The rows for a program.
pub fn write_json(rows: &[Row], path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(rows).context("a table is no JSON")?;
    fs::write(path, text + "\n").with_context(|| path.display().to_string())
}
