//! Whose a process is, told from what the node and the API server say.
//!
//! The node says what the process's environment claims, and which pod's cgroup it is in; neither can be chosen by a pod without
//! privileges but the former. The API server says whose the pod is. Who it is comes from the API server; where the environment
//! disagrees, or the API server knows nothing (yet, or any more), the process is *held*: audited at most, never enforced.
#![forbid(unsafe_code)]

use super::cgroup::PodUid;
use super::identity::Class;
use super::kube::objects::{ANNOTATION, Annotation, KnownPod};
use super::kube::{Knowledge, Resource};
use crate::model::{Identity, Replica};
use crate::policy::Say;

/// What the node says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What its environment says.
    pub class: Class,
    /// The pod whose cgroup it is in.
    pub pod: Option<PodUid>,
    /// What the API server said of it when it last knew its pod: a pod that is deleted there may live on here for a while.
    pub told: Option<Told>,
}

/// What the API server says of a process's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whose it is.
    pub identity: Identity,
    /// The tag of Numaflow's image.
    pub numaflow_version: Option<String>,
}

/// What the two say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The replica that it is to be watched as; `None` where it is not to be watched.
    pub watch: Option<Watch>,
    /// What an operator should know, in sentences.
    pub warnings: Vec<String>,
}

/// How a process is to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Whose it is.
    pub identity: Identity,
    /// What discovery says besides.
    pub say: Say,
    /// The tag of Numaflow's image.
    pub numaflow_version: Option<String>,
    /// Whether it is held only because the API server has not told everything since the agent has started.
    pub early: bool,
    /// Whether the API server knows its pod, and said all this.
    pub told: bool,
}

impl Watch {
    /// As the environment says.
    fn claimed(identity: &Identity, held: bool) -> Self {
        Self {
            identity: identity.clone(),
            say: Say {
                annotation: None,
                held,
            },
            numaflow_version: None,
            early: false,
            told: false,
        }
    }
}

/// Puts together what is said of process `pid`.
pub fn merge(pid: u32, claim: &Claim, known: &Knowledge) -> Merged {
    let mut warnings = Vec::new();
    let pod = claim.pod.and_then(|uid| known.pod(uid));
    let mut watch = match (&claim.class, pod) {
        (Class::NotNumaflow | Class::NotClient, _) => None,
        (Class::Source(source), _) => {
            let claimed = &source.identity;
            for warning in &source.warnings {
                warnings.push(format!("process {pid} of {}: {warning}", claimed.pod));
            }
            match pod {
                Some(pod) => in_pod(pid, Some(claimed), pod, &mut warnings),
                None => match &claim.told {
                    Some(told) => Some(forgotten(pid, told, &mut warnings)),
                    None => without_pod(pid, claim.pod, claimed, known, &mut warnings),
                },
            }
        }
        (Class::Unidentified(why), Some(pod)) if pod.source && pod.identity.is_some() => {
            warnings.push(format!(
                "process {pid} of {}: {why} in its environment; it is taken for its pod's, and not enforced",
                pod.name
            ));
            in_pod(pid, None, pod, &mut warnings)
        }
        (Class::Unidentified(_), None) if claim.told.is_some() => claim
            .told
            .as_ref()
            .map(|told| forgotten(pid, told, &mut warnings)),
        (Class::Unidentified(why), _) => {
            warnings.push(format!(
                "process {pid} looks like a replica's but can't be told whose: {why}"
            ));
            None
        }
        (Class::NotSource(vertex), Some(pod)) if pod.source => {
            warnings.push(format!(
                "process {pid} of {}: the API server knows its pod as a source's, and its environment says {vertex}: not watched",
                pod.name
            ));
            None
        }
        (Class::NotSource(_), _) => None,
    };
    if let Some(watch) = &mut watch {
        annotate(watch, pod, known, &mut warnings);
    }
    Merged { watch, warnings }
}

/// A process in the cgroup of a pod that the API server knows.
fn in_pod(
    pid: u32,
    claimed: Option<&Identity>,
    pod: &KnownPod,
    warnings: &mut Vec<String>,
) -> Option<Watch> {
    if !pod.source {
        warnings.push(format!(
            "process {pid} of {}: its environment says that it is a source's, and its pod has no container udsource: not watched",
            pod.name
        ));
        return None;
    }
    let Some(identity) = &pod.identity else {
        warnings.push(format!(
            "pod {}/{} lacks labels of Numaflow that say whose it is: it is not enforced",
            pod.namespace, pod.name
        ));
        return Some(Watch::claimed(claimed?, true));
    };
    let differences = claimed.map(|claimed| differences(claimed, identity));
    let mut watch = Watch {
        numaflow_version: pod.numaflow_version.clone(),
        told: true,
        ..Watch::claimed(identity, true)
    };
    match differences.as_deref() {
        Some("") => watch.say.held = false,
        Some(differences) => warnings.push(format!(
            "process {pid} of {}: the API server and its environment disagree ({differences}): it is not enforced",
            pod.name
        )),
        None => {}
    }
    // Which one the data plane takes itself for is what its environment says, and which one the API server scales by is what
    // the annotation says: where they aren't the same it is neither.
    if claimed.is_none_or(|claimed| claimed.replica != identity.replica) {
        watch.identity.replica = Replica::Unknown;
    }
    Some(watch)
}

/// A process of which the API server knew the pod, and doesn't any more.
fn forgotten(pid: u32, told: &Told, warnings: &mut Vec<String>) -> Watch {
    warnings.push(format!(
        "process {pid} of {}: the API server has its pod no more, and it runs on: it is not enforced",
        told.identity.pod
    ));
    Watch {
        numaflow_version: told.numaflow_version.clone(),
        ..Watch::claimed(&told.identity, true)
    }
}

/// In which way the environment disagrees; empty where it doesn't.
fn differences(claimed: &Identity, known: &Identity) -> String {
    let numbers = (claimed.replica.to_string(), known.replica.to_string());
    let kinds = (claimed.kind.name(), known.kind.name());
    let parts = [
        ("namespace", &*claimed.namespace, &*known.namespace),
        ("kind", kinds.0, kinds.1),
        ("workload", &*claimed.workload, &*known.workload),
        ("vertex", &*claimed.vertex, &*known.vertex),
        ("pod", &*claimed.pod, &*known.pod),
        ("replica", &*numbers.0, &*numbers.1),
    ];
    let differ = parts.iter().filter(|(_, claimed, known)| claimed != known);
    let told = differ.map(|(what, claimed, known)| format!("{what}: {known}, not {claimed}"));
    told.collect::<Vec<_>>().join("; ")
}

/// A process of which the API server knows no pod.
fn without_pod(
    pid: u32,
    uid: Option<PodUid>,
    claimed: &Identity,
    known: &Knowledge,
    warnings: &mut Vec<String>,
) -> Option<Watch> {
    let mut watch = Watch::claimed(claimed, true);
    if !known.is_known(Resource::Pods) {
        // There is one warning for all of them.
        watch.early = true;
        return Some(watch);
    }
    let Identity { namespace, pod, .. } = claimed;
    match (uid, known.named(namespace, pod)) {
        (Some(uid), Some(other)) => {
            warnings.push(format!(
                "process {pid} says that it is of pod {namespace}/{pod}, whose UID is {}, and is in the cgroup of {uid}: not watched",
                other.uid
            ));
            return None;
        }
        (Some(uid), None) => warnings.push(format!(
            "process {pid} of {pod}: the API server has no pod of Numaflow's with its cgroup's UID {uid} on this node: it is not enforced"
        )),
        (None, _) => warnings.push(format!(
            "process {pid} of {pod}: its cgroup is no pod's: it is not enforced"
        )),
    }
    Some(watch)
}

/// What its pod and its namespace say about its mode.
fn annotate(
    watch: &mut Watch,
    pod: Option<&KnownPod>,
    known: &Knowledge,
    warnings: &mut Vec<String>,
) {
    let mut bad = |whose: String, value: &str| {
        warnings.push(format!(
            "{whose}: annotation {ANNOTATION} is {value:?}, which is none of off, audit and enforce: not enforced"
        ));
    };
    match pod.map(|pod| (pod, &pod.annotation)) {
        Some((_, Annotation::Mode(mode))) => {
            watch.say.annotation = Some(*mode);
            return;
        }
        Some((pod, Annotation::Bad(value))) => {
            bad(format!("pod {}/{}", pod.namespace, pod.name), value);
            watch.say.held = true;
            watch.early = false;
        }
        Some((_, Annotation::Absent)) | None => {}
    }
    let namespace = &watch.identity.namespace;
    match known.annotation(namespace) {
        Annotation::Mode(mode) => watch.say.annotation = Some(*mode),
        Annotation::Bad(value) => {
            bad(format!("namespace {namespace}"), value);
            watch.say.held = true;
            watch.early = false;
        }
        // It may say "off".
        Annotation::Absent if !known.is_known(Resource::Namespaces) && !watch.say.held => {
            watch.say.held = true;
            watch.early = true;
        }
        Annotation::Absent => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::identity::{Source, Unidentified, Vertex};
    use crate::discovery::kube::Kube;
    use crate::discovery::kube::objects::KnownNamespace;
    use crate::model::{Kind, Mode};

    const PID: u32 = 4711;

    fn uid(last: char) -> PodUid {
        format!("6d2b1a0c-5c3e-4f7a-9b1d-0e8f7a6b5c4{last}")
            .parse()
            .unwrap()
    }

    fn identity(replica: u32) -> Identity {
        Identity {
            namespace: "payments".to_owned(),
            kind: Kind::MonoVertex,
            workload: "orders".to_owned(),
            vertex: String::new(),
            pod: "orders-mv-1-abcde".to_owned(),
            replica: Replica::Number(replica),
        }
    }

    fn pod() -> KnownPod {
        KnownPod {
            uid: uid('a'),
            identity: Some(identity(1)),
            namespace: "payments".to_owned(),
            name: "orders-mv-1-abcde".to_owned(),
            source: true,
            annotation: Annotation::Absent,
            numaflow_version: Some("v1.4.5".to_owned()),
        }
    }

    fn claim(identity: Identity, pod: Option<PodUid>) -> Claim {
        Claim {
            class: Class::Source(Source {
                identity,
                warnings: Vec::new(),
            }),
            pod,
            told: None,
        }
    }

    fn known(pods: Vec<KnownPod>, namespaces: Vec<KnownNamespace>) -> std::sync::Arc<Kube> {
        let kube = Kube::new();
        kube.learn(pods, namespaces);
        kube
    }

    fn of(kube: &Kube, claim: &Claim) -> Merged {
        merge(PID, claim, &kube.knowledge())
    }

    fn watched(kube: &Kube, claim: &Claim) -> (Watch, Vec<String>) {
        let merged = of(kube, claim);
        (merged.watch.unwrap(), merged.warnings)
    }

    #[test]
    fn who_both_agree_on_may_be_enforced() {
        let kube = known(vec![pod()], Vec::new());
        let (watch, warnings) = watched(&kube, &claim(identity(1), Some(uid('a'))));
        let expected = Watch {
            identity: identity(1),
            say: Say::default(),
            numaflow_version: Some("v1.4.5".to_owned()),
            early: false,
            told: true,
        };
        assert_eq!((watch, warnings.len()), (expected, 0));
    }

    /// Whatever they disagree in: the API server says who it is, it is not enforced, and it is shown.
    #[test]
    fn conflicts_are_shown_and_not_enforced() {
        type Change = fn(&mut Identity);
        let changes: [(&str, Change); 7] = [
            ("namespace", |i| i.namespace = "other".to_owned()),
            ("kind", |i| i.kind = Kind::Pipeline),
            ("workload", |i| i.workload = "other".to_owned()),
            ("vertex", |i| i.vertex = "in".to_owned()),
            ("pod", |i| i.pod = "other".to_owned()),
            ("replica", |i| i.replica = Replica::Number(0)),
            ("replica", |i| i.replica = Replica::Unknown),
        ];
        let kube = known(vec![pod()], Vec::new());
        for (what, change) in changes {
            let mut claimed = identity(1);
            change(&mut claimed);
            let (watch, warnings) = watched(&kube, &claim(claimed.clone(), Some(uid('a'))));
            assert!(watch.say.held && !watch.early, "{what}");
            let [warning] = &warnings[..] else {
                panic!("{what}: {warnings:?}")
            };
            assert!(warning.contains(what) && warning.contains("not enforced"));
            let expected = if what == "replica" {
                Replica::Unknown
            } else {
                Replica::Number(1)
            };
            assert_eq!(
                watch.identity,
                Identity {
                    replica: expected,
                    ..identity(1)
                }
            );
        }
    }

    #[test]
    fn a_replica_that_the_api_server_has_no_number_of_is_unknown() {
        let unnumbered = Identity {
            replica: Replica::Unknown,
            ..identity(1)
        };
        let pod = KnownPod {
            identity: Some(unnumbered.clone()),
            ..pod()
        };
        let kube = known(vec![pod], Vec::new());
        let (watch, _) = watched(&kube, &claim(identity(1), Some(uid('a'))));
        assert_eq!(watch.identity.replica, Replica::Unknown);
        // Neither has one: they agree, and its calls are admitted.
        let (watch, warnings) = watched(&kube, &claim(unnumbered, Some(uid('a'))));
        assert!(!watch.say.held && warnings.is_empty());
    }

    #[test]
    fn before_the_api_server_has_told_anything_nobody_is_enforced() {
        let kube = Kube::new();
        for uid in [None, Some(uid('a'))] {
            let (watch, warnings) = watched(&kube, &claim(identity(1), uid));
            assert_eq!(watch.identity, identity(1));
            assert!(watch.say.held && watch.early && !watch.told);
            assert!(warnings.is_empty(), "one warning is for all: {warnings:?}");
        }
        // Pods alone aren't enough: a namespace may say "off".
        kube.learn_only(Resource::Pods, vec![pod()]);
        let (watch, _) = watched(&kube, &claim(identity(1), Some(uid('a'))));
        assert!(watch.say.held && watch.early);
        // But for a pod that says itself what it wants.
        let own = KnownPod {
            annotation: Annotation::Mode(Mode::Enforce),
            ..pod()
        };
        kube.learn_only(Resource::Pods, vec![own]);
        let (watch, _) = watched(&kube, &claim(identity(1), Some(uid('a'))));
        assert!(!watch.say.held && !watch.early);
    }

    #[test]
    fn a_pod_that_isnt_known_yet_is_audited_as_its_environment_says() {
        let kube = known(Vec::new(), Vec::new());
        for uid in [None, Some(uid('b'))] {
            let (watch, warnings) = watched(&kube, &claim(identity(1), uid));
            assert_eq!(watch.identity, identity(1));
            assert!(watch.say.held && !watch.early);
            assert_eq!(warnings.len(), 1);
        }
    }

    #[test]
    fn who_claims_another_pods_name_isnt_watched() {
        let kube = known(vec![pod()], Vec::new());
        let merged = of(&kube, &claim(identity(1), Some(uid('b'))));
        assert_eq!((merged.watch, merged.warnings.len()), (None, 1));
        // Where no pod's cgroup is found, nobody can say that it lies.
        let (watch, _) = watched(&kube, &claim(identity(1), None));
        assert!(watch.say.held);
    }

    #[test]
    fn a_pod_that_is_deleted_and_lives_on_stays_who_it_was() {
        let kube = known(Vec::new(), Vec::new());
        let told = Told {
            identity: identity(1),
            numaflow_version: Some("v1".to_owned()),
        };
        let classes = [
            claim(identity(2), None).class,
            Class::Unidentified(Unidentified::Missing("NUMAFLOW_POD")),
        ];
        for class in classes {
            let claim = Claim {
                class,
                pod: Some(uid('a')),
                told: Some(told.clone()),
            };
            let (watch, warnings) = watched(&kube, &claim);
            assert_eq!(watch.identity, identity(1));
            assert_eq!(watch.numaflow_version.as_deref(), Some("v1"));
            assert!(watch.say.held && !watch.early && !warnings.is_empty());
        }
    }

    #[test]
    fn what_the_environment_doesnt_say_the_pod_does() {
        let kube = known(vec![pod()], Vec::new());
        let claim = |uid| Claim {
            class: Class::Unidentified(Unidentified::Missing("NUMAFLOW_POD")),
            pod: uid,
            told: None,
        };
        let (watch, warnings) = watched(&kube, &claim(Some(uid('a'))));
        assert_eq!(watch.identity.pod, identity(1).pod);
        assert_eq!(watch.identity.replica, Replica::Unknown);
        assert!(watch.say.held && warnings.len() == 1);
        for uid in [None, Some(uid('b'))] {
            let merged = of(&kube, &claim(uid));
            assert_eq!((merged.watch, merged.warnings.len()), (None, 1));
        }
    }

    #[test]
    fn pods_without_a_source_or_without_labels() {
        let no_source = KnownPod {
            source: false,
            ..pod()
        };
        let claimed = claim(identity(1), Some(uid('a')));
        let merged = of(&known(vec![no_source], Vec::new()), &claimed);
        assert_eq!((merged.watch, merged.warnings.len()), (None, 1));
        let nobodys = KnownPod {
            identity: None,
            ..pod()
        };
        let (watch, warnings) = watched(&known(vec![nobodys], Vec::new()), &claimed);
        assert_eq!(watch.identity, identity(1));
        assert!(watch.say.held && warnings.len() == 1);
    }

    #[test]
    fn what_is_no_client_stays_none() {
        let kube = known(vec![pod()], Vec::new());
        for (class, warnings) in [
            (Class::NotClient, 0),
            (Class::NotNumaflow, 0),
            (Class::NotSource(Vertex::Sink), 1),
        ] {
            let claim = Claim {
                class,
                pod: Some(uid('a')),
                told: None,
            };
            let merged = of(&kube, &claim);
            assert_eq!((merged.watch, merged.warnings.len()), (None, warnings));
        }
    }

    #[test]
    fn the_pods_annotation_wins_over_the_namespaces_and_bad_ones_hold() {
        use Annotation::{Absent, Bad};
        const OFF: Annotation = Annotation::Mode(Mode::Off);
        const ENFORCE: Annotation = Annotation::Mode(Mode::Enforce);
        let bad = || Bad("x".to_owned());
        for (pod_says, namespace_says, annotation, held, told) in [
            (Absent, Absent, None, false, 0),
            (Absent, ENFORCE, Some(Mode::Enforce), false, 0),
            (OFF, ENFORCE, Some(Mode::Off), false, 0),
            (ENFORCE, OFF, Some(Mode::Enforce), false, 0),
            (bad(), Absent, None, true, 1),
            (bad(), ENFORCE, Some(Mode::Enforce), true, 1),
            (Absent, bad(), None, true, 1),
            (bad(), bad(), None, true, 2),
            // Nobody asks the namespace then.
            (ENFORCE, bad(), Some(Mode::Enforce), false, 0),
        ] {
            let case = format!("{pod_says:?} {namespace_says:?}");
            let pod = KnownPod {
                annotation: pod_says,
                ..pod()
            };
            let namespace = KnownNamespace {
                name: "payments".to_owned(),
                annotation: namespace_says,
            };
            let kube = known(vec![pod], vec![namespace]);
            let (watch, warnings) = watched(&kube, &claim(identity(1), Some(uid('a'))));
            assert_eq!(watch.say, Say { annotation, held }, "{case}");
            assert_eq!(warnings.len(), told, "{case}: {warnings:?}");
            assert!(warnings.iter().all(|w| w.contains(ANNOTATION)), "{case}");
        }
    }
}
