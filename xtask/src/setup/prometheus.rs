//! Prometheus and promtool, for the tests of the dashboard and its rules.
//!
//! Debian's package is unpacked, not installed: installing it would start a server on port 9090, now and whenever the machine boots.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use super::apt::{self, Apt};
use super::step::{Job, Step};
use crate::process;
use crate::workspace::Workspace;

const PACKAGE: &str = "prometheus";
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// Makes sure of them.
pub struct FindPrometheus<'a> {
    pub workspace: &'a Workspace,
    pub apt: Option<&'a Apt>,
}

impl FindPrometheus<'_> {
    /// Where the tests look for it before they look on PATH.
    fn unpacked(&self) -> PathBuf {
        self.workspace.target("tools").join(PACKAGE)
    }
}

impl Step for FindPrometheus<'_> {
    type Found = String;

    fn name(&self) -> String {
        "Prometheus".to_owned()
    }

    fn find(&self) -> Result<Option<String>> {
        let unpacked = self.unpacked().join("usr/bin");
        // With an empty directory the name alone is left, which is looked for on PATH.
        let found = [unpacked, PathBuf::new()]
            .into_iter()
            .find_map(|directory| {
                let versions = PROGRAMS.map(|name| {
                    process::probe(Command::new(directory.join(name)).arg("--version"))
                });
                match versions {
                    [Some(server), Some(_)] => Some(version(&server).to_owned()),
                    _ => None,
                }
            });
        Ok(found)
    }

    fn plan(&self) -> String {
        format!("unpacking Debian's package {PACKAGE}; no server is installed")
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        let Some(apt) = self.apt else {
            bail!(
                "please put {} of Prometheus 2.42 or newer on PATH",
                PROGRAMS.join(" and ")
            );
        };
        if !apt.offers(PACKAGE) {
            apt.update(job)?;
        }
        let _ = std::fs::remove_dir_all(self.unpacked());
        apt::Lists::of_machine().unpack(&self.workspace.target("tools"), PACKAGE)
    }
}

/// The name and the version in what `prometheus --version` prints.
fn version(text: &str) -> &str {
    text.split(" (").next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_without_what_it_was_built_from() {
        let text = "prometheus, version 2.42.0+ds (branch: debian/sid)\n  build user: team\n";
        assert_eq!(version(text), "prometheus, version 2.42.0+ds");
    }
}
