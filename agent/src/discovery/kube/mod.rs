//! What the API server says about the pods of this node.
//!
//! | module | what it does |
//! |---|---|
//! | [`access`] | how the API server is reached |
//! | [`objects`] | what is read of a pod and a namespace, and what is kept |
//! | [`reflect`] | lists and watches, and keeps [`Knowledge`] like the API server's |
//! | [`failure`], [`backoff`] | what can go wrong, and how long to wait then |
//!
//! Two watches: Numaflow's pods of this node, and all namespaces, of which only those with an annotation are kept. Nothing waits
//! for them for long: whatever the API server does, replicas are found in `/proc`.
#![forbid(unsafe_code)]

pub mod access;
pub mod backoff;
pub mod failure;
pub mod objects;
pub mod reflect;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::access::Access;
use self::failure::{Failure, Reason};
use self::objects::{Annotation, KnownNamespace, KnownPod, Namespace, Pod};
use self::reflect::{Reflector, Timing};
use crate::discovery::cgroup::PodUid;
use crate::model::KubeWatch;

/// How long the API server may be silent before somebody is told.
const SILENT: Duration = Duration::from_secs(10);

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Numaflow's pods of this node.
    Pods,
    /// All namespaces, for their annotation.
    Namespaces,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Pods, Self::Namespaces];

    /// As the API has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
        }
    }
}

/// How a watch stands.
#[derive(Clone, Debug)]
struct Watch {
    /// Whether it has listed everything, and follows since.
    synced: bool,
    /// Whether it ever had.
    known: bool,
    /// What keeps it from it.
    failure: Option<Failure>,
    /// Since when it isn't synced.
    since: Instant,
    errors: [u64; Reason::ALL.len()],
}

impl Watch {
    fn new() -> Self {
        Self {
            synced: false,
            known: false,
            failure: None,
            since: Instant::now(),
            errors: [0; Reason::ALL.len()],
        }
    }

    /// What an operator should know of it.
    fn warning(&self, resource: Resource) -> Option<String> {
        let silent = self.since.elapsed();
        let what = match &self.failure {
            // It belongs to the protocol, and is over as soon as everything is listed again.
            Some(failure) if failure.reason == Reason::Gone => return None,
            Some(failure) => {
                let advice = failure.advice(resource);
                let advice = advice.map(|advice| format!("; {advice}"));
                format!(
                    "the API server's {} can't be watched ({}: {}){}",
                    resource.name(),
                    failure.reason.name(),
                    failure.message,
                    advice.unwrap_or_default()
                )
            }
            None if !self.synced && silent >= SILENT => format!(
                "the API server has not told its {} for {} s",
                resource.name(),
                silent.as_secs()
            ),
            None => return None,
        };
        let then = match (resource, self.known) {
            (Resource::Pods, true) => {
                "the agent goes on with what it knew and with /proc; pods that have come since are not enforced"
            }
            (Resource::Pods, false) => {
                "replicas are found in /proc, and none is enforced but those that an agent before this one enforced"
            }
            (Resource::Namespaces, true) => {
                "annotations of namespaces are those that were known before"
            }
            (Resource::Namespaces, false) => {
                "nothing is enforced but pods that have the annotation pendguard.io/mode themselves"
            }
        };
        Some(format!("{what}. Meanwhile {then}"))
    }
}

/// What is known from the API server.
#[derive(Debug)]
pub struct Knowledge {
    pods: HashMap<PodUid, KnownPod>,
    namespaces: BTreeMap<String, Annotation>,
    watches: [Watch; Resource::ALL.len()],
}

impl Knowledge {
    fn new() -> Self {
        Self {
            pods: HashMap::new(),
            namespaces: BTreeMap::new(),
            watches: Resource::ALL.map(|_| Watch::new()),
        }
    }

    /// The pod with this UID.
    pub fn pod(&self, uid: PodUid) -> Option<&KnownPod> {
        self.pods.get(&uid)
    }

    /// The pod of this name. There are as many as the node has.
    pub fn named(&self, namespace: &str, name: &str) -> Option<&KnownPod> {
        let is = |pod: &&KnownPod| pod.name == name && pod.namespace == namespace;
        self.pods.values().find(is)
    }

    /// How many pods are known.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// What a namespace says about its mode.
    pub fn annotation(&self, namespace: &str) -> &Annotation {
        self.namespaces
            .get(namespace)
            .unwrap_or(&Annotation::Absent)
    }

    /// Whether everything of this kind was known at some time.
    pub fn is_known(&self, resource: Resource) -> bool {
        self.watch(resource).known
    }

    fn watch(&self, resource: Resource) -> &Watch {
        &self.watches[resource as usize]
    }

    fn watch_mut(&mut self, resource: Resource) -> &mut Watch {
        &mut self.watches[resource as usize]
    }

    /// Something was of no use, which ends nothing.
    fn count(&mut self, resource: Resource, reason: Reason) {
        self.watch_mut(resource).errors[reason as usize] += 1;
    }
}

/// What is known from the API server, kept up to date by [`Kube::follow`].
#[derive(Debug)]
pub struct Kube {
    knowledge: Mutex<Knowledge>,
    changed: Notify,
    synced: Notify,
}

impl Kube {
    /// Nothing is known yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            knowledge: Mutex::new(Knowledge::new()),
            changed: Notify::new(),
            synced: Notify::new(),
        })
    }

    /// Follows the API server from now on, until the result is dropped: pods of the node of this name, and namespaces.
    pub fn follow(self: &Arc<Self>, access: &Access, node: &str, timing: Timing) -> JoinSet<()> {
        let mut watches = JoinSet::new();
        let kube = || Arc::clone(self);
        watches.spawn(Reflector::<Pod>::new(kube(), access.clone(), node, timing).run());
        watches.spawn(Reflector::<Namespace>::new(kube(), access.clone(), node, timing).run());
        watches
    }

    /// What is known now.
    pub fn knowledge(&self) -> MutexGuard<'_, Knowledge> {
        self.knowledge
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Until something is known that wasn't. It may say so once too often.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Until everything was known once.
    pub async fn known(&self) {
        loop {
            let synced = self.synced.notified();
            if Resource::ALL.map(|r| self.knowledge().is_known(r)) == [true; 2] {
                return;
            }
            synced.await;
        }
    }

    /// Changes what is known; `change` says whether it did.
    fn update(&self, change: impl FnOnce(&mut Knowledge) -> bool) {
        let mut knowledge = self.knowledge();
        let changed = change(&mut knowledge);
        drop(knowledge);
        if changed {
            self.changed.notify_one();
        }
    }

    /// A watch follows what it has listed.
    fn is_synced(&self, resource: Resource) {
        self.update(|knowledge| {
            let watch = knowledge.watch_mut(resource);
            if let Some(failure) = watch.failure.take() {
                let resource = resource.name();
                tracing::info!(resource, after = failure.reason.name(), "watched again");
            }
            watch.synced = true;
            !std::mem::replace(&mut watch.known, true)
        });
        self.synced.notify_waiters();
    }

    /// A watch has failed.
    fn has_failed(&self, resource: Resource, failure: Failure) {
        let mut knowledge = self.knowledge();
        let watch = knowledge.watch_mut(resource);
        watch.errors[failure.reason as usize] += 1;
        // Once a kind of failure: it may go on for hours.
        let again = watch
            .failure
            .as_ref()
            .is_some_and(|f| f.reason == failure.reason);
        if std::mem::replace(&mut watch.synced, false) {
            watch.since = Instant::now();
        }
        watch.failure = Some(failure);
        let warning = watch.warning(resource);
        drop(knowledge);
        if let Some(warning) = warning.filter(|_| !again) {
            tracing::warn!("{}", warning.escape_debug());
        }
    }

    /// How the watches stand.
    pub fn watches(&self) -> Vec<KubeWatch> {
        let knowledge = self.knowledge();
        let watches = Resource::ALL.map(|resource| {
            let watch = knowledge.watch(resource);
            KubeWatch {
                resource: resource.name(),
                synced: watch.synced,
                errors: Reason::ALL
                    .map(|reason| (reason.name(), watch.errors[reason as usize]))
                    .into(),
            }
        });
        watches.into()
    }

    /// What an operator should know, in sentences.
    pub fn warnings(&self) -> Vec<String> {
        let knowledge = self.knowledge();
        let warnings = Resource::ALL.map(|r| knowledge.watch(r).warning(r));
        warnings.into_iter().flatten().collect()
    }
}

/// What one of the two watches makes known.
pub trait Known: Clone + serde::de::DeserializeOwned + Send + 'static {
    /// What is kept of an object.
    type Kept: Send;
    /// Which it is.
    const RESOURCE: Resource;
    /// The version of the object, from which a watch can go on.
    fn version(&self) -> &str;
    /// What is kept of it, if anything. An error where nothing can be.
    fn keep(self) -> Result<Option<Self::Kept>, Reason>;
    /// There are these and no others.
    fn replace(knowledge: &mut Knowledge, all: Vec<Self::Kept>) -> bool;
    /// There is this one. An error where it can't be.
    fn put(self, knowledge: &mut Knowledge) -> Result<bool, Reason>;
    /// There is this one no more.
    fn remove(self, knowledge: &mut Knowledge) -> bool;
}

impl Known for Pod {
    type Kept = KnownPod;
    const RESOURCE: Resource = Resource::Pods;

    fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    fn keep(self) -> Result<Option<KnownPod>, Reason> {
        Self::keep(self).map(Some).ok_or(Reason::Malformed)
    }

    fn replace(knowledge: &mut Knowledge, all: Vec<KnownPod>) -> bool {
        let pods = all.into_iter().map(|pod| (pod.uid, pod)).collect();
        let before = std::mem::replace(&mut knowledge.pods, pods);
        before != knowledge.pods
    }

    fn put(self, knowledge: &mut Knowledge) -> Result<bool, Reason> {
        let pod = Self::keep(self).ok_or(Reason::Malformed)?;
        let before = knowledge.pods.insert(pod.uid, pod.clone());
        Ok(before != Some(pod))
    }

    fn remove(self, knowledge: &mut Knowledge) -> bool {
        self.uid()
            .is_some_and(|uid| knowledge.pods.remove(&uid).is_some())
    }
}

impl Known for Namespace {
    type Kept = KnownNamespace;
    const RESOURCE: Resource = Resource::Namespaces;

    fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    fn keep(self) -> Result<Option<KnownNamespace>, Reason> {
        Ok(Self::keep(self))
    }

    fn replace(knowledge: &mut Knowledge, all: Vec<KnownNamespace>) -> bool {
        let all = all.into_iter().map(|n| (n.name, n.annotation)).collect();
        let before = std::mem::replace(&mut knowledge.namespaces, all);
        before != knowledge.namespaces
    }

    fn put(self, knowledge: &mut Knowledge) -> Result<bool, Reason> {
        let name = self.name().to_owned();
        let before = knowledge.namespaces.remove(&name);
        let now = Self::keep(self).map(|namespace| namespace.annotation);
        let changed = before != now;
        if let Some(annotation) = now {
            knowledge.namespaces.insert(name, annotation);
        }
        Ok(changed)
    }

    fn remove(self, knowledge: &mut Knowledge) -> bool {
        knowledge.namespaces.remove(self.name()).is_some()
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! Knowledge that tests write.

    use super::*;

    impl Kube {
        /// What is known from now on, all of it.
        pub(crate) fn learn(&self, pods: Vec<KnownPod>, namespaces: Vec<KnownNamespace>) {
            self.update(|knowledge| {
                Pod::replace(knowledge, pods) | Namespace::replace(knowledge, namespaces)
            });
            for resource in Resource::ALL {
                self.is_synced(resource);
            }
        }

        /// Only of this kind everything is known.
        pub(crate) fn learn_only(&self, resource: Resource, pods: Vec<KnownPod>) {
            self.update(|knowledge| Pod::replace(knowledge, pods));
            self.is_synced(resource);
        }

        pub(crate) fn fail(&self, resource: Resource, reason: Reason) {
            self.has_failed(resource, Failure::new(reason, "on purpose"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_what_to_do_and_forgotten_when_it_is_over() {
        let kube = Kube::new();
        assert!(kube.warnings().is_empty());
        kube.fail(Resource::Pods, Reason::Forbidden);
        let [warning] = &kube.warnings()[..] else {
            panic!("one")
        };
        for word in ["pods", "forbidden", "ClusterRole", "/proc"] {
            assert!(warning.contains(word), "{warning}");
        }
        kube.learn(Vec::new(), Vec::new());
        assert!(kube.warnings().is_empty());
        let [pods, namespaces] = &kube.watches()[..] else {
            panic!("two")
        };
        assert!(pods.synced && namespaces.synced);
        let forbidden = |watch: &KubeWatch| {
            let (_, n) = watch
                .errors
                .iter()
                .find(|(r, _)| *r == "forbidden")
                .unwrap();
            *n
        };
        assert_eq!((forbidden(pods), forbidden(namespaces)), (1, 0));
        // What is known stays known.
        kube.fail(Resource::Pods, Reason::Unreachable);
        assert!(kube.knowledge().is_known(Resource::Pods));
        assert!(!kube.watches()[0].synced);
    }

    #[tokio::test]
    async fn known_is_what_both_have_listed() {
        let kube = Kube::new();
        let both = tokio::spawn({
            let kube = Arc::clone(&kube);
            async move { kube.known().await }
        });
        kube.learn_only(Resource::Pods, Vec::new());
        tokio::task::yield_now().await;
        assert!(!both.is_finished());
        kube.learn(Vec::new(), Vec::new());
        tokio::time::timeout(Duration::from_secs(20), both)
            .await
            .unwrap()
            .unwrap();
    }
}
