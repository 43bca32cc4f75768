//! Fuzzes the parsers: every target for its share of the time.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::at_once;
use crate::process;
use crate::progress::{Beside, Progress, Seconds};
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

/// The verb `fuzz`: all targets, for `total` together, as many at once as there are processors. Behind a failure no further one is begun.
pub fn run(workspace: &Workspace, total: Duration, report: Option<&Path>) -> Result<()> {
    Setup::new(workspace).for_fuzz()?;
    let mut targets = Vec::new();
    for fuzzed in FUZZED {
        let named = targets_of(workspace, fuzzed)?;
        ensure!(!named.is_empty(), "{fuzzed}/fuzz has no target");
        targets.extend(named.into_iter().map(|target| (fuzzed, target)));
    }
    let at_once = targets.len().min(thread::available_parallelism()?.get());
    let share = share(total, targets.len(), at_once)?;
    let steps = u64::try_from(2 * FUZZED.len() + targets.len())?;
    let mut progress = Progress::start("fuzz", steps);
    for fuzzed in FUZZED {
        seed(workspace, &mut progress, fuzzed)?;
        compile(workspace, &mut progress, fuzzed)?;
    }
    let done = at_once::on_each(&targets, at_once, |(fuzzed, target)| {
        let step = progress.beside(target, &format!("for {}", Seconds(share)));
        let executions = fuzz(workspace, &step, fuzzed, target, share)?;
        step.done(&format!("{executions} executions, no failure"));
        Ok(Fuzzed {
            about: about(workspace, fuzzed, target)?,
            target: target.clone(),
            executions,
        })
    })?;
    let all: u64 = done.iter().map(|fuzzed| fuzzed.executions).sum();
    progress.say(format!(
        "{all} executions of {} targets, no failure",
        done.len()
    ));
    if let Some(path) = report {
        let text = markdown(&done, (share, at_once), &workspace.revision());
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// How long each of `targets` targets runs, in whole seconds, for all of them to take `total`.
fn share(total: Duration, targets: usize, at_once: usize) -> Result<Duration> {
    let rounds = u64::try_from(targets.div_ceil(at_once))?;
    Ok(Duration::from_secs((total.as_secs() / rounds).max(1)))
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

fn markdown(done: &[Fuzzed], (share, at_once): (Duration, usize), revision: &str) -> String {
    let mut text = String::from(
        "# Fuzzing\n\nMade by `cargo xtask fuzz --report FILE`, which ends at the first failure: what is here has none. Inputs grow from captured streams \
         and the like (`seeds`); debug assertions and overflow checks are on.\n\n",
    );
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "Revision `{revision}`, {} s a target, {at_once} at once.\n\n| target | what is compared | executions | failures |\n|---|---|---|---|",
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
    let mut command = with_nightly(workspace.tool(CARGO_FUZZ.name));
    command
        .args(["fuzz", "list"])
        .current_dir(workspace.path(fuzzed));
    let list = process::stdout(&mut command)?;
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

/// Compiles a crate's targets, so that those which run at once don't wait for one another.
fn compile(workspace: &Workspace, progress: &mut Progress, fuzzed: &str) -> Result<()> {
    let what = format!("targets of {fuzzed}");
    progress.begin(&what, "compiling");
    let directory = workspace.target("fuzz");
    let mut command = cargo_fuzz(workspace, fuzzed, "build");
    command.arg("--target-dir").arg(&directory);
    let log = directory.join(format!("build-{fuzzed}.log"));
    process::log(&mut command, &log, |line| progress.live(line))?;
    progress.done(&what, "compiled");
    Ok(())
}

/// Runs one target, and says how many inputs it was given.
fn fuzz(
    workspace: &Workspace,
    step: &Beside<'_>,
    fuzzed: &str,
    target: &str,
    time: Duration,
) -> Result<u64> {
    let directory = workspace.target("fuzz");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let log = directory.join(format!("{target}.log"));
    fs::write(&log, "").with_context(|| log.display().to_string())?;

    let mut command = cargo_fuzz(workspace, fuzzed, "run");
    command
        .arg("--target-dir")
        .arg(&directory)
        .args([target, "--", INPUT_TIMEOUT])
        .arg(format!("-max_total_time={}", time.as_secs()));
    let mut executions = None;
    let mut artifact = None;
    let result = process::log(&mut command, &log, |line| {
        step.live(line);
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

/// cargo-fuzz's `verb` in the fuzzed crate. Its flags are a nightly compiler's.
fn cargo_fuzz(workspace: &Workspace, fuzzed: &str, verb: &str) -> Command {
    let mut command = with_nightly(workspace.tool(CARGO_FUZZ.name));
    command
        .args(["fuzz", verb])
        // The parser's indexing is all checked, so that the address sanitizer would find nothing; without it five times
        // as many inputs are tried. Debug assertions and overflow checks are on either way.
        .args(["--sanitizer", "none"])
        .current_dir(workspace.path(fuzzed));
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
        let text = markdown(&done, (Duration::from_secs(30), 2), "abc");
        assert!(
            text.contains("Revision `abc`, 30 s a target, 2 at once.\n\n| target"),
            "{text}"
        );
        let rows = "| `walk` | Any octets. | 40 | 0 |\n| `late` | Any octets. | 2 | 0 |\n| all | | 42 | 0 |\n";
        assert!(text.ends_with(rows), "{text}");
    }

    #[test]
    fn the_time_is_that_of_all_targets() -> Result<()> {
        let seconds = |targets, at_once| -> Result<u64> {
            Ok(share(Duration::from_secs(60), targets, at_once)?.as_secs())
        };
        assert_eq!(seconds(8, 1)?, 7);
        assert_eq!(seconds(8, 2)?, 15);
        assert_eq!(seconds(8, 3)?, 20);
        assert_eq!(seconds(100, 1)?, 1);
        Ok(())
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
