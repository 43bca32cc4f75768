//! The programs that run in the machine, as cargo builds them.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::process;
use crate::workspace::Workspace;

/// The first process of the machine.
pub fn init(workspace: &Workspace) -> Result<PathBuf> {
    process::show(
        workspace
            .cargo_static("build")
            .args(["--package", "vm-init"]),
    )
    .context("building the machine's first process")?;
    Ok(workspace.static_output("pg-init"))
}

/// A test program.
#[derive(Clone, Debug)]
pub struct TestProgram {
    /// That of its source: `agent` for `tests/tests/agent.rs`.
    pub name: String,
    pub path: PathBuf,
}

/// What cargo says of something that it built, as far as it is of interest here.
#[derive(Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// All programs of privileged tests.
pub fn tests(workspace: &Workspace) -> Result<Vec<TestProgram>> {
    let mut command = workspace.cargo_static("test");
    command.args(["--package", "pendguard-tests", "--no-run", "--test", "*"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    // What it says to a person it says on standard error.
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!(
            "{} ended with {}",
            process::describe(&command),
            output.status
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut programs: Vec<_> = text
        .lines()
        // Its other messages have another form.
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
        .filter(|artifact| artifact.target.kind == ["test"])
        .filter_map(|artifact| {
            Some(TestProgram {
                name: artifact.target.name,
                path: artifact.executable?,
            })
        })
        .collect();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}
