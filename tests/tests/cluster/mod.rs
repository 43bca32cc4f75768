//! A cluster of one node, for tests: an API server that says what it is told to, and pods that are real processes in cgroups
//! called as the kubelet calls them.

#[path = "../../../agent/tests/kube/apiserver.rs"]
#[expect(dead_code, reason = "the agent's own tests use the rest")]
pub mod apiserver;

use anyhow::{Context as _, Result};
use apiserver::ApiServer;
use pendguard_tests::agent::Agent;
use pendguard_tests::bpffs::BpfFs;
use serde_json::json;
use tempfile::TempDir;

/// The node.
pub const NODE: &str = "this-node";

/// An API server, and the kubeconfig by which an agent finds it.
pub struct Cluster {
    pub server: ApiServer,
    directory: TempDir,
}

impl Cluster {
    pub fn start() -> Result<Self> {
        let server = ApiServer::start();
        let directory = tempfile::tempdir()?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": server.url()}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        });
        std::fs::write(directory.path().join("config"), config.to_string())?;
        Ok(Self { server, directory })
    }

    pub async fn agent(&self, bpffs: &BpfFs, arguments: &[&str]) -> Result<Agent> {
        let config = self.directory.path().join("config");
        let pins = bpffs.pins();
        let env = [
            ("KUBECONFIG", config.to_str().context("UTF-8")?),
            ("NODE_NAME", NODE),
            ("PENDGUARD_PIN_DIR", pins.to_str().context("UTF-8")?),
        ];
        Agent::start_with(&[&["--discover", "kube"], arguments].concat(), &env).await
    }
}
