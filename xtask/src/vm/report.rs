//! What came of it: a line for each kernel, tap and enforcer.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use super::Variant;
use crate::progress::Seconds;
use crate::test::Counts;

/// All that was learned.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// How the tests ended.
    pub rows: Vec<Row>,
    /// What each kernel allows.
    pub kernels: Vec<OnKernel>,
}

/// What `pendguard doctor` says on a kernel.
#[derive(Debug, Serialize)]
pub struct OnKernel {
    /// The kernel, as it was asked for.
    pub kernel: String,
    /// What it calls itself.
    pub release: String,
    /// `pendguard doctor --json`.
    pub doctor: Value,
}

impl Report {
    /// Adds what another machine said.
    pub fn add(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.kernels.extend(other.kernels);
    }

    /// For a program.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("a table is no JSON")?;
        fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }

    /// For people.
    pub fn write_markdown(&self, path: &Path) -> Result<()> {
        fs::write(path, self.markdown()).with_context(|| path.display().to_string())
    }

    fn markdown(&self) -> String {
        let mut text = String::from(HEADING);
        let heading = ["kernel", "release", "doctor", "audit", "enforcement"];
        let kernels = self.kernels.iter().map(|on| {
            let said = |key: &str| match &on.doctor[key] {
                Value::String(said) => format!("`{said}`"),
                Value::Number(said) => said.to_string(),
                _ => String::new(),
            };
            let can = |key: &str, with: String| {
                let outcome = on.doctor[key]["outcome"].as_str().unwrap_or_default();
                let because = names(&on.doctor[key]["because"]);
                if outcome == "supported" {
                    format!("with {with}")
                } else {
                    format!("{}: {because}", outcome.replace('_', " "))
                }
            };
            [
                on.kernel.clone(),
                format!("`{}`", on.release),
                format!("exit {}", said("exit_status")),
                can("audit", said("tap")),
                can("enforcement", said("enforcer")),
            ]
        });
        text.push_str(
            "## What each kernel allows\n\n`pendguard doctor`, and what it chooses by itself.\n\n",
        );
        markdown_table(&mut text, heading, kernels);
        text.push_str("\n## How the tests ended\n\n");
        let heading = ["kernel", "tap", "enforcer", "passed", "failed", "result"];
        let rows = self.rows.iter().map(|row| {
            [
                row.kernel.clone(),
                row.variant.tap.to_owned(),
                row.variant.enforcer.to_owned(),
                row.counts.passed.to_string(),
                row.counts.failed.to_string(),
                if row.passed() {
                    "ok".to_owned()
                } else {
                    row.failures.join("; ")
                },
            ]
        });
        markdown_table(&mut text, heading, rows);
        text.push_str("\n## Instructions that the verifier walked\n\nOf a limit of 1,000,000 a program; `-` is refused.\n\n");
        self.instructions(&mut text);
        text
    }

    /// The instructions that each kernel's verifier walked of each program.
    fn instructions(&self, text: &mut String) {
        let mut programs: Vec<String> = Vec::new();
        for on in &self.kernels {
            for program in on.doctor["programs"].as_array().into_iter().flatten() {
                let name = program_name(program);
                if !programs.contains(&name) {
                    programs.push(name);
                }
            }
        }
        // Writing to a string does not fail.
        let _ = write!(text, "| program |");
        for on in &self.kernels {
            let _ = write!(text, " {} |", on.kernel);
        }
        let _ = write!(text, "\n|---|{}\n", "---|".repeat(self.kernels.len()));
        for name in programs {
            let _ = write!(text, "| {name} |");
            for on in &self.kernels {
                let all = on.doctor["programs"].as_array().into_iter().flatten();
                let program = all
                    .filter(|program| program_name(program) == name)
                    .find_map(|program| program["verified_instructions"].as_u64());
                let _ = match program {
                    Some(count) => write!(text, " {count} |"),
                    None => write!(text, " - |"),
                };
            }
            text.push('\n');
        }
    }
}

const HEADING: &str = "# Kernels

Made by `cargo xtask vm --report FILE`: Debian's kernels, booted by qemu with software emulation, `tap` × `enforcer` as far as the kernel
has them. On a kernel that the agent refuses, the test is that it says so, and why; `integrity` and `confidentiality` are modes of kernel_lockdown(7).

";

fn program_name(program: &Value) -> String {
    let text = |key: &str| program[key].as_str().unwrap_or_default();
    match text("hook") {
        "" => format!("`{}`", text("name")),
        hook => format!("`{}` ({hook})", text("name")),
    }
}

fn names(list: &Value) -> String {
    let names: Vec<_> = list.as_array().into_iter().flatten().collect();
    let names: Vec<_> = names.iter().filter_map(|name| name.as_str()).collect();
    names.join(", ")
}

fn markdown_table<const N: usize>(
    text: &mut String,
    heading: [&str; N],
    lines: impl Iterator<Item = [String; N]>,
) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "| {} |\n|{}", heading.join(" | "), "---|".repeat(N));
    for line in lines {
        let _ = writeln!(text, "| {} |", line.join(" | "));
    }
}

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
