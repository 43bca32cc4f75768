//! A replica in a pod that an API server can have, too: its processes are in a cgroup that is called as the kubelet calls it.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use serde_json::{Value, json};

use crate::agent::Pod;
use crate::cgroups::PodCgroup;
use crate::replica::Replica;

/// The annotation of a pod or a namespace that says its mode.
pub const ANNOTATION: &str = "pendguard.io/mode";
/// The tag of Numaflow's image in a member's pod.
pub const VERSION: &str = "v1.4.5";

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
        let uid = new_uid();
        let cgroup = PodCgroup::new(&uid)?;
        let replica = cgroup.within(replica).await?;
        let object = object(&replica.pod.name, &uid, node, workload, number, VERSION);
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

/// A pod without processes yet: its environment, its cgroup, and what an API server has of it.
pub struct Place {
    /// Its environment.
    pub pod: Pod,
    /// What the API server has.
    pub object: Value,
    /// Its cgroup.
    pub cgroup: PodCgroup,
}

impl Place {
    /// Of replica `number` of a MonoVertex, on that node, with Numaflow's image of that tag.
    ///
    /// # Errors
    /// No cgroup can be made.
    pub fn new(node: &str, workload: &str, number: u32, version: &str) -> Result<Self> {
        let uid = new_uid();
        let pod = Pod::mono_vertex(workload, &number.to_string());
        let object = object(&pod.name, &uid, node, workload, number, version);
        let cgroup = PodCgroup::new(&uid)?;
        Ok(Self {
            pod,
            object,
            cgroup,
        })
    }
}

/// A pod's UID that no other one has.
fn new_uid() -> String {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    format!(
        "6d2b1a0c-5c3e-4f7a-{serial:04x}-{:012x}",
        std::process::id()
    )
}

/// What an API server has of the pod of a MonoVertex's replica, with Numaflow's image of that tag.
fn object(name: &str, uid: &str, node: &str, workload: &str, number: u32, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "test", "uid": uid,
            "labels": {
                "app.kubernetes.io/component": "mono-vertex",
                "app.kubernetes.io/part-of": "numaflow",
                "numaflow.numaproj.io/mono-vertex-name": workload,
            },
            "annotations": {"numaflow.numaproj.io/replica": number.to_string()},
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "numa", "image": format!("quay.io/numaproj/numaflow:{version}")}],
            "initContainers": [{"name": "udsource", "image": "source:1", "restartPolicy": "Always"}],
        },
    })
}

/// The replicas' namespace, with that annotation.
#[must_use]
pub fn namespace(mode: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "test", "annotations": {ANNOTATION: mode}},
    })
}
