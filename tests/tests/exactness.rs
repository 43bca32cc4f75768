//! Exact: what the agent counts is what the source's handler counted, for every gRPC stack, with load beside it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use pendguard_tests::agent::{Agent, Pod, Scrape};
use pendguard_tests::peers::{Client, ClientKind, ClientOptions, Source, SourceOptions};
use pendguard_tests::protocol::Method;
use pendguard_tests::scale::{Scale, amount, patience, scale};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Messages a second that each replica reads and acknowledges meanwhile.
fn rate() -> u64 {
    amount(1000, 100)
}

const REPLICAS: u32 = 3;

/// Calls of each replica.
fn calls() -> u64 {
    match scale() {
        Scale::Full => 10_000,
        Scale::Fast => 500,
        Scale::Vm => 200,
    }
}

/// A replica: a pod with a source on Numaflow's SDK and a client in the data plane's place.
struct Replica {
    pod: Pod,
    verdict: &'static str,
    source: Source,
    client: Client,
    _directory: TempDir,
}

impl Replica {
    async fn start(kind: ClientKind, number: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let pod = Pod::mono_vertex(&format!("exact-{kind}"), &number.to_string());
        let mut source = SourceOptions::new(directory.path().join("source.sock"));
        for (name, value) in pod.udsource() {
            source = source.env(name, value);
        }
        let source = Source::start(&source).await?;
        let mut options = ClientOptions {
            concurrency: Some(16),
            limit: patience(Duration::from_secs(180)),
            ..ClientOptions::default()
        };
        for (name, value) in pod.numa() {
            options = options.env(name, value);
        }
        let client = Client::start(kind, &source.unix(), &options).await?;
        Ok(Self {
            pod,
            verdict: if number == 0 {
                "admitted"
            } else {
                "would_reject"
            },
            source,
            client,
            _directory: directory,
        })
    }

    /// `n` calls of PendingFn, 16 at a time, while messages are read and acknowledged and IsReady is called. Returns
    /// what the handler counted.
    async fn load(&mut self, n: u64) -> Result<u64> {
        let before = self.source.stats().await?.pending;
        self.client.background_on(rate()).await?;
        let called = self.client.call(Method::PendingFn, n).await?;
        let ready = self.client.call(Method::IsReady, n / 20).await?;
        let background = self.client.background_off().await?;
        ensure!(called.ok == n, "{}: {called:?}", self.pod.name);
        ensure!(ready.ok == n / 20, "{}: {ready:?}", self.pod.name);
        ensure!(
            background.intact && background.errors.is_empty() && background.messages > 0,
            "{}: {background:?}",
            self.pod.name
        );
        Ok(self.source.stats().await?.pending - before)
    }
}

async fn replicas(kind: ClientKind) -> Result<Vec<Replica>> {
    let mut replicas = Vec::new();
    for number in 0..REPLICAS {
        replicas.push(Replica::start(kind, number).await?);
    }
    Ok(replicas)
}

/// All replicas under load at once; returns them with what their handlers counted.
async fn load(replicas: Vec<Replica>, n: u64) -> Result<Vec<(Replica, u64)>> {
    let mut tasks = JoinSet::new();
    for (i, mut replica) in replicas.into_iter().enumerate() {
        tasks.spawn(async move {
            let handled = replica.load(n).await?;
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
    replica: usize,
    handled: u64,
    counted: u64,
    unresolved: u64,
}

fn row(
    client: &Client,
    started: &'static str,
    replica: usize,
    handled: u64,
    scrape: &Scrape,
    pod: &Pod,
    verdict: &str,
) -> Row {
    let ready = client.ready();
    Row {
        client: format!("{} {}", ready.client, ready.version),
        started,
        replica,
        handled,
        counted: scrape.pending(&pod.name, verdict),
        unresolved: scrape.unresolved(&pod.name),
    }
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
        .enumerate()
        .map(|(i, (r, handled))| row(&r.client, "before", i, *handled, &scrape, &r.pod, r.verdict))
        .collect();
    write(&format!("{kind}-before"), &rows)?;
    for r in &rows {
        ensure!(
            r.handled == calls(),
            "replica {}: {} handled",
            r.replica,
            r.handled
        );
        ensure!(
            r.counted == r.handled && r.unresolved == 0,
            "replica {}: counted {} of {}, {} unresolved\n{scrape:?}",
            r.replica,
            r.counted,
            r.handled,
            r.unresolved
        );
    }
    for (replica, _) in &done {
        // And under no other verdict.
        let all = scrape.sum("pendguard_calls_total", &[("pod", &replica.pod.name)]);
        ensure!(all == Some(calls()), "{}: {all:?} in all", replica.pod.name);
    }
    ensure!(scrape.unparsed().is_empty(), "{:?}", scrape.unparsed());
    ensure!(
        scrape.sum("pendguard_events_lost_total", &[]) == Some(0),
        "{scrape:?}"
    );
    agent.stop().await?;
    Ok(())
}

/// The agent comes while the connections are in use: from its start on every call counts where the path is sent as a
/// literal each time, and is `unresolved` where it is an index from before.
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
            scrape.sum("pendguard_connections", &[("state", "synced")]) >= Some(REPLICAS.into())
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
        .enumerate()
        .map(|(i, (r, handled))| {
            let mut row = row(&r.client, "after", i, *handled, &scrape, &r.pod, r.verdict);
            row.counted -= before.pending(&r.pod.name, r.verdict);
            row.unresolved -= before.unresolved(&r.pod.name);
            row
        })
        .collect();
    write(&format!("{kind}-after"), &rows)?;
    let indexes = matches!(kind, ClientKind::GrpcGo | ClientKind::GrpcCore);
    for r in &rows {
        if indexes {
            // All of PendingFn, and IsReady, Read and Ack as far as they were indexed before the agent came.
            ensure!(
                r.counted == 0 && r.unresolved >= r.handled,
                "replica {}: guessed {}, {} unresolved of {}",
                r.replica,
                r.counted,
                r.unresolved,
                r.handled
            );
        } else {
            ensure!(
                r.counted == r.handled && r.unresolved == 0,
                "replica {}: counted {} of {}, {} unresolved\n{scrape:?}",
                r.replica,
                r.counted,
                r.handled,
                r.unresolved
            );
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
