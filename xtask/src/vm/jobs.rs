//! What runs in the machines, one after another.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use vm_init::Job;

use super::content::Content;
use super::programs::{self, TestProgram};
use super::{NONE, Options, VARIANTS, Variant};
use crate::workspace::Workspace;

/// How many times longer the tests wait than on a real machine.
const SLOW: &str = "10";

/// `kernel.perf_event_paranoid` of Debian's kernels, for which some overlays are and others aren't: the tests see to it that it is so.
const PARANOID: &str = "3";

/// What runs if the user names no tests: every program loads, counts exactly, follows answers, rejects and goes, whatever calls the
/// kernel. All others run when they are named (`processes`, `peers`, and all of `enforce`: some hours under emulation).
pub const TESTS: [&str; 24] = [
    "fixtures",
    "parser",
    "doctor",
    "agent",
    "faults::the_clock_jumps",
    "sends",
    "exactness::from_the_start",
    "exactness::tonic_in_the_middle",
    "exactness::grpc_go_in_the_middle",
    "answers::calls_end_as_it_sees_them",
    "answers::every_server",
    "answers::what_is_given_up",
    "answers::left_alone",
    "ends",
    "late",
    "rewrite",
    "quiet",
    "privileges::rewriting",
    "enforce::tonic_on_rust",
    "enforce::grpc_go_on_rust",
    "enforce::c_core_on_rust",
    "enforce::modes_at_run_time",
    "enforce::another_build",
    IMAGE,
];

/// What runs of them on a kernel of another architecture than this machine's: the peers there are Rust's and Go's.
pub const TESTS_ELSEWHERE: [&str; 22] = [
    "fixtures",
    "parser",
    "doctor",
    "agent",
    "sends::every_system_call",
    "sends::partial_and_refused",
    "sends::malformed",
    "sends::descriptors",
    "exactness::tonic",
    "exactness::grpc_go",
    "answers::tonic",
    "answers::grpc_go",
    "answers::what_is_given_up",
    "late",
    "rewrite",
    "quiet::nobody_notices_on_rust",
    "quiet::it_is_safe",
    "enforce::tonic_on_rust",
    "enforce::tonic_on_go",
    "enforce::grpc_go_on_rust",
    "enforce::modes_at_run_time",
    "enforce::another_build",
];

/// Those of them that reject calls: they run with every enforcer.
const ENFORCING: [&str; 6] = [
    "enforce",
    "enforce_faults",
    "late",
    "privileges",
    "quiet",
    "rewrite",
];
/// Those of them that are about one enforcer.
const ONLY_WITH: [(&str, &str); 2] = [("privileges", "rewrite"), ("rewrite", "rewrite")];

/// Those that are about tracepoints, about no tap, or about what is behind the tap and the same for each.
const ONLY_TRACEPOINT: [&str; 13] = [
    "agent",
    "answers::every_server",
    "answers::left_alone",
    "doctor",
    "ends",
    "enforce::another_build",
    "enforce::modes_at_run_time",
    "exactness::grpc_go_in_the_middle",
    "exactness::tonic_in_the_middle",
    "faults",
    "fixtures",
    IMAGE,
    "parser",
];

/// The test of the image: its containers have what the manifests say, and nothing of the variant that a job is told.
const IMAGE: &str = "image";

/// What runs in the machines; the programs are put on the disk.
pub fn plan(
    workspace: &Workspace,
    options: &Options,
    tests: &[&str],
    content: &mut Content,
) -> Result<Vec<(Variant, Job)>> {
    if !options.exec.is_empty() {
        content.environment.extend(options.env.iter().cloned());
        let job = exec_job(options, content.environment.clone())?;
        content.image.add(Path::new(&job.program))?;
        return Ok(vec![(VARIANTS[0], job)]);
    }
    let programs = selection(workspace, &wanted(options, tests))?;
    for (program, _) in &programs {
        content.image.add(&program.path)?;
    }
    if programs.iter().any(|(program, _)| program.name == IMAGE) {
        ensure!(
            workspace.other_machine().is_none(),
            "the image is built, and tested, for this machine's architecture"
        );
        content.add_deployment(workspace)?;
    }
    content.environment.extend(options.env.iter().cloned());
    let agent = workspace.target("release/pendguard");
    let mut jobs = vec![(VARIANTS[0], programs_job(&agent, options))];
    jobs.extend(test_jobs(
        workspace,
        options,
        &programs,
        &content.environment,
    ));
    Ok(jobs)
}

/// The tests that the user named, or these.
fn wanted<'a>(options: &'a Options, tests: &[&'a str]) -> Vec<&'a str> {
    if options.test.is_empty() {
        return tests.to_vec();
    }
    options.test.iter().map(String::as_str).collect()
}

/// Whether the image is among what will be tested on this machine's architecture, and so must be built.
pub fn need_image(options: &Options) -> bool {
    let mut wanted = wanted(options, &TESTS).into_iter();
    wanted.any(|test| test.split("::").next() == Some(IMAGE))
}

/// The test programs that were asked for, each with a filter.
fn selection(workspace: &Workspace, wanted: &[&str]) -> Result<Vec<(TestProgram, Option<String>)>> {
    let programs = programs::tests(workspace)?;
    let names: Vec<_> = programs
        .iter()
        .map(|program| program.name.clone())
        .collect();
    wanted
        .iter()
        .map(|wanted| {
            let (name, filter) = match wanted.split_once("::") {
                Some((name, filter)) => (name, Some(filter.to_owned())),
                None => (*wanted, None),
            };
            let Some(program) = programs.iter().find(|program| program.name == name) else {
                bail!("no test {name}; there are {}", names.join(", "));
            };
            Ok((program.clone(), filter))
        })
        .collect()
}

/// Every test for every variant that makes a difference to it.
fn test_jobs(
    workspace: &Workspace,
    options: &Options,
    programs: &[(TestProgram, Option<String>)],
    environment: &[(String, String)],
) -> Vec<(Variant, Job)> {
    let mut jobs = Vec::new();
    for variant in VARIANTS
        .into_iter()
        .filter(|variant| options.wants(variant))
    {
        let mut environment = environment.to_vec();
        for (name, value) in [
            ("PENDGUARD_TEST_SCALE", "vm"),
            ("PENDGUARD_TEST_SLOW", SLOW),
            ("PENDGUARD_TEST_PARANOID", PARANOID),
            ("PENDGUARD_TAP", variant.tap),
            ("PENDGUARD_ENFORCER", variant.enforcer),
        ] {
            // The user's own go before.
            if value != NONE && !environment.iter().any(|(there, _)| there == name) {
                environment.push((name.to_owned(), value.to_owned()));
            }
        }
        for (program, filter) in programs {
            let name = program.name.as_str();
            let named = match filter {
                Some(filter) => format!("{name}::{filter}"),
                None => name.to_owned(),
            };
            let only = ONLY_WITH.iter().find(|(test, _)| *test == name);
            if ENFORCING.contains(&name) == (variant.enforcer == NONE)
                || only.is_some_and(|(_, enforcer)| *enforcer != variant.enforcer)
                || variant.tap != "tracepoint"
                    && [name, &named].iter().any(|it| ONLY_TRACEPOINT.contains(it))
            {
                continue;
            }
            let mut arguments = vec!["--test-threads=1".to_owned()];
            arguments.extend(filter.clone());
            let job = Job {
                name: program.name.clone(),
                program: program.path.display().to_string(),
                arguments,
                environment: environment.clone(),
                directory: workspace.path("tests").display().to_string(),
                limit: options.limit,
            };
            jobs.push((variant, job));
        }
    }
    jobs
}

/// The test of a job, as the user names it.
pub fn test_of(job: &Job) -> String {
    match job.arguments.get(1) {
        Some(filter) => format!("{}::{filter}", job.name),
        None => job.name.clone(),
    }
}

/// What the kernel makes of each program.
pub const PROGRAMS: &str = "programs";

fn programs_job(agent: &Path, options: &Options) -> Job {
    Job {
        name: PROGRAMS.to_owned(),
        program: agent.display().to_string(),
        arguments: ["doctor", "--json"].map(str::to_owned).into(),
        environment: Vec::new(),
        directory: "/root".to_owned(),
        limit: options.limit,
    }
}

/// The program that the user named.
fn exec_job(options: &Options, environment: Vec<(String, String)>) -> Result<Job> {
    let [program, arguments @ ..] = &options.exec[..] else {
        bail!("--exec needs a program");
    };
    let path = std::path::absolute(program).with_context(|| program.clone())?;
    ensure!(path.is_file(), "there is no program {}", path.display());
    Ok(Job {
        name: program.clone(),
        program: path.display().to_string(),
        arguments: arguments.to_vec(),
        environment,
        directory: "/root".to_owned(),
        limit: options.limit,
    })
}
