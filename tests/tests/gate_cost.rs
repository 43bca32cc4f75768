//! What the gate takes, side by side in one run. The figures are printed and left in `target/bench/gate-*.json`; what is asserted are
//! shares and ratios.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Pod};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::enforcing::rejections;
use pendguard_tests::enforcing::set_mode;
use pendguard_tests::peers::{
    Client, ClientKind, ClientOptions, Source, SourceOptions, target_directory,
};
use pendguard_tests::protocol::Method;
use pendguard_tests::replica::client_options;
use pendguard_tests::scale::{Scale, scale};
use pendguard_tests::stress::pair::Pair;
use pendguard_tests::wait::{scaled, wait_for};
use serde_json::{Value, json};

/// How long all connections may take.
const LIMIT: Duration = Duration::from_secs(300);
/// A call sent so long after the preface is to be rejected, of nearly every connection. (The aim is 5 ms at the median: a figure,
/// which is no test's to hold a busy machine to.)
const STANDS: Duration = Duration::from_millis(50);
/// What a rejected call may take beside an admitted one: no more, but for what two measures of the same differ by.
const RATIO: f64 = 1.1;

fn report(name: &str, figures: &Value) -> Result<()> {
    println!("{name}: {figures}");
    if scale() == Scale::Vm {
        return Ok(());
    }
    let directory = target_directory().join("bench");
    std::fs::create_dir_all(&directory)?;
    let text = serde_json::to_string_pretty(figures)?;
    Ok(std::fs::write(
        directory.join(format!("{name}.json")),
        text,
    )?)
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

/// From the preface to the first call that is rejected, with a call every 200 µs or so.
#[tokio::test]
async fn until_the_gate_stands() -> Result<()> {
    let count = match scale() {
        Scale::Full => 1000,
        Scale::Fast => 200,
        Scale::Vm => 30,
    };
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &["--mode", "enforce"]).await?;
    let pair = Pair::start(Pod::mono_vertex("latency", "1"), true).await?;
    let mut sent = pair.send(1, count, 0, LIMIT).await?;
    let read = pair.read().await?;
    ensure!(read.broken == 0 && read.late == 0, "{read:?}");
    sent.waited.sort_unstable();
    let at = |share: usize| sent.waited.get(sent.waited.len() * share / 100).copied();
    let limit = scaled(STANDS).as_micros() as u64;
    let early = sent
        .waited
        .iter()
        .filter(|waited| **waited <= limit)
        .count() as u64;
    let figures = json!({
        "connections": count,
        "joined": sent.joined,
        "p50_us": at(50),
        "p90_us": at(90),
        "p99_us": at(99),
        "aim_p50_us": 5000,
    });
    report("gate-join", &figures)?;
    ensure!(
        early * 10 >= count * 9,
        "{early} of {count} within {STANDS:?}"
    );
    agent.stop().await?;
    Ok(())
}

/// A call that is rejected takes no longer than one that is admitted, to a handler that does nothing, on the same connection behind
/// the gate: calls of both kinds by turns.
#[tokio::test]
async fn a_rejected_call_takes_no_longer() -> Result<()> {
    let (rounds, calls) = match scale() {
        Scale::Full => (40, 500),
        Scale::Fast => (20, 300),
        Scale::Vm => (5, 50),
    };
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &["--mode", "enforce"]).await?;
    let pod = Pod::mono_vertex("round-trip", "1");
    let directory = tempfile::tempdir()?;
    let mut source = SourceOptions::new(directory.path().join("source.sock"));
    for (name, value) in pod.udsource() {
        source = source.env(name, value);
    }
    let source = Source::start(&source).await?;
    let options = ClientOptions {
        concurrency: Some(1),
        ..client_options(&pod)
    };
    let mut client = Client::start(ClientKind::Tonic, &source.unix(), &options).await?;
    wait_for("the gate stands", LIMIT, async || {
        let called = client.call(Method::PendingFn, 1).await?;
        Ok((rejections(&called.errors) == 1).then_some(()))
    })
    .await?;
    let (mut admitted, mut rejected, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        set_mode(&agent, "audit").await?;
        let one = client.call(Method::PendingFn, calls).await?;
        ensure!(one.ok == calls, "{one:?}");
        set_mode(&agent, "enforce").await?;
        let other = client.call(Method::PendingFn, calls).await?;
        ensure!(rejections(&other.errors) == calls, "{other:?}");
        admitted.push(one.seconds / calls as f64 * 1e6);
        rejected.push(other.seconds / calls as f64 * 1e6);
        ratios.push(other.seconds / one.seconds);
    }
    let ratio = median(ratios).context("no round")?;
    let figures = json!({
        "calls_of_each": rounds * calls,
        "admitted_us": median(admitted),
        "rejected_us": median(rejected),
        "ratio": ratio,
    });
    report("gate-round-trip", &figures)?;
    ensure!(ratio <= RATIO, "{ratio}");
    agent.stop().await?;
    Ok(())
}
