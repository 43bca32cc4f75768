//! Every check that CI runs, in the order in which a mistake is found soonest.

mod budget;
mod complaints;
mod counts;
pub mod faults;
mod lints;
mod report;
mod supply_chain;

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, ensure};

use self::budget::Budget;
pub use self::complaints::Complaints;
pub use self::counts::Counts;
use self::report::{Outcome, Report};
use crate::architecture::Architecture;
use crate::build;
use crate::fuzz;
use crate::image;
use crate::manifests;
use crate::process;
use crate::setup::{BpfToolchain, Setup};
use crate::vm;
use crate::workspace::Workspace;

/// How long the parser is fuzzed as a part of the tests; `cargo xtask fuzz` takes longer.
const FUZZ_TIME: Duration = Duration::from_secs(20);

/// Joins of the gate that `--soak` asks for; the ordinary tests do a quarter.
const JOINS: u64 = 10_000;

/// Minutes that must be left for everything at full scale, for the other kernels, for a part of what is run on them, and for fuzzing: twice what
/// each takes on an ordinary machine with two processors.
const FULL_MINUTES: u64 = 55;
const KERNELS_MINUTES: u64 = 32;
const FEW_KERNELS_MINUTES: u64 = 14;
const FUZZ_MINUTES: u64 = 6;

/// The verb `test`. Stops at the first step that fails; the last line that it prints is the sum of all tests.
pub fn run(workspace: &Workspace, fast: bool) -> Result<ExitCode> {
    let budget = Budget::from_environment()?;
    finish(|report| steps(workspace, fast, budget, report))
}

/// `test --soak`: nothing but what takes long.
pub fn soak(workspace: &Workspace, minutes: u64) -> Result<ExitCode> {
    finish(|report| {
        let toolchain = report.step("setup", |_| {
            let setup = Setup::new(workspace);
            let toolchain = setup.for_build()?;
            setup.for_peers()?;
            Ok(toolchain)
        })?;
        report.check("BPF programs", || build::programs(workspace, &toolchain))?;
        report.check("agent", || build::agent(workspace))?;
        report.check("tests' programs", || build::test_programs(workspace))?;
        report.step("soak", |counts| {
            let mut command = privileged(workspace, "full");
            command
                .args(["--test", "soak"])
                .env("PENDGUARD_SOAK_MINUTES", minutes.to_string());
            run_tests(&mut command, &["--nocapture"], counts)
        })?;
        report.step("joins", |counts| {
            let mut command = privileged(workspace, "full");
            command
                .args(["--test", "joins"])
                .env("PENDGUARD_JOINS", JOINS.to_string());
            run_tests(&mut command, &["--nocapture"], counts)
        })
    })
}

fn finish(steps: impl FnOnce(&mut Report) -> Result<(), report::Failed>) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the tests load BPF programs and so need root; as a user with rustup in the home directory: \
         sudo --preserve-env=HOME env \"PATH=$PATH\" cargo xtask test"
    );
    let mut report = Report::default();
    let result = steps(&mut report);
    report.print();
    Ok(match result {
        Ok(()) => ExitCode::SUCCESS,
        // It was printed when it happened.
        Err(report::Failed) => ExitCode::FAILURE,
    })
}

fn steps(
    workspace: &Workspace,
    fast: bool,
    budget: Budget,
    report: &mut Report,
) -> Result<(), report::Failed> {
    let toolchain = report.step("setup", |_| set_up(workspace, fast))?;
    report.check("format", || lints::format(workspace))?;
    report.check("BPF programs", || build::programs(workspace, &toolchain))?;
    report.check("clippy", || lints::clippy(workspace))?;
    report.check_or_skip("clippy of the BPF programs", || {
        lints::clippy_of_programs(workspace, &toolchain)
    })?;
    report.check("manifests", || manifests::run(workspace, true))?;
    report.check("documentation", || lints::documentation(workspace))?;
    report.check("licences, bans, sources", || {
        supply_chain::policy(workspace)
    })?;
    report.check_or_skip("advisories", || supply_chain::advisories(workspace))?;
    report.check("agent", || build::agent(workspace))?;
    report.check("image", || image::of_built(workspace))?;
    report.check("tests' programs", || {
        build::test_objects(workspace, &toolchain)?;
        build::test_programs(workspace)
    })?;
    report.step("unit tests", |counts| unit_tests(workspace, counts))?;
    report.step("privileged tests", |counts| {
        let fast = fast || !budget.has(FULL_MINUTES);
        if fast {
            println!("not at full scale: {}", budget.left());
        }
        privileged_tests(workspace, fast, counts)
    })?;
    report.step_or_skip("other kernels", |counts| {
        if fast {
            return Ok(Outcome::Skipped("--fast".to_owned()));
        }
        if let Some(reason) = vm::impossible() {
            return Ok(Outcome::Skipped(reason.to_owned()));
        }
        if !budget.has(FEW_KERNELS_MINUTES) {
            return Ok(Outcome::Skipped(budget.left()));
        }
        let all = budget.has(KERNELS_MINUTES);
        if !all {
            println!("not every test: {}", budget.left());
        }
        vm::check(workspace, all, counts)?;
        Ok(Outcome::Passed)
    })?;
    report.check_or_skip("fuzzing", || {
        if fast {
            return Ok(Outcome::Skipped("--fast".to_owned()));
        }
        if !budget.has(FUZZ_MINUTES) {
            return Ok(Outcome::Skipped(budget.left()));
        }
        fuzz::run(workspace, FUZZ_TIME, None)?;
        Ok(Outcome::Passed)
    })?;
    Ok(())
}

fn set_up(workspace: &Workspace, fast: bool) -> Result<BpfToolchain> {
    let setup = Setup::new(workspace);
    let toolchain = setup.for_build()?;
    setup.for_peers()?;
    setup.for_dashboards()?;
    setup.for_deployment()?;
    setup.for_checks(&toolchain)?;
    if !fast {
        setup.for_fuzz()?;
        if vm::impossible().is_none() {
            setup.for_vm(&[Architecture::X86_64])?;
        }
    }
    Ok(toolchain)
}

/// Everything that needs no privilege.
fn unit_tests(workspace: &Workspace, counts: &mut Counts) -> Result<()> {
    // The parser and its properties with overflow checks and debug assertions, which the shipped profile leaves out.
    let mut checked = workspace.cargo("test");
    checked.args(["--package", "agent-common", "--package", "xtask"]);
    run_tests(&mut checked, &[], counts)?;
    // The agent with what was compiled for it already.
    let mut shipped = workspace.cargo_static("test");
    shipped.args(["--package", "pendguard"]);
    run_tests(&mut shipped, &[], counts)
}

/// The tests that load BPF programs and watch real processes: one at a time, since they watch the whole machine.
fn privileged_tests(workspace: &Workspace, fast: bool, counts: &mut Counts) -> Result<()> {
    let mut command = privileged(workspace, if fast { "fast" } else { "full" });
    run_tests(&mut command, &["--test-threads=1"], counts)
}

fn privileged(workspace: &Workspace, scale: &str) -> Command {
    let mut command = workspace.cargo_static("test");
    command
        .args(["--package", "pendguard-tests"])
        .env("PENDGUARD_BIN", workspace.target("release/pendguard"))
        .env("PENDGUARD_TEST_SCALE", scale);
    command
}

/// Runs `cargo test`, all of it even if a part fails, with `arguments` for the test programs.
fn run_tests(command: &mut Command, arguments: &[&str], counts: &mut Counts) -> Result<()> {
    command.arg("--no-fail-fast").arg("--").args(arguments);
    let mut complaints = Complaints::default();
    let result = process::show_and_read(command, |line| {
        counts.read(line);
        complaints.read(line);
    });
    // Each stands behind its own program's tests, far above by now.
    for line in complaints.lines() {
        println!("{line}");
    }
    result
}
