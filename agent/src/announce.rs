//! Tells where operators look that a pod's calls are rejected: a Kubernetes Event on the pod, once.
//!
//! It is named after the pod's UID, so another agent on the node later tells nobody a second time as long as the API server keeps events (an hour by
//! default). What the API server doesn't take is tried again, and said in the log; nothing else depends on it.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use kube::core::Request;
use kube::core::params::PostParams;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::discovery::cgroup::PodUid;
use crate::discovery::kube::Kube;
use crate::discovery::kube::access::Access;
use crate::discovery::kube::failure::{Failure, Reason};
use crate::engine::Handle;
use crate::model::{ReplicaStatus, Verdict};

/// How often is looked who is rejected: counters are read for it.
pub const INTERVAL: Duration = Duration::from_secs(15);
/// How long the API server may take for one event.
const ANSWER: Duration = Duration::from_secs(10);
/// What an event is about, as `kubectl get events --field-selector reason=` asks for it.
const REASON: &str = "PendguardRejecting";
/// The status of what is there already.
const CONFLICT: u16 = 409;

/// Tells of a node's pods.
pub struct Announcer {
    access: Access,
    kube: Arc<Kube>,
    engine: Handle,
    node: String,
    /// Pods of which it was told.
    told: HashSet<PodUid>,
    failing: Option<Reason>,
}

impl Announcer {
    /// One that has told nothing yet.
    pub fn new(access: Access, kube: Arc<Kube>, engine: Handle, node: String) -> Self {
        Self {
            access,
            kube,
            engine,
            node,
            told: HashSet::new(),
            failing: None,
        }
    }

    /// Looks and tells, until it is dropped.
    pub async fn run(mut self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let result = self.look().await;
            self.note(result.err());
        }
    }

    /// Once a kind of failure: it may go on for hours.
    fn note(&mut self, failure: Option<Failure>) {
        let reason = failure.as_ref().map(|failure| failure.reason);
        let before = std::mem::replace(&mut self.failing, reason);
        let Some(failure) = failure else { return };
        if before == reason {
            return;
        }
        let advice = match failure.reason {
            Reason::Forbidden => {
                "; its service account needs a ClusterRole with verb create on events"
            }
            _ => "",
        };
        warn!(
            "no event can be put on pods whose calls are rejected ({}: {}){advice}",
            failure.reason.name(),
            failure.message
        );
    }

    async fn look(&mut self) -> Result<(), Failure> {
        // An engine that doesn't answer is reported by the servers.
        let Ok(snapshot) = self.engine.snapshot().await else {
            return Ok(());
        };
        let mut client = None;
        for replica in snapshot.replicas.iter().filter(|one| is_rejected(one)) {
            let identity = &replica.identity;
            let uid = {
                let knowledge = self.kube.knowledge();
                let pod = knowledge.named(&identity.namespace, &identity.pod);
                pod.map(|pod| pod.uid)
            };
            let Some(uid) = uid.filter(|uid| !self.told.contains(uid)) else {
                continue;
            };
            let client = match &client {
                Some(client) => client,
                None => client.insert(self.access.client().await?),
            };
            let enforcer = snapshot.enforcer.unwrap_or("none");
            self.tell(client, replica, uid, enforcer).await?;
            self.told.insert(uid);
            info!(
                namespace = identity.namespace,
                pod = identity.pod,
                "event: calls are rejected"
            );
        }
        let knowledge = self.kube.knowledge();
        self.told.retain(|uid| knowledge.pod(*uid).is_some());
        Ok(())
    }

    async fn tell(
        &self,
        client: &Client,
        replica: &ReplicaStatus,
        uid: PodUid,
        enforcer: &str,
    ) -> Result<(), Failure> {
        let namespace = &replica.identity.namespace;
        let event = event(replica, uid, &self.node, enforcer);
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/events"))
            .create(&PostParams::default(), event.to_string().into_bytes())
            .map_err(|error| Failure::new(Reason::Config, &error.to_string()))?;
        // Of the answer nothing is wanted but that it is one.
        let answer = client.request::<Created>(request);
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(Created {})) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == CONFLICT => Ok(()),
            Ok(Err(error)) => Err(Failure::of(&error)),
            Err(_) => {
                let message = format!("no answer within {} s", ANSWER.as_secs());
                Err(Failure::new(Reason::Timeout, &message))
            }
        }
    }
}

#[derive(Deserialize)]
struct Created {}

fn is_rejected(replica: &ReplicaStatus) -> bool {
    let mut calls = replica.calls.iter();
    replica.gone.is_none()
        && calls.any(|((_, verdict), count)| *verdict == Verdict::Rejected && *count > 0)
}

fn event(replica: &ReplicaStatus, uid: PodUid, node: &str, enforcer: &str) -> Value {
    let identity = &replica.identity;
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": identity.namespace, "name": format!("pendguard-{uid}")},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": identity.namespace, "name": identity.pod, "uid": uid.to_string(),
        },
        "type": "Normal",
        "reason": REASON,
        "message": format!(
            "Pendguard ({enforcer}) rejects the PendingFn calls of replica {}, whose answers Numaflow does not use; reading and acknowledging go on. \
             pendguard.io/mode=audit on the pod or its namespace ends it.",
            identity.replica
        ),
        "action": "Reject",
        "source": {"component": "pendguard", "host": node},
        "reportingComponent": "pendguard.io/agent",
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    })
}
