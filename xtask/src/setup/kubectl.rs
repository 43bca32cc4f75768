//! kubectl, for its kustomize: the manifests are rendered with what their users render them with.
//!
//! Debian 12 has one of 2021 (in kubernetes-client), which does not know components; that of the next release is unpacked, not installed.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;

use super::apt::{Apt, Lists};
use super::step::{Job, Step};
use crate::process;
use crate::workspace::Workspace;

const PACKAGE: &str = "kubectl";
/// The release of Debian that has a newer one.
const SUITE: &str = "trixie";
/// Of kustomize: `labels` that go into templates came with 5.
const MAJOR: u32 = 5;

/// Makes sure of it.
pub struct FindKubectl<'a> {
    pub workspace: &'a Workspace,
    pub apt: Option<&'a Apt>,
}

/// kubectl, as it was found.
pub struct Kubectl {
    pub program: PathBuf,
    kustomize: String,
}

impl std::fmt::Display for Kubectl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, kustomize {}",
            self.program.display(),
            self.kustomize
        )
    }
}

impl FindKubectl<'_> {
    /// Where the tests look for it before they look on PATH.
    fn unpacked(&self) -> PathBuf {
        self.workspace.target("tools").join(PACKAGE)
    }
}

impl Step for FindKubectl<'_> {
    type Found = Kubectl;

    fn name(&self) -> String {
        "kubectl".to_owned()
    }

    fn find(&self) -> Result<Option<Kubectl>> {
        let places = [self.unpacked().join("usr/bin/kubectl"), "kubectl".into()];
        Ok(places.into_iter().find_map(|program| {
            let said = process::probe(Command::new(&program).args([
                "version",
                "--client",
                "--output=json",
            ]))?;
            let kustomize = kustomize(&said)?;
            Some(Kubectl { program, kustomize })
        }))
    }

    fn plan(&self) -> String {
        format!("unpacking {PACKAGE} of Debian's {SUITE}")
    }

    fn perform(&self, _: &Job<'_>) -> Result<()> {
        if self.apt.is_none() {
            bail!("please put a kubectl of 1.27 or newer on PATH");
        }
        let _ = std::fs::remove_dir_all(self.unpacked());
        Lists::of_suite(self.workspace, SUITE)?.unpack(&self.workspace.target("tools"), PACKAGE)
    }
}

/// The version of its kustomize, if that is new enough.
fn kustomize(said: &str) -> Option<String> {
    let said: Value = serde_json::from_str(said).ok()?;
    let version = said["kustomizeVersion"].as_str()?;
    let major: u32 = version.strip_prefix('v')?.split('.').next()?.parse().ok()?;
    (major >= MAJOR).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kustomize_that_is_too_old_is_none() {
        let said = |version| format!(r#"{{"clientVersion":{{}},"kustomizeVersion":"{version}"}}"#);
        assert_eq!(kustomize(&said("v5.5.0")).as_deref(), Some("v5.5.0"));
        assert_eq!(kustomize(&said("v4.5.7")), None);
        assert_eq!(kustomize("{}"), None);
    }
}
