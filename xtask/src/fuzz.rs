//! Fuzzes the parsers: every target for its share of the time.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::process;
use crate::progress::{Progress, Seconds};
use crate::rustup;
use crate::setup::{CARGO_FUZZ, Setup};
use crate::workspace::Workspace;

/// The crates whose `fuzz` directories hold the targets: the HTTP/2 tracker, and what the agent reads.
const FUZZED: [&str; 2] = ["agent-common", "agent"];

/// The example in each that writes the corpora.
const SEEDS: &str = "seeds";

/// Longer than this on one input is a finding: the parser does a bounded amount of work.
const INPUT_TIMEOUT: &str = "-timeout=10";

/// libFuzzer's word for where it left a failing input.
const ARTIFACT: &str = "Test unit written to ";

/// What became of a target.
struct Fuzzed {
    target: String,
    /// What it does, as its file says.
    about: String,
    /// Inputs that it was given.
    executions: u64,
}

/// The verb `fuzz`: all targets, for `total` together. A failure ends it.
pub fn run(workspace: &Workspace, total: Duration, report: Option<&Path>) -> Result<()> {
    Setup::new(workspace).for_fuzz()?;
    let mut targets = Vec::new();
    for fuzzed in FUZZED {
        let named = targets_of(workspace, fuzzed)?;
        ensure!(!named.is_empty(), "{fuzzed}/fuzz has no target");
        targets.extend(named.into_iter().map(|target| (fuzzed, target)));
    }
    let share = (total / u32::try_from(targets.len())?).max(Duration::from_secs(1));
    let steps = u64::try_from(FUZZED.len() + targets.len())?;
    let mut progress = Progress::start("fuzz", steps);
    for fuzzed in FUZZED {
        seed(workspace, &mut progress, fuzzed)?;
    }
    let mut done = Vec::new();
    for (fuzzed, target) in targets {
        let executions = fuzz(workspace, &mut progress, fuzzed, &target, share)?;
        progress.done(&target, &format!("{executions} executions, no failure"));
        done.push(Fuzzed {
            about: about(workspace, fuzzed, &target)?,
            target,
            executions,
        });
    }
    let all: u64 = done.iter().map(|fuzzed| fuzzed.executions).sum();
    progress.say(format!(
        "{all} executions of {} targets, no failure",
        done.len()
    ));
    if let Some(path) = report {
        let text = markdown(&done, share, &workspace.revision());
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The comment that a target's file begins with.
fn about(workspace: &Workspace, fuzzed: &str, target: &str) -> Result<String> {
    let path = workspace
        .path(fuzzed)
        .join("fuzz/fuzz_targets")
        .join(target)
        .with_extension("rs");
    let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let comment: Vec<_> = source
        .lines()
        .map_while(|line| line.strip_prefix("//! "))
        .collect();
    Ok(comment.join(" "))
}

fn markdown(done: &[Fuzzed], share: Duration, revision: &str) -> String {
    let mut text = String::from(
        "# Fuzzing\n\nMade by `cargo xtask fuzz --report FILE`, which ends at the first failure: what is here has none. Inputs grow from captured streams \
         and the like (`seeds`); debug assertions and overflow checks are on.\n\n",
    );
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "Revision `{revision}`, {} s a target.\n\n| target | what is compared | executions | failures |\n|---|---|---|---|",
        share.as_secs()
    );
    for fuzzed in done {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | 0 |",
            fuzzed.target, fuzzed.about, fuzzed.executions
        );
    }
    let all: u64 = done.iter().map(|fuzzed| fuzzed.executions).sum();
    let _ = writeln!(text, "| all | | {all} | 0 |");
    text
}

fn targets_of(workspace: &Workspace, fuzzed: &str) -> Result<Vec<String>> {
    let list = process::stdout(cargo_fuzz(workspace, fuzzed).arg("list"))?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// Writes captured streams and the like into the corpora, so that fuzzing begins with what is really there.
fn seed(workspace: &Workspace, progress: &mut Progress, fuzzed: &str) -> Result<()> {
    progress.begin(SEEDS, &format!("of {fuzzed}"));
    let directory = workspace.target("fuzz");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let mut command = with_nightly("cargo");
    command
        .args(["run", "--example", SEEDS, "--target-dir"])
        .arg(&directory)
        .current_dir(workspace.path(fuzzed).join("fuzz"));
    let log = directory.join(format!("seeds-{fuzzed}.log"));
    process::log(&mut command, &log, |line| progress.live(line))?;
    progress.done(SEEDS, &format!("of {fuzzed}, written"));
    Ok(())
}

/// Runs one target, and says how many inputs it was given.
fn fuzz(
    workspace: &Workspace,
    progress: &mut Progress,
    fuzzed: &str,
    target: &str,
    time: Duration,
) -> Result<u64> {
    let directory = workspace.target("fuzz");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let log = directory.join(format!("{target}.log"));
    fs::write(&log, "").with_context(|| log.display().to_string())?;

    progress.begin(target, &format!("for {} after compiling", Seconds(time)));
    let mut command = cargo_fuzz(workspace, fuzzed);
    command
        // The parser's indexing is all checked, so that the address sanitizer would find nothing; without it five times
        // as many inputs are tried. Debug assertions and overflow checks are on either way.
        .args(["run", "--sanitizer", "none", "--target-dir"])
        .arg(&directory)
        .args([target, "--", INPUT_TIMEOUT])
        .arg(format!("-max_total_time={}", time.as_secs()));
    let mut executions = None;
    let mut artifact = None;
    let result = process::log(&mut command, &log, |line| {
        progress.live(line);
        executions = executions_in(line).or(executions);
        if let Some((_, path)) = line.split_once(ARTIFACT) {
            artifact = Some(path.to_owned());
        }
    });
    match (result, artifact) {
        (Err(error), Some(path)) => bail!("{error:#}\n{target} fails on the input {path}"),
        (Err(error), None) => Err(error),
        (Ok(()), _) => executions.with_context(|| format!("{target} did not say how far it got")),
    }
}

/// The count in libFuzzer's last line, `Done 724476 runs in 4 second(s)`.
fn executions_in(line: &str) -> Option<u64> {
    let (count, _) = line.strip_prefix("Done ")?.split_once(" runs in ")?;
    count.parse().ok()
}

/// cargo-fuzz in the fuzzed crate. Its flags are a nightly compiler's.
fn cargo_fuzz(workspace: &Workspace, fuzzed: &str) -> Command {
    let mut command = with_nightly(workspace.tool(CARGO_FUZZ.name));
    command.arg("fuzz").current_dir(workspace.path(fuzzed));
    command
}

/// A program that starts cargo and rustc, of the toolchain that fuzzing needs.
fn with_nightly(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_remove("RUSTFLAGS");
    if rustup::has_nightly() {
        // cargo-fuzz starts `cargo` and `rustc` by these names, so rustup decides which they are.
        command.env("RUSTUP_TOOLCHAIN", rustup::NIGHTLY);
    } else {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_target_and_the_sum() {
        let fuzzed = |target: &str, executions| Fuzzed {
            target: target.to_owned(),
            about: "Any octets.".to_owned(),
            executions,
        };
        let done = [fuzzed("walk", 40), fuzzed("late", 2)];
        let text = markdown(&done, Duration::from_secs(30), "abc");
        assert!(
            text.contains("Revision `abc`, 30 s a target.\n\n| target"),
            "{text}"
        );
        let rows = "| `walk` | Any octets. | 40 | 0 |\n| `late` | Any octets. | 2 | 0 |\n| all | | 42 | 0 |\n";
        assert!(text.ends_with(rows), "{text}");
    }

    #[test]
    fn the_count_of_executions_is_found() {
        assert_eq!(
            executions_in("Done 724476 runs in 4 second(s)"),
            Some(724_476)
        );
        assert_eq!(executions_in("#724476\tDONE   cov: 21"), None);
    }
}
