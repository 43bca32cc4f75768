//! Discovery with the API server: real processes, in cgroups that are called as the kubelet calls them, and an API server that says what
//! it is told to.

mod cluster;

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster::apiserver::{ApiServer, name};
use cluster::{Cluster, NODE};
use pendguard_tests::agent::{Agent, Pod, Scrape};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::enforcing::{JOIN_LIMIT, all, until_admitted, until_rejected};
use pendguard_tests::member::{ANNOTATION, Member, VERSION, namespace};
use pendguard_tests::protocol::Method;
use pendguard_tests::replica::Replica;
use pendguard_tests::wait::{WAIT_LIMIT, wait_for};
use serde_json::json;

/// Calls of each kind.
const CALLS: u64 = 20;

/// A replica whose environment says that it is number `claimed`, in a pod that the API server has as number `number`.
async fn member(workload: &str, number: u32, claimed: u32) -> Result<Member> {
    let pod = Pod::mono_vertex(workload, &claimed.to_string());
    Member::start(NODE, workload, number, Replica::start_in(pod, claimed)).await
}

/// The API server has its pod, with that annotation.
fn put(server: &ApiServer, member: &Member, mode: Option<&str>) {
    server.put("pods", member.pod(mode));
}

/// It has it no more; false if it hadn't.
fn delete(server: &ApiServer, member: &Member) -> bool {
    server.delete("pods", &name(&member.pod(None)))
}

/// Waits until the agent has a warning in which all of this is said.
async fn until_warned(agent: &Agent, words: &[&str]) -> Result<()> {
    wait_for(&format!("a warning of {words:?}"), WAIT_LIMIT, async || {
        let status = agent.status().await?;
        let mut warnings = status["warnings"].as_array().into_iter().flatten();
        let said = warnings.any(|warning| {
            let warning = warning.as_str().unwrap_or_default();
            words.iter().all(|word| warning.contains(word))
        });
        Ok(said.then_some(()))
    })
    .await
}

async fn until_mode(agent: &Agent, pod: &str, mode: &str) -> Result<()> {
    wait_for(&format!("{pod} has mode {mode}"), WAIT_LIMIT, async || {
        let status = agent.status().await?;
        let mut replicas = status["replicas"].as_array().into_iter().flatten();
        let is = replicas.any(|r| r["pod"] == pod && r["mode"] == mode && r["gone"].is_null());
        Ok(is.then_some(()))
    })
    .await
}

fn info(scrape: &Scrape, pod: &str, replica: &str) -> Option<u64> {
    let labels = [
        ("pod", pod),
        ("replica", replica),
        ("numaflow_version", VERSION),
    ];
    scrape.sum("pendguard_replica_info", &labels)
}

/// Who a replica is comes from the API server; what it can't say comes from the environment, and what they don't agree on is shown.
#[tokio::test(flavor = "multi_thread")]
async fn identity() -> Result<()> {
    let cluster = Cluster::start()?;
    let bpffs = BpfFs::mount()?;
    // One from before the agent, one from after.
    let mut old = member("kube-identity", 1, 1).await?;
    put(&cluster.server, &old, None);
    let agent = cluster.agent(&bpffs, &[]).await?;
    agent.until_watches(old.replica.client.pid()).await?;
    let mut new = member("kube-identity", 2, 2).await?;
    put(&cluster.server, &new, None);
    let mut liar = member("kube-identity", 3, 0).await?;
    put(&cluster.server, &liar, None);
    let mut unknown = member("kube-identity", 4, 4).await?;
    until_warned(&agent, &[&liar.replica.pod.name, "replica: 3, not 0"]).await?;
    until_warned(&agent, &[&unknown.replica.pod.name, "no pod"]).await?;
    for member in [&mut old, &mut new, &mut liar, &mut unknown] {
        all(&mut member.replica, CALLS, true).await?;
    }
    let scrape = agent.scrape().await?;
    for member in [&old, &new] {
        let name = &member.replica.pod.name;
        let number = member.replica.number.to_string();
        ensure!(scrape.pending(name, "would_reject") == CALLS, "{scrape:?}");
        ensure!(info(&scrape, name, &number) == Some(1), "{scrape:?}");
    }
    let name = &liar.replica.pod.name;
    ensure!(scrape.pending(name, "admitted") == CALLS, "{scrape:?}");
    ensure!(info(&scrape, name, "unknown") == Some(1), "{scrape:?}");
    let name = &unknown.replica.pod.name;
    ensure!(scrape.pending(name, "would_reject") == CALLS, "{scrape:?}");
    ensure!(info(&scrape, name, "4").is_none(), "{scrape:?}");
    for resource in ["pods", "namespaces"] {
        let synced = scrape.sum("pendguard_kube_synced", &[("resource", resource)]);
        ensure!(synced == Some(1), "{scrape:?}");
    }
    let errors = scrape.sum("pendguard_kube_watch_errors_total", &[]);
    ensure!(errors == Some(0), "{scrape:?}");
    agent.stop().await?;
    Ok(())
}

/// The annotations of a pod and of its namespace, and what is no mode.
#[tokio::test(flavor = "multi_thread")]
async fn annotations() -> Result<()> {
    let cluster = Cluster::start()?;
    let server = &cluster.server;
    let bpffs = BpfFs::mount()?;
    let mut zero = member("kube-annotations", 0, 0).await?;
    let mut one = member("kube-annotations", 1, 1).await?;
    let mut two = member("kube-annotations", 2, 2).await?;
    for member in [&zero, &one, &two] {
        put(server, member, None);
    }
    // Nothing of enforcement is configured, nor set up.
    let agent = cluster.agent(&bpffs, &["--mode", "audit"]).await?;
    until_mode(&agent, &one.replica.pod.name, "audit").await?;
    put(server, &zero, Some("enforce"));
    put(server, &one, Some("enforce"));
    until_rejected(&mut one.replica).await?;
    all(&mut one.replica, CALLS, false).await?;
    for member in [&mut zero, &mut two] {
        all(&mut member.replica, CALLS, true).await?;
    }
    // The pod's own wins over the namespace's.
    put(server, &one, Some("audit"));
    server.put("namespaces", namespace("enforce"));
    until_admitted(&mut one.replica, JOIN_LIMIT).await?;
    until_rejected(&mut two.replica).await?;
    // What is no mode is shown, and rejects nothing.
    put(server, &two, Some("yes"));
    until_warned(&agent, &[&two.replica.pod.name, ANNOTATION, "yes"]).await?;
    until_admitted(&mut two.replica, JOIN_LIMIT).await?;
    all(&mut two.replica, CALLS, true).await?;
    // The pod is gone for the API server, and lives on.
    put(server, &two, None);
    until_rejected(&mut two.replica).await?;
    ensure!(delete(server, &two), "it was there");
    until_admitted(&mut two.replica, JOIN_LIMIT).await?;
    // In an emergency, whatever anybody has written anywhere.
    put(server, &one, Some("enforce"));
    until_rejected(&mut one.replica).await?;
    let off = agent.command(&["mode", "off"]).await?;
    ensure!(off.status.success(), "{off:?}");
    all(&mut one.replica, CALLS, true).await?;
    agent.stop().await?;
    Ok(())
}

/// What is known stays enforced whatever becomes of the API server, and what isn't known isn't; `/readyz` doesn't wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_away() -> Result<()> {
    let mut cluster = Cluster::start()?;
    let bpffs = BpfFs::mount()?;
    let mut one = member("kube-away", 1, 1).await?;
    put(&cluster.server, &one, None);
    cluster.server.down();
    let agent = cluster.agent(&bpffs, &["--mode", "enforce"]).await?;
    until_warned(&agent, &["pods", "unreachable", "/proc"]).await?;
    until_mode(&agent, &one.replica.pod.name, "audit").await?;
    all(&mut one.replica, CALLS, true).await?;
    cluster.server.up();
    until_rejected(&mut one.replica).await?;
    cluster.server.down();
    until_warned(&agent, &["pods", "unreachable"]).await?;
    all(&mut one.replica, CALLS, false).await?;
    let mut two = member("kube-away", 2, 2).await?;
    put(&cluster.server, &two, None);
    until_mode(&agent, &two.replica.pod.name, "audit").await?;
    all(&mut two.replica, CALLS, true).await?;
    // The next agent knows nothing yet, and takes nothing back.
    agent.kill().await?;
    let agent = cluster.agent(&bpffs, &["--mode", "enforce"]).await?;
    until_warned(&agent, &["pods", "unreachable"]).await?;
    all(&mut one.replica, CALLS, false).await?;
    all(&mut two.replica, CALLS, true).await?;
    cluster.server.up();
    until_rejected(&mut two.replica).await?;
    all(&mut one.replica, CALLS, false).await?;
    for member in [&mut one, &mut two] {
        let ready = member.replica.client.call(Method::IsReady, CALLS).await?;
        ensure!(ready.ok == CALLS, "{ready:?}");
    }
    let status = wait_for("all is synced", Duration::from_secs(60), async || {
        let status = agent.status().await?;
        let synced = |resource: &str| status["kube"][resource]["synced"] == true;
        Ok((synced("pods") && synced("namespaces")).then_some(status))
    })
    .await?;
    ensure!(status["warnings"] == json!([]), "{status}");
    agent.stop().await?;
    Ok(())
}
