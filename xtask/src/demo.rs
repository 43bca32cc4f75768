//! The verbs that run a program of the tests' package for somebody to watch.

use std::process::ExitCode;

use anyhow::Result;

use crate::build;
use crate::process;
use crate::workspace::Workspace;

/// The verb `demo`: three replicas of a real source, and the agent that counts what they are asked.
pub fn demo(workspace: &Workspace, arguments: &[String]) -> Result<ExitCode> {
    show(workspace, "pg-demo", arguments)
}

/// The verb `bench`: what the agent costs.
pub fn bench(workspace: &Workspace, arguments: &[String]) -> Result<ExitCode> {
    show(workspace, "pg-bench", arguments)
}

/// Builds everything and runs one of the tests' programs, whose own `--help` says what it takes.
fn show(workspace: &Workspace, program: &str, arguments: &[String]) -> Result<ExitCode> {
    build::run(workspace, true)?;
    let mut command = std::process::Command::new(workspace.target("release").join(program));
    process::show(command.args(arguments))?;
    Ok(ExitCode::SUCCESS)
}
