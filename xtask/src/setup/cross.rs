//! What compiles programs for another machine than this.
//!
//! Its C compiler, which links, and its C library are Debian's cross packages. Rust's standard library for it comes with the repository's
//! toolchain, where rustup has it; or out of Debian's package for that architecture, which is unpacked, not installed, for Debian's own
//! compiler: the two are of one version, or the compiler would refuse the library.

use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::{Apt, Lists};
use super::packages::{Package, Probe};
use super::step::{Job, Step};
use crate::architecture::Architecture;
use crate::process;
use crate::workspace::{Cross, Workspace};

/// Debian's compiler, and the package that has the standard library for it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_RUSTC_PACKAGE: &str = "rustc-web";
const DEBIAN_LIBRARY: &str = "libstd-rust-web-dev";

/// What links programs for `architecture`.
const fn linker(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "x86_64-linux-gnu-gcc",
        Architecture::Aarch64 => "aarch64-linux-gnu-gcc",
    }
}

/// The packages that have it, and the C library.
pub fn packages(architecture: Architecture) -> Vec<Package> {
    let linker = Probe::Program(linker(architecture));
    match architecture {
        Architecture::X86_64 => vec![
            Package::new("gcc-x86-64-linux-gnu", linker),
            Package::new(
                "libc6-dev-amd64-cross",
                Probe::Path("/usr/x86_64-linux-gnu/lib/libc.a"),
            ),
        ],
        Architecture::Aarch64 => vec![
            Package::new("gcc-aarch64-linux-gnu", linker),
            Package::new(
                "libc6-dev-arm64-cross",
                Probe::Path("/usr/aarch64-linux-gnu/lib/libc.a"),
            ),
        ],
    }
}

/// A compiler that has the standard library for another machine.
pub struct CrossCompiler {
    pub cross: Cross,
    version: String,
}

impl fmt::Display for CrossCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self.cross.compiler {
            Some(_) => "Debian's",
            None => "rustup's",
        };
        let triple = self.cross.architecture.triple();
        write!(f, "{} ({whose}), for {triple}", self.version)
    }
}

/// Makes sure of one.
pub struct FindCrossCompiler<'a> {
    pub workspace: &'a Workspace,
    pub architecture: Architecture,
    pub apt: Option<&'a Apt>,
}

impl FindCrossCompiler<'_> {
    fn compiler(&self, version: &mut Command, debian: Option<PathBuf>) -> Result<CrossCompiler> {
        Ok(CrossCompiler {
            version: process::stdout(version.arg("--version"))?,
            cross: Cross {
                architecture: self.architecture,
                linker: linker(self.architecture),
                compiler: debian.map(|sysroot| (DEBIAN_RUSTC.into(), sysroot)),
            },
        })
    }

    /// The repository's own compiler, run where its toolchain is chosen.
    fn own_rustc(&self) -> Command {
        let mut rustc = Command::new("rustc");
        rustc.current_dir(self.workspace.path(""));
        rustc
    }

    /// The standard library's package of the version that Debian's compiler has, if that is there.
    fn library(&self) -> Option<String> {
        self.apt?;
        let version = process::probe(Command::new("dpkg-query").args([
            "--show",
            "--showformat=${Version}",
            DEBIAN_RUSTC_PACKAGE,
        ]))?;
        (!version.is_empty()).then(|| format!("{DEBIAN_LIBRARY}={version}"))
    }

    /// Where packages with the standard library are unpacked, each to a directory of its name and version.
    fn unpacked(&self) -> PathBuf {
        let debian = self.architecture.debian();
        self.workspace.target(debian).join("rust")
    }

    /// The libraries of a sysroot.
    fn libraries(&self, sysroot: &Path) -> PathBuf {
        sysroot
            .join("lib/rustlib")
            .join(self.architecture.triple())
            .join("lib")
    }
}

impl Step for FindCrossCompiler<'_> {
    type Found = CrossCompiler;

    fn name(&self) -> String {
        format!("{} compiler", self.architecture.debian())
    }

    fn find(&self) -> Result<Option<CrossCompiler>> {
        let target = ["--target", self.architecture.triple()];
        let libraries = process::stdout(
            self.own_rustc()
                .args(["--print", "target-libdir"])
                .args(target),
        )?;
        // Of a target that isn't there, rustc tells all the same where it would be.
        if Path::new(&libraries).exists() {
            return self.compiler(&mut self.own_rustc(), None).map(Some);
        }
        let Some(library) = self.library() else {
            return Ok(None);
        };
        let sysroot = self.unpacked().join(library).join("usr");
        if !self.libraries(&sysroot).exists() {
            return Ok(None);
        }
        self.compiler(&mut Command::new(DEBIAN_RUSTC), Some(sysroot))
            .map(Some)
    }

    fn plan(&self) -> String {
        format!(
            "getting Rust's standard library for {}",
            self.architecture.triple()
        )
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        let triple = self.architecture.triple();
        let Some(library) = self.library() else {
            return job.run(
                Command::new("rustup")
                    .args(["target", "add", triple])
                    .current_dir(self.workspace.path("")),
            );
        };
        job.say(format_args!("unpacking Debian's {library}"));
        let lists = Lists::of_architecture(self.workspace, self.architecture)?;
        let into = self.unpacked();
        fs::create_dir_all(&into).with_context(|| into.display().to_string())?;
        lists.unpack(&into, &library).with_context(|| {
            format!(
                "the standard library must be of the compiler's version: bring both up to date (apt-get install {DEBIAN_RUSTC_PACKAGE})"
            )
        })?;
        // One sysroot for both machines: this one's library is beside it.
        let libraries =
            process::stdout(Command::new(DEBIAN_RUSTC).args(["--print", "target-libdir"]))?;
        let own = Path::new(&libraries)
            .parent()
            .context("rustc's libraries are in no directory")?;
        let name = own.file_name().context("a directory's name")?;
        let beside = into.join(&library).join("usr/lib/rustlib").join(name);
        symlink(own, &beside).with_context(|| beside.display().to_string())
    }
}
