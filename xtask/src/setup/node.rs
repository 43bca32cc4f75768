//! Node.js and npm, wherever they came from.

use std::process::Command;

use anyhow::{Result, bail};

use super::apt::Apt;
use super::step::{Job, Step};
use crate::process;

/// The oldest that the Node peers run on.
const OLDEST_MAJOR: u32 = 18;

/// Makes sure of them.
pub struct FindNode<'a> {
    pub apt: Option<&'a Apt>,
}

impl Step for FindNode<'_> {
    type Found = String;

    fn name(&self) -> String {
        "Node".to_owned()
    }

    fn find(&self) -> Result<Option<String>> {
        let npm = process::probe(Command::new("npm").arg("--version"));
        let node = process::probe(Command::new("node").arg("--version"));
        Ok(match (node, npm) {
            (Some(node), Some(npm)) if major(&node) >= Some(OLDEST_MAJOR) => {
                Some(format!("node {node}, npm {npm}"))
            }
            _ => None,
        })
    }

    fn plan(&self) -> String {
        "installing nodejs npm".to_owned()
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        if let Some(apt) = self.apt {
            return apt.install(job, &["nodejs", "npm"]);
        }
        bail!("please install Node.js {OLDEST_MAJOR} or newer, and npm");
    }
}

/// The major version in what `node --version` prints, such as `v20.20.2`.
fn major(version: &str) -> Option<u32> {
    version.strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_of_node() {
        assert_eq!(major("v20.20.2"), Some(20));
        assert!(major("v16.0.0") < Some(OLDEST_MAJOR));
        assert!(major("") < Some(OLDEST_MAJOR));
    }
}
