//! bpf-linker, built against the LLVM of the BPF compiler: one major version cannot read another's bitcode.

use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::cargo_tool::CargoTool;
use super::llvm::{self, Llvm};
use super::step::{Job, Step};
use crate::workspace::Workspace;

const BPF_LINKER: CargoTool = CargoTool {
    name: "bpf-linker",
    version: "0.13.0",
};

/// The versions of LLVM that this version can be built against.
const LLVM_MAJORS: RangeInclusive<u32> = 21..=23;

/// An installed bpf-linker.
pub struct BpfLinker {
    pub path: PathBuf,
    llvm_major: u32,
}

impl fmt::Display for BpfLinker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for LLVM {}", BPF_LINKER.version, self.llvm_major)
    }
}

/// Makes sure of a bpf-linker for one version of LLVM.
pub struct InstallBpfLinker<'a> {
    pub workspace: &'a Workspace,
    pub llvm_major: u32,
    pub llvm: Llvm,
}

impl InstallBpfLinker<'_> {
    /// Remembers what the installed linker was built against; it cannot be asked.
    fn stamp(&self) -> PathBuf {
        self.workspace.target("tools/bpf-linker.llvm")
    }
}

impl Step for InstallBpfLinker<'_> {
    type Found = BpfLinker;

    fn name(&self) -> String {
        BPF_LINKER.name.to_owned()
    }

    fn find(&self) -> Result<Option<BpfLinker>> {
        let built_for = fs::read_to_string(self.stamp()).unwrap_or_default();
        if BPF_LINKER.find(self.workspace).is_none()
            || built_for.trim() != self.llvm_major.to_string()
        {
            return Ok(None);
        }
        Ok(Some(BpfLinker {
            path: self.workspace.tool(BPF_LINKER.name),
            llvm_major: self.llvm_major,
        }))
    }

    fn plan(&self) -> String {
        format!(
            "compiling bpf-linker {} for LLVM {}",
            BPF_LINKER.version, self.llvm_major
        )
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        ensure!(
            LLVM_MAJORS.contains(&self.llvm_major),
            "bpf-linker {} can be built for LLVM {} to {}, and the BPF compiler uses LLVM {}",
            BPF_LINKER.version,
            LLVM_MAJORS.start(),
            LLVM_MAJORS.end(),
            self.llvm_major
        );
        let stamp = self.stamp();
        // Between here and the end, what is installed and what the stamp says may differ.
        let _ = fs::remove_file(&stamp);
        let mut command = BPF_LINKER.command(self.workspace);
        command
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{}", self.llvm_major))
            // One for the headers, one for the library; either alone is looked for on PATH, where another LLVM may be.
            .env(llvm::prefix_variable(self.llvm_major), &self.llvm.prefix)
            .env("LLVM_PREFIX", &self.llvm.prefix);
        job.run(&mut command)?;
        fs::write(&stamp, format!("{}\n", self.llvm_major))
            .with_context(|| stamp.display().to_string())
    }
}
