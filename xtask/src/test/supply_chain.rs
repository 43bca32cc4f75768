//! What the dependencies are allowed to be: `deny.toml`.

use std::process::Command;

use anyhow::Result;

use super::report::Outcome;
use crate::process;
use crate::setup::CARGO_DENY;
use crate::workspace::Workspace;

/// What is shipped. The fuzz target is not, and has no dependency that the others lack but libFuzzer.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "agent-ebpf/Cargo.toml"];

/// Licences, bans and sources: answered from what cargo has downloaded.
pub fn policy(workspace: &Workspace) -> Result<()> {
    for manifest in MANIFESTS {
        process::show(
            cargo_deny(workspace, manifest).args(["check", "bans", "licenses", "sources"]),
        )?;
    }
    Ok(())
}

/// Known vulnerabilities: needs a database from the internet, which not every machine reaches.
pub fn advisories(workspace: &Workspace) -> Result<Outcome> {
    let mut fetch = cargo_deny(workspace, MANIFESTS[0]);
    // A prompt would wait for ever in CI.
    fetch.args(["fetch", "db"]).env("GIT_TERMINAL_PROMPT", "0");
    if let Err(error) = process::stdout(&mut fetch) {
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default();
        return Ok(Outcome::Skipped(format!(
            "the advisory database cannot be fetched ({reason})"
        )));
    }
    for manifest in MANIFESTS {
        process::show(cargo_deny(workspace, manifest).args(["--offline", "check", "advisories"]))?;
    }
    Ok(Outcome::Passed)
}

fn cargo_deny(workspace: &Workspace, manifest: &str) -> Command {
    let mut command = Command::new(workspace.tool(CARGO_DENY.name));
    command
        .current_dir(workspace.path(""))
        .arg("--manifest-path")
        .arg(workspace.path(manifest))
        .arg("--config")
        .arg(workspace.path("deny.toml"));
    command
}
