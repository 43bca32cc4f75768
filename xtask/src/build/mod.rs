//! Builds the BPF programs, then the agent that carries them.

mod agent;
mod programs;

use anyhow::Result;

pub use self::agent::{agent, test_programs};
pub use self::programs::{for_agent_ebpf, programs, test_objects};
use crate::setup::{BpfToolchain, Setup};
use crate::workspace::Workspace;

/// The verb `build`.
pub fn run(workspace: &Workspace, tests: bool) -> Result<()> {
    let toolchain = Setup::new(workspace).for_build()?;
    with(workspace, &toolchain, tests)
}

/// The same, with what is there for it.
pub fn with(workspace: &Workspace, toolchain: &BpfToolchain, tests: bool) -> Result<()> {
    programs(workspace, toolchain)?;
    agent(workspace)?;
    if tests {
        test_objects(workspace, toolchain)?;
        test_programs(workspace)?;
    }
    Ok(())
}
