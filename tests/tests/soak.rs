//! Enforcement for a long time, over an agent that is killed again and again. A minute as a part of the tests;
//! `cargo xtask test --soak` takes half an hour, or PENDGUARD_SOAK_MINUTES.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Scrape};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::enforcing::{RATE, counts, intact, rejections, until_rejected};
use pendguard_tests::peers::{ClientKind, SourceKind};
use pendguard_tests::protocol::Method;
use pendguard_tests::replica::Replica;
use pendguard_tests::scale::{Scale, scale};
use tokio::time::{Instant, sleep_until};

/// Between two of the data plane's PendingFn calls here; it asks every few seconds.
const EVERY: Duration = Duration::from_millis(5);
/// Calls at once, between two kills.
const BURST: u64 = 200;
/// How often it says how far it is.
const PROGRESS: Duration = Duration::from_secs(60);

/// How long, and how long each agent lives.
fn plan() -> Result<(Duration, Duration)> {
    if let Some(minutes) = std::env::var_os("PENDGUARD_SOAK_MINUTES") {
        let minutes: u64 = minutes
            .to_str()
            .and_then(|text| text.parse().ok())
            .context("PENDGUARD_SOAK_MINUTES is no number")?;
        return Ok((Duration::from_secs(60 * minutes), Duration::from_secs(20)));
    }
    let seconds = match scale() {
        Scale::Full => 60,
        Scale::Fast | Scale::Vm => 20,
    };
    Ok((Duration::from_secs(seconds), Duration::from_secs(8)))
}

/// Calls that the gate never saw, because the source was faster.
fn lost(scrape: &Scrape) -> u64 {
    let labels = [("reason", "lost")];
    scrape
        .sum("pendguard_enforcement_failures_total", &labels)
        .unwrap_or(0)
}

struct Soaked {
    replica: Replica,
    /// Calls that must be admitted, if it is replica 0, or rejected.
    called: u64,
    wrong: u64,
}

impl Soaked {
    fn add(&mut self, ok: u64, rejected: u64, all: u64) -> Result<()> {
        let (right, wrong) = if self.replica.number == 0 {
            (ok, rejected)
        } else {
            (rejected, ok)
        };
        self.called += all;
        self.wrong += wrong;
        ensure!(
            right + wrong == all,
            "{}: another answer",
            self.replica.pod.name
        );
        Ok(())
    }

    async fn burst(&mut self) -> Result<()> {
        let called = self.replica.client.call(Method::PendingFn, BURST).await?;
        self.add(called.ok, rejections(&called.errors), BURST)
    }
}

#[tokio::test]
async fn agents_come_and_go() -> Result<()> {
    let (length, life) = plan()?;
    let bpffs = BpfFs::mount()?;
    let arguments = ["--mode", "enforce"];
    let mut agent = Agent::start_at(&bpffs.pins(), &arguments).await?;
    let mut soaked = Vec::new();
    for (number, client) in [
        (0, ClientKind::Tonic),
        (1, ClientKind::Tonic),
        (2, ClientKind::GrpcGo),
    ] {
        let mut replica = Replica::start("soak", number, client, SourceKind::Rust).await?;
        if number > 0 {
            until_rejected(&mut replica).await?;
        }
        replica.client.background_on(RATE).await?;
        replica.client.every(EVERY).await?;
        soaked.push(Soaked {
            replica,
            called: 0,
            wrong: 0,
        });
    }
    // What was called before the gate stood, and the call that showed that it does.
    let before = agent.scrape().await?;
    let mut admitted = Vec::new();
    for one in &mut soaked {
        admitted.push(one.replica.source.stats().await?.pending);
    }
    let begun = Instant::now();
    let (mut kills, mut told) = (0, begun);
    while begun.elapsed() < length {
        let end = Instant::now() + life;
        for one in &mut soaked {
            one.burst().await?;
        }
        sleep_until(end).await;
        agent.kill().await?;
        kills += 1;
        for one in &mut soaked {
            one.burst().await?;
        }
        agent = Agent::start_at(&bpffs.pins(), &arguments).await?;
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            let calls: u64 = soaked.iter().map(|one| one.called).sum();
            println!(
                "{} of {} s: {kills} kills, {calls} calls in bursts",
                begun.elapsed().as_secs(),
                length.as_secs()
            );
        }
    }
    let (mut messages, mut bytes, mut calls, mut wrong) = (0, 0, 0, 0);
    for one in &mut soaked {
        let every = one.replica.client.every_off().await?;
        one.add(every.ok, rejections(&every.errors), every.count)?;
        let background = intact(&mut one.replica).await?;
        messages += background.messages;
        bytes += background.bytes;
        calls += one.called;
        wrong += one.wrong;
    }
    let scrape = agent.scrape().await?;
    println!(
        "{} s: {kills} kills, {calls} calls, {wrong} wrong verdicts; {messages} messages read and acknowledged, {} MiB, intact",
        begun.elapsed().as_secs(),
        bytes >> 20
    );
    for (one, admitted) in soaked.iter_mut().zip(admitted) {
        let handled = one.replica.source.stats().await?.pending;
        let found = counts(&one.replica, &scrape);
        let name = &one.replica.pod.name;
        ensure!(
            found[0] == handled && found[2] == 0,
            "{name}: {found:?}, {handled} handled"
        );
        if one.replica.number == 0 {
            ensure!(found[1] == 0 && one.wrong == 0, "{name}: {found:?}");
        } else {
            // One more: it showed that the gate stands.
            ensure!(
                found[1] == one.called - one.wrong + 1,
                "{name}: {found:?} of {}",
                one.called
            );
            ensure!(handled - admitted <= one.wrong, "{name}: {handled}");
        }
    }
    ensure!(
        wrong <= lost(&scrape) - lost(&before),
        "{wrong} wrong verdicts, {} counted",
        lost(&scrape) - lost(&before)
    );
    ensure!(scrape.unparsed().is_empty(), "{:?}", scrape.unparsed());
    agent.stop().await?;
    Ok(())
}
