//! The agent as a pod of a cluster: it finds the API server by its service account, believes nobody else, does what annotations say, and tells of it.

#[path = "../../../agent/tests/kube/apiserver.rs"]
#[expect(dead_code, reason = "the agent's own tests use the rest")]
mod apiserver;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use apiserver::ApiServer;
use pendguard_tests::agent::Agent;
use pendguard_tests::deployment::{Container, Image, NODE_NAME, Node, ServiceAccount};
use pendguard_tests::enforcing::{all, until_admitted, until_rejected};
use pendguard_tests::kernel::preempts_tracepoints;
use pendguard_tests::member::{Member, namespace};
use pendguard_tests::replica::Replica;
use pendguard_tests::tls::{Authority, Front};
use pendguard_tests::wait::wait_for;
use serde_json::{Value, json};

use super::{AUDIT, CALLS, USER, overlay_here};

/// Longer than the agent waits between two attempts, or two looks at who is rejected.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster's API server, with TLS before it.
struct Cluster {
    server: ApiServer,
    front: Front,
    authority: Authority,
}

impl Cluster {
    /// One that asks for this token.
    async fn start(token: &str) -> Result<Self> {
        let server = ApiServer::start();
        let authority = Authority::new("the cluster")?;
        let front = Front::start(&authority, server.address()).await?;
        let cluster = Self {
            server,
            front,
            authority,
        };
        cluster.ask_for(token);
        Ok(cluster)
    }

    /// It takes this token and no other, from now on.
    fn ask_for(&self, token: &str) {
        let token = token.to_owned();
        self.server.faults(|faults| faults.token = Some(token));
        self.server.cut();
    }

    /// A replica in a pod that it has.
    async fn member(&self, number: u32) -> Result<Member> {
        const WORKLOAD: &str = "cluster";
        let replica = Replica::start_as_user(WORKLOAD, number, USER);
        let member = Member::start(NODE_NAME, WORKLOAD, number, replica).await?;
        self.server.put("pods", member.pod(None));
        Ok(member)
    }
}

/// Both watches, by what `status` says of them.
fn watches(status: &Value) -> [&Value; 2] {
    ["pods", "namespaces"].map(|resource| &status["kube"][resource])
}

async fn until_synced(agent: &Agent) -> Result<()> {
    wait_for("both watches are synced", PATIENCE, async || {
        let status = agent.status().await?;
        let synced = watches(&status).iter().all(|watch| watch["synced"] == true);
        Ok((synced && status["warnings"] == json!([])).then_some(()))
    })
    .await
}

/// Who is not the cluster's is not believed, and that is told; nothing has been asked of it.
async fn a_stranger_is_refused(cluster: &Cluster, agent: &Agent) -> Result<()> {
    let told = wait_for("the certificate is refused", PATIENCE, async || {
        let status = agent.status().await?;
        let warnings = status["warnings"].to_string();
        let both = ["pods", "namespaces"].iter().all(|resource| {
            warnings.contains(&format!("the API server's {resource} can't be watched"))
        });
        Ok((both && warnings.contains("certificate")).then_some(status))
    })
    .await?;
    // `auto` has chosen the API server although it can't be asked.
    let synced = watches(&told).map(|watch| watch["synced"].clone());
    ensure!(synced == [json!(false), json!(false)], "{told}");
    let scrape = agent.scrape().await?;
    for resource in ["pods", "namespaces"] {
        let labels = [("resource", resource), ("reason", "unreachable")];
        let errors = scrape.sum("pendguard_kube_watch_errors_total", &labels);
        ensure!(errors > Some(0), "{scrape:?}");
        let synced = scrape.sum("pendguard_kube_synced", &labels[..1]);
        ensure!(synced == Some(0), "{scrape:?}");
    }
    let asked = cluster.server.asked();
    ensure!(asked.is_empty(), "the token went to a stranger: {asked:?}");
    Ok(())
}

/// A namespace is annotated, and all follows: from the service account to the event on the pod, with certificates and tokens that change meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_account() -> Result<()> {
    if preempts_tracepoints()? {
        println!("left out: the kernel preempts programs, and the gate is refused");
        return Ok(());
    }
    let image = Image::unpack()?;
    let pod = overlay_here("enforce-gate").await?;
    let cluster = Cluster::start("first").await?;
    let server = &cluster.server;
    let stranger = Authority::new("somebody else")?.certificate();
    let account = ServiceAccount::new(cluster.front.address(), "first", &stranger)?;
    // The configuration names no replica to be rejected, nor how replicas are discovered.
    let node = Node::in_cluster(AUDIT, account)?;
    let account = node.service_account().context("no service account")?;
    server.put("namespaces", namespace("enforce"));
    let mut zero = cluster.member(0).await?;
    let mut one = cluster.member(1).await?;
    let container = Container::start(&image, &node, &pod).await?;
    let agent = &container.agent;

    a_stranger_is_refused(&cluster, agent).await?;
    all(&mut one.replica, CALLS, true).await?;
    let authority = cluster.authority.certificate();
    account.replace("first", &authority)?;
    until_synced(agent).await?;
    until_rejected(&mut one.replica).await?;
    all(&mut one.replica, CALLS, false).await?;
    all(&mut zero.replica, CALLS, true).await?;

    wait_for("an event", PATIENCE, async || {
        Ok((!server.events().is_empty()).then_some(()))
    })
    .await?;
    let events = server.events();
    let about = &events[0]["involvedObject"];
    ensure!(about["uid"] == one.uid, "{events:?}");
    ensure!(about["name"] == one.replica.pod.name, "{events:?}");
    ensure!(events[0]["source"]["host"] == NODE_NAME, "{events:?}");
    let message = events[0]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("(gate)"), "{message}");

    // A token is replaced before it expires: what the new one is needed for is done.
    account.replace("second", &authority)?;
    cluster.ask_for("second");
    server.put("pods", one.pod(Some("audit")));
    until_admitted(&mut one.replica, PATIENCE).await?;
    server.put("pods", one.pod(None));
    until_rejected(&mut one.replica).await?;
    until_synced(agent).await?;

    // The next agent tells again, and is told that it is known.
    ensure!(server.known_events() == 0, "an agent tells once");
    container.agent.stop().await?;
    let container = Container::start(&image, &node, &pod).await?;
    until_synced(&container.agent).await?;
    all(&mut one.replica, CALLS, false).await?;
    wait_for("the event is known already", PATIENCE, async || {
        Ok((server.known_events() > 0).then_some(()))
    })
    .await?;
    ensure!(server.events().len() == 1, "{:?}", server.events());
    let log = container.agent.stop().await?.join("\n");
    ensure!(!log.contains("no event can be put"), "{log}");
    Ok(())
}
