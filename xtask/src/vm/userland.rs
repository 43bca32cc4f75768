//! What a machine of another architecture has beside the tests: Debian's programs for it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::architecture::Architecture;
use crate::progress::Progress;
use crate::setup::Lists;
use crate::workspace::Workspace;

/// The packages that have the programs which tests start by their names, a shell, and Python with its library.
const PACKAGES: [&str; 6] = [
    "coreutils",
    "dash",
    "libpython3-stdlib",
    "mount",
    "python3-minimal",
    "util-linux",
];

/// The root of a machine with these packages and what they need, unpacked. Fetched unless it is there.
pub fn fetch(workspace: &Workspace, architecture: Architecture) -> Result<PathBuf> {
    let name = architecture.debian();
    let root = workspace.target(name).join("vm/root");
    if root.exists() {
        return Ok(root);
    }
    let mut progress = Progress::start("vm", 1);
    progress.begin("programs", &format!("downloading Debian's for {name}"));
    let parent = root.parent().context("the root of a machine")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    Lists::of_architecture(workspace, architecture)?
        .unpack_all(&root, &PACKAGES)
        .with_context(|| format!("Debian's programs for {name}"))?;
    progress.done("programs", &workspace.display(&root).to_string());
    Ok(root)
}
