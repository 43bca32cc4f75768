//! What the agent knows of the API server, against one that behaves as it is documented, and against one that doesn't.

mod announce;
mod apiserver;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use kube::Config;
use pendguard::discovery::cgroup::PodUid;
use pendguard::discovery::kube::access::Access;
use pendguard::discovery::kube::objects::{ANNOTATION, Annotation, LABELS};
use pendguard::discovery::kube::reflect::Timing;
use pendguard::discovery::kube::{Kube, Resource};
use pendguard::model::{Mode, Replica};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::apiserver::{ApiServer, name};

const NODE: &str = "node-07";
/// Longer than anything takes on a busy machine; nothing waits for it to pass.
const LIMIT: Duration = Duration::from_secs(60);

fn timing() -> Timing {
    Timing {
        answer: LIMIT,
        watch: 300,
        margin: LIMIT,
        brief: Duration::from_millis(50),
        first: Duration::from_millis(10),
        longest: Duration::from_millis(100),
    }
}

/// An agent's knowledge, and what keeps it.
struct Agent {
    kube: Arc<Kube>,
    _watches: JoinSet<()>,
}

impl Agent {
    fn start(access: &Access, timing: Timing) -> Self {
        let kube = Kube::new();
        Self {
            _watches: kube.follow(access, NODE, timing),
            kube,
        }
    }

    fn of(server: &ApiServer) -> Self {
        Self::start(&access(server), timing())
    }

    /// How often something failed.
    fn errors(&self, resource: &str, reason: &str) -> u64 {
        let watches = self.kube.watches();
        let watch = watches.iter().find(|w| w.resource == resource).unwrap();
        let (_, count) = watch.errors.iter().find(|(r, _)| *r == reason).unwrap();
        *count
    }

    fn all_errors(&self) -> u64 {
        let watches = self.kube.watches();
        let errors = watches.iter().flat_map(|w| w.errors.iter());
        errors.map(|(_, count)| count).sum()
    }

    fn synced(&self) -> bool {
        self.kube.watches().iter().all(|watch| watch.synced)
    }

    async fn until_synced(&self) {
        until("all is synced", || self.synced()).await;
    }

    fn pods(&self) -> usize {
        self.kube.knowledge().pods()
    }

    fn annotation(&self, uid: &str) -> Option<Annotation> {
        let uid: PodUid = uid.parse().unwrap();
        let knowledge = self.kube.knowledge();
        knowledge.pod(uid).map(|pod| pod.annotation.clone())
    }
}

fn config(server: &ApiServer) -> Config {
    Config::new(server.url().parse().unwrap())
}

fn access(server: &ApiServer) -> Access {
    Access::Config(Box::new(config(server)))
}

/// Until it is so, with a limit.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn uid(number: u64) -> String {
    format!("6d2b1a0c-5c3e-4f7a-9b1d-{number:012x}")
}

/// A source pod, with what the agent doesn't read too.
fn pod(number: u64, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("orders-mv-{number}-abcde"), "namespace": "payments", "uid": uid(number),
            "labels": {
                "app.kubernetes.io/component": "mono-vertex",
                "app.kubernetes.io/part-of": "numaflow",
                "numaflow.numaproj.io/mono-vertex-name": "orders",
            },
            "annotations": {"numaflow.numaproj.io/replica": number.to_string(), "über": "ßßß"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:conditions": {}}}}],
        },
        "spec": {
            "nodeName": node,
            "containers": [
                {"name": "numa", "image": "quay.io/numaproj/numaflow:v1.4.5", "env": [{"name": "A", "value": "{\"type\":\"DELETED\"}\n"}]},
                {"name": "udsource", "image": "orders:1"},
            ],
        },
        "status": {"phase": "Running"},
    })
}

fn annotated(mut object: Value, mode: &str) -> Value {
    object["metadata"]["annotations"][ANNOTATION] = json!(mode);
    object
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "uid": uid(0), "annotations": {}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_and_what_happens_then_is_known() {
    let server = ApiServer::start();
    server.put("pods", pod(1, NODE));
    server.put("pods", pod(2, "node-08"));
    server.put("namespaces", annotated(namespace("payments"), "off"));
    server.put("namespaces", namespace("other"));
    let agent = Agent::of(&server);
    tokio::time::timeout(LIMIT, agent.kube.known())
        .await
        .unwrap();
    {
        let knowledge = agent.kube.knowledge();
        let pod = knowledge.pod(uid(1).parse().unwrap()).unwrap();
        let identity = pod.identity.as_ref().unwrap();
        assert_eq!(identity.replica, Replica::Number(1));
        assert_eq!(pod.numaflow_version.as_deref(), Some("v1.4.5"));
        assert!(knowledge.pod(uid(2).parse().unwrap()).is_none());
        assert!(knowledge.named("payments", "orders-mv-1-abcde").is_some());
        assert_eq!(
            knowledge.annotation("payments"),
            &Annotation::Mode(Mode::Off)
        );
        assert_eq!(knowledge.annotation("other"), &Annotation::Absent);
    }
    // Whoever waits is woken by what is new to the agent.
    while tokio::time::timeout(Duration::ZERO, agent.kube.changed())
        .await
        .is_ok()
    {}
    server.put("pods", annotated(pod(1, NODE), "enforce"));
    tokio::time::timeout(LIMIT, agent.kube.changed())
        .await
        .unwrap();
    until("the annotation", || {
        agent.annotation(&uid(1)) == Some(Annotation::Mode(Mode::Enforce))
    })
    .await;
    server.put("namespaces", namespace("payments"));
    server.put("namespaces", annotated(namespace("other"), "x"));
    until("the namespaces' annotations", || {
        let knowledge = agent.kube.knowledge();
        knowledge.annotation("payments") == &Annotation::Absent
            && knowledge.annotation("other") == &Annotation::Bad("x".to_owned())
    })
    .await;
    server.delete("namespaces", "/other");
    server.delete("pods", "payments/orders-mv-1-abcde");
    until("the ends", || {
        agent.pods() == 0 && agent.kube.knowledge().annotation("other") == &Annotation::Absent
    })
    .await;
    assert_eq!(agent.all_errors(), 0);
    assert!(agent.kube.warnings().is_empty());
}

/// What the server has of this node, as the agent should know it.
fn expected(server: &ApiServer) -> BTreeMap<String, Annotation> {
    let node = format!("spec.nodeName={NODE}");
    let query = [("fieldSelector", &*node), ("labelSelector", LABELS)];
    let pods = server.matching("pods", &query).into_iter();
    pods.map(|pod| {
        let annotation = match pod["metadata"]["annotations"][ANNOTATION].as_str() {
            None => Annotation::Absent,
            Some("off") => Annotation::Mode(Mode::Off),
            Some("enforce") => Annotation::Mode(Mode::Enforce),
            Some(other) => Annotation::Bad(other.to_owned()),
        };
        (
            pod["metadata"]["uid"].as_str().unwrap().to_owned(),
            annotation,
        )
    })
    .collect()
}

/// Whether the agent knows all of it and nothing else.
fn is_known(agent: &Agent, expected: &BTreeMap<String, Annotation>) -> bool {
    agent.pods() == expected.len()
        && expected
            .iter()
            .all(|(uid, annotation)| agent.annotation(uid).as_ref() == Some(annotation))
}

/// Numbers that look like chance and are the same each time.
struct Splitmix(u64);

impl Splitmix {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_5000_pods_on_50_nodes_only_this_nodes_are_asked_for_and_kept() {
    const PODS: u64 = 5_000;
    let node = |number: u64| format!("node-{:02}", number % 50);
    let server = ApiServer::start();
    for number in 0..PODS {
        let mut pod = pod(number, &node(number));
        // A third is none of Numaflow's.
        if number / 50 % 3 == 0 {
            pod["metadata"]["labels"] = json!({"app": "web"});
        }
        server.put("pods", pod);
    }
    let agent = Agent::of(&server);
    agent.until_synced().await;
    let first = expected(&server);
    assert_eq!(first.len(), 66);
    assert!(is_known(&agent, &first));
    assert_eq!(server.told(), first.len(), "nobody else's pods were told");
    for asked in server.asked().iter().filter(|a| a.resource == "pods") {
        assert_eq!(asked.says("fieldSelector"), Some("spec.nodeName=node-07"));
        assert_eq!(asked.says("labelSelector"), Some(LABELS));
    }
    // Pods come, go, change and lose their labels, everywhere, while connections break, and old changes are forgotten.
    let mut random = Splitmix(7);
    let mut next = PODS;
    for step in 0..4_000_u64 {
        let number = random.below(next);
        let name = format!("payments/orders-mv-{number}-abcde");
        let there = server.get("pods", &name);
        match (random.below(5), there) {
            (0, _) | (_, None) => {
                server.put("pods", pod(next, &node(random.below(12))));
                next += 1;
            }
            (1, Some(_)) => assert!(server.delete("pods", &name)),
            (2, Some(pod)) => server.put("pods", annotated(pod, "enforce")),
            (3, Some(mut pod)) => {
                pod["metadata"]["labels"]["app.kubernetes.io/part-of"] = json!("other");
                server.put("pods", pod);
            }
            (_, Some(pod)) => server.put("pods", annotated(pod, "off")),
        }
        match step % 400 {
            99 => server.bookmark(),
            199 => server.cut(),
            299 => server.faults(|faults| faults.cut = Some(40)),
            399 => {
                server.forget();
                server.cut();
            }
            _ => {}
        }
        if step % 20 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let last = expected(&server);
    assert_ne!(first, last);
    until("the agent knows what has become of it", || {
        is_known(&agent, &last)
    })
    .await;
    assert!(
        agent.errors("pods", "gone") > 0,
        "{:?}",
        agent.kube.watches()
    );
    // Everything that it was ever told is this node's: nothing is kept of all others.
    assert!(server.told() < 2_000, "{}", server.told());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_comes_from_memory_first_and_then_in_pieces() {
    let server = ApiServer::start();
    for number in 0..250 {
        server.put("pods", pod(number, NODE));
    }
    let agent = Agent::of(&server);
    agent.until_synced().await;
    assert_eq!(agent.pods(), 250);
    let lists = |server: &ApiServer| -> Vec<_> {
        let asked = server.asked().into_iter();
        asked
            .filter(|a| a.resource == "pods" && !a.is_watch())
            .collect()
    };
    let [first] = &lists(&server)[..] else {
        panic!("one")
    };
    assert_eq!(first.says("resourceVersion"), Some("0"));
    // What has happened meanwhile can't be told any more.
    server.delete("pods", "payments/orders-mv-0-abcde");
    server.cut_off_without_memory(&agent).await;
    // It may have been told before it was cut off, too.
    until("it is listed again", || {
        agent.pods() == 249 && agent.synced() && lists(&server).len() > 1
    })
    .await;
    let pieces = &lists(&server)[1..];
    assert_eq!(pieces.len(), 3, "{pieces:?}");
    assert!(
        pieces
            .iter()
            .all(|asked| asked.says("limit") == Some("100"))
    );
    assert!(
        pieces
            .iter()
            .all(|asked| asked.says("resourceVersion").is_none())
    );
    let continued = pieces.iter().map(|asked| asked.says("continue").is_some());
    assert_eq!(continued.collect::<Vec<_>>(), [false, true, true]);
}

impl ApiServer {
    /// Goes on without knowing what was before, with the agent cut off.
    async fn cut_off_without_memory(&self, agent: &Agent) {
        let gone = agent.errors("pods", "gone");
        self.forget();
        // A change that an agent which is cut off can only learn by listing.
        self.put("namespaces", namespace("forgotten"));
        self.forget();
        self.cut();
        until("the agent is told that it is too late", || {
            agent.errors("pods", "gone") > gone
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_next_piece_is_gone_is_begun_again() {
    let server = ApiServer::start();
    for number in 0..150 {
        server.put("pods", pod(number, NODE));
    }
    let agent = Agent::of(&server);
    agent.until_synced().await;
    server.faults(|faults| faults.next_piece_is_gone = true);
    for number in 150..220 {
        server.put("pods", pod(number, NODE));
    }
    server.cut_off_without_memory(&agent).await;
    until("all are known", || agent.pods() == 220 && agent.synced()).await;
    assert_eq!(agent.errors("pods", "gone"), 2);
    let statuses = server.asked().into_iter().filter(|a| a.resource == "pods");
    let gone = statuses
        .filter(|a| a.status == 410 && !a.is_watch())
        .count();
    assert_eq!(gone, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_too_late_lists_again_whichever_way_it_is_told() {
    for as_status in [false, true] {
        let server = ApiServer::start();
        server.put("pods", pod(1, NODE));
        server.put("pods", pod(2, NODE));
        let agent = Agent::of(&server);
        agent.until_synced().await;
        server.faults(|faults| {
            faults.gone_as_status = as_status;
            faults.silent_watches = true;
        });
        server.cut();
        until("it asks again", || server.count("pods", true) == 2).await;
        // It misses an end and a beginning.
        server.delete("pods", "payments/orders-mv-1-abcde");
        server.put("pods", pod(3, NODE));
        server.forget();
        server.faults(|faults| faults.silent_watches = false);
        // That question is never answered; its connection ends with this.
        let mut server = server;
        server.down();
        server.up();
        until("it is listed again", || {
            agent.annotation(&uid(3)).is_some() && agent.annotation(&uid(1)).is_none()
        })
        .await;
        assert_eq!(agent.pods(), 2, "{as_status}");
        assert_eq!(agent.errors("pods", "gone"), 1, "{as_status}");
        let refused = server
            .asked()
            .iter()
            .filter(|a| a.resource == "pods" && a.status == 410)
            .count();
        assert_eq!(refused, usize::from(as_status));
        // And it follows again.
        server.put("pods", pod(4, NODE));
        until("the next", || agent.annotation(&uid(4)).is_some()).await;
        until("no warning is left", || agent.kube.warnings().is_empty()).await;
    }
}

/// With a bookmark it can go on where nothing of its own has happened for long; without one it can't.
#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_spare_lists() {
    for bookmarked in [true, false] {
        let server = ApiServer::start();
        server.put("pods", pod(1, NODE));
        let agent = Agent::of(&server);
        agent.until_synced().await;
        for number in 10..30 {
            server.put("pods", pod(number, "node-08"));
        }
        if bookmarked {
            until("both have been asked with bookmarks", || {
                let asked = server.asked();
                asked
                    .iter()
                    .filter(|a| a.is_watch())
                    .all(|a| a.says("allowWatchBookmarks") == Some("true"))
            })
            .await;
        }
        let version = |server: &ApiServer| {
            let mut asked = server.asked().into_iter();
            let last = asked.rfind(|a| a.is_watch() && a.resource == "pods");
            last.and_then(|a| a.says("resourceVersion")?.parse::<u64>().ok())
                .unwrap()
        };
        if bookmarked {
            // A bookmark may be lost with its connection: then there is another.
            let mut tries = 0;
            until("it goes on from the bookmark", || {
                tries += 1;
                match tries % 20 {
                    0 => server.cut(),
                    _ => server.bookmark(),
                }
                version(&server) == server.version()
            })
            .await;
        }
        assert_eq!(version(&server) == server.version(), bookmarked);
        server.forget();
        server.cut();
        server.put("pods", pod(3, NODE));
        until("it goes on", || agent.annotation(&uid(3)).is_some()).await;
        let (lists, gone) = if bookmarked { (1, 0) } else { (2, 1) };
        assert_eq!(server.count("pods", false), lists, "{bookmarked}");
        assert_eq!(agent.errors("pods", "gone"), gone, "{bookmarked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_end_anywhere() {
    for size in [1, 2, 3, 7, 64, 1000] {
        let server = ApiServer::start();
        server.faults(|faults| faults.chunk = Some(size));
        server.put("pods", pod(1, NODE));
        server.put("namespaces", annotated(namespace("payments"), "ä"));
        let agent = Agent::of(&server);
        agent.until_synced().await;
        assert_eq!(agent.pods(), 1, "{size}");
        server.put("pods", annotated(pod(1, NODE), "ßé"));
        until("the change", || {
            agent.annotation(&uid(1)) == Some(Annotation::Bad("ßé".to_owned()))
        })
        .await;
        let bad = Annotation::Bad("ä".to_owned());
        assert_eq!(agent.kube.knowledge().annotation("payments"), &bad);
        assert_eq!(agent.all_errors(), 0, "{size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_breaks_off_is_told_again() {
    let server = ApiServer::start();
    server.put("pods", pod(1, NODE));
    let agent = Agent::of(&server);
    agent.until_synced().await;
    let length = serde_json::to_string(&json!({"type": "ADDED", "object": pod(2, NODE)}))
        .unwrap()
        .len();
    // At the beginning, within, and before the end of the line.
    for (round, cut) in [1, 20, length / 2, length, usize::MAX]
        .into_iter()
        .enumerate()
    {
        let number = 10 + round as u64;
        server.faults(|faults| faults.cut = Some(cut));
        server.put("pods", pod(number, NODE));
        until("the pod", || agent.annotation(&uid(number)).is_some()).await;
    }
    assert_eq!(agent.pods(), 6);
    assert_eq!(
        server.count("pods", false),
        1,
        "nothing had to be listed again"
    );
    assert!(server.count("pods", true) >= 6);
    assert_eq!(agent.errors("pods", "malformed"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_no_answer_says_so_and_goes_on_when_it_comes() {
    let server = ApiServer::start();
    server.put("pods", pod(1, NODE));
    server.faults(|faults| faults.silent_lists = true);
    let timing = Timing {
        answer: Duration::from_millis(200),
        ..timing()
    };
    let agent = Agent::start(&access(&server), timing);
    until("it gives up", || {
        agent.errors("pods", "timeout") >= 2 && agent.errors("namespaces", "timeout") >= 2
    })
    .await;
    assert!(!agent.synced());
    let warnings = agent.kube.warnings();
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("timeout") && w.contains("/proc")),
        "{warnings:?}"
    );
    // A watch that doesn't begin is the same.
    server.faults(|faults| {
        faults.silent_lists = false;
        faults.silent_watches = true;
    });
    until("what is listed is known", || agent.pods() == 1).await;
    let before = agent.errors("pods", "timeout");
    until("it gives up", || {
        agent.errors("pods", "timeout") > before + 1
    })
    .await;
    server.faults(|faults| faults.silent_watches = false);
    agent.until_synced().await;
    assert!(agent.kube.warnings().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_stops_within_is_given_up_and_asked_for_again() {
    let server = ApiServer::start();
    server.put("pods", pod(1, NODE));
    server.faults(|faults| faults.stalled_lists = Some(20));
    let timing = Timing {
        answer: Duration::from_millis(200),
        ..timing()
    };
    let agent = Agent::start(&access(&server), timing);
    until("both are given up", || {
        ["pods", "namespaces"]
            .iter()
            .all(|resource| agent.errors(resource, "timeout") >= 2)
    })
    .await;
    assert_eq!(agent.pods(), 0, "half a list is none");
    assert!(!agent.kube.knowledge().is_known(Resource::Pods));
    let warnings = agent.kube.warnings();
    assert!(
        warnings.iter().all(|w| w.contains("timeout")) && warnings.len() == 2,
        "{warnings:?}"
    );
    server.faults(|faults| faults.stalled_lists = None);
    agent.until_synced().await;
    assert_eq!(agent.pods(), 1);
    assert_eq!(agent.errors("pods", "malformed"), 0);
    assert!(agent.kube.warnings().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_stops_within_an_event_is_given_up_and_goes_on_from_before_it() {
    let server = ApiServer::start();
    let timing = Timing {
        watch: 1,
        margin: Duration::from_millis(100),
        ..timing()
    };
    let agent = Agent::start(&access(&server), timing);
    agent.until_synced().await;
    server.faults(|faults| faults.stall = Some(40));
    server.put("pods", pod(1, NODE));
    // Of the event that is told to nobody to its end nothing is known before the watch is begun again.
    until("it is given up", || agent.errors("pods", "timeout") == 1).await;
    until("the pod is told again", || {
        agent.pods() == 1 && agent.synced()
    })
    .await;
    assert_eq!(server.count("pods", false), 1, "it goes on where it was");
    assert_eq!(agent.errors("pods", "malformed"), 0);
    assert!(agent.kube.warnings().is_empty());
}

/// What the API server says within a watch counts like what it answers; only 410 takes away where the watch was.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_within_a_watch_ends_it_and_it_goes_on_from_before_it() {
    let codes = [
        (StatusCode::INTERNAL_SERVER_ERROR, "server"),
        (StatusCode::GATEWAY_TIMEOUT, "server"),
        (StatusCode::TOO_MANY_REQUESTS, "throttled"),
        (StatusCode::FORBIDDEN, "forbidden"),
    ];
    let server = ApiServer::start();
    let agent = Agent::of(&server);
    agent.until_synced().await;
    for (number, (code, reason)) in codes.into_iter().enumerate() {
        let before = agent.errors("pods", reason);
        server.faults(|faults| faults.error = Some(code));
        server.put("pods", pod(number as u64, NODE));
        until("the pod is told after it", || {
            agent.pods() == number + 1 && agent.synced()
        })
        .await;
        assert_eq!(agent.errors("pods", reason), before + 1, "{code}");
    }
    assert_eq!(server.count("pods", false), 1, "nothing is listed again");
    assert_eq!(agent.all_errors(), codes.len() as u64);
    assert!(agent.kube.warnings().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_has_died_is_noticed() {
    let server = ApiServer::start();
    server.faults(|faults| faults.dead_watches = true);
    let timing = Timing {
        watch: 1,
        margin: Duration::from_millis(100),
        ..timing()
    };
    let agent = Agent::start(&access(&server), timing);
    until("it is noticed", || agent.errors("pods", "timeout") >= 1).await;
    server.put("pods", pod(1, NODE));
    server.faults(|faults| faults.dead_watches = false);
    until("it is followed again", || agent.pods() == 1).await;
    assert_eq!(server.count("pods", false), 1, "it goes on where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_the_server_ends_in_time_is_no_failure() {
    let server = ApiServer::start();
    let timing = Timing {
        watch: 1,
        ..timing()
    };
    let agent = Agent::start(&access(&server), timing);
    until("it is begun again", || server.count("pods", true) >= 3).await;
    let asked = server.asked();
    let watches = asked.iter().filter(|a| a.is_watch());
    assert!(
        watches
            .clone()
            .all(|a| a.says("timeoutSeconds") == Some("1"))
    );
    assert_eq!(agent.all_errors(), 0);
    assert_eq!(server.count("pods", false), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_end_at_once_are_not_asked_for_without_end() {
    let server = ApiServer::start();
    server.faults(|faults| faults.brief_watches = true);
    let slow = Timing {
        // However busy the machine is: whether it was brief isn't what is asked here.
        brief: LIMIT,
        first: Duration::from_millis(40),
        longest: Duration::from_millis(160),
        ..timing()
    };
    let begun = Instant::now();
    let agent = Agent::start(&access(&server), slow);
    until("ten have failed", || {
        agent.errors("pods", "disconnected") >= 10
    })
    .await;
    // Half of 40, 80 and six times 160, and what comes before the tenth.
    let least = Duration::from_millis(20 + 40 + 7 * 80);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    assert_eq!(server.count("pods", false), 1);
    server.faults(|faults| faults.brief_watches = false);
    server.put("pods", pod(1, NODE));
    until("it is followed", || agent.pods() == 1 && agent.synced()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_is_missing_is_named_and_the_other_watch_works() {
    for (missing, other) in [("pods", "namespaces"), ("namespaces", "pods")] {
        let server = ApiServer::start();
        server.put("pods", pod(1, NODE));
        server.put("namespaces", annotated(namespace("payments"), "off"));
        server.faults(|faults| {
            faults.refused.insert(missing, StatusCode::FORBIDDEN);
        });
        let agent = Agent::of(&server);
        until("it is refused", || agent.errors(missing, "forbidden") >= 2).await;
        until("the other is synced", || {
            let watches = agent.kube.watches();
            watches.iter().all(|w| w.synced == (w.resource == other))
        })
        .await;
        assert_eq!(agent.pods(), usize::from(other == "pods"));
        let warnings = agent.kube.warnings();
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        for word in ["ClusterRole", "get, list, watch", missing, "403"] {
            assert!(warning.contains(word), "{warning}");
        }
        server.faults(|faults| faults.refused.clear());
        agent.until_synced().await;
        assert_eq!(agent.pods(), 1);
        assert!(agent.kube.warnings().is_empty());
    }
}

/// A rule that is taken away later takes nothing away that is known.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_stays_known_whatever_the_server_says() {
    let codes = [
        (StatusCode::FORBIDDEN, "forbidden"),
        (StatusCode::UNAUTHORIZED, "unauthorized"),
        (StatusCode::TOO_MANY_REQUESTS, "throttled"),
        (StatusCode::INTERNAL_SERVER_ERROR, "server"),
        (StatusCode::SERVICE_UNAVAILABLE, "server"),
    ];
    let server = ApiServer::start();
    server.put("pods", pod(1, NODE));
    let agent = Agent::of(&server);
    agent.until_synced().await;
    for (code, reason) in codes {
        server.faults(|faults| {
            faults.refused = [("pods", code), ("namespaces", code)].into();
        });
        server.cut();
        let before = agent.errors("pods", reason);
        until("it is refused", || agent.errors("pods", reason) > before).await;
        assert_eq!(agent.pods(), 1, "{code}");
        assert!(agent.kube.knowledge().is_known(Resource::Pods));
        assert!(!agent.synced());
        server.faults(|faults| faults.refused.clear());
        agent.until_synced().await;
    }
    assert_eq!(server.count("pods", false), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_patience_gets_it() {
    let server = ApiServer::start();
    server.faults(|faults| {
        faults.refused.insert("pods", StatusCode::TOO_MANY_REQUESTS);
        faults.retry_after = Some(1);
    });
    let begun = Instant::now();
    let agent = Agent::of(&server);
    until("two have been refused", || {
        agent.errors("pods", "throttled") == 2
    })
    .await;
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    server.faults(|faults| faults.refused.clear());
    agent.until_synced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_none_are_counted_and_change_nothing() {
    let server = ApiServer::start();
    server.faults(|faults| faults.garbage = true);
    let agent = Agent::of(&server);
    until("it is no list", || agent.errors("pods", "malformed") >= 2).await;
    server.faults(|faults| faults.garbage = false);
    // An object that can't be what it says it is.
    let mut odd = pod(1, NODE);
    odd["metadata"]["uid"] = json!("none");
    server.put("pods", odd);
    server.put("pods", pod(2, NODE));
    until("the other is known", || agent.pods() == 1 && agent.synced()).await;
    let before = agent.errors("pods", "malformed");
    let mut odd = pod(3, NODE);
    odd["metadata"]["uid"] = json!("");
    server.put("pods", odd);
    server.put("pods", pod(4, NODE));
    until("the next is known", || agent.pods() == 2).await;
    assert_eq!(agent.errors("pods", "malformed"), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_changed_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "first").unwrap();
    let server = ApiServer::start();
    server.put("pods", pod(1, NODE));
    server.faults(|faults| faults.token = Some("first".to_owned()));
    let mut config = config(&server);
    config.auth_info.token_file = Some(token.to_str().unwrap().to_owned());
    let agent = Agent::start(&Access::Config(Box::new(config)), timing());
    agent.until_synced().await;
    // The server takes the old one no more, and the new one isn't there yet.
    server.faults(|faults| faults.token = Some("second".to_owned()));
    server.cut();
    until("it is refused", || {
        agent.errors("pods", "unauthorized") >= 1
    })
    .await;
    let warnings = agent.kube.warnings();
    assert!(warnings.iter().any(|w| w.contains("token")), "{warnings:?}");
    assert_eq!(agent.pods(), 1);
    // As the kubelet does it: all at once.
    let new = directory.path().join("new");
    std::fs::File::create(&new)
        .unwrap()
        .write_all(b"second")
        .unwrap();
    std::fs::rename(&new, &token).unwrap();
    server.put("pods", pod(2, NODE));
    until("it goes on", || agent.pods() == 2 && agent.synced()).await;
    // A token that isn't there is another trouble, and the next one cures it.
    std::fs::remove_file(&token).unwrap();
    server.faults(|faults| faults.token = Some("third".to_owned()));
    server.cut();
    until("there is none", || agent.errors("pods", "config") >= 1).await;
    std::fs::write(&token, "third").unwrap();
    agent.until_synced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_waited_for_and_takes_nothing_with_it() {
    let mut server = ApiServer::start();
    server.put("pods", pod(1, NODE));
    server.down();
    let agent = Agent::of(&server);
    until("it is away", || agent.errors("pods", "unreachable") >= 2).await;
    assert_eq!(agent.pods(), 0);
    assert!(!agent.kube.knowledge().is_known(Resource::Pods));
    assert_eq!(agent.kube.warnings().len(), 2);
    server.up();
    agent.until_synced().await;
    assert_eq!(agent.pods(), 1);
    server.down();
    until("it is away again", || !agent.synced()).await;
    server.put("pods", pod(2, NODE));
    assert!(server.delete("pods", "payments/orders-mv-1-abcde"));
    until("it is asked in vain", || {
        agent.errors("pods", "unreachable") >= 4
    })
    .await;
    // The agent goes on with what it knows.
    assert!(agent.annotation(&uid(1)).is_some() && agent.annotation(&uid(2)).is_none());
    server.up();
    until("it knows what it has missed", || {
        agent.annotation(&uid(1)).is_none() && agent.annotation(&uid(2)).is_some()
    })
    .await;
    agent.until_synced().await;
    assert!(agent.kube.warnings().is_empty());
    assert_eq!(
        server.count("pods", false),
        1,
        "what was missed is told, not listed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_of_a_cluster_a_kubeconfig_says_where() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config");
    let server = ApiServer::start();
    server.put("pods", pod(1, NODE));
    server.faults(|faults| faults.token = Some("secret".to_owned()));
    let agent = Agent::start(&Access::Kubeconfig(path.clone()), timing());
    until("there is none", || agent.errors("pods", "config") >= 1).await;
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": server.url()}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    std::fs::write(&path, text.to_string()).unwrap();
    agent.until_synced().await;
    assert_eq!(agent.pods(), 1);
    let named = server.get("pods", "payments/orders-mv-1-abcde").unwrap();
    assert_eq!(name(&named), "payments/orders-mv-1-abcde");
}
