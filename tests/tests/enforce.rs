//! Enforcement: one call is rejected, never the connection. With the enforcer that the node allows, or PENDGUARD_ENFORCER.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, binary};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::enforcing::{
    JOIN_LIMIT, RATE, all, counts, intact, rewrites, set_mode, until_admitted, until_rejected,
};
use pendguard_tests::faults::seen;
use pendguard_tests::peers::{ClientKind, SourceKind};
use pendguard_tests::protocol::Method;
use pendguard_tests::replica::Replica;
use pendguard_tests::scale::{amount, calls};
use pendguard_tests::wait::wait_for;
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;
use tokio::task::JoinSet;

async fn detach(bpffs: &BpfFs) -> Result<(bool, Value)> {
    let output = Command::new(binary()?)
        .args(["detach", "--json", "--pin-dir"])
        .arg(bpffs.pins())
        .output()
        .await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::String(error));
    Ok((output.status.success(), said))
}

/// One replica's part: calls beside Read, Ack and IsReady; returns how many were admitted, and how many of those late.
async fn load(mut replica: Replica, n: u64) -> Result<(Replica, u64, u64)> {
    let rejected = matches!(replica.number, 1 | 2);
    let before = replica.source.stats().await?.pending;
    replica.client.background_on(RATE).await?;
    let late = all(&mut replica, n, !rejected).await?;
    let ready = replica.client.call(Method::IsReady, n / 20).await?;
    ensure!(ready.ok == n / 20, "{}: {ready:?}", replica.pod.name);
    intact(&mut replica).await?;
    Ok((replica, before + late, late))
}

/// Replicas 0, 1, 2 and one of unknown number, all under load.
async fn exact(client: ClientKind, source: SourceKind, n: u64) -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &["--mode", "enforce"]).await?;
    let mut replicas = Vec::new();
    // pynumaflow doesn't start with a replica's number that is none.
    let kinds = if source == SourceKind::Python { 3 } else { 4 };
    for number in 0..kinds {
        let workload = format!("enforce-{client}");
        let mut replica = if number == 3 {
            Replica::start_unknown(&workload, client, source).await?
        } else {
            Replica::start(&workload, number, client, source).await?
        };
        if matches!(number, 1 | 2) {
            until_rejected(&mut replica).await?;
        }
        replicas.push(replica);
    }
    let mut tasks = JoinSet::new();
    for replica in replicas {
        tasks.spawn(load(replica, n));
    }
    let mut done = Vec::new();
    while let Some(result) = tasks.join_next().await {
        done.push(result??);
    }
    let scrape = agent.scrape().await?;
    for (replica, admitted, late) in &done {
        let found = counts(replica, &scrape);
        let name = &replica.pod.name;
        if !matches!(replica.number, 1 | 2) {
            ensure!(found == [n, 0, 0], "{name}: {found:?} is not {n} admitted");
            continue;
        }
        // What was called before the enforcer was there was admitted and handled. Of what the source was faster with, some may be
        // counted by nobody.
        ensure!(
            found[2] == 0 && found[0] <= *admitted && found[0] + late >= *admitted,
            "{name}: {found:?}, {admitted} admitted, {late} late"
        );
        ensure!(
            found[1] > n - late && found[1] <= n - late + 2,
            "{name}: {found:?}: the calls, and the one that was waited for"
        );
    }
    ensure!(scrape.unparsed().is_empty(), "{:?}", scrape.unparsed());
    ensure!(scrape.events_lost() == Some(0), "{scrape:?}");
    drop(done);
    agent.stop().await?;
    Ok(())
}

macro_rules! exact {
    ($($name:ident: $client:ident, $source:ident, $n:expr;)*) => {$(
        #[tokio::test]
        async fn $name() -> Result<()> {
            exact(ClientKind::$client, SourceKind::$source, $n).await
        }
    )*};
}

exact! {
    tonic_on_rust: Tonic, Rust, calls();
    grpc_go_on_rust: GrpcGo, Rust, calls();
    c_core_on_rust: GrpcCore, Rust, calls();
    node_on_rust: GrpcJs, Rust, calls();
    tonic_on_python: Tonic, Python, calls().min(500);
    tonic_on_node: Tonic, Node, calls().min(500);
    tonic_on_go: Tonic, Go, calls().min(500);
    grpc_go_on_go: GrpcGo, Go, calls().min(500);
}

/// Modes at run time, on connections that live: in effect when the command returns, but for what is latched.
#[tokio::test]
async fn modes_at_run_time() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &[]).await?;
    ensure!(!bpffs.pins().exists(), "an audit pins nothing");
    let mut one = Replica::start("run-time", 1, ClientKind::Tonic, SourceKind::Rust).await?;
    let mut go = Replica::start("run-time", 2, ClientKind::GrpcGo, SourceKind::Rust).await?;
    for replica in [&mut one, &mut go] {
        replica.client.background_on(RATE).await?;
        all(replica, 20, true).await?;
    }
    set_mode(&agent, "enforce").await?;
    for replica in [&mut one, &mut go] {
        until_rejected(replica).await?;
        all(replica, 100, false).await?;
    }
    // The path's entry is older than enforcement, so what stood in for it left nothing in the server's table.
    for mode in ["off", "audit"] {
        set_mode(&agent, mode).await?;
        for replica in [&mut one, &mut go] {
            all(replica, 50, true).await?;
        }
        set_mode(&agent, "enforce").await?;
        for replica in [&mut one, &mut go] {
            all(replica, 50, false).await?;
        }
    }
    // A client that indexes, and first calls under enforcement: latched until it ends.
    let mut latched = Replica::start("run-time", 3, ClientKind::GrpcGo, SourceKind::Rust).await?;
    wait_for("it is enforced", JOIN_LIMIT, async || {
        let _ = latched.client.call(Method::IsReady, 1).await?;
        let status = agent.status().await?;
        Ok(enforced(&status, &latched.pod.name).then_some(()))
    })
    .await?;
    all(&mut latched, 50, false).await?;
    ensure!(agent.scrape().await?.connections("latched") == Some(1));
    set_mode(&agent, "off").await?;
    all(&mut latched, 50, false).await?;
    for replica in [&mut one, &mut go] {
        intact(replica).await?;
    }
    agent.stop().await?;
    Ok(())
}

/// Whether the gate stands before the replica's connection; with `rewrite`, whether it is known.
fn enforced(status: &Value, pod: &str) -> bool {
    let replicas = status["replicas"].as_array();
    replicas
        .into_iter()
        .flatten()
        .any(|r| r["pod"] == pod && (rewrites() || r["connections"]["gated"] == 1))
}

/// Killed, restarted, stopped: no gap. Then the second agent, the lease, and what `detach` says and leaves.
#[tokio::test]
async fn it_outlives_its_agent() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let arguments = ["--mode", "enforce", "--lease", "10s"];
    let agent = Agent::start_at(&bpffs.pins(), &arguments).await?;
    let mut zero = Replica::start("outlive", 0, ClientKind::GrpcGo, SourceKind::Rust).await?;
    let mut one = Replica::start("outlive", 1, ClientKind::Tonic, SourceKind::Rust).await?;
    let mut go = Replica::start("outlive", 2, ClientKind::GrpcGo, SourceKind::Rust).await?;
    for replica in [&mut one, &mut go] {
        until_rejected(replica).await?;
    }
    for replica in [&mut zero, &mut one, &mut go] {
        replica.client.background_on(RATE).await?;
    }
    let second = Agent::spawn_at(&bpffs.pins(), &[])?;
    let pid = agent.pid().context("it runs")?;
    let (code, log) = second.ended().await?;
    ensure!(
        code == Some(1) && log.contains(&format!("pid {pid}")),
        "{code:?}: {log}"
    );
    let (done, said) = detach(&bpffs).await?;
    ensure!(
        !done && said.to_string().contains(&format!("pid {pid}")),
        "{said}"
    );

    let mut agent = Some(agent);
    for round in 0..4 {
        match agent.take() {
            Some(agent) if round % 2 == 0 => agent.kill().await?,
            Some(agent) => drop(agent.stop().await?),
            None => {}
        }
        for replica in [&mut one, &mut go] {
            all(replica, 200, false).await?;
        }
        all(&mut zero, 200, true).await?;
        let next = Agent::start_at(&bpffs.pins(), &arguments).await?;
        for replica in [&mut one, &mut go] {
            all(replica, 200, false).await?;
        }
        all(&mut zero, 200, true).await?;
        let scrape = next.scrape().await?;
        // The programs counted on while nobody read.
        for replica in [&one, &go] {
            let rejected = counts(replica, &scrape)[1];
            ensure!(
                rejected > 400 * (round + 1),
                "{}: {rejected}",
                replica.pod.name
            );
        }
        ensure!(
            counts(&zero, &scrape) == [400 * (round + 1), 0, 0],
            "{scrape:?}"
        );
        agent = Some(next);
    }
    agent.take().context("the last one")?.kill().await?;
    // Nobody renews the lease.
    until_admitted(&mut one, Duration::from_secs(60)).await?;
    all(&mut one, 20, true).await?;

    let (done, said) = detach(&bpffs).await?;
    if rewrites() {
        // Nothing of it stays on connections.
        ensure!(done, "{said}");
    } else {
        ensure!(!done && said["pins"][0]["connections"] == 2, "{said}");
    }
    for replica in [&mut zero, &mut one] {
        all(replica, 20, true).await?;
    }
    for replica in [&mut zero, &mut one, &mut go] {
        intact(replica).await?;
    }
    drop((zero, one, go));
    wait_for("everything is gone", JOIN_LIMIT, async || {
        let (done, _) = detach(&bpffs).await?;
        Ok(done.then_some(()))
    })
    .await?;
    ensure!(!bpffs.pins().exists());
    Ok(())
}

/// An agent with other programs or methods than those that are pinned, as after an upgrade: the old gate serves the
/// connections that it has, as the new agent says, until they close; new ones are the new agent's.
#[tokio::test]
async fn another_build_takes_over() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &["--mode", "enforce"]).await?;
    let mut one = Replica::start("upgrade", 1, ClientKind::Tonic, SourceKind::Rust).await?;
    let mut go = Replica::start("upgrade", 2, ClientKind::GrpcGo, SourceKind::Rust).await?;
    for replica in [&mut one, &mut go] {
        until_rejected(replica).await?;
        replica.client.background_on(RATE).await?;
        all(replica, 100, false).await?;
    }
    agent.kill().await?;
    let file = tempfile::NamedTempFile::new()?;
    let methods = "mode = \"enforce\"\nmethods = [\"/source.v1.Source/PendingFn\", \"/a.B/C\"]";
    std::fs::write(file.path(), methods)?;
    let config = file.path().to_str().context("UTF-8")?;
    let agent = Agent::start_at(&bpffs.pins(), &["--config", config]).await?;
    ensure!(generations(&bpffs)? == 2, "the old one's and the new one's");
    let before = agent.scrape().await?;
    let mut late = Vec::new();
    for replica in [&mut one, &mut go] {
        late.push(all(replica, 200, false).await?);
    }
    let after = agent.scrape().await?;
    for (replica, late) in [&one, &go].into_iter().zip(late) {
        let (before, after) = (counts(replica, &before), counts(replica, &after));
        // Of the few that the source was faster with, some may be counted by nobody.
        ensure!(
            after[1] == before[1] + 200 - late && after[0] <= before[0] + late,
            "{}: {before:?} {after:?}, {late} late",
            replica.pod.name
        );
        ensure!(after[2] == before[2], "{before:?} {after:?}");
    }
    // The mode is for the old gate as well.
    set_mode(&agent, "audit").await?;
    all(&mut one, 50, true).await?;
    set_mode(&agent, "enforce").await?;
    all(&mut one, 50, false).await?;
    // A new connection is the new agent's.
    let mut new = Replica::start("upgrade", 3, ClientKind::Tonic, SourceKind::Rust).await?;
    until_rejected(&mut new).await?;
    all(&mut new, 100, false).await?;
    for replica in [&mut one, &mut go] {
        intact(replica).await?;
    }
    drop((one, go));
    wait_for("the old one's pins are removed", JOIN_LIMIT, async || {
        Ok((generations(&bpffs)? == 1).then_some(()))
    })
    .await?;
    all(&mut new, 100, false).await?;
    let log = agent.stop().await?;
    ensure!(
        !log.iter().any(|line| line.contains("refuses a socket")),
        "{log:?}"
    );
    Ok(())
}

fn generations(bpffs: &BpfFs) -> Result<usize> {
    Ok(std::fs::read_dir(bpffs.pins())?.count())
}

/// While the agent doesn't run, for a minute, calls are rejected as before; when it goes on it has counted each of them.
#[tokio::test]
async fn a_stopped_agent() -> Result<()> {
    let stopped = Duration::from_secs(amount(60, 5));
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &["--mode", "enforce"]).await?;
    let mut one = Replica::start("stopped", 1, ClientKind::Tonic, SourceKind::Rust).await?;
    until_rejected(&mut one).await?;
    let before: u64 = counts(&one, &agent.scrape().await?).iter().sum();
    agent.signal(Signal::STOP)?;
    let start = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_secs(1));
    let (mut made, mut late) = (0, 0);
    while made < 500 || start.elapsed() < stopped {
        pace.tick().await;
        late += all(&mut one, 100, false).await?;
        made += 100;
    }
    let stopped = start.elapsed().as_secs();
    agent.signal(Signal::CONT)?;
    agent
        .until("each call is counted", |scrape| {
            counts(&one, scrape).iter().sum::<u64>() == before + made
        })
        .await?;
    agent.stop().await?;
    seen(
        "the agent is stopped while it enforces",
        &format!("for {stopped} s: {made} of {made} calls counted, {late} of them admitted"),
    )
}

/// Without a bpffs there is no enforcement, and the agent says so instead of doing less.
#[tokio::test]
async fn without_bpffs() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::spawn_at(&directory.path().join("pins"), &["--mode", "enforce"])?;
    let (code, log) = agent.ended().await?;
    ensure!(
        code == Some(1) && log.contains("is not on a bpffs"),
        "{code:?}: {log}"
    );
    Ok(())
}
