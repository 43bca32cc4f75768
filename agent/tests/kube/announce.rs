//! Events on pods whose calls are rejected.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use pendguard::announce::Announcer;
use pendguard::engine::{Engine, Handle, ModeChanged, ModeRefused};
use pendguard::model::{
    Answer, Identity, Kind, Mode, Quieted, Replica, ReplicaStatus, Snapshot, Verdict,
};
use pendguard::policy::ModeChange;
use pendguard::watch::{Hub, Subscription};
use tokio::task::JoinHandle;

use super::{Agent, ApiServer, NODE, access, pod, uid, until};

/// A node with these replicas.
struct Node(Mutex<Vec<ReplicaStatus>>, Arc<Hub>);

impl Engine for Node {
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            mode: Mode::Enforce,
            overrides: Vec::new(),
            methods: vec!["/source.v1.Source/PendingFn".to_owned()],
            tap: "tracepoint",
            enforcer: Some("gate"),
            enforcer_reason: None,
            programs: Vec::new(),
            replicas: self.0.lock().unwrap().clone(),
            unparsed: Vec::new(),
            failures: Vec::new(),
            events_lost: 0,
            answers: true,
            maps: Vec::new(),
            kube: Vec::new(),
            warnings: Vec::new(),
        }
    }
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    fn set_mode(&self, _: ModeChange) -> Result<ModeChanged, ModeRefused> {
        Ok(ModeChanged::default())
    }
    fn watch(&self) -> Subscription {
        self.1.subscribe()
    }
}

fn replica(number: u32, verdict: Verdict, calls: u64) -> ReplicaStatus {
    ReplicaStatus {
        identity: Identity {
            namespace: "payments".to_owned(),
            kind: Kind::MonoVertex,
            workload: "orders".to_owned(),
            vertex: String::new(),
            pod: format!("orders-mv-{number}-abcde"),
            replica: Replica::Number(number),
        },
        mode: Mode::Enforce,
        mode_from: Default::default(),
        answer: Answer::Unimplemented,
        pids: vec![4711],
        since: SystemTime::UNIX_EPOCH,
        gone: None,
        calls: BTreeMap::from([((0, verdict), calls)]),
        rejected_before: BTreeMap::new(),
        quieted: Quieted::default(),
        quieted_before: Quieted::default(),
        loud: None,
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

/// An announcer at work.
struct Announcing(JoinHandle<()>);

impl Announcing {
    fn start(server: &ApiServer, agent: &Agent, node: &Arc<Node>) -> Self {
        let engine = Handle::new(Arc::clone(node) as Arc<dyn Engine>);
        let kube = Arc::clone(&agent.kube);
        let announcer = Announcer::new(access(server), kube, engine, NODE.to_owned());
        Self(tokio::spawn(announcer.run(Duration::from_millis(10))))
    }
}

impl Drop for Announcing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_told_once_that_its_calls_are_rejected() {
    let server = ApiServer::start();
    for number in 0..4 {
        server.put("pods", pod(number, NODE));
    }
    let agent = Agent::of(&server);
    agent.until_synced().await;
    let node = Arc::new(Node(
        Mutex::new(vec![
            replica(0, Verdict::Admitted, 9),
            replica(1, Verdict::Rejected, 9),
            replica(2, Verdict::Rejected, 0),
            replica(3, Verdict::WouldReject, 9),
            // The API server knows no such pod.
            replica(9, Verdict::Rejected, 9),
        ]),
        Hub::new(),
    ));
    let announcing = Announcing::start(&server, &agent, &node);
    until("an event", || !server.events().is_empty()).await;
    let events = server.events();
    let event = &events[0];
    let about = &event["involvedObject"];
    assert_eq!(about["kind"], "Pod");
    assert_eq!(about["name"], "orders-mv-1-abcde");
    assert_eq!(about["uid"], uid(1));
    assert_eq!(event["reason"], "PendguardRejecting");
    assert_eq!(event["source"]["host"], NODE);
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("replica 1,"), "{message}");
    // The second begins later; the first is told no more.
    node.0.lock().unwrap()[2] = replica(2, Verdict::Rejected, 1);
    until("another event", || server.events().len() > 1).await;
    drop(announcing);
    // Nor by the next agent.
    let _next = Announcing::start(&server, &agent, &node);
    node.0.lock().unwrap()[3] = replica(3, Verdict::Rejected, 10);
    until("the third", || server.events().len() > 2).await;
    let names: Vec<_> = server
        .events()
        .iter()
        .map(|event| event["involvedObject"]["name"].to_string())
        .collect();
    assert_eq!(
        names,
        [1, 2, 3].map(|number| format!("\"orders-mv-{number}-abcde\""))
    );
    // It did tell, and the API server knew.
    assert_eq!(server.known_events(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_told_later() {
    let server = ApiServer::start();
    server.put("pods", pod(1, NODE));
    server.faults(|faults| {
        faults.refused.insert("events", StatusCode::FORBIDDEN);
    });
    let agent = Agent::of(&server);
    agent.until_synced().await;
    let node = Arc::new(Node(
        Mutex::new(vec![replica(1, Verdict::Rejected, 9)]),
        Hub::new(),
    ));
    let _announcing = Announcing::start(&server, &agent, &node);
    // It was refused at least once.
    until("it is refused", || server.refused_events() > 0).await;
    assert_eq!(server.events().len(), 0);
    server.faults(|faults| faults.refused.clear());
    until("an event", || server.events().len() == 1).await;
}
