//! The development files of one major version of LLVM, which bpf-linker is compiled against.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::apt::Apt;
use super::step::{Job, Step};
use crate::process;

/// Where an LLVM is installed.
pub struct Llvm {
    pub prefix: PathBuf,
}

impl fmt::Display for Llvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.prefix.display().fmt(f)
    }
}

/// The variable by which the crate `llvm-sys` is told the place; it carries LLVM's major version and a minor one of 1.
pub fn prefix_variable(major: u32) -> String {
    format!("LLVM_SYS_{major}1_PREFIX")
}

/// Whether there is an LLVM of this version, or Debian has one.
pub fn obtainable(major: u32, apt: Option<&Apt>) -> bool {
    find(major).is_some() || apt.is_some_and(|apt| apt.offers(&debian_package(major)))
}

fn debian_package(major: u32) -> String {
    format!("llvm-{major}-dev")
}

fn debian_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

fn find(major: u32) -> Option<Llvm> {
    let named = env::var_os(prefix_variable(major)).map(PathBuf::from);
    let asked = [
        format!("llvm-config-{major}"),
        format!("llvm-config{major}"),
        "llvm-config".to_owned(),
    ];
    let asked = asked
        .iter()
        .filter_map(|config| process::probe(Command::new(config).arg("--prefix")))
        .map(PathBuf::from);
    named
        .into_iter()
        .chain([debian_prefix(major)])
        .chain(asked)
        .find(|prefix| has_development_files(prefix, major))
        .map(|prefix| Llvm { prefix })
}

fn has_development_files(prefix: &Path, major: u32) -> bool {
    let config = prefix.join("bin/llvm-config");
    process::probe(Command::new(&config).arg("--version"))
        .is_some_and(|version| version.split('.').next() == Some(&major.to_string()))
        && process::probe(Command::new(&config).arg("--includedir"))
            .is_some_and(|include| Path::new(&include).join("llvm-c/Core.h").exists())
}

/// Makes sure of an LLVM.
pub struct FindLlvm<'a> {
    pub llvm_major: u32,
    pub apt: Option<&'a Apt>,
}

impl Step for FindLlvm<'_> {
    type Found = Llvm;

    fn name(&self) -> String {
        format!("LLVM {}", self.llvm_major)
    }

    fn find(&self) -> Result<Option<Llvm>> {
        Ok(find(self.llvm_major))
    }

    fn plan(&self) -> String {
        format!("installing LLVM {}'s development files", self.llvm_major)
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        if let Some(apt) = self.apt {
            return apt.install(job, &[&debian_package(self.llvm_major)]);
        }
        // The choice of the compiler has seen to it that this is not the usual way to learn of it.
        bail!("LLVM {}'s development files are not there", self.llvm_major);
    }
}
