//! The gate joins connections under load, many thousand times, and every byte arrives: as it was sent, or a whole path as it was
//! meant to be rejected.

use std::time::Duration;

use agent_common::abi::{Failure, MAX_GATED};
use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Pod};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::scale::{Scale, scale};
use pendguard_tests::stress::pair::Pair;
use pendguard_tests::stress::{reader, sender};
use tokio::task::JoinSet;

/// How many connections each pod has at a time: one, as the data plane has, and some more, which must wait for each other.
const TOGETHER: [u64; 7] = [1, 1, 1, 1, 1, 1, 2];
/// How long it may take: a minute and a half for a thousand.
const LIMIT: Duration = Duration::from_secs(3600);

/// How often the gate must have joined: a part of what `cargo xtask test --soak` asks for by PENDGUARD_JOINS, which takes long.
fn joins() -> Result<u64> {
    if let Some(asked) = std::env::var_os("PENDGUARD_JOINS") {
        let asked = asked.to_str().and_then(|text| text.parse().ok());
        return asked.context("PENDGUARD_JOINS is no number");
    }
    Ok(match scale() {
        // More connections than may be gated at a time: those that have been closed must make room.
        Scale::Full => u64::from(MAX_GATED) + 350,
        Scale::Fast => 300,
        Scale::Vm => 100,
    })
}

/// One pod's part.
async fn pod(
    pair: Pair,
    number: u64,
    together: u64,
    count: u64,
) -> Result<(Pod, sender::Report, reader::Report)> {
    let pod = pair.pod.clone();
    let sent = pair.send(together, count, number << 32, LIMIT).await?;
    let read = pair.read().await?;
    ensure!(
        read.broken == 0 && read.errors.is_empty(),
        "{}: {read:?}",
        pod.name
    );
    ensure!(
        (read.connections, read.bytes) == (sent.connections, sent.bytes),
        "{}: {sent:?} {read:?}",
        pod.name
    );
    ensure!(
        read.admitted + read.rejected == sent.calls,
        "{}: {sent:?} {read:?}",
        pod.name
    );
    Ok((pod, sent, read))
}

#[tokio::test]
async fn every_byte_is_intact() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &["--mode", "enforce"]).await?;
    let joins = joins()?;
    let count = (joins + joins / 20).div_ceil(TOGETHER.iter().sum());
    let mut pods = JoinSet::new();
    for (number, together) in (1..).zip(TOGETHER) {
        let pair = Pair::start(Pod::mono_vertex("joins", "1"), false).await?;
        pods.spawn(pod(pair, number, together, count));
    }
    let mut done = Vec::new();
    while let Some(result) = pods.join_next().await {
        done.push(result??);
    }
    let scrape = agent.scrape().await?;
    let mut sum = sender::Report::default();
    let (mut joined, mut rejected, mut late) = (0, 0, 0);
    for (pod, sent, read) in done {
        // What the programs counted is what arrived.
        let counted = [
            scrape.pending(&pod.name, "admitted"),
            scrape.pending(&pod.name, "rejected"),
            scrape.unresolved(&pod.name),
        ];
        // Of a send in more than one buffer, of which the source read the first one before the gate could see it, the calls may be
        // counted by neither the gate nor the tap.
        let [admitted, rejected_here, unresolved] = counted;
        ensure!(
            rejected_here == read.rejected
                && unresolved == 0
                && admitted <= read.admitted
                && read.admitted - admitted <= 2 + sent.calls / 500,
            "{}: {counted:?}: {read:?}",
            pod.name
        );
        joined += read.joined;
        rejected += read.rejected;
        late += read.late;
        sum.add(sent);
    }
    let failures = |reason: Failure| {
        let labels = [("reason", reason.name())];
        scrape
            .sum("pendguard_enforcement_failures_total", &labels)
            .unwrap_or(0)
    };
    let why: Vec<_> = Failure::ALL
        .into_iter()
        .map(|reason| (reason.name(), failures(reason)))
        .filter(|(_, calls)| *calls > 0)
        .collect();
    let lost = failures(Failure::Lost);
    sum.waited.sort_unstable();
    let waited = |share: usize| sum.waited.get(sum.waited.len() * share / 100).copied();
    println!(
        "{joined} joins of {} connections; {} MiB, every byte intact; {} calls, {rejected} rejected, \
         {late} admitted after one was rejected (all admitted ones by reason: {why:?}); \
         until the first rejected call, under load: median {:?} µs, p99 {:?} µs",
        sum.connections,
        sum.bytes >> 20,
        sum.calls,
        waited(50),
        waited(99)
    );
    ensure!(
        scrape.unparsed_sends().is_empty(),
        "{:?}",
        scrape.unparsed_sends()
    );
    ensure!(scrape.events_lost() == Some(0), "{scrape:?}");
    // A reader that is faster than the gate takes a send that the gate never sees: rare, and counted.
    ensure!(late <= lost, "{late} were admitted late, {lost} counted");
    ensure!(late * 50 <= rejected, "{late} of {rejected}");
    ensure!(joined >= joins, "{joined} of {joins}");
    agent.stop().await?;
    Ok(())
}
