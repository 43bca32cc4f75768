//! The verb `vm`: the privileged tests, on kernels that are not this machine's.
//!
//! Debian's kernels are booted by qemu, without hardware virtualisation if need be, with an initramfs that has one static
//! program of ours (`vm-init`), and a disk with the tests and what they run. Nothing is installed on this machine but qemu,
//! and the machine that is booted has no network.

mod content;
mod image;
mod initramfs;
mod jobs;
mod kernel;
mod machine;
mod programs;
mod report;
mod userland;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{self, Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use vm_init::{End, Event, Job, Plan};

use self::content::Content;
use self::jobs::{PROGRAMS, TESTS, TESTS_ELSEWHERE, test_of};
use self::kernel::{Kernel, Series};
use self::machine::{Machine, Message};
use self::report::{Report, Row};
use crate::architecture::Architecture;
use crate::at_once;
use crate::build;
use crate::elf;
use crate::process;
use crate::progress::Progress;
use crate::setup::Setup;
use crate::test::{Complaints, Counts};
use crate::workspace::Workspace;

/// What a program may take in the machine, in seconds, if the user says nothing.
const LIMIT: u64 = 1_800;

/// Where the last run's own rows are kept, whatever else they are written to.
const LAST: &str = "vm/last.json";

/// What runs on a kernel that the agent refuses.
const REFUSED: &str = DOCTOR;
const DOCTOR: &str = "doctor";

/// What `cargo xtask test` runs of them: the programs load, those that follow answers too, count, reject (quietly, too) and go, for every system call.
const CHECKED: [&str; 8] = [
    "fixtures",
    "parser",
    "late",
    "agent::nothing_is_left_behind",
    "sends::every_system_call",
    "rewrite",
    "enforce::tonic_on_rust",
    "quiet::nobody_notices_on_rust",
];

/// What it runs besides, and on which kernel: the overlays that this machine's own kernel may be no use for, in containers of the image.
const CHECKED_ON: [(&str, &str); 3] = [
    ("image::rewriting", "6.12"),
    ("image::the_overlays_for_other_kernels", "6.12"),
    ("image::each_capability_is_needed_to_rewrite", "6.12"),
];

/// What it runs of them on a machine that is too slow for all.
const CHECKED_FIRST: [&str; 2] = ["fixtures", "agent::nothing_is_left_behind"];

/// How many machines it runs at once: a test keeps about one processor of its machine busy.
const CHECKED_AT_ONCE: u16 = 2;

/// What runs beside [`DOCTOR`] on a kernel that is locked down for integrity, with the gate.
const LOCKED: &str = "enforce::tonic_on_rust";

/// How much of itself a kernel keeps from root (kernel_lockdown(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lockdown {
    /// Nothing.
    None,
    /// What would let root change the running kernel.
    Integrity,
    /// And what would let root read it.
    Confidentiality,
}

impl Lockdown {
    /// Its value of the kernel's parameter `lockdown`.
    pub const fn parameter(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Integrity => Some("integrity"),
            Self::Confidentiality => Some("confidentiality"),
        }
    }
}

/// How the agent works, as it is told by its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Variant {
    /// How sends are seen: PENDGUARD_TAP.
    pub tap: &'static str,
    /// How calls are rejected: PENDGUARD_ENFORCER; none where nothing is.
    pub enforcer: &'static str,
}

const fn variant(tap: &'static str, enforcer: &'static str) -> Variant {
    Variant { tap, enforcer }
}

/// The tap on the kernel's functions.
const FENTRY: &str = "fentry";
/// The enforcer at the source's socket.
const GATE: &str = "gate";
/// No enforcer.
const NONE: &str = "none";

/// Every way in which the agent can work.
const VARIANTS: [Variant; 6] = [
    variant("tracepoint", NONE),
    variant(FENTRY, NONE),
    variant("tracepoint", GATE),
    variant(FENTRY, GATE),
    variant("tracepoint", "rewrite"),
    variant(FENTRY, "rewrite"),
];

/// What the user asked for.
#[derive(clap::Args)]
pub struct Options {
    /// Debian's kernels to boot
    #[arg(
        long,
        value_name = "SERIES",
        value_delimiter = ',',
        default_values = kernel::own_names(),
        value_parser = Series::named
    )]
    kernel: Vec<Series>,
    /// Only these tests: a file of tests/tests, and in it those whose name contains FILTER
    #[arg(long, value_name = "NAME[::FILTER]")]
    test: Vec<String>,
    /// A variable for what runs in the machine
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Boot each kernel with this lockdown, or with each of several; a locked-down one runs only what is about that, unless tests are named
    #[arg(
        long,
        value_name = "MODE",
        value_delimiter = ',',
        default_value = "none"
    )]
    lockdown: Vec<Lockdown>,
    /// Only with this tap
    #[arg(long, value_name = "TAP", value_parser = ["tracepoint", "fentry"])]
    tap: Option<String>,
    /// Only with this enforcer, tests that reject nothing left out
    #[arg(long, value_name = "ENFORCER", value_parser = ["gate", "rewrite"])]
    enforcer: Option<String>,
    /// How many machines run at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    machines: u16,
    /// How long a program may take in the machine
    #[arg(long, value_name = "SECONDS", default_value_t = LIMIT)]
    limit: u64,
    /// Machines with one processor whose clock is the number of instructions that it has executed, a nanosecond each: what takes a time there
    /// takes so many instructions
    #[arg(long)]
    count_instructions: bool,
    /// Keep the initramfs, and say how to boot the machine by hand
    #[arg(long)]
    keep: bool,
    /// Write the table, and what `pendguard doctor` says on each kernel, to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The same for people, as Markdown; a file that has a place marked `<!-- vm:matrix -->` gets the matrix there, and keeps the rest. May be repeated
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// Put into the table and the files, too, what an earlier run wrote with --json, of kernels and lockdowns that don't run now
    #[arg(long, value_name = "FILE")]
    with: Option<PathBuf>,
    /// Run a program of this machine instead of tests; what follows are its arguments. One in target/release is built before
    #[arg(
        long,
        num_args = 1..,
        allow_hyphen_values = true,
        value_names = ["PROGRAM", "ARGUMENT"],
        conflicts_with = "test"
    )]
    exec: Vec<String>,
}

impl Options {
    /// The kernels that were asked for, of an architecture.
    fn kernels(&self, architecture: Architecture) -> Vec<Series> {
        let of = |series: &&Series| series.architecture == architecture;
        self.kernel.iter().filter(of).copied().collect()
    }

    /// Whether the program to run is one of the workspace's own, which may lie there since long ago.
    fn runs_what_is_built(&self, workspace: &Workspace) -> bool {
        let program = self.exec.first().and_then(|it| path::absolute(it).ok());
        program.is_some_and(|program| program.starts_with(workspace.target("release")))
    }

    fn wants(&self, variant: &Variant) -> bool {
        let is = |wanted: &Option<String>, name| wanted.as_ref().is_none_or(|it| it == name);
        is(&self.tap, variant.tap) && is(&self.enforcer, variant.enforcer)
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("no = in it")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The verb `vm`.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let setup = Setup::new(workspace);
    let architectures: Vec<_> = Architecture::ALL
        .into_iter()
        .filter(|architecture| !options.kernels(*architecture).is_empty())
        .collect();
    setup.for_vm(&architectures)?;
    let mut report = Report::default();
    for architecture in architectures {
        let prepared = if architecture.is_own() {
            if options.exec.is_empty() {
                setup.for_peers()?;
                build::run(workspace, true)?;
                if jobs::need_image(options) {
                    setup.for_deployment()?;
                    crate::image::of_built(workspace)?;
                }
            } else if options.runs_what_is_built(workspace) {
                build::run(workspace, true)?;
            }
            Prepared::for_this_machine(workspace, options)?
        } else {
            let built_for = setup.for_machine(architecture)?;
            if options.exec.is_empty() {
                setup.for_go_peers(&built_for)?;
                build::with(&built_for, &setup.for_build()?, true)?;
            }
            Prepared::for_another(workspace, &built_for, architecture, options)?
        };
        report.add(prepared.on_all()?);
    }
    let passed = report.rows.iter().all(Row::passed);
    // An hour's work isn't lost with the file that it was to be written to.
    report.write_json(&workspace.target(LAST))?;
    if let Some(path) = &options.with {
        report.keep(path)?;
    }
    print!("\n{}", report::table(&report.rows));
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    for path in &options.report {
        report.write_markdown(path)?;
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Why this machine can't boot the kernels, if so.
pub fn impossible() -> Option<&'static str> {
    // Their packages come through apt, and they run the programs that were built for this machine.
    if !cfg!(target_arch = "x86_64") {
        return Some("the kernels are for x86-64");
    }
    let debian = fs::read_to_string("/etc/os-release").is_ok_and(|text| {
        text.lines()
            .any(|line| line.trim_matches('"') == "ID=debian")
    });
    (!debian).then_some("the kernels are Debian's, and this is another system")
}

/// The step of `cargo xtask test`: a part of the tests, on all kernels, with everything built before.
pub fn check(workspace: &Workspace, all: bool, counts: &mut Counts) -> Result<()> {
    let only: &[_] = if all { &CHECKED_ON } else { &[] };
    let tests: &[&str] = if all { &CHECKED } else { &CHECKED_FIRST };
    let tests = tests.iter().chain(only.iter().map(|(test, _)| test));
    let options = Options {
        kernel: kernel::checked(),
        test: tests.map(|test| (*test).to_owned()).collect(),
        env: Vec::new(),
        lockdown: vec![Lockdown::None],
        tap: None,
        enforcer: None,
        machines: CHECKED_AT_ONCE,
        limit: LIMIT,
        count_instructions: false,
        keep: false,
        json: None,
        report: Vec::new(),
        with: None,
        exec: Vec::new(),
    };
    let prepared = Prepared {
        only,
        ..Prepared::for_this_machine(workspace, &options)?
    };
    let rows = prepared.on_all()?.rows;
    print!("\n{}", report::table(&rows));
    for row in &rows {
        counts.add(row.counts);
    }
    let failed = rows.iter().filter(|row| !row.passed()).count();
    ensure!(failed == 0, "{failed} of {} rows failed", rows.len());
    Ok(())
}

/// What is the same for all kernels of an architecture.
struct Prepared<'a> {
    workspace: &'a Workspace,
    options: &'a Options,
    kernels: Vec<Series>,
    init: PathBuf,
    disk: PathBuf,
    /// The jobs, with the variant that each belongs to.
    jobs: Vec<(Variant, Job)>,
    /// Tests that run on one of the kernels alone, and on which.
    only: &'a [(&'a str, &'a str)],
    revision: String,
}

impl<'a> Prepared<'a> {
    /// For kernels of this machine's own architecture.
    fn for_this_machine(workspace: &'a Workspace, options: &'a Options) -> Result<Self> {
        let kernels = options.kernel.iter().filter(|it| it.architecture.is_own());
        let kernels = kernels.copied().collect();
        let mut content = content::of_this_machine(workspace)?;
        let jobs = jobs::plan(workspace, options, &TESTS, &mut content)?;
        content.image.add_libraries()?;
        Ok(Self {
            workspace,
            options,
            kernels,
            init: init(workspace)?,
            disk: disk(workspace, &content)?,
            jobs,
            only: &[],
            revision: workspace.revision(),
        })
    }

    /// For kernels of another, for which `built_for` builds.
    fn for_another(
        workspace: &'a Workspace,
        built_for: &Workspace,
        architecture: Architecture,
        options: &'a Options,
    ) -> Result<Self> {
        let root = userland::fetch(workspace, architecture)?;
        let mut content = content::of_another_machine(built_for, &root)?;
        let jobs = jobs::plan(built_for, options, &TESTS_ELSEWHERE, &mut content)?;
        Ok(Self {
            workspace,
            options,
            kernels: options.kernels(architecture),
            init: init(built_for)?,
            disk: disk(built_for, &content)?,
            jobs,
            only: &[],
            revision: workspace.revision(),
        })
    }

    /// Boots all kernels that were asked for and runs the jobs on each.
    fn on_all(&self) -> Result<Report> {
        let mut progress = Progress::start("vm", self.kernels.len() as u64);
        let mut kernels = Vec::new();
        for series in &self.kernels {
            let name = format!("kernel {}", series.name);
            progress.begin(&name, "looking for it");
            let kernel = Kernel::fetch(self.workspace, *series, &progress)?;
            progress.done(&name, &kernel.release);
            kernels.push(kernel);
        }
        drop(progress);
        let mut boots = Vec::new();
        for kernel in &kernels {
            for lockdown in &self.options.lockdown {
                boots.push((kernel, *lockdown));
            }
        }
        let machines = boots.len().min(self.options.machines.into());
        let reports = at_once::on_each(&boots, machines, |boot| self.on(*boot, machines == 1))?;
        let mut report = Report::default();
        for of_one in reports {
            report.add(of_one);
        }
        Ok(report)
    }

    /// What there is to do on a kernel.
    fn jobs_on(&self, series: Series, lockdown: Lockdown) -> Vec<(Variant, Job)> {
        let named = !self.options.test.is_empty();
        let wanted = |(variant, job): &&(Variant, Job)| {
            if !self.options.exec.is_empty() || job.name == PROGRAMS {
                return true;
            }
            let locked = lockdown == Lockdown::None
                || named
                || job.name == DOCTOR
                || lockdown == Lockdown::Integrity
                    && test_of(job) == LOCKED
                    && *variant == VARIANTS[2];
            let elsewhere =
                |(test, kernel): &(&str, &str)| *kernel != series.name && *test == test_of(job);
            locked
                && !self.only.iter().any(elsewhere)
                && (!series.refused || job.name == REFUSED)
                && (series.fentry || variant.tap != FENTRY)
                && (series.gate || variant.enforcer != GATE)
        };
        self.jobs.iter().filter(wanted).cloned().collect()
    }

    /// Boots a kernel and runs the jobs on it.
    fn on(&self, (kernel, lockdown): (&Kernel, Lockdown), alone: bool) -> Result<Report> {
        let series = kernel.series;
        let jobs = self.jobs_on(series, lockdown);
        let name = match lockdown.parameter() {
            Some(parameter) => format!("{} {parameter}", series.name),
            None => series.name.to_owned(),
        };
        let directory = self
            .workspace
            .target(format!("vm/{}", name.replace(' ', "-")));
        let steps = 1 + jobs.len() as u64;
        let mut progress = if alone {
            Progress::start("vm", steps)
        } else {
            Progress::beside_others(format!("vm {name}"), steps)
        };
        let machine = Machine {
            kernel,
            init: &self.init,
            disk: &self.disk,
            directory: directory.clone(),
            lockdown: lockdown.parameter(),
            counts_instructions: self.options.count_instructions,
        };
        let mut plan = Plan {
            jobs: jobs.iter().map(|(_, job)| job.clone()).collect(),
            ..Plan::default()
        };
        for job in &mut plan.jobs {
            let lockdown = lockdown.parameter().unwrap_or("none");
            let variable = ("PENDGUARD_TEST_LOCKDOWN".to_owned(), lockdown.to_owned());
            job.environment.push(variable);
        }
        let mut hearing = Hearing::new(
            &jobs,
            (kernel, &name),
            &self.revision,
            &directory,
            &mut progress,
        )?;
        if !alone {
            hearing.mark = format!("{name}: ");
        }
        let result = machine.run(&plan, |message| hearing.hear(&message));
        let mut report = hearing.report();
        drop(progress);
        if let Err(error) = result {
            // What the other kernels say is of interest all the same.
            eprintln!("FAILED: kernel {name}: {error:#}");
            for row in &mut report.rows {
                row.failures.push("the machine did not finish".to_owned());
            }
        }
        if self.options.keep {
            eprintln!("vm: {}", process::describe(&machine.command()));
        } else {
            machine.remove_files()?;
        }
        Ok(report)
    }
}

/// The first process of the machines.
fn init(workspace: &Workspace) -> Result<PathBuf> {
    let init = programs::init(workspace)?;
    elf::ensure_static(&init)?;
    Ok(init)
}

/// The machines' disk.
fn disk(workspace: &Workspace, content: &Content) -> Result<PathBuf> {
    let directory = workspace.target("vm");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let disk = directory.join("disk.ext4");
    let mut progress = Progress::start("vm", 1);
    progress.begin("disk", "what the tests use");
    content.image.write(&disk)?;
    progress.done("disk", &workspace.display(&disk).to_string());
    Ok(disk)
}

/// Makes rows of what comes from a machine.
struct Hearing<'a> {
    jobs: &'a [(Variant, Job)],
    progress: &'a mut Progress,
    /// All that the jobs print.
    log: File,
    /// Before each line of it on the screen, where there are several machines.
    mark: String,
    /// One for each variant.
    rows: Vec<Row>,
    /// What `pendguard doctor --json` prints.
    said: String,
    name: String,
    release: String,
    /// The running job, and its place in `rows`.
    current: Option<(&'a Job, Option<usize>)>,
}

impl<'a> Hearing<'a> {
    fn new(
        jobs: &'a [(Variant, Job)],
        (kernel, name): (&Kernel, &str),
        revision: &str,
        directory: &Path,
        progress: &'a mut Progress,
    ) -> Result<Self> {
        let used = |variant: &Variant| {
            let is = |(of, job): &(Variant, Job)| of == variant && job.name != PROGRAMS;
            jobs.iter().any(is)
        };
        let rows = VARIANTS.into_iter().filter(used).map(|variant| Row {
            kernel: name.to_owned(),
            release: kernel.release.clone(),
            revision: revision.to_owned(),
            variant,
            counts: Counts::default(),
            seconds: 0.0,
            failures: Vec::new(),
            complaints: Complaints::default(),
        });
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let path = directory.join("output.log");
        let log = File::create(&path).with_context(|| path.display().to_string())?;
        progress.begin("booting", &format!("Linux {}", kernel.release));
        Ok(Self {
            jobs,
            progress,
            log,
            mark: String::new(),
            rows: rows.collect(),
            said: String::new(),
            name: name.to_owned(),
            release: kernel.release.clone(),
            current: None,
        })
    }

    /// What was heard.
    fn report(self) -> Report {
        let doctor = serde_json::from_str(&self.said).ok();
        Report {
            rows: self.rows,
            kernels: doctor.map_or_else(Vec::new, |doctor| {
                vec![report::OnKernel {
                    kernel: self.name,
                    release: self.release,
                    doctor,
                }]
            }),
        }
    }

    fn hear(&mut self, message: &Message<'_>) {
        match message {
            Message::Output(line) => self.output(line),
            Message::Event(event) => self.event(event),
        }
    }

    fn output(&mut self, line: &str) {
        // A log that can't be written is no reason to stop: the line is on the screen too.
        let _ = writeln!(self.log, "{line}");
        if self.current.is_some_and(|(job, _)| job.name == PROGRAMS) {
            self.said.push_str(line);
            self.said.push('\n');
            return;
        }
        let mark = &self.mark;
        self.progress.suspend(|| println!("{mark}{line}"));
        if let Some((job, Some(row))) = self.current {
            let row = &mut self.rows[row];
            row.counts.read(line);
            row.complaints.read(line);
            if let Some(test) = failed_test(line) {
                row.failures.push(format!("{}::{test}", job.name));
            }
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Booted { kernel } => self.progress.done("booting", kernel),
            Event::Begin { job } => {
                let Some((variant, job)) = self.jobs.get(*job) else {
                    return;
                };
                let row = self.rows.iter().position(|row| row.variant == *variant);
                self.current = Some((job, row));
                let plan = format!("{}/{}", variant.tap, variant.enforcer);
                self.progress.begin(&job.name, &plan);
            }
            Event::End { end, seconds, .. } => {
                let Some((job, row)) = self.current.take() else {
                    return;
                };
                let result = describe(end);
                self.progress.done(&job.name, &result);
                // Doctor's status says what the kernel allows.
                let Some(row) = row.filter(|_| job.name != PROGRAMS) else {
                    return;
                };
                let row = &mut self.rows[row];
                row.seconds += seconds;
                let told = row.failures.iter().any(|failure| {
                    failure
                        .strip_prefix(job.name.as_str())
                        .is_some_and(|rest| rest.starts_with("::"))
                });
                if *end != End::Exited(0) && !told {
                    row.failures.push(format!("{}: {result}", job.name));
                }
            }
            Event::Failed { .. } | Event::Finished => {}
        }
    }
}

/// The name in `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    // A peer's standard error may come between the two; then the program is named instead of the test.
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

fn describe(end: &End) -> String {
    match end {
        End::Exited(0) => "ok".to_owned(),
        End::Exited(status) => format!("it ended with status {status}"),
        End::Killed(signal) => format!("signal {signal} ended it"),
        End::TimedOut => "it took too long".to_owned(),
        End::NotStarted(why) => format!("it can't be started: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_is_named() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
    }
}
