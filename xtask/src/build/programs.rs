//! `agent-ebpf`, compiled by the BPF compiler and linked by bpf-linker.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::elf;
use crate::process;
use crate::setup::BpfToolchain;
use crate::workspace::Workspace;

/// The name of the binary in `agent-ebpf`.
const PROGRAM: &str = "pendguard-ebpf";
/// The one for tests.
const CASES: &str = "pendguard-cases";
/// The one for benchmarks.
const FLOOR: &str = "pendguard-floor";

/// Separates flags in CARGO_ENCODED_RUSTFLAGS, where a path may have a space in it.
const FLAG_SEPARATOR: &str = "\x1f";

/// Builds the BPF programs and puts the object where the agent's build takes it from.
pub fn programs(workspace: &Workspace, toolchain: &BpfToolchain) -> Result<()> {
    let mut cargo = toolchain.compiler.cargo(workspace, "build");
    for_agent_ebpf(workspace, toolchain, &mut cargo);
    cargo.args(["--bin", PROGRAM]);
    process::show(&mut cargo).context("building the BPF programs")?;

    let built = toolchain.compiler.output(&workspace.target("bpf"), PROGRAM);
    let programs = elf::bpf_programs(&built)?;
    if let Some(panic) = programs.iter().find(|name| name.contains("panicking")) {
        bail!(
            "{panic}: an index that the compiler couldn't prove; no program may be able to panic"
        );
    }
    let object = workspace.bpf_object();
    let whole = fs::read(&built).with_context(|| built.display().to_string())?;
    let shipped = elf::without_debug_information(&whole)?;
    ensure!(
        elf::bpf_programs_in(&shipped)? == programs,
        "a program is missing without debug information"
    );
    install(&shipped, &object)?;
    eprintln!(
        "build: {}: {} programs: {}",
        workspace.display(&object),
        programs.len(),
        programs.join(" ")
    );
    Ok(())
}

/// Builds the programs that run the parser for its test, and those that do nothing, for benchmarks.
pub fn test_objects(workspace: &Workspace, toolchain: &BpfToolchain) -> Result<()> {
    let mut cargo = toolchain.compiler.cargo(workspace, "build");
    for_agent_ebpf(workspace, toolchain, &mut cargo);
    cargo.args(["--bin", CASES, "--bin", FLOOR]);
    process::show(&mut cargo).context("building the BPF programs for tests")?;
    for (name, object) in [
        (CASES, workspace.bpf_cases()),
        (FLOOR, workspace.bpf_floor()),
    ] {
        let built = toolchain.compiler.output(&workspace.target("bpf"), name);
        let built = fs::read(&built).with_context(|| built.display().to_string())?;
        install(&built, &object)?;
    }
    Ok(())
}

/// Completes a cargo command of the BPF compiler: it works on `agent-ebpf`, with the flags of the shipped object.
pub fn for_agent_ebpf(workspace: &Workspace, toolchain: &BpfToolchain, cargo: &mut Command) {
    let architecture = format!("bpf_target_arch=\"{}\"", workspace.architecture());
    let mut linker = OsString::from("-Clinker=");
    linker.push(&toolchain.linker);
    let flags = [
        // The kernel wants types (BTF), and bpf-linker makes them from the debug information.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        linker,
        // Registers at a system call are those of the machine, which the BPF target does not name.
        "--cfg".into(),
        architecture.into(),
    ];
    cargo
        .args(["--release", "--manifest-path"])
        .arg(workspace.path("agent-ebpf/Cargo.toml"))
        .env("CARGO_TARGET_DIR", workspace.target("bpf"))
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            flags.join(&OsString::from(FLAG_SEPARATOR)),
        );
}

/// Writes `new` to `object` unless that is what is there: a newer file would have the agent built anew.
fn install(new: &[u8], object: &Path) -> Result<()> {
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(());
    }
    // Whole or not at all: another build may be reading it.
    let partial = object.with_extension("partial");
    fs::write(&partial, new).with_context(|| partial.display().to_string())?;
    fs::rename(&partial, object).with_context(|| object.display().to_string())
}
