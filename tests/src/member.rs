//! A replica in a pod that an API server can have, too: its processes are in a cgroup that is called as the kubelet calls it.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use serde_json::{Value, json};

use crate::cgroups::PodCgroup;
use crate::replica::Replica;

/// The annotation of a pod or a namespace that says its mode.
pub const ANNOTATION: &str = "pendguard.io/mode";

/// A replica in a pod of its own, and what the API server has of it.
pub struct Member {
    /// Its processes.
    pub replica: Replica,
    /// The pod's UID.
    pub uid: String,
    object: Value,
    _cgroup: PodCgroup,
}

impl Member {
    /// Starts a replica in a pod that the API server has as number `number` of `workload`, on that node.
    ///
    /// # Errors
    /// It doesn't start, or no cgroup can be made.
    pub async fn start(
        node: &str,
        workload: &str,
        number: u32,
        replica: impl Future<Output = Result<Replica>>,
    ) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let uid = format!(
            "6d2b1a0c-5c3e-4f7a-{serial:04x}-{:012x}",
            std::process::id()
        );
        let cgroup = PodCgroup::new(&uid)?;
        let replica = cgroup.within(replica).await?;
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": replica.pod.name, "namespace": "test", "uid": uid,
                "labels": {
                    "app.kubernetes.io/component": "mono-vertex",
                    "app.kubernetes.io/part-of": "numaflow",
                    "numaflow.numaproj.io/mono-vertex-name": workload,
                },
                "annotations": {"numaflow.numaproj.io/replica": number.to_string()},
            },
            "spec": {
                "nodeName": node,
                "containers": [{"name": "numa", "image": "quay.io/numaproj/numaflow:v1.4.5"}],
                "initContainers": [{"name": "udsource", "image": "source:1", "restartPolicy": "Always"}],
            },
        });
        Ok(Self {
            replica,
            uid,
            object,
            _cgroup: cgroup,
        })
    }

    /// Its pod, with that annotation.
    #[must_use]
    pub fn pod(&self, mode: Option<&str>) -> Value {
        let mut object = self.object.clone();
        if let Some(mode) = mode {
            object["metadata"]["annotations"][ANNOTATION] = json!(mode);
        }
        object
    }
}

/// The replicas' namespace, with that annotation.
#[must_use]
pub fn namespace(mode: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "test", "annotations": {ANNOTATION: mode}},
    })
}
