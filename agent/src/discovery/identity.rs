//! Whose process it is, told from its environment.
//!
//! Numaflow gives every container of a vertex pod the namespace, the pod, the replica and the vertex as `NUMAFLOW_*`
//! variables; only its own container (`numa`) has the vertex object, and only the user's containers have
//! `NUMAFLOW_UD_CONTAINER_TYPE`. A pod's other processes that lack both (an old version's data plane, a client that an
//! operator wrote) count as its data plane.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::model::{Identity, Kind, Replica};

const NAMESPACE: &str = "NUMAFLOW_NAMESPACE";
const POD: &str = "NUMAFLOW_POD";
const REPLICA: &str = "NUMAFLOW_REPLICA";
const MONO_VERTEX_NAME: &str = "NUMAFLOW_MONO_VERTEX_NAME";
const PIPELINE_NAME: &str = "NUMAFLOW_PIPELINE_NAME";
const VERTEX_NAME: &str = "NUMAFLOW_VERTEX_NAME";
const MONO_VERTEX_OBJECT: &str = "NUMAFLOW_MONO_VERTEX_OBJECT";
const VERTEX_OBJECT: &str = "NUMAFLOW_VERTEX_OBJECT";
const UD_CONTAINER_TYPE: &str = "NUMAFLOW_UD_CONTAINER_TYPE";

/// What a process is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// It has nothing to do with a vertex: no Numaflow, or a daemon, a controller or another part of Numaflow that is no
    /// replica of anything.
    NotNumaflow,
    /// It runs in one of the user's own containers: the server, not the client.
    NotClient,
    /// It is the data plane of a vertex without a user-defined source.
    NotSource(Vertex),
    /// It may be asked for: watch it.
    Source(Source),
    /// It looks like a replica's, but whose can't be told. Not watched; worth a warning.
    Unidentified(Unidentified),
}

/// A process to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whose it is.
    pub identity: Identity,
    /// What is odd about its environment, in sentences.
    pub warnings: Vec<String>,
}

/// What a vertex without a user-defined source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vertex {
    /// It has one of Numaflow's own sources, named as in the specification (`generator`).
    BuiltInSource(String),
    /// It reads from other vertices and writes to a sink.
    Sink,
    /// It reads from other vertices and writes to others.
    Udf,
    /// Its object names neither a source nor a sink nor a function.
    Other,
}

impl std::fmt::Display for Vertex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltInSource(name) => write!(f, "built-in source {name}"),
            Self::Sink => f.write_str("sink vertex"),
            Self::Udf => f.write_str("function vertex"),
            Self::Other => f.write_str("vertex of an unknown kind"),
        }
    }
}

/// Why a replica's process has no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// A variable is unset or empty.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A variable's value is not UTF-8, so no label can carry it.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// A variable's value is no name that Kubernetes allows (a DNS subdomain: RFC 1123, at most 253 letters, digits, `-` and `.`), so
    /// nothing in the cluster is called so.
    #[error("{0} is no name that Kubernetes allows")]
    NotAName(&'static str),
}

/// Tells what the process with this environment block is (`/proc/<pid>/environ`).
pub fn classify(environ: &[u8]) -> Class {
    let environment = Environment::new(environ);
    if environment.get(UD_CONTAINER_TYPE).is_some() {
        return Class::NotClient;
    }
    match identify(&environment) {
        Err(unidentified) => Class::Unidentified(unidentified),
        Ok(None) => Class::NotNumaflow,
        Ok(Some(mut source)) => match role(&environment, source.identity.kind) {
            Role::Source => Class::Source(source),
            Role::NotSource(vertex) => Class::NotSource(vertex),
            Role::Unreadable(warning) => {
                source.warnings.push(warning);
                Class::Source(source)
            }
        },
    }
}

/// The variables that matter here, as `getenv` would find them: of a name that is set twice, the first.
struct Environment<'a>(BTreeMap<&'static str, &'a [u8]>);

impl<'a> Environment<'a> {
    fn new(block: &'a [u8]) -> Self {
        const KEYS: [&str; 9] = [
            NAMESPACE,
            POD,
            REPLICA,
            MONO_VERTEX_NAME,
            PIPELINE_NAME,
            VERTEX_NAME,
            MONO_VERTEX_OBJECT,
            VERTEX_OBJECT,
            UD_CONTAINER_TYPE,
        ];
        let mut found = BTreeMap::new();
        for entry in block.split(|&octet| octet == 0) {
            // Most variables of most processes end here.
            if !entry.starts_with(b"NUMAFLOW_") {
                continue;
            }
            let Some(equals) = entry.iter().position(|&octet| octet == b'=') else {
                continue;
            };
            let (name, value) = (&entry[..equals], &entry[equals + 1..]);
            if let Some(key) = KEYS.into_iter().find(|key| key.as_bytes() == name) {
                found.entry(key).or_insert(value);
            }
        }
        Self(found)
    }

    fn get(&self, key: &str) -> Option<&'a [u8]> {
        self.0.get(key).copied()
    }

    /// A name: set, not empty, and one that Kubernetes allows.
    fn name(&self, key: &'static str) -> Result<String, Unidentified> {
        match self.get(key) {
            None | Some([]) => Err(Unidentified::Missing(key)),
            Some(value) => match std::str::from_utf8(value) {
                Ok(value) if is_name(value) => Ok(value.to_owned()),
                Ok(_) => Err(Unidentified::NotAName(key)),
                Err(_) => Err(Unidentified::NotUtf8(key)),
            },
        }
    }

    fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !value.is_empty())
    }
}

/// Whether it is a DNS subdomain (RFC 1123), as Kubernetes asks of names.
pub fn is_name(text: &str) -> bool {
    const LONGEST: usize = 253;
    let inner = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    text.len() <= LONGEST
        && text.split('.').all(|label| {
            let label = label.as_bytes();
            label.iter().all(|octet| inner(*octet))
                && label.first().is_some_and(|first| *first != b'-')
                && label.last() != Some(&b'-')
        })
}

/// Whose process it is; `None` if it is no replica's.
fn identify(environment: &Environment<'_>) -> Result<Option<Source>, Unidentified> {
    let mono_vertex = environment.has(MONO_VERTEX_NAME);
    let vertex = environment.has(PIPELINE_NAME) && environment.has(VERTEX_NAME);
    // Daemons, controllers and the like have a namespace and a pod, and some a pipeline, but neither a vertex nor a
    // replica. A replica number without a vertex, though, is an identity that somebody has broken.
    if !mono_vertex && !vertex && environment.get(REPLICA).is_none() {
        return Ok(None);
    }
    let mut warnings = Vec::new();
    let (kind, workload, vertex) = if mono_vertex {
        if vertex {
            warnings.push(format!(
                "it has the names of a MonoVertex and of a Pipeline's vertex: taken for the MonoVertex \
                 ({MONO_VERTEX_NAME})"
            ));
        }
        let name = environment.name(MONO_VERTEX_NAME)?;
        (Kind::MonoVertex, name, String::new())
    } else if environment.has(PIPELINE_NAME) || environment.has(VERTEX_NAME) {
        let pipeline = environment.name(PIPELINE_NAME)?;
        (Kind::Pipeline, pipeline, environment.name(VERTEX_NAME)?)
    } else {
        return Err(Unidentified::Missing(MONO_VERTEX_NAME));
    };
    let identity = Identity {
        namespace: environment.name(NAMESPACE)?,
        kind,
        workload,
        vertex,
        pod: environment.name(POD)?,
        replica: replica(environment.get(REPLICA)),
    };
    Ok(Some(Source { identity, warnings }))
}

/// The number of the replica: decimal digits only. `u32::from_str` would also take a plus sign.
pub fn replica(value: Option<&[u8]>) -> Replica {
    value
        .filter(|value| value.iter().all(u8::is_ascii_digit))
        .and_then(|value| std::str::from_utf8(value).ok())
        .and_then(|value| value.parse().ok())
        .map_or(Replica::Unknown, Replica::Number)
}

/// What the vertex object says.
enum Role {
    Source,
    NotSource(Vertex),
    /// It is there and says nothing; the reason.
    Unreadable(String),
}

/// A MonoVertex or Vertex, as far as it matters. What is absent is `None`, and `null` counts as absent, as it does in Go.
#[derive(Deserialize)]
struct Object {
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Spec {
    source: Option<BTreeMap<String, Option<IgnoredAny>>>,
    sink: Option<IgnoredAny>,
    udf: Option<IgnoredAny>,
}

fn role(environment: &Environment<'_>, kind: Kind) -> Role {
    let key = match kind {
        Kind::MonoVertex => MONO_VERTEX_OBJECT,
        Kind::Pipeline => VERTEX_OBJECT,
    };
    let Some(text) = environment.get(key) else {
        return Role::Source;
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        Role::Unreadable(format!(
            "{key} can't be read ({error}): taken for a source vertex"
        ))
    };
    let json = match STANDARD.decode(text) {
        Ok(json) => json,
        Err(error) => return unreadable(&error),
    };
    match serde_json::from_slice::<Object>(&json) {
        Ok(Object { spec: Some(spec) }) => spec.role(),
        Ok(Object { spec: None }) => unreadable(&"it has no spec"),
        // The error itself quotes what it doesn't like, which is the pod's.
        Err(error) => unreadable(&format!(
            "no JSON of a vertex, line {} column {}",
            error.line(),
            error.column()
        )),
    }
}

impl Spec {
    fn role(self) -> Role {
        let Some(source) = self.source else {
            return Role::NotSource(match (self.sink, self.udf) {
                (Some(_), _) => Vertex::Sink,
                (None, Some(_)) => Vertex::Udf,
                (None, None) => Vertex::Other,
            });
        };
        let mut present = source.into_iter().filter(|(_, value)| value.is_some());
        let mut built_in = None;
        for (name, _) in &mut present {
            match name.as_str() {
                "udsource" => return Role::Source,
                // It stands beside any source.
                "transformer" => {}
                _ => built_in = Some(name),
            }
        }
        Role::NotSource(built_in.map_or(Vertex::Other, Vertex::BuiltInSource))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MONO: &[(&str, &str)] = &[
        (NAMESPACE, "payments"),
        (POD, "orders-mv-2-abcde"),
        (REPLICA, "2"),
        (MONO_VERTEX_NAME, "orders"),
    ];
    const PIPELINE: &[(&str, &str)] = &[
        (NAMESPACE, "payments"),
        (POD, "flow-in-1-abcde"),
        (REPLICA, "1"),
        (PIPELINE_NAME, "flow"),
        (VERTEX_NAME, "in"),
    ];

    fn block(variables: &[(&str, &str)]) -> Vec<u8> {
        let mut block = b"PATH=/bin\0NUMAFLOW_DEBUG=true\0".to_vec();
        for (name, value) in variables {
            block.extend(format!("{name}={value}\0").bytes());
        }
        block
    }

    fn with(base: &[(&str, &str)], more: &[(&str, &str)]) -> Class {
        // What is added comes first, so it wins.
        classify(&block(&[more, base].concat()))
    }

    fn without(base: &[(&str, &str)], key: &str) -> Class {
        let rest: Vec<_> = base
            .iter()
            .copied()
            .filter(|(name, _)| *name != key)
            .collect();
        classify(&block(&rest))
    }

    fn source(class: Class) -> Source {
        match class {
            Class::Source(source) => source,
            other => panic!("{other:?}"),
        }
    }

    fn object(json: &str) -> String {
        STANDARD.encode(json)
    }

    #[test]
    fn a_mono_vertex() {
        let Source { identity, warnings } = source(with(MONO, &[]));
        assert_eq!(
            identity,
            Identity {
                namespace: "payments".to_owned(),
                kind: Kind::MonoVertex,
                workload: "orders".to_owned(),
                vertex: String::new(),
                pod: "orders-mv-2-abcde".to_owned(),
                replica: Replica::Number(2),
            }
        );
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_vertex_of_a_pipeline() {
        let Source { identity, .. } = source(with(PIPELINE, &[]));
        assert_eq!(
            (identity.kind, &*identity.workload, &*identity.vertex),
            (Kind::Pipeline, "flow", "in")
        );
        assert_eq!(identity.replica, Replica::Number(1));
    }

    #[test]
    fn the_names_of_both_are_a_mono_vertex_and_a_warning() {
        let source = source(with(MONO, PIPELINE));
        assert_eq!(source.identity.kind, Kind::MonoVertex);
        assert_eq!(source.warnings.len(), 1);
    }

    #[test]
    fn replicas_that_are_no_number_are_unknown() {
        for value in [
            "",
            "-1",
            "abc",
            "1e3",
            " 1",
            "1 ",
            "+1",
            "0x1",
            "1.0",
            "4294967296",
            "١",
        ] {
            assert_eq!(
                replica(Some(value.as_bytes())),
                Replica::Unknown,
                "{value:?}"
            );
        }
        assert_eq!(replica(Some(b"\xff")), Replica::Unknown);
        assert_eq!(replica(None), Replica::Unknown);
        assert_eq!(replica(Some(b"007")), Replica::Number(7));
        assert_eq!(replica(Some(b"4294967295")), Replica::Number(u32::MAX));
        let unset = source(without(MONO, REPLICA));
        assert_eq!(unset.identity.replica, Replica::Unknown);
    }

    #[test]
    fn the_users_own_containers_are_no_clients() {
        for kind in ["udsource", "udsink", ""] {
            assert_eq!(with(MONO, &[(UD_CONTAINER_TYPE, kind)]), Class::NotClient);
        }
    }

    #[test]
    fn what_is_no_replica_is_not_numaflow() {
        assert_eq!(classify(b""), Class::NotNumaflow);
        assert_eq!(classify(b"PATH=/bin\0HOME=/\0"), Class::NotNumaflow);
        for variables in [
            // A controller, a MonoVertex's daemon, a Pipeline's daemon, a side-inputs manager.
            &[(NAMESPACE, "ns")][..],
            &[(NAMESPACE, "ns"), (POD, "p"), (MONO_VERTEX_OBJECT, "e30=")],
            &[
                (NAMESPACE, "ns"),
                (POD, "p"),
                ("NUMAFLOW_PIPELINE_OBJECT", "e30="),
            ],
            &[(NAMESPACE, "ns"), (POD, "p"), (PIPELINE_NAME, "flow")],
        ] {
            assert_eq!(
                classify(&block(variables)),
                Class::NotNumaflow,
                "{variables:?}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (class, key) in [
            (without(MONO, NAMESPACE), NAMESPACE),
            (without(MONO, POD), POD),
            (without(MONO, MONO_VERTEX_NAME), MONO_VERTEX_NAME),
            (without(PIPELINE, PIPELINE_NAME), PIPELINE_NAME),
            (without(PIPELINE, VERTEX_NAME), VERTEX_NAME),
            (with(MONO, &[(NAMESPACE, "")]), NAMESPACE),
            (with(MONO, &[(MONO_VERTEX_NAME, "")]), MONO_VERTEX_NAME),
        ] {
            assert_eq!(class, Class::Unidentified(Unidentified::Missing(key)));
        }
    }

    #[test]
    fn names_that_are_not_utf8_are_refused_by_name() {
        for key in [NAMESPACE, POD, MONO_VERTEX_NAME] {
            let mut bytes = format!("{key}=a").into_bytes();
            bytes.extend([0xff, 0]);
            bytes.extend(block(MONO));
            assert_eq!(
                classify(&bytes),
                Class::Unidentified(Unidentified::NotUtf8(key))
            );
        }
    }

    #[test]
    fn names_that_kubernetes_would_refuse_are_refused() {
        for name in [
            "Orders",
            "a_b",
            "a b",
            "a\nb",
            "a\u{1b}[2Jb",
            "ä",
            "-a",
            "a-",
            "a..b",
            ".",
            &"a".repeat(254),
        ] {
            for key in [NAMESPACE, POD, MONO_VERTEX_NAME] {
                assert_eq!(
                    classify(&block(&[&[(key, name)], MONO].concat())),
                    Class::Unidentified(Unidentified::NotAName(key)),
                    "{name:?}"
                );
            }
        }
        for name in ["a", "0", "a-b.c-0", &"a".repeat(253)] {
            let source = source(classify(&block(&[&[(POD, name)], MONO].concat())));
            assert_eq!(source.identity.pod, name);
        }
    }

    #[test]
    fn of_a_variable_set_twice_the_first_counts() {
        let source = source(classify(&block(&[MONO, &[(REPLICA, "7")]].concat())));
        assert_eq!(source.identity.replica, Replica::Number(2));
    }

    #[test]
    fn names_must_be_equal_not_alike() {
        let mut bytes = b"XNUMAFLOW_REPLICA=5\0NUMAFLOW_REPLICA\0NUMAFLOW_REPLICAS=6\0".to_vec();
        bytes.extend(block(MONO));
        assert_eq!(
            source(classify(&bytes)).identity.replica,
            Replica::Number(2)
        );
        // The last entry needs no NUL, and a value may hold further signs of equality.
        let end = bytes.len() - 1;
        assert!(matches!(classify(&bytes[..end]), Class::Source(_)));
        let odd = with(MONO, &[(POD, "a=b")]);
        assert_eq!(odd, Class::Unidentified(Unidentified::NotAName(POD)));
    }

    #[test]
    fn the_object_tells_a_source_vertex() {
        let class = |json: &str| with(MONO, &[(MONO_VERTEX_OBJECT, &object(json))]);
        for json in [
            r#"{"spec":{"source":{"udsource":{"container":{"image":"x"}}}}}"#,
            r#"{"kind":"M","metadata":{},"spec":{"replicas":3,"source":{"transformer":{},"udsource":{}},"sink":{}},"status":{}}"#,
        ] {
            assert!(source(class(json)).warnings.is_empty(), "{json}");
        }
        for (json, vertex) in [
            (
                r#"{"spec":{"source":{"generator":{"rpu":5},"transformer":{}}}}"#,
                Vertex::BuiltInSource("generator".to_owned()),
            ),
            (
                r#"{"spec":{"source":{"kafka":{},"udsource":null}}}"#,
                Vertex::BuiltInSource("kafka".to_owned()),
            ),
            (
                r#"{"spec":{"source":null,"sink":{"log":{}}}}"#,
                Vertex::Sink,
            ),
            (r#"{"spec":{"udf":{}}}"#, Vertex::Udf),
            (r#"{"spec":{}}"#, Vertex::Other),
            (r#"{"spec":{"source":{}}}"#, Vertex::Other),
        ] {
            assert_eq!(class(json), Class::NotSource(vertex), "{json}");
        }
    }

    #[test]
    fn each_kind_has_an_object_of_its_own() {
        let sink = object(r#"{"spec":{"sink":{}}}"#);
        assert_eq!(
            with(PIPELINE, &[(VERTEX_OBJECT, &sink)]),
            Class::NotSource(Vertex::Sink)
        );
        assert!(matches!(
            with(PIPELINE, &[(MONO_VERTEX_OBJECT, &sink)]),
            Class::Source(_)
        ));
    }

    #[test]
    fn an_object_that_cant_be_read_is_a_source_with_a_warning() {
        let deep = object(&format!("{{\"spec\":{}", "{\"source\":".repeat(500)));
        for text in [
            "",
            "%%%",
            "e30",
            &object("{"),
            &object("[]"),
            &object("7"),
            &object("null"),
            &object("{}"),
            &object(r#"{"spec":7}"#),
            &object(r#"{"spec":{"source":[]}}"#),
            &deep,
        ] {
            let source = source(with(MONO, &[(MONO_VERTEX_OBJECT, text)]));
            assert_eq!(source.warnings.len(), 1, "{text:?}");
            assert!(source.warnings[0].contains(MONO_VERTEX_OBJECT), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            classify(&bytes);
        }

        #[test]
        fn nor_do_odd_values(
            values in proptest::collection::vec(
                (0..9usize, proptest::collection::vec(any::<u8>(), 0..40)),
                0..16,
            ),
        ) {
            let keys = [
                NAMESPACE, POD, REPLICA, MONO_VERTEX_NAME, PIPELINE_NAME, VERTEX_NAME, MONO_VERTEX_OBJECT,
                VERTEX_OBJECT, UD_CONTAINER_TYPE,
            ];
            let mut block = Vec::new();
            for (key, value) in values {
                block.extend(keys[key].bytes());
                block.push(b'=');
                block.extend(value);
                block.push(0);
            }
            classify(&block);
        }

        #[test]
        fn nor_do_odd_objects(json in "\\PC{0,60}") {
            let class = with(MONO, &[(MONO_VERTEX_OBJECT, &object(&json))]);
            prop_assert!(matches!(class, Class::Source(_) | Class::NotSource(_)));
        }

        #[test]
        fn every_number_is_a_number(number: u32) {
            prop_assert_eq!(replica(Some(number.to_string().as_bytes())), Replica::Number(number));
        }
    }
}
