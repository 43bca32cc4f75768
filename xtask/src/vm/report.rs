//! What came of it: a line for each kernel, tap and enforcer.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{FENTRY, GATE, NONE, VARIANTS, Variant};
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

impl OnKernel {
    /// Whether the agent can work in this way here: a test of the refusal runs where it can't.
    fn allows(&self, variant: &Variant) -> bool {
        let checks = self.doctor["checks"].as_array();
        let refuses = |id: &str| {
            let is = |check: &Value| check["id"] == id && check["outcome"] == "not_supported";
            checks.is_some_and(|checks| checks.iter().any(is))
        };
        let needs: &[&str] = match variant.enforcer {
            GATE => &["gate_kernel", "gate_programs", "hold_tracepoints"],
            "rewrite" => &["rewrite_programs"],
            _ => &[],
        };
        let tap = match variant.tap {
            FENTRY => "fentry_programs",
            _ => "tap_programs",
        };
        self.doctor["audit"]["outcome"] == "supported"
            && !refuses(tap)
            && !needs.iter().any(|id| refuses(id))
    }
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

    /// For people: the whole of it, or the matrix alone where the file is there and has a place for it.
    pub fn write_markdown(&self, path: &Path) -> Result<()> {
        let text = match fs::read_to_string(path) {
            Ok(document) => filled(&document, &self.matrix())
                .with_context(|| path.display().to_string())?
                .unwrap_or_else(|| self.markdown()),
            Err(error) if error.kind() == ErrorKind::NotFound => self.markdown(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        fs::write(path, text).with_context(|| path.display().to_string())
    }

    /// A line for each kernel, a column for each way to work.
    fn matrix(&self) -> String {
        let ways = VARIANTS.map(|Variant { tap, enforcer }| match enforcer {
            NONE => format!("audit, {tap}"),
            enforcer => format!("{enforcer}, {tap}"),
        });
        let mut heading = vec!["kernel"];
        heading.extend(ways.iter().map(String::as_str));
        let lines = self.kernels.iter().map(|on| {
            let cells = VARIANTS.iter().map(|variant| self.cell(on, variant));
            std::iter::once(on.kernel.clone()).chain(cells).collect()
        });
        let mut text = String::new();
        markdown_table(&mut text, &heading, lines);
        text
    }

    /// What came of a way to work on a kernel.
    fn cell(&self, on: &OnKernel, variant: &Variant) -> String {
        if !on.allows(variant) {
            return "refused".to_owned();
        }
        let row = self
            .rows
            .iter()
            .find(|row| row.kernel == on.kernel && row.variant == *variant);
        row.map_or_else(
            || "–".to_owned(),
            |row| match row.counts.failed {
                0 if row.passed() => format!("{} ok", row.counts.passed),
                _ => format!("**{} ok, {} failed**", row.counts.passed, row.counts.failed),
            },
        )
    }

    fn markdown(&self) -> String {
        let mut text = String::from(HEADING);
        text.push_str("## In short\n\nTests that passed; `refused` is what the agent is tested to say there, `–` what isn't run.\n\n");
        text.push_str(&self.matrix());
        text.push('\n');
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
            vec![
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
        markdown_table(&mut text, &heading, kernels);
        text.push_str("\n## How the tests ended\n\n");
        let heading = [
            "kernel", "tap", "enforcer", "passed", "failed", "revision", "result",
        ];
        let rows = self.rows.iter().map(|row| {
            vec![
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
        markdown_table(&mut text, &heading, rows);
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

/// Where a document has the matrix.
const PLACE: &str = "<!-- vm:matrix -->";
const PLACE_END: &str = "<!-- /vm:matrix -->";

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

/// `document` with `matrix` in the place that is marked for it, if there is one.
fn filled(document: &str, matrix: &str) -> Result<Option<String>> {
    let Some((before, behind)) = document.split_once(PLACE) else {
        return Ok(None);
    };
    let (_, after) = behind
        .split_once(PLACE_END)
        .with_context(|| format!("behind {PLACE} there is no {PLACE_END}"))?;
    Ok(Some(format!("{before}{PLACE}\n{matrix}{PLACE_END}{after}")))
}

fn markdown_table(text: &mut String, heading: &[&str], lines: impl Iterator<Item = Vec<String>>) {
    let columns = "---|".repeat(heading.len());
    // Writing to a string does not fail.
    let _ = writeln!(text, "| {} |\n|{columns}", heading.join(" | "));
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

    /// A check of `pendguard doctor`, and what came of it.
    fn check(id: &str, outcome: &str) -> Value {
        serde_json::json!({ "id": id, "outcome": outcome })
    }

    #[test]
    fn the_matrix_has_what_ran_and_what_is_refused() {
        let audits = |kernel: &str, checks: &[Value]| OnKernel {
            kernel: kernel.to_owned(),
            release: String::new(),
            doctor: serde_json::json!({ "audit": { "outcome": "supported" }, "checks": checks }),
        };
        let nothing = OnKernel {
            kernel: "5.10".to_owned(),
            release: String::new(),
            doctor: serde_json::json!({ "audit": { "outcome": "not_supported" }, "checks": [] }),
        };
        let ok = check("tap_programs", "supported");
        let mut report = Report {
            rows: VARIANTS.map(|variant| row("6.1", variant, "r")).into(),
            kernels: vec![
                nothing,
                audits("6.1", std::slice::from_ref(&ok)),
                audits("7.2", &[ok, check("hold_tracepoints", "not_supported")]),
            ],
        };
        for (passed, row) in (1..).zip(&mut report.rows) {
            row.counts.passed = passed;
        }
        report.rows[5].counts.failed = 1;
        report.rows[5].failures.push("late".to_owned());
        let lines = "| 5.10 | refused | refused | refused | refused | refused | refused |
| 6.1 | 1 ok | 2 ok | 3 ok | 4 ok | 5 ok | **6 ok, 1 failed** |
| 7.2 | – | – | refused | refused | – | – |
";
        let matrix = report.matrix();
        assert!(matrix.ends_with(lines), "{matrix}");
    }

    #[test]
    fn a_document_keeps_what_is_around_its_matrix() -> Result<()> {
        let document = format!("a\n{PLACE}\nold\n{PLACE_END}\nb\n");
        let new = format!("a\n{PLACE}\nnew\n{PLACE_END}\nb\n");
        assert_eq!(filled(&document, "new\n")?, Some(new));
        assert_eq!(filled("# Kernels\n", "new\n")?, None);
        // Nothing is put in the place of a document whose place has no end.
        let error = filled(PLACE, "new\n").unwrap_err().to_string();
        assert!(error.contains(PLACE_END), "{error}");
        Ok(())
    }

    /// The tables in the repository are those of the last runs, as they are written now; PENDGUARD_UPDATE_DOCS=1 writes them anew.
    #[test]
    fn the_tables_are_those_of_the_runs() -> Result<()> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let mut report = Report::default();
        report.keep(&root.join("docs/kernels.json"))?;
        if std::env::var_os("PENDGUARD_UPDATE_DOCS").is_some() {
            report.write_markdown(&root.join("docs/kernels.md"))?;
            report.write_markdown(&root.join("README.md"))?;
        }
        let readme = fs::read_to_string(root.join("README.md"))?;
        assert_eq!(filled(&readme, &report.matrix())?, Some(readme));
        assert_eq!(
            fs::read_to_string(root.join("docs/kernels.md"))?,
            report.markdown()
        );
        Ok(())
    }
}
