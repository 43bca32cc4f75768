//! The verbs that run a program of the tests' package for somebody to watch.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::build;
use crate::process;
use crate::setup::Setup;
use crate::workspace::Workspace;

/// The verb `demo`: three replicas of a real source, and the agent that counts what they are asked.
pub fn demo(workspace: &Workspace, arguments: &[String]) -> Result<ExitCode> {
    show(workspace, "pg-demo", arguments)
}

/// `demo --pictures`: the dashboard's panels for the docs, drawn from what happens in the demo.
pub fn pictures(workspace: &Workspace, directory: &Path, arguments: &[String]) -> Result<ExitCode> {
    Setup::new(workspace).for_dashboards()?;
    let directory = std::path::absolute(directory)?.display().to_string();
    let arguments = [vec![directory], arguments.to_vec()].concat();
    show(workspace, "pg-panels", &arguments)
}

/// The verb `bench`: what the agent costs, and what it is compared with.
pub fn bench(workspace: &Workspace, arguments: &[String]) -> Result<ExitCode> {
    let setup = Setup::new(workspace);
    let has = |wanted: &str| arguments.iter().any(|word| word == wanted);
    if has("peers") || (has("all") && !has("--no-peers")) {
        setup.for_bench()?;
    }
    if arguments.iter().any(|word| word.starts_with("--pictures")) {
        setup.for_dashboards()?;
    }
    show(workspace, "pg-bench", arguments)
}

/// Builds everything and runs one of the tests' programs, whose own `--help` says what it takes.
fn show(workspace: &Workspace, program: &str, arguments: &[String]) -> Result<ExitCode> {
    build::run(workspace, true)?;
    let mut command = std::process::Command::new(workspace.target("release").join(program));
    process::show(command.args(arguments))?;
    Ok(ExitCode::SUCCESS)
}
