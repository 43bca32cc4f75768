//! Formatting, clippy, documentation.

use anyhow::Result;

use super::report::Outcome;
use crate::build;
use crate::process;
use crate::setup::BpfToolchain;
use crate::workspace::Workspace;

/// The workspaces beside the root one, each with a Cargo.toml of its own.
const OTHER_WORKSPACES: [&str; 3] = [
    "agent-ebpf/Cargo.toml",
    "agent-common/fuzz/Cargo.toml",
    "agent/fuzz/Cargo.toml",
];

/// Every workspace is formatted.
pub fn format(workspace: &Workspace) -> Result<()> {
    process::show(workspace.cargo("fmt").args(["--all", "--check"]))?;
    for manifest in OTHER_WORKSPACES {
        process::show(
            workspace
                .cargo("fmt")
                .arg("--manifest-path")
                .arg(workspace.path(manifest))
                .arg("--check"),
        )?;
    }
    Ok(())
}

/// The root workspace has no warning.
pub fn clippy(workspace: &Workspace) -> Result<()> {
    process::show(workspace.cargo_static("clippy").args([
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// The BPF programs have none either.
pub fn clippy_of_programs(workspace: &Workspace, toolchain: &BpfToolchain) -> Result<Outcome> {
    let mut clippy = match toolchain.compiler.clippy(workspace) {
        Ok(clippy) => clippy,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    build::for_agent_ebpf(workspace, toolchain, &mut clippy);
    process::show(clippy.args(["--", "-D", "warnings"]))?;
    Ok(Outcome::Passed)
}

/// What is shared with the BPF programs is documented, and its links lead somewhere.
pub fn documentation(workspace: &Workspace) -> Result<()> {
    process::show(
        workspace
            .cargo_static("doc")
            .args(["--package", "agent-common", "--all-features", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
