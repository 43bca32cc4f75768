//! nginx and HAProxy, which the benchmarks compare with.
//!
//! Debian's packages are unpacked, with the libraries that they need, not installed: installing them would start servers, now and whenever
//! the machine boots.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::apt::{Apt, Lists};
use super::step::{Job, Step};
use crate::process;
use crate::workspace::Workspace;

/// Packages with a program of the same name. (nginx-light is nginx's program without its modules.)
const PROGRAMS: [&str; 2] = ["nginx", "haproxy"];
/// What HAProxy needs beside what every machine has.
const LIBRARIES: [&str; 3] = [
    "liblua5.3-0",
    "libopentracing-c-wrapper0",
    "libopentracing1",
];

/// Makes sure of them.
pub struct FindProxies<'a> {
    pub workspace: &'a Workspace,
    pub apt: Option<&'a Apt>,
}

impl FindProxies<'_> {
    /// Where the benchmarks look for them.
    fn directory(&self) -> PathBuf {
        self.workspace.target("bench/proxies")
    }

    /// Where a package's libraries are.
    fn libraries(&self, package: &str) -> PathBuf {
        let triple = format!("usr/lib/{}-linux-gnu", self.workspace.architecture());
        self.directory().join(package).join(triple)
    }

    fn version(&self, name: &str) -> Option<String> {
        let program = self.directory().join(name).join("usr/sbin").join(name);
        let libraries = LIBRARIES.map(|package| self.libraries(package));
        let libraries = std::env::join_paths(libraries).ok()?;
        let mut command = Command::new(program);
        process::probe(command.arg("-v").env("LD_LIBRARY_PATH", libraries))?;
        Some(name.to_owned())
    }
}

impl Step for FindProxies<'_> {
    type Found = String;

    fn name(&self) -> String {
        "nginx and HAProxy".to_owned()
    }

    fn find(&self) -> Result<Option<String>> {
        let found: Option<Vec<_>> = PROGRAMS.iter().map(|name| self.version(name)).collect();
        let directory = self.workspace.display(&self.directory()).to_string();
        Ok(found.map(|names| format!("{} in {directory}", names.join(" "))))
    }

    fn plan(&self) -> String {
        format!(
            "unpacking Debian's packages {}; no server is installed",
            PROGRAMS.join(" and ")
        )
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        let Some(apt) = self.apt else {
            bail!("only Debian's packages can be unpacked from here");
        };
        if !PROGRAMS.iter().all(|package| apt.offers(package)) {
            apt.update(job)?;
        }
        for package in PROGRAMS.iter().chain(&LIBRARIES) {
            unpack(&self.directory(), package)?;
        }
        Ok(())
    }
}

fn unpack(directory: &Path, package: &str) -> Result<()> {
    let _ = std::fs::remove_dir_all(directory.join(package));
    Lists::of_machine().unpack(directory, package)
}
