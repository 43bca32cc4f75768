//! A Rust compiler that can target BPF.
//!
//! There are two ways to one: a nightly toolchain that builds `core` from its sources, as is usual, or Debian's packages,
//! which bring `core` for BPF ready-made and so need no nightly.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt::Apt;
use super::llvm;
use super::packages::{Package, Probe};
use super::step::{Job, Step};
use crate::process;
use crate::rustup::{self, NIGHTLY, nightly};
use crate::workspace::Workspace;

/// What the programs are compiled for.
const BPF_TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler, and its `core` for BPF.
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// How the compiler gets its `core`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// rustup's nightly, which builds `core` from the component `rust-src`.
    Nightly,
    /// Debian's compiler, which has it.
    Debian,
}

/// A Rust compiler that can target BPF.
#[derive(Debug)]
pub struct BpfCompiler {
    way: Way,
    /// Of Rust, such as `1.96.0`.
    version: String,
    llvm_major: u32,
}

impl BpfCompiler {
    fn parse(way: Way, verbose_version: &str) -> Option<Self> {
        let version = process::field(verbose_version, "release")?.to_owned();
        let llvm = process::field(verbose_version, "LLVM version")?;
        let llvm_major = llvm.split('.').next()?.parse().ok()?;
        Some(Self {
            way,
            version,
            llvm_major,
        })
    }

    /// rustup's nightly, if it has the sources of `core`.
    fn nightly() -> Option<Self> {
        if !rustup::has_nightly() {
            return None;
        }
        let sysroot = process::probe(nightly("rustc").args(["--print", "sysroot"]))?;
        let core = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
        if !core.exists() {
            return None;
        }
        Self::parse(Way::Nightly, &process::probe(nightly("rustc").arg("-vV"))?)
    }

    /// Debian's compiler, if it has `core` for BPF.
    fn debian() -> Option<Self> {
        let libraries = process::probe(Command::new(DEBIAN_RUSTC).args([
            "--print",
            "target-libdir",
            "--target",
            BPF_TARGET,
        ]))?;
        if !Path::new(&libraries).exists() {
            return None;
        }
        Self::parse(
            Way::Debian,
            &process::probe(Command::new(DEBIAN_RUSTC).arg("-vV"))?,
        )
    }

    /// The major version of the LLVM that wrote the bitcode which the linker will read.
    pub fn llvm_major(&self) -> u32 {
        self.llvm_major
    }

    /// The cargo command `verb`, for BPF.
    pub fn cargo(&self, workspace: &Workspace, verb: &str) -> Command {
        match self.way {
            Way::Nightly => {
                let mut command = workspace.prepare(nightly("cargo"), verb);
                command.args(["--target", BPF_TARGET, "-Z", "build-std=core"]);
                command
            }
            Way::Debian => Self::with_debian(workspace.cargo(verb)),
        }
    }

    /// Where [`Self::cargo`] leaves a program in the target directory `target`.
    pub fn output(&self, target: &Path, program: &str) -> PathBuf {
        target.join(BPF_TARGET).join("release").join(program)
    }

    /// The clippy that belongs to this compiler, for BPF; a clippy reads no other compiler's libraries.
    pub fn clippy(&self, workspace: &Workspace) -> Result<Command, String> {
        match self.way {
            Way::Nightly => {
                if process::probe(nightly("cargo").args(["clippy", "--version"])).is_none() {
                    return Err(
                        "the nightly toolchain has no clippy (rustup component add clippy --toolchain nightly)".to_owned()
                    );
                }
                Ok(self.cargo(workspace, "clippy"))
            }
            // Not `cargo clippy`, which would be rustup's.
            Way::Debian => {
                let clippy = workspace.prepare(Command::new(DEBIAN_CLIPPY), "clippy");
                Ok(Self::with_debian(clippy))
            }
        }
    }

    /// The packages that [`Self::clippy`] needs.
    pub fn clippy_packages(&self) -> Vec<Package> {
        match self.way {
            Way::Nightly => Vec::new(),
            Way::Debian => vec![Package::new("rust-web-clippy", Probe::Path(DEBIAN_CLIPPY))],
        }
    }

    fn with_debian(mut command: Command) -> Command {
        command
            .args(["--target", BPF_TARGET])
            .env("RUSTC", DEBIAN_RUSTC)
            // The target is a nightly feature, and this compiler a stable one.
            .env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

impl fmt::Display for BpfCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Nightly => "rustup's nightly, with core from rust-src",
            Way::Debian => "Debian's, with core for BPF ready-made",
        };
        write!(
            f,
            "rustc {} ({way}), LLVM {}",
            self.version, self.llvm_major
        )
    }
}

/// Makes sure of a compiler whose LLVM can be had for the linker, too.
pub struct FindBpfCompiler<'a> {
    pub apt: Option<&'a Apt>,
}

impl FindBpfCompiler<'_> {
    /// The compiler to use, or why there is none.
    fn choose(&self) -> Result<BpfCompiler, String> {
        let mut obstacles = Vec::new();
        for (name, compiler) in [
            ("a nightly toolchain with rust-src", BpfCompiler::nightly()),
            ("Debian's rustc with core for BPF", BpfCompiler::debian()),
        ] {
            match compiler {
                None => obstacles.push(format!("  {name}: not there")),
                Some(compiler) if llvm::obtainable(compiler.llvm_major, self.apt) => {
                    return Ok(compiler);
                }
                Some(compiler) => obstacles.push(format!(
                    "  {name}: bpf-linker must be built against its LLVM, {major}, whose development files (llvm-config and \
                     headers) are not there; if they are in an unusual place, set {variable} to their prefix",
                    major = compiler.llvm_major,
                    variable = llvm::prefix_variable(compiler.llvm_major)
                )),
            }
        }
        Err(obstacles.join("\n"))
    }
}

impl Step for FindBpfCompiler<'_> {
    type Found = BpfCompiler;

    fn name(&self) -> String {
        "BPF compiler".to_owned()
    }

    fn find(&self) -> Result<Option<BpfCompiler>> {
        Ok(self.choose().ok())
    }

    fn plan(&self) -> String {
        "installing a Rust compiler that can target BPF".to_owned()
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        if let Some(apt) = self.apt {
            apt.update(job)?;
            if DEBIAN_PACKAGES.iter().all(|package| apt.offers(package)) {
                job.say(format_args!("installing {}", DEBIAN_PACKAGES.join(" ")));
                apt.install(job, &DEBIAN_PACKAGES)?;
            }
        }
        // A compiler that is there and lacks only its LLVM would not be helped by another one.
        if BpfCompiler::nightly().is_none() && BpfCompiler::debian().is_none() {
            job.run(&mut add_rust_src(job))
                .context("a nightly toolchain is the other way to a BPF compiler")?;
        }
        if let Err(obstacles) = self.choose() {
            bail!("no usable Rust compiler for BPF:\n{obstacles}");
        }
        Ok(())
    }
}

/// Gives rustup's nightly the sources of `core`; a nightly that is there stays the one it is.
fn add_rust_src(job: &Job<'_>) -> Command {
    let mut command = Command::new("rustup");
    if rustup::has_nightly() {
        job.say("adding rust-src to the nightly toolchain");
        command.args(["component", "add", "rust-src", "--toolchain", NIGHTLY]);
    } else {
        job.say("installing a nightly toolchain with rust-src");
        command.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
        command.args(["--component", "rust-src"]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_is_read_from_the_compiler() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8";
        let compiler = BpfCompiler::parse(Way::Debian, text).expect("it parses");
        assert_eq!(compiler.llvm_major(), 22);
        assert_eq!(compiler.version, "1.96.0");
    }
}
