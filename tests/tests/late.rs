//! The agent comes when the connections are there, of clients that index their paths: which index is which is learned from what the
//! source answers, within three calls of each method, and is never wrong.

use anyhow::{Result, ensure};
use pendguard_tests::agent::Agent;
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::enforcing::{JOIN_LIMIT, rejections, rewrites};
use pendguard_tests::peers::{ClientKind, SourceKind};
use pendguard_tests::protocol::Method;
use pendguard_tests::replica::Replica;
use pendguard_tests::scale::{Scale, scale};
use pendguard_tests::wait::wait_for;

/// Connections.
fn connections() -> u64 {
    match scale() {
        Scale::Full => 1_000,
        Scale::Fast => 200,
        Scale::Vm => 20,
    }
}

/// The connections of a client of grpc-go, which have made calls of every method.
async fn before(workload: &str, n: u64) -> Result<Replica> {
    let mut replica = Replica::start(workload, 1, ClientKind::GrpcGo, SourceKind::Rust).await?;
    replica.client.open(n).await?;
    for method in Method::ALL {
        let called = replica.client.fan(method, 1).await?;
        ensure!(called.ok == n, "{called:?}");
    }
    Ok(replica)
}

/// Three calls of each method on each connection. Their answers tell which is which.
async fn learn(replica: &mut Replica, n: u64) -> Result<()> {
    for _ in 0..3 {
        // Also on the first one: a gate joins all connections of a process to a source, or none.
        let called = replica.client.call(Method::IsReady, 1).await?;
        ensure!(called.ok == 1, "{called:?}");
        for method in Method::ALL {
            let called = replica.client.fan(method, 1).await?;
            // What is known already may be rejected already.
            let rejected = if method == Method::PendingFn {
                rejections(&called.errors)
            } else {
                0
            };
            ensure!(called.ok + rejected == n, "{called:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn in_audit_every_call_counts_from_there_on() -> Result<()> {
    let n = connections();
    let mut replica = before("late", n).await?;
    let agent = Agent::start(&[]).await?;
    let pod = replica.pod.name.clone();
    let counts = async || {
        let scrape = agent.scrape().await?;
        let seen = [replica_pending(&scrape, &pod), scrape.unresolved(&pod)];
        anyhow::Ok(seen)
    };
    ensure!(counts().await? == [0, 0], "nothing was called yet");
    learn(&mut replica, n).await?;
    let mut last = counts().await?;
    ensure!(
        last[0] + last[1] <= 9 * n && last[1] > 0,
        "{last:?} of {} calls",
        9 * n
    );
    for (method, each) in [
        (Method::IsReady, 5),
        (Method::PendingFn, 7),
        (Method::PartitionsFn, 3),
        (Method::PendingFn, 1),
    ] {
        let called = replica.client.fan(method, each).await?;
        ensure!(called.ok == each * n, "{called:?}");
        let now = counts().await?;
        let pending = if method == Method::PendingFn {
            each * n
        } else {
            0
        };
        ensure!(
            now == [last[0] + pending, last[1]],
            "{method}: {last:?}, {now:?}: not {pending} of {} calls on {n} connections",
            each * n
        );
        last = now;
    }
    println!(
        "{n} connections: {} of {} calls unresolved, none wrong",
        last[1],
        9 * n
    );
    agent.stop().await?;
    Ok(())
}

fn replica_pending(scrape: &pendguard_tests::agent::Scrape, pod: &str) -> u64 {
    scrape.pending(pod, "would_reject")
        + scrape.pending(pod, "admitted")
        + scrape.pending(pod, "rejected")
}

#[tokio::test]
async fn enforced_from_there_on() -> Result<()> {
    // The gate joins all connections of a process at once, in a moment in which nothing is under way on any: a data plane has one.
    let n = 8;
    let mut replica = before("late-enforced", n).await?;
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &["--mode", "enforce"]).await?;
    learn(&mut replica, n).await?;
    // `rewrite` is there at once where the agent knows the descriptors for sockets, the gate when it has joined.
    let client = &mut replica.client;
    wait_for(
        "calls are rejected on every connection",
        JOIN_LIMIT,
        async || {
            let called = client.fan(Method::PendingFn, 1).await?;
            Ok((rejections(&called.errors) == n).then_some(()))
        },
    )
    .await?;
    let ready = replica.client.fan(Method::IsReady, 3).await?;
    let partitions = replica.client.fan(Method::PartitionsFn, 3).await?;
    ensure!(
        ready.ok == 3 * n && partitions.ok == 3 * n,
        "{ready:?} {partitions:?}"
    );
    let before = replica.source.stats().await?.pending;
    let called = replica.client.fan(Method::PendingFn, 5).await?;
    let handled = replica.source.stats().await?.pending - before;
    // A source may be faster than the gate (`enforcing::all`).
    let most = if rewrites() { 0 } else { (5 * n).div_ceil(50) };
    ensure!(
        rejections(&called.errors) + called.ok == 5 * n && called.ok == handled && handled <= most,
        "{called:?}, {handled} handled"
    );
    agent.stop().await?;
    Ok(())
}
