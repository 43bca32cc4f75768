//! The agent, and the programs of its tests.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::elf;
use crate::process;
use crate::workspace::Workspace;

const AGENT: &str = "pendguard";
const TESTS_PACKAGE: &str = "pendguard-tests";
const TEST_PROGRAMS: [&str; 6] = [
    "pg-source",
    "pg-client",
    "pg-stress",
    "pg-demo",
    "pg-panels",
    "pg-bench",
];

/// Builds the agent as one static program. The BPF object must be there.
pub fn agent(workspace: &Workspace) -> Result<()> {
    process::show(workspace.cargo_static("build").args(["--package", AGENT]))
        .context("building the agent")?;
    let path = publish(workspace, AGENT)?;
    elf::ensure_static(&path)?;
    eprintln!("build: {}: static", workspace.display(&path));
    Ok(())
}

/// Builds the programs that the tests and the demo run against.
pub fn test_programs(workspace: &Workspace) -> Result<()> {
    process::show(
        workspace
            .cargo_static("build")
            .args(["--package", TESTS_PACKAGE, "--bins"]),
    )
    .context("building the tests' programs")?;
    for program in TEST_PROGRAMS {
        let path = publish(workspace, program)?;
        eprintln!("build: {}", workspace.display(&path));
    }
    Ok(())
}

/// Gives `program` its documented place, `target/release`: cargo puts what is built for a named target elsewhere.
fn publish(workspace: &Workspace, program: &str) -> Result<PathBuf> {
    let built = workspace.static_output(program);
    let place = workspace.target("release").join(program);
    // Removed rather than overwritten: it may be running.
    match fs::remove_file(&place) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| place.display().to_string());
        }
        _ => fs::create_dir_all(workspace.target("release"))?,
    }
    fs::hard_link(&built, &place)
        .with_context(|| format!("{} to {}", built.display(), place.display()))?;
    Ok(place)
}
