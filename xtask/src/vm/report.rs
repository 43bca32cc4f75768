//! What came of it: a line for each kernel, tap and enforcer.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{VARIANTS, Variant};
use crate::progress::Seconds;
use crate::test::{Complaints, Counts};

/// All that was learned.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How the tests ended.
    pub rows: Vec<Row>,
    /// What each kernel allows.
    pub kernels: Vec<OnKernel>,
}

/// What `pendguard doctor` says on a kernel.
#[derive(Debug, Serialize, Deserialize)]
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

    /// Adds what an earlier run wrote as JSON, as far as it is about kernels that did not run now, and puts all in order.
    pub fn keep(&mut self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let earlier: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no table of an earlier run", path.display()))?;
        self.add_others(earlier);
        Ok(())
    }

    fn add_others(&mut self, earlier: Self) {
        let ran: BTreeSet<String> = self.rows.iter().map(|row| row.kernel.clone()).collect();
        let other = |kernel: &String| !ran.contains(kernel);
        self.rows
            .extend(earlier.rows.into_iter().filter(|row| other(&row.kernel)));
        self.kernels
            .extend(earlier.kernels.into_iter().filter(|on| other(&on.kernel)));
        self.rows.sort_by_key(|row| in_order(&row.kernel));
        self.kernels.sort_by_key(|on| in_order(&on.kernel));
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
        let heading = [
            "kernel", "tap", "enforcer", "passed", "failed", "revision", "result",
        ];
        let rows = self.rows.iter().map(|row| {
            [
                row.kernel.clone(),
                row.variant.tap.to_owned(),
                row.variant.enforcer.to_owned(),
                row.counts.passed.to_string(),
                row.counts.failed.to_string(),
                format!("`{}`", row.revision),
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
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// The kernel, as it was asked for.
    pub kernel: String,
    /// What it calls itself.
    pub release: String,
    /// What was built: the repository's revision, with a `+` where files differed from it.
    pub revision: String,
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
    /// What the tests among them said.
    #[serde(skip)]
    pub complaints: Complaints,
}

impl Row {
    /// Whether everything went well.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// By version, then by what follows it (`6.12`, `6.12 integrity`, `6.12-arm64`).
fn in_order(kernel: &str) -> (Vec<u32>, String) {
    let end = kernel.find(|c: char| c != '.' && !c.is_ascii_digit());
    let (version, rest) = kernel.split_at(end.unwrap_or(kernel.len()));
    let numbers = version.split('.').filter_map(|part| part.parse().ok());
    (numbers.collect(), rest.to_owned())
}

/// One of those that there are.
impl<'de> Deserialize<'de> for Variant {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Names {
            tap: String,
            enforcer: String,
        }
        let Names { tap, enforcer } = Names::deserialize(from)?;
        VARIANTS
            .into_iter()
            .find(|it| it.tap == tap && it.enforcer == enforcer)
            .ok_or_else(|| D::Error::custom(format!("the agent works in no way {tap}/{enforcer}")))
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
        for line in row.complaints.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str, variant: Variant, revision: &str) -> Row {
        Row {
            kernel: kernel.to_owned(),
            release: "6.12.1-amd64".to_owned(),
            revision: revision.to_owned(),
            variant,
            counts: Counts::default(),
            seconds: 1.5,
            failures: Vec::new(),
            complaints: Complaints::default(),
        }
    }

    #[test]
    fn what_ran_now_takes_the_place_of_what_ran_earlier() {
        let on = |kernel: &str| OnKernel {
            kernel: kernel.to_owned(),
            release: String::new(),
            doctor: Value::Null,
        };
        let earlier = Report {
            rows: vec![
                row("6.12", VARIANTS[0], "old"),
                row("6.12", VARIANTS[5], "old"),
                row("6.12 integrity", VARIANTS[2], "old"),
                row("5.10", VARIANTS[0], "old"),
            ],
            kernels: vec![on("6.12"), on("5.10")],
        };
        let text = serde_json::to_string(&earlier).unwrap();
        let mut now = Report {
            rows: vec![
                row("7.2", VARIANTS[0], "new"),
                row("6.12", VARIANTS[0], "new"),
            ],
            kernels: vec![on("6.12")],
        };
        now.add_others(serde_json::from_str(&text).unwrap());
        let rows: Vec<_> = now
            .rows
            .iter()
            .map(|row| (&*row.kernel, &*row.revision))
            .collect();
        let expected = [
            ("5.10", "old"),
            ("6.12", "new"),
            ("6.12 integrity", "old"),
            ("7.2", "new"),
        ];
        assert_eq!(rows, expected);
        assert_eq!(now.rows[2].variant, VARIANTS[2]);
        let kernels: Vec<_> = now.kernels.iter().map(|on| &*on.kernel).collect();
        assert_eq!(kernels, ["5.10", "6.12"]);
        // A tap that there never was.
        let text = text.replace("fentry", "kprobe");
        let error = serde_json::from_str::<Report>(&text).unwrap_err();
        assert!(error.to_string().contains("kprobe/rewrite"), "{error}");
    }
}
