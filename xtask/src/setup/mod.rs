//! Installs what the other verbs need, and nothing that is already there.
//!
//! A [`step::Step`] looks whether it is satisfied, says what it will do, and does it. The steps of a verb run in order;
//! a later one may depend on what an earlier one found (the linker's LLVM on the compiler's).

mod apt;
mod bpf_compiler;
mod bpf_linker;
mod cargo_tool;
mod cross;
mod kubectl;
mod llvm;
mod node;
mod packages;
mod peers;
mod prometheus;
mod proxies;
mod step;

use std::path::PathBuf;

use anyhow::Result;

use self::apt::Apt;
pub use self::apt::Lists;
pub use self::bpf_compiler::BpfCompiler;
use self::bpf_compiler::FindBpfCompiler;
use self::bpf_linker::InstallBpfLinker;
use self::cargo_tool::CargoTool;
use self::cross::FindCrossCompiler;
use self::kubectl::FindKubectl;
use self::llvm::FindLlvm;
use self::node::FindNode;
use self::packages::{Package, Packages, Probe};
use self::peers::Peer;
use self::prometheus::FindPrometheus;
use self::proxies::FindProxies;
use self::step::ensure;
use crate::architecture::Architecture;
use crate::progress::Progress;
use crate::workspace::Workspace;

/// Checks licences and sources.
pub const CARGO_DENY: CargoTool = CargoTool {
    name: "cargo-deny",
    version: "0.20.2",
};

/// Runs libFuzzer on a crate.
pub const CARGO_FUZZ: CargoTool = CargoTool {
    name: "cargo-fuzz",
    version: "0.13.2",
};

/// What the docs' pictures are lettered with.
const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

/// What turns `agent-ebpf` into a BPF object.
pub struct BpfToolchain {
    pub compiler: BpfCompiler,
    pub linker: PathBuf,
}

/// The machine, as far as installing goes.
pub struct Setup<'a> {
    workspace: &'a Workspace,
    apt: Option<Apt>,
}

impl<'a> Setup<'a> {
    pub fn new(workspace: &'a Workspace) -> Self {
        Self {
            workspace,
            apt: Apt::detect(),
        }
    }

    /// What `cargo xtask build` needs.
    pub fn for_build(&self) -> Result<BpfToolchain> {
        let (workspace, apt) = (self.workspace, self.apt.as_ref());
        let mut progress = Progress::start("setup", 3);
        let compiler = ensure(workspace, &mut progress, &FindBpfCompiler { apt })?;
        let llvm_major = compiler.llvm_major();
        let llvm = ensure(workspace, &mut progress, &FindLlvm { llvm_major, apt })?;
        let linker = InstallBpfLinker {
            workspace,
            llvm_major,
            llvm,
        };
        let linker = ensure(workspace, &mut progress, &linker)?;
        Ok(BpfToolchain {
            compiler,
            linker: linker.path,
        })
    }

    /// What the tests and the demo run against: gRPC clients in Go, Python and Node.
    pub fn for_peers(&self) -> Result<()> {
        let (workspace, apt) = (self.workspace, self.apt.as_ref());
        let peers = Peer::all(workspace)?;
        let mut progress = Progress::start("setup", 2 + peers.len() as u64);
        let languages = Packages {
            name: "Go and Python",
            wanted: peers::packages(),
            apt,
        };
        ensure(workspace, &mut progress, &languages)?;
        ensure(workspace, &mut progress, &FindNode { apt })?;
        for peer in &peers {
            ensure(workspace, &mut progress, peer)?;
        }
        Ok(())
    }

    /// The programs of `workspace` in Go, which may be another machine's.
    pub fn for_go_peers(&self, workspace: &Workspace) -> Result<()> {
        let mut progress = Progress::start("setup", 2);
        let language = Packages {
            name: "Go",
            wanted: peers::go_packages(),
            apt: self.apt.as_ref(),
        };
        ensure(self.workspace, &mut progress, &language)?;
        ensure(workspace, &mut progress, &Peer::go(workspace)?)?;
        Ok(())
    }

    /// What builds programs for another machine, as the workspace that does.
    pub fn for_machine(&self, architecture: Architecture) -> Result<Workspace> {
        let (workspace, apt) = (self.workspace, self.apt.as_ref());
        let mut progress = Progress::start("setup", 2);
        let linker = Packages {
            name: "cross linker",
            wanted: cross::packages(architecture),
            apt,
        };
        ensure(workspace, &mut progress, &linker)?;
        let compiler = FindCrossCompiler {
            workspace,
            architecture,
            apt,
        };
        let compiler = ensure(workspace, &mut progress, &compiler)?;
        Ok(workspace.crossed(compiler.cross))
    }

    /// What the tests of the dashboard need, and the program that draws it for the docs.
    pub fn for_dashboards(&self) -> Result<()> {
        let (workspace, apt) = (self.workspace, self.apt.as_ref());
        let mut progress = Progress::start("setup", 2);
        ensure(workspace, &mut progress, &FindPrometheus { workspace, apt })?;
        let font = Packages {
            name: "a font",
            wanted: vec![Package::new("fonts-dejavu-core", Probe::Path(FONT))],
            apt,
        };
        ensure(workspace, &mut progress, &font)?;
        Ok(())
    }

    /// What the benchmarks compare with: nginx, HAProxy and Envoy.
    pub fn for_bench(&self) -> Result<()> {
        let (workspace, apt) = (self.workspace, self.apt.as_ref());
        let mut progress = Progress::start("setup", 4);
        let profiler = Packages {
            name: "perf",
            wanted: vec![Package::new("linux-perf", Probe::Program("perf"))],
            apt,
        };
        ensure(workspace, &mut progress, &profiler)?;
        let proxies = FindProxies { workspace, apt };
        ensure(workspace, &mut progress, &proxies)?;
        let language = Packages {
            name: "Python",
            wanted: peers::python_packages(),
            apt,
        };
        ensure(workspace, &mut progress, &language)?;
        ensure(workspace, &mut progress, &Peer::envoy(workspace))?;
        Ok(())
    }

    /// What renders the manifests: a kubectl, and where it is.
    pub fn for_manifests(&self) -> Result<PathBuf> {
        let (workspace, apt) = (self.workspace, self.apt.as_ref());
        let mut progress = Progress::start("setup", 1);
        let kubectl = ensure(workspace, &mut progress, &FindKubectl { workspace, apt })?;
        Ok(kubectl.program)
    }

    /// What builds the image.
    pub fn for_image(&self) -> Result<()> {
        let mut progress = Progress::start("setup", 1);
        let builder = Packages {
            name: "image builder",
            wanted: vec![
                Package::new("buildah", Probe::Program("buildah")),
                Package::new("binutils", Probe::Program("strip")),
            ],
            apt: self.apt.as_ref(),
        };
        ensure(self.workspace, &mut progress, &builder)?;
        Ok(())
    }

    /// What the tests of manifests and image need besides: schemas, and what runs containers.
    pub fn for_deployment(&self) -> Result<()> {
        let mut progress = Progress::start("setup", 2);
        let runtime = Packages {
            name: "container runtime",
            wanted: vec![Package::new("crun", Probe::Program("crun"))],
            apt: self.apt.as_ref(),
        };
        ensure(self.workspace, &mut progress, &runtime)?;
        ensure(
            self.workspace,
            &mut progress,
            &Peer::schemas(self.workspace),
        )?;
        self.for_manifests()?;
        self.for_image()
    }

    /// What the checks of `cargo xtask test` need besides.
    pub fn for_checks(&self, toolchain: &BpfToolchain) -> Result<()> {
        let (workspace, apt) = (self.workspace, self.apt.as_ref());
        let wanted = toolchain.compiler.clippy_packages();
        let mut progress = Progress::start("setup", 1 + u64::from(!wanted.is_empty()));
        if !wanted.is_empty() {
            let clippy = Packages {
                name: "clippy for BPF",
                wanted,
                apt,
            };
            ensure(workspace, &mut progress, &clippy)?;
        }
        ensure(workspace, &mut progress, &CARGO_DENY.install(workspace))?;
        Ok(())
    }

    /// What `cargo xtask vm` needs for machines of these architectures; the kernels themselves it fetches when it knows which.
    pub fn for_vm(&self, architectures: &[Architecture]) -> Result<()> {
        let mut progress = Progress::start("setup", 1);
        let qemu = |architecture: &Architecture| match architecture {
            Architecture::X86_64 => {
                Package::new("qemu-system-x86", Probe::Program("qemu-system-x86_64"))
            }
            Architecture::Aarch64 => {
                Package::new("qemu-system-arm", Probe::Program("qemu-system-aarch64"))
            }
        };
        let mut wanted: Vec<_> = architectures.iter().map(qemu).collect();
        wanted.push(Package::new("e2fsprogs", Probe::Path("/usr/sbin/mke2fs")));
        wanted.push(Package::new("xz-utils", Probe::Program("xz")));
        let machines = Packages {
            name: "virtual machines",
            wanted,
            apt: self.apt.as_ref(),
        };
        ensure(self.workspace, &mut progress, &machines)?;
        Ok(())
    }

    /// What `cargo xtask fuzz` needs.
    pub fn for_fuzz(&self) -> Result<()> {
        let mut progress = Progress::start("setup", 2);
        let compiler = Packages {
            name: "C++ compiler",
            wanted: vec![Package::new("g++", Probe::Program("c++"))],
            apt: self.apt.as_ref(),
        };
        ensure(self.workspace, &mut progress, &compiler)?;
        ensure(
            self.workspace,
            &mut progress,
            &CARGO_FUZZ.install(self.workspace),
        )?;
        Ok(())
    }
}
