//! What the exporters know of the part that observes.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::model::{Mode, Snapshot};
use crate::policy::{ModeChange, TooManyOverrides};
use crate::watch::Subscription;

/// The observing part of the agent: tap, discovery and inventory.
///
/// Its methods are called from a thread on which they may block for a moment, at most [`CALLERS`] at once.
pub trait Engine: Send + Sync + 'static {
    /// The state of everything now. Counters never fall from one snapshot to the next; a replica that left may be
    /// left out, and then its counters go with it.
    fn snapshot(&self) -> Snapshot;

    /// Whether the tap is attached and every replica that ran before the agent has been found; if not, why.
    fn ready(&self) -> Result<(), String>;

    /// Sets a mode at run time. It is in effect for every replica on the node, and those to come, when this returns.
    fn set_mode(&self, change: ModeChange) -> Result<ModeChanged, ModeRefused>;

    /// From now on, every call of a watched method as it happens. It never blocks.
    fn watch(&self) -> Subscription;
}

/// What a change of mode came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModeChanged {
    /// How many living replicas have which mode now; modes without any may be left out.
    pub replicas: BTreeMap<Mode, u64>,
    /// What the operator should know, in sentences.
    pub warnings: Vec<String>,
}

/// Why a mode isn't set. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeRefused {
    /// Nothing on this node can enforce.
    #[error("this agent can't enforce: {0}")]
    NoEnforcer(String),
    /// A watched method must not be enforced.
    #[error(
        "this agent can't enforce: it watches {0}, and of source.v1.Source only PendingFn can be enforced; take it out of \
         `methods` in the configuration file and restart the agent"
    )]
    Method(String),
    /// Too much was set.
    #[error(transparent)]
    TooMany(#[from] TooManyOverrides),
}

/// Calls of an engine at once at most. A caller too many waits.
pub const CALLERS: usize = 4;
/// How long an engine may take to answer.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// How long it may take to set a mode: the first time that something is to be enforced, programs are loaded, and the verifier of a
/// slow or busy machine takes its time (seconds mostly; minutes in an emulated one).
pub const SETTING: Duration = Duration::from_secs(600);

/// The engine did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine has not answered in time")]
pub struct Unresponsive;

/// An engine as asynchronous code asks it: never on the runtime's own thread, and with a deadline, so that an engine
/// that hangs is reported by the servers instead of hanging them.
#[derive(Clone)]
pub struct Handle {
    engine: Arc<dyn Engine>,
    callers: Arc<Semaphore>,
    deadline: Duration,
}

impl Handle {
    /// A handle; clones of it share the limit.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self::with_deadline(engine, DEADLINE)
    }

    fn with_deadline(engine: Arc<dyn Engine>, deadline: Duration) -> Self {
        Self {
            engine,
            callers: Arc::new(Semaphore::new(CALLERS)),
            deadline,
        }
    }

    /// [`Engine::snapshot`].
    pub async fn snapshot(&self) -> Result<Snapshot, Unresponsive> {
        self.ask(self.deadline, |engine| engine.snapshot()).await
    }

    /// [`Engine::ready`].
    pub async fn ready(&self) -> Result<Result<(), String>, Unresponsive> {
        self.ask(self.deadline, |engine| engine.ready()).await
    }

    /// [`Engine::set_mode`]. What takes too long may still happen.
    pub async fn set_mode(
        &self,
        change: ModeChange,
    ) -> Result<Result<ModeChanged, ModeRefused>, Unresponsive> {
        self.ask(SETTING.max(self.deadline), |engine| engine.set_mode(change))
            .await
    }

    /// [`Engine::watch`].
    pub fn watch(&self) -> Subscription {
        self.engine.watch()
    }

    async fn ask<T: Send + 'static>(
        &self,
        deadline: Duration,
        question: impl FnOnce(&dyn Engine) -> T + Send + 'static,
    ) -> Result<T, Unresponsive> {
        let answer = async {
            let permit = Arc::clone(&self.callers).acquire_owned().await.ok()?;
            let engine = Arc::clone(&self.engine);
            let task = tokio::task::spawn_blocking(move || {
                // Held by the thread, not by the caller: a hanging engine must not get ever more threads.
                let _permit = permit;
                question(&*engine)
            });
            task.await.ok()
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(_) => Err(Unresponsive),
        }
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! An engine with a snapshot that tests write.

    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, SystemTime};

    use agent_common::abi::answers::Code;

    use super::{Engine, ModeChanged, ModeRefused};
    use crate::model::{
        Answer, Identity, Kind, KubeWatch, MapFill, Mode, ProgramStatus, Replica, ReplicaStatus,
        Snapshot, Verdict,
    };
    use crate::policy::{ModeChange, Policy};
    use crate::watch::{Call, Hub, Subscription};

    /// The method that is watched by default.
    pub const PENDING: &str = "/source.v1.Source/PendingFn";

    /// Says what it is told to say.
    pub struct Fake {
        pub snapshot: Mutex<Snapshot>,
        pub ready: Mutex<Result<(), String>>,
        /// What modes are set on.
        pub policy: Mutex<Policy>,
        /// Where calls are told.
        pub hub: Arc<Hub>,
    }

    impl Fake {
        pub fn new(snapshot: Snapshot) -> Arc<Self> {
            Arc::new(Self {
                snapshot: Mutex::new(snapshot),
                ready: Mutex::new(Ok(())),
                policy: Mutex::new(Policy::new(Mode::Audit)),
                hub: Hub::new(),
            })
        }
    }

    impl Engine for Fake {
        fn snapshot(&self) -> Snapshot {
            self.snapshot.lock().unwrap().clone()
        }

        fn ready(&self) -> Result<(), String> {
            self.ready.lock().unwrap().clone()
        }

        /// Refuses where its snapshot has no enforcer; rules its snapshot's replicas again.
        fn set_mode(&self, change: ModeChange) -> Result<ModeChanged, ModeRefused> {
            let mut snapshot = self.snapshot.lock().unwrap();
            if let (Mode::Enforce, Some(reason)) = (change.mode, &snapshot.enforcer_reason) {
                return Err(ModeRefused::NoEnforcer(reason.clone()));
            }
            let mut policy = self.policy.lock().unwrap();
            policy.change(change)?;
            snapshot.mode = policy.node_mode();
            snapshot.overrides = policy.overrides();
            let mut changed = ModeChanged::default();
            for replica in &mut snapshot.replicas {
                replica.mode = policy.mode(&replica.identity);
                *changed.replicas.entry(replica.mode).or_default() += 1;
            }
            changed.warnings.push("a warning".to_owned());
            Ok(changed)
        }

        fn watch(&self) -> Subscription {
            self.hub.subscribe()
        }
    }

    /// Nothing on the node.
    pub fn empty() -> Snapshot {
        Snapshot {
            mode: Mode::Audit,
            overrides: Vec::new(),
            methods: vec![PENDING.to_owned()],
            tap: "tracepoint",
            enforcer: None,
            enforcer_reason: Some("not tried".to_owned()),
            programs: Vec::new(),
            replicas: Vec::new(),
            unparsed: Vec::new(),
            failures: vec![("candidate", 0)],
            events_lost: 0,
            answers: true,
            maps: vec![MapFill {
                name: "TARGETS",
                entries: 3,
                max_entries: 8192,
            }],
            kube: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Pods are followed, namespaces aren't.
    pub fn watches() -> Vec<KubeWatch> {
        let watch = |resource, forbidden| KubeWatch {
            resource,
            synced: forbidden == 0,
            errors: vec![("forbidden", forbidden), ("gone", 0)],
        };
        vec![watch("pods", 0), watch("namespaces", 3)]
    }

    /// A replica of a MonoVertex that made `calls` calls.
    pub fn replica(number: Replica, calls: u64) -> ReplicaStatus {
        let verdict = match number {
            Replica::Number(0) | Replica::Unknown => Verdict::Admitted,
            Replica::Number(_) => Verdict::WouldReject,
        };
        ReplicaStatus {
            identity: Identity {
                namespace: "payments".to_owned(),
                kind: Kind::MonoVertex,
                workload: "orders".to_owned(),
                vertex: String::new(),
                pod: format!("orders-mv-{number}-abcde"),
                replica: number,
            },
            mode: Mode::Audit,
            mode_from: Default::default(),
            answer: Answer::Unimplemented,
            quieted: Default::default(),
            quieted_before: Default::default(),
            loud: None,
            pids: vec![4711],
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            gone: None,
            calls: BTreeMap::from([((0, verdict), calls)]),
            rejected_before: BTreeMap::new(),
            unresolved: 0,
            durations: BTreeMap::new(),
            durations_before: BTreeMap::new(),
            pending: None,
            synced: 1,
            unsynced: 0,
            latched: 0,
            gated: 0,
            numaflow_version: None,
        }
    }

    /// A call of such a replica, answered in 3.25 ms.
    pub fn call(number: Replica) -> Call {
        let replica = replica(number, 0);
        let verdict = replica.calls.keys().next().map(|(_, verdict)| *verdict);
        Call {
            at: replica.since + Duration::from_millis(1_234),
            identity: Arc::new(replica.identity),
            method: PENDING.into(),
            verdict: verdict.unwrap(),
            code: Some(Code::Ok),
            duration: Some(Duration::from_micros(3_250)),
            pending: Some(42),
            pid: 4711,
            fd: 9,
            stream: 17,
        }
    }

    /// Three replicas and two programs, one of which isn't attached.
    pub fn three() -> Snapshot {
        Snapshot {
            programs: vec![
                ProgramStatus {
                    name: "exit_write",
                    hook: "syscalls/sys_exit_write".to_owned(),
                    error: None,
                    verified_instructions: Some(1234),
                    missed: Some(0),
                    runs: Some((10, 2_500)),
                },
                ProgramStatus {
                    name: "exit_sendto",
                    hook: "syscalls/sys_exit_sendto".to_owned(),
                    error: Some("no such tracepoint".to_owned()),
                    verified_instructions: None,
                    missed: None,
                    runs: None,
                },
            ],
            replicas: vec![
                replica(Replica::Number(0), 9),
                replica(Replica::Number(1), 8),
                replica(Replica::Unknown, 7),
            ],
            ..empty()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::watch::Hub;

    #[tokio::test]
    async fn asks_the_engine() {
        let handle = Handle::new(fake::Fake::new(fake::three()));
        assert_eq!(handle.snapshot().await.unwrap().replicas.len(), 3);
        assert_eq!(handle.ready().await, Ok(Ok(())));
    }

    struct Hangs(Mutex<()>);

    impl Engine for Hangs {
        fn snapshot(&self) -> Snapshot {
            let _lock = self.0.lock();
            fake::empty()
        }
        fn ready(&self) -> Result<(), String> {
            Ok(())
        }
        fn set_mode(&self, _: ModeChange) -> Result<ModeChanged, ModeRefused> {
            Ok(ModeChanged::default())
        }
        fn watch(&self) -> Subscription {
            Hub::new().subscribe()
        }
    }

    #[tokio::test]
    #[expect(
        clippy::await_holding_lock,
        reason = "that is how the engine is made to hang"
    )]
    async fn a_hanging_engine_is_reported_and_recovers() {
        let engine = Arc::new(Hangs(Mutex::new(())));
        let handle = Handle::with_deadline(
            Arc::clone(&engine) as Arc<dyn Engine>,
            Duration::from_millis(50),
        );
        let hang = engine.0.lock().unwrap();
        for _ in 0..CALLERS + 1 {
            assert_eq!(handle.snapshot().await.err(), Some(Unresponsive));
        }
        // Every caller is stuck: even a question that needs no lock waits, and is told so.
        assert_eq!(handle.ready().await, Err(Unresponsive));
        drop(hang);
        assert!(handle.snapshot().await.is_ok());
    }

    #[tokio::test]
    async fn a_panicking_engine_is_no_answer() {
        struct Panics;
        impl Engine for Panics {
            fn snapshot(&self) -> Snapshot {
                panic!("on purpose")
            }
            fn ready(&self) -> Result<(), String> {
                Ok(())
            }
            fn set_mode(&self, _: ModeChange) -> Result<ModeChanged, ModeRefused> {
                panic!("on purpose")
            }
            fn watch(&self) -> Subscription {
                panic!("on purpose")
            }
        }
        let handle = Handle::new(Arc::new(Panics));
        assert_eq!(handle.snapshot().await.err(), Some(Unresponsive));
        assert_eq!(handle.ready().await, Ok(Ok(())));
    }
}
