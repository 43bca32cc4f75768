//! A cluster of one node, for tests: an API server that says what it is told to, and pods that are real processes in cgroups
//! called as the kubelet calls them.

#[path = "../../../agent/tests/kube/apiserver.rs"]
#[expect(dead_code, reason = "the agent's own tests use the rest")]
pub mod apiserver;

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use apiserver::ApiServer;
use pendguard_tests::agent::{Agent, Pod};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::cgroups::PodCgroup;
use serde_json::{Value, json};
use tempfile::TempDir;

const NODE: &str = "this-node";

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

/// A pod of a MonoVertex: its cgroup, and what the API server has of it.
pub struct Place {
    pub pod: Pod,
    pub object: Value,
    pub cgroup: PodCgroup,
}

impl Place {
    /// Of a pod whose environment says that it is number `claimed`, and which the API server has as number `number`, with Numaflow's image of that tag.
    pub fn new(workload: &str, number: u32, claimed: u32, version: &str) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let uid = format!(
            "6d2b1a0c-5c3e-4f7a-{serial:04x}-{:012x}",
            std::process::id()
        );
        let pod = Pod::mono_vertex(workload, &claimed.to_string());
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": pod.name, "namespace": "test", "uid": uid,
                "labels": {
                    "app.kubernetes.io/component": "mono-vertex",
                    "app.kubernetes.io/part-of": "numaflow",
                    "numaflow.numaproj.io/mono-vertex-name": workload,
                },
                "annotations": {"numaflow.numaproj.io/replica": number.to_string()},
            },
            "spec": {
                "nodeName": NODE,
                "containers": [{"name": "numa", "image": format!("quay.io/numaproj/numaflow:{version}")}],
                "initContainers": [{"name": "udsource", "image": "source:1", "restartPolicy": "Always"}],
            },
        });
        let cgroup = PodCgroup::new(&uid)?;
        Ok(Self {
            pod,
            object,
            cgroup,
        })
    }
}
