//! Exact: what the agent counts is what the source's handler counted, for every gRPC stack, with load beside it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, ensure};
use pendguard_tests::agent::{Agent, Scrape};
use pendguard_tests::peers::{ClientKind, SourceKind};
use pendguard_tests::protocol::Method;
use pendguard_tests::replica::Replica;
use pendguard_tests::scale::{amount, calls};
use tokio::task::JoinSet;

/// Messages a second that each replica reads and acknowledges meanwhile.
fn rate() -> u64 {
    amount(1000, 100)
}

/// How many replicas there are: 0, and others.
fn replicas_at_once() -> u32 {
    amount(3, 2)
}

/// `n` calls of PendingFn, 16 at a time, while messages are read and acknowledged and IsReady is called. Returns what the
/// handler counted.
async fn load_one(replica: &mut Replica, n: u64) -> Result<u64> {
    let before = replica.source.stats().await?.pending;
    replica.client.background_on(rate()).await?;
    let called = replica.client.call(Method::PendingFn, n).await?;
    let ready = replica.client.call(Method::IsReady, n / 20).await?;
    let background = replica.client.background_off().await?;
    let name = &replica.pod.name;
    ensure!(called.ok == n, "{name}: {called:?}");
    ensure!(ready.ok == n / 20, "{name}: {ready:?}");
    ensure!(
        background.intact && background.errors.is_empty() && background.messages > 0,
        "{name}: {background:?}"
    );
    Ok(replica.source.stats().await?.pending - before)
}

async fn replicas(kind: ClientKind) -> Result<Vec<Replica>> {
    let mut replicas = Vec::new();
    for number in 0..replicas_at_once() {
        let workload = format!("exact-{kind}");
        replicas.push(Replica::start(&workload, number, kind, SourceKind::Rust).await?);
    }
    Ok(replicas)
}

/// All replicas under load at once; returns them with what their handlers counted.
async fn load(replicas: Vec<Replica>, n: u64) -> Result<Vec<(Replica, u64)>> {
    let mut tasks = JoinSet::new();
    for (i, mut replica) in replicas.into_iter().enumerate() {
        tasks.spawn(async move {
            let handled = load_one(&mut replica, n).await?;
            anyhow::Ok((i, replica, handled))
        });
    }
    let mut done = Vec::new();
    while let Some(result) = tasks.join_next().await {
        done.push(result??);
    }
    done.sort_by_key(|(i, _, _)| *i);
    Ok(done
        .into_iter()
        .map(|(_, replica, handled)| (replica, handled))
        .collect())
}

/// A line of the table in the README.
struct Row {
    client: String,
    started: &'static str,
    replica: u32,
    handled: u64,
    counted: u64,
    unresolved: u64,
}

/// What was counted up to a scrape.
fn row(replica: &Replica, started: &'static str, handled: u64, scrape: &Scrape) -> Row {
    let ready = replica.client.ready();
    Row {
        client: format!("{} {}", ready.client, ready.version),
        started,
        replica: replica.number,
        handled,
        counted: replica.counted(scrape),
        unresolved: scrape.unresolved(&replica.pod.name),
    }
}

/// What the agent counted is what the handler did, and nothing was unresolved.
fn exact(row: &Row, scrape: &Scrape) -> Result<()> {
    ensure!(
        row.counted == row.handled && row.unresolved == 0,
        "replica {}: counted {} of {}, {} unresolved\n{scrape:?}",
        row.replica,
        row.counted,
        row.handled,
        row.unresolved
    );
    Ok(())
}

/// Writes the rows to `target/exactness/<name>.md`, from which the README's table is made.
fn write(name: &str, rows: &[Row]) -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/exactness");
    std::fs::create_dir_all(&directory)?;
    let mut text = String::new();
    for r in rows {
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            r.client,
            r.started,
            r.replica,
            r.handled,
            r.counted,
            r.counted.abs_diff(r.handled),
            r.unresolved
        )?;
    }
    print!("{text}");
    Ok(std::fs::write(directory.join(format!("{name}.md")), text)?)
}

/// The agent is there before the replicas: every call counts, for every client.
async fn from_the_start(kind: ClientKind) -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let done = load(replicas(kind).await?, calls()).await?;
    let scrape = agent.scrape().await?;
    let rows: Vec<_> = done
        .iter()
        .map(|(replica, handled)| row(replica, "before", *handled, &scrape))
        .collect();
    write(&format!("{kind}-before"), &rows)?;
    for r in &rows {
        ensure!(
            r.handled == calls(),
            "replica {}: {} handled",
            r.replica,
            r.handled
        );
        exact(r, &scrape)?;
    }
    for (replica, _) in &done {
        // And under no other verdict.
        let all = scrape.sum("pendguard_calls_total", &[("pod", &replica.pod.name)]);
        ensure!(all == Some(calls()), "{}: {all:?} in all", replica.pod.name);
    }
    ensure!(scrape.unparsed().is_empty(), "{:?}", scrape.unparsed());
    ensure!(scrape.events_lost() == Some(0), "{scrape:?}");
    agent.stop().await?;
    Ok(())
}

/// The agent comes while the connections are in use: from its start on every call counts where the path is sent as a
/// literal each time, and is `unresolved` where it is an index from before and nobody has learned which.
async fn in_the_middle(kind: ClientKind) -> Result<()> {
    let mut replicas = replicas(kind).await?;
    for replica in &mut replicas {
        let called = replica
            .client
            .call(Method::PendingFn, amount(200, 50))
            .await?;
        ensure!(called.ok == amount(200, 50), "{called:?}");
        replica.client.background_on(rate()).await?;
    }
    let agent = Agent::start(&[]).await?;
    agent
        .until("every connection is joined", |scrape| {
            scrape.connections("synced") >= Some(replicas_at_once().into())
        })
        .await?;
    for replica in &mut replicas {
        let background = replica.client.background_off().await?;
        ensure!(background.intact, "{background:?}");
    }
    let before = agent.scrape().await?;
    let done = load(replicas, calls()).await?;
    let scrape = agent.scrape().await?;
    let rows: Vec<_> = done
        .iter()
        .map(|(replica, handled)| {
            let mut row = row(replica, "after", *handled, &scrape);
            row.counted -= replica.counted(&before);
            row.unresolved -= before.unresolved(&replica.pod.name);
            row
        })
        .collect();
    write(&format!("{kind}-after"), &rows)?;
    let indexes = matches!(kind, ClientKind::GrpcGo | ClientKind::GrpcCore);
    for r in &rows {
        if indexes {
            // Beside IsReady, Read and Ack, as far as they were indexed before the agent came; until it is learned which index is which
            // (`late`).
            ensure!(
                r.counted <= r.handled && r.counted + r.unresolved >= r.handled,
                "replica {}: guessed {}, {} unresolved of {}",
                r.replica,
                r.counted,
                r.unresolved,
                r.handled
            );
        } else {
            exact(r, &scrape)?;
        }
    }
    agent.stop().await?;
    Ok(())
}

macro_rules! exact {
    ($($name:ident: $kind:ident, $when:ident;)*) => {$(
        #[tokio::test]
        async fn $name() -> Result<()> {
            $when(ClientKind::$kind).await
        }
    )*};
}

exact! {
    tonic_from_the_start: Tonic, from_the_start;
    grpc_go_from_the_start: GrpcGo, from_the_start;
    c_core_from_the_start: GrpcCore, from_the_start;
    node_from_the_start: GrpcJs, from_the_start;
    tonic_in_the_middle: Tonic, in_the_middle;
    grpc_go_in_the_middle: GrpcGo, in_the_middle;
    c_core_in_the_middle: GrpcCore, in_the_middle;
    node_in_the_middle: GrpcJs, in_the_middle;
}
