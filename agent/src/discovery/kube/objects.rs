//! What is read of the API's objects, and what is kept of them.
//!
//! Nothing else of an object is ever in memory: `managedFields`, environments and volumes are passed over while it is read.
#![forbid(unsafe_code)]

use clap::ValueEnum as _;
use serde::Deserialize;

use crate::discovery::cgroup::PodUid;
use crate::discovery::identity;
use crate::model::{Identity, Kind, Mode};

/// The pods that are watched: of Numaflow, and replicas of a vertex.
pub const LABELS: &str =
    "app.kubernetes.io/part-of=numaflow,app.kubernetes.io/component in (mono-vertex,vertex)";
/// The annotation by which a pod or a namespace says its mode.
pub const ANNOTATION: &str = "pendguard.io/mode";
/// The user's container of a source pod: in `containers`, or (a sidecar, from Numaflow 1.5 on) in `initContainers`.
const SOURCE_CONTAINER: &str = "udsource";
/// Numaflow's own container.
const NUMA_CONTAINER: &str = "numa";
/// Octets of a wrong annotation that are shown.
const SHOWN: usize = 40;

/// What a pod or a namespace says about its mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Annotation {
    /// Nothing.
    #[default]
    Absent,
    /// This mode.
    Mode(Mode),
    /// Something that is no mode; its beginning.
    Bad(String),
}

impl Annotation {
    fn new(value: Option<&str>) -> Self {
        match value.map(|text| (Mode::from_str(text, false), text)) {
            None => Self::Absent,
            Some((Ok(mode), _)) => Self::Mode(mode),
            Some((Err(_), text)) => Self::Bad(text.chars().take(SHOWN).collect()),
        }
    }
}

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Its UID.
    pub uid: PodUid,
    /// Whose replica it is; `None` where its labels don't say it.
    pub identity: Option<Identity>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it has a source of the user's.
    pub source: bool,
    /// What it says about its mode.
    pub annotation: Annotation,
    /// The tag of Numaflow's image.
    pub numaflow_version: Option<String>,
}

/// What is kept of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownNamespace {
    /// Its name.
    pub name: String,
    /// What it says about its mode.
    pub annotation: Annotation,
}

/// A pod, as far as it is read.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    #[serde(default)]
    pub(super) metadata: Metadata,
    spec: Option<PodSpec>,
}

/// A namespace, as far as it is read.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Namespace {
    #[serde(default)]
    pub(super) metadata: Metadata,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    pub(super) resource_version: String,
    labels: Option<Labels>,
    annotations: Option<Annotations>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Labels {
    #[serde(rename = "app.kubernetes.io/component")]
    component: Option<String>,
    #[serde(rename = "numaflow.numaproj.io/mono-vertex-name")]
    mono_vertex: Option<String>,
    #[serde(rename = "numaflow.numaproj.io/pipeline-name")]
    pipeline: Option<String>,
    #[serde(rename = "numaflow.numaproj.io/vertex-name")]
    vertex: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "numaflow.numaproj.io/replica")]
    replica: Option<String>,
    // ANNOTATION
    #[serde(rename = "pendguard.io/mode")]
    mode: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Container {
    #[serde(default)]
    name: String,
    image: Option<String>,
}

impl Pod {
    /// What is kept of it; `None` where its UID is none.
    pub fn keep(self) -> Option<KnownPod> {
        let labels = self.metadata.labels.unwrap_or_default();
        let annotations = self.metadata.annotations.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let containers = || {
            let all = [&spec.containers, &spec.init_containers];
            all.into_iter().flatten().flatten()
        };
        let named = |name: Option<String>| name.filter(|name| !name.is_empty());
        let workload = match labels.component.as_deref() {
            Some("mono-vertex") => {
                named(labels.mono_vertex).map(|name| (Kind::MonoVertex, name, String::new()))
            }
            Some("vertex") => named(labels.pipeline)
                .zip(named(labels.vertex))
                .map(|(pipeline, vertex)| (Kind::Pipeline, pipeline, vertex)),
            _ => None,
        };
        let identity = workload.map(|(kind, workload, vertex)| Identity {
            namespace: self.metadata.namespace.clone(),
            kind,
            workload,
            vertex,
            pod: self.metadata.name.clone(),
            replica: identity::replica(annotations.replica.as_deref().map(str::as_bytes)),
        });
        let numa = containers().find(|container| container.name == NUMA_CONTAINER);
        Some(KnownPod {
            uid: self.metadata.uid.parse().ok()?,
            identity,
            source: containers().any(|container| container.name == SOURCE_CONTAINER),
            annotation: Annotation::new(annotations.mode.as_deref()),
            numaflow_version: numa.and_then(|numa| tag(numa.image.as_deref()?)),
            namespace: self.metadata.namespace,
            name: self.metadata.name,
        })
    }

    /// Its UID, if it is one.
    pub fn uid(&self) -> Option<PodUid> {
        self.metadata.uid.parse().ok()
    }
}

impl Namespace {
    /// What is kept of it; nothing, where it says nothing about its mode.
    pub fn keep(self) -> Option<KnownNamespace> {
        let mode = self.metadata.annotations.unwrap_or_default().mode;
        match Annotation::new(mode.as_deref()) {
            Annotation::Absent => None,
            annotation => Some(KnownNamespace {
                name: self.metadata.name,
                annotation,
            }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }
}

/// The tag of an image's name, if it has one (`registry:5000/numaproj/numaflow:v1.4.5@sha256:…`).
fn tag(image: &str) -> Option<String> {
    let name = image.split('@').next()?;
    let (_, tag) = name.rsplit('/').next()?.split_once(':')?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    // As the distribution's grammar has it; no label carries anything else.
    (!tag.is_empty() && tag.len() <= 128 && tag.chars().all(allowed)).then(|| tag.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Replica;

    const UID: &str = "6d2b1a0c-5c3e-4f7a-9b1d-0e8f7a6b5c4d";

    /// A pod as the API server tells it, with what isn't read.
    fn pod() -> serde_json::Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "orders-mv-2-abcde", "namespace": "payments", "uid": UID, "resourceVersion": "71",
                "labels": {
                    "app.kubernetes.io/component": "mono-vertex",
                    "app.kubernetes.io/part-of": "numaflow",
                    "numaflow.numaproj.io/mono-vertex-name": "orders",
                },
                "annotations": {"numaflow.numaproj.io/replica": "2", "kubectl.kubernetes.io/default-container": "numa"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {
                "nodeName": "node-1",
                "containers": [
                    {"name": "numa", "image": "quay.io:443/numaproj/numaflow:v1.4.5", "env": [{"name": "A", "value": "b"}]},
                    {"name": "udsource", "image": "orders:1"},
                ],
                "initContainers": null,
            },
            "status": {"phase": "Running"},
        })
    }

    fn keep(pod: serde_json::Value) -> KnownPod {
        serde_json::from_value::<Pod>(pod).unwrap().keep().unwrap()
    }

    #[test]
    fn a_source_pod_of_a_mono_vertex() {
        let pod = keep(pod());
        let identity = Identity {
            namespace: "payments".to_owned(),
            kind: Kind::MonoVertex,
            workload: "orders".to_owned(),
            vertex: String::new(),
            pod: "orders-mv-2-abcde".to_owned(),
            replica: Replica::Number(2),
        };
        assert_eq!(pod.identity, Some(identity));
        assert_eq!(pod.uid.to_string(), UID);
        assert!(pod.source);
        assert_eq!(pod.annotation, Annotation::Absent);
        assert_eq!(pod.numaflow_version.as_deref(), Some("v1.4.5"));
    }

    #[test]
    fn a_source_that_is_a_sidecar_of_a_pipelines_vertex() {
        let mut value = pod();
        value["metadata"]["labels"] = json!({
            "app.kubernetes.io/component": "vertex",
            "numaflow.numaproj.io/pipeline-name": "flow",
            "numaflow.numaproj.io/vertex-name": "in",
        });
        value["spec"]["initContainers"] =
            json!([{"name": "udsource", "image": "x", "restartPolicy": "Always"}]);
        value["spec"]["containers"] = json!([{"name": "numa", "image": "numaflow"}]);
        let pod = keep(value);
        let identity = pod.identity.unwrap();
        assert_eq!(
            (identity.kind, &*identity.workload, &*identity.vertex),
            (Kind::Pipeline, "flow", "in")
        );
        assert!(pod.source);
        assert_eq!(pod.numaflow_version, None);
    }

    #[test]
    fn a_vertex_without_a_source() {
        let mut value = pod();
        value["spec"]["containers"] = json!([{"name": "numa"}, {"name": "udf"}]);
        assert!(!keep(value).source);
    }

    #[test]
    fn what_labels_and_annotations_dont_say_isnt_known() {
        for (pointer, value) in [
            ("/metadata/labels", json!(null)),
            ("/metadata/labels", json!({})),
            (
                "/metadata/labels/numaflow.numaproj.io~1mono-vertex-name",
                json!(""),
            ),
            (
                "/metadata/labels/app.kubernetes.io~1component",
                json!("vertex"),
            ),
            (
                "/metadata/labels/app.kubernetes.io~1component",
                json!("daemon"),
            ),
        ] {
            let mut pod = pod();
            *pod.pointer_mut(pointer).unwrap() = value;
            assert_eq!(keep(pod).identity, None, "{pointer}");
        }
        for replica in [json!(null), json!("two"), json!("")] {
            let mut pod = pod();
            pod["metadata"]["annotations"]["numaflow.numaproj.io/replica"] = replica;
            assert_eq!(keep(pod).identity.unwrap().replica, Replica::Unknown);
        }
    }

    #[test]
    fn a_pod_without_a_uid_isnt_kept() {
        for uid in ["", "x"] {
            let mut pod = pod();
            pod["metadata"]["uid"] = json!(uid);
            assert_eq!(serde_json::from_value::<Pod>(pod).unwrap().keep(), None);
        }
    }

    #[test]
    fn modes_and_what_is_none() {
        let of = |value: serde_json::Value| {
            let mut pod = pod();
            pod["metadata"]["annotations"][ANNOTATION] = value;
            keep(pod).annotation
        };
        assert_eq!(of(json!(null)), Annotation::Absent);
        assert_eq!(of(json!("off")), Annotation::Mode(Mode::Off));
        assert_eq!(of(json!("audit")), Annotation::Mode(Mode::Audit));
        assert_eq!(of(json!("enforce")), Annotation::Mode(Mode::Enforce));
        for bad in ["", "Enforce", "enforce ", "on", "true"] {
            assert_eq!(of(json!(bad)), Annotation::Bad(bad.to_owned()));
        }
        let long = Annotation::Bad("ä".repeat(SHOWN));
        assert_eq!(of(json!("ä".repeat(1000))), long);
    }

    #[test]
    fn of_namespaces_only_those_that_say_something_are_kept() {
        let of = |annotations: serde_json::Value| {
            let value = json!({"metadata": {"name": "payments", "annotations": annotations}});
            serde_json::from_value::<Namespace>(value).unwrap().keep()
        };
        assert_eq!(of(json!(null)), None);
        assert_eq!(of(json!({"other": "enforce"})), None);
        let known = of(json!({ANNOTATION: "enforce"})).unwrap();
        assert_eq!(
            (&*known.name, known.annotation),
            ("payments", Annotation::Mode(Mode::Enforce))
        );
        let known = of(json!({ANNOTATION: "x"})).unwrap();
        assert_eq!(known.annotation, Annotation::Bad("x".to_owned()));
    }

    #[test]
    fn tags_of_images() {
        for (image, expected) in [
            ("quay.io/numaproj/numaflow:v1.4.5", Some("v1.4.5")),
            ("numaflow:latest", Some("latest")),
            ("r:5000/numaflow:v1@sha256:00", Some("v1")),
            ("r:5000/numaflow", None),
            ("numaflow@sha256:00", None),
            ("numaflow", None),
            ("numaflow:", None),
            ("numaflow:a b", None),
            ("", None),
        ] {
            assert_eq!(tag(image).as_deref(), expected, "{image}");
        }
    }
}
