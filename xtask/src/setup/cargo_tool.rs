//! Programs that cargo builds for us, in `target/tools`.

use std::process::Command;

use anyhow::Result;

use super::step::{Job, Step};
use crate::process;
use crate::workspace::Workspace;

/// These programs run for seconds and are compiled on every new CI machine: what counts is how soon they are there.
const QUICK_TO_COMPILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
];

/// A cargo tool at the version that is known to work.
#[derive(Clone, Copy)]
pub struct CargoTool {
    pub name: &'static str,
    pub version: &'static str,
}

impl CargoTool {
    /// The step that makes sure of it.
    pub fn install(self, workspace: &Workspace) -> InstallCargoTool<'_> {
        InstallCargoTool {
            tool: self,
            workspace,
        }
    }

    /// The version that is installed, if it is the wanted one and can be started.
    pub fn find(self, workspace: &Workspace) -> Option<String> {
        let version = process::probe(Command::new(workspace.tool(self.name)).arg("--version"))?;
        (version == format!("{} {}", self.name, self.version)).then(|| self.version.to_owned())
    }

    /// The command that compiles and installs it.
    pub fn command(self, workspace: &Workspace) -> Command {
        let mut command = workspace.cargo("install");
        command
            .args([self.name, "--version", self.version, "--locked", "--force"])
            .arg("--root")
            .arg(workspace.target("tools"))
            .arg("--target-dir")
            .arg(workspace.target("tools/build"))
            .envs(QUICK_TO_COMPILE);
        command
    }
}

/// Makes sure of a cargo tool.
pub struct InstallCargoTool<'a> {
    tool: CargoTool,
    workspace: &'a Workspace,
}

impl Step for InstallCargoTool<'_> {
    type Found = String;

    fn name(&self) -> String {
        self.tool.name.to_owned()
    }

    fn find(&self) -> Result<Option<String>> {
        Ok(self.tool.find(self.workspace))
    }

    fn plan(&self) -> String {
        format!("compiling {} {}", self.tool.name, self.tool.version)
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        job.run(&mut self.tool.command(self.workspace))
    }
}
