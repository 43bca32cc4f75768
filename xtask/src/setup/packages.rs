//! Libraries and programs that come with the system.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::apt::Apt;
use super::step::{Job, Step};
use crate::process;

/// How a package's presence shows where there is no dpkg.
pub enum Probe {
    /// A program of this name can be started.
    Program(&'static str),
    /// This file or directory exists.
    Path(&'static str),
    /// Python can import this module.
    PythonModule(&'static str),
}

impl Probe {
    fn found(&self) -> bool {
        match self {
            Self::Program(name) => process::probe(Command::new(name).arg("--version")).is_some(),
            Self::Path(path) => Path::new(path).exists(),
            Self::PythonModule(module) => {
                process::probe(Command::new("python3").args(["-c", &format!("import {module}")]))
                    .is_some()
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Program(name) => format!("the program {name}"),
            Self::Path(path) => format!("the path {path}"),
            Self::PythonModule(module) => format!("the Python module {module}"),
        }
    }
}

/// A package, by its Debian name and by what it brings.
pub struct Package {
    debian: &'static str,
    probe: Probe,
}

impl Package {
    pub const fn new(debian: &'static str, probe: Probe) -> Self {
        Self { debian, probe }
    }
}

/// Makes sure of a list of packages.
pub struct Packages<'a> {
    pub name: &'static str,
    pub wanted: Vec<Package>,
    pub apt: Option<&'a Apt>,
}

impl Packages<'_> {
    fn missing(&self) -> Result<Vec<&Package>> {
        let Some(apt) = self.apt else {
            return Ok(self.wanted.iter().filter(|p| !p.probe.found()).collect());
        };
        let names: Vec<_> = self.wanted.iter().map(|p| p.debian).collect();
        let missing = apt.missing(&names)?;
        Ok(self
            .wanted
            .iter()
            .filter(|p| missing.contains(&p.debian))
            // A program may have come another way than as Debian's package; for a library that would be guessing.
            .filter(|p| !(matches!(p.probe, Probe::Program(_)) && p.probe.found()))
            .collect())
    }
}

impl Step for Packages<'_> {
    type Found = String;

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn find(&self) -> Result<Option<String>> {
        let names: Vec<_> = self.wanted.iter().map(|p| p.debian).collect();
        Ok(self.missing()?.is_empty().then(|| names.join(" ")))
    }

    fn plan(&self) -> String {
        let missing = self.missing().unwrap_or_default();
        let names: Vec<_> = missing.iter().map(|p| p.debian).collect();
        let verb = if self.apt.is_some() {
            "installing"
        } else {
            "missing:"
        };
        format!("{verb} {}", names.join(" "))
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        let missing = self.missing()?;
        if let Some(apt) = self.apt {
            let names: Vec<_> = missing.iter().map(|p| p.debian).collect();
            return apt.install(job, &names);
        }
        let list: Vec<_> = missing
            .iter()
            .map(|p| format!("  {} (Debian's package {})", p.probe.describe(), p.debian))
            .collect();
        bail!(
            "only Debian's packages can be installed from here, as root or with sudo; please install these yourself:\n{}",
            list.join("\n")
        );
    }
}
