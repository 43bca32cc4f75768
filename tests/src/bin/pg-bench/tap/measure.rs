//! Costs by the kernel's accounting, and system calls' times with and without the agent.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use pendguard_tests::accounting::Accounting;
use pendguard_tests::agent::{Agent, Pod};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::kinds::Kind;
use crate::progress::Progress;
use crate::stats::Spread;
use pendguard_tests::floor::EmptyCalls;

/// Rounds whose ratios are compared.
pub const ROUNDS: usize = 5;

/// Whose costs are measured by the kernel's accounting, and whether the process is watched.
const COSTS: [(Kind, bool); 12] = [
    (Kind::Pending, true),
    (Kind::Read, true),
    (Kind::Bulk, true),
    (Kind::Other, true),
    (Kind::Pending, false),
    (Kind::Refused, false),
    (Kind::Answer, true),
    (Kind::Message, true),
    (Kind::BulkMessage, true),
    (Kind::OtherReceived, true),
    (Kind::Message, false),
    (Kind::Zero, false),
];

/// Whose time is compared with and without the agent, and whether the process is one that it watches.
const TAXED: [(Kind, bool); 5] = [
    (Kind::Null, false),
    (Kind::Zero, false),
    (Kind::Unhooked, false),
    (Kind::Message, true),
    (Kind::BulkMessage, true),
];

/// The tracepoints of system calls that an agent without an enforcer hangs programs on.
const TRACEPOINTS: [&str; 12] = [
    "sys_exit_write",
    "sys_exit_writev",
    "sys_exit_sendto",
    "sys_exit_sendmsg",
    "sys_exit_read",
    "sys_exit_readv",
    "sys_exit_recvfrom",
    "sys_exit_recvmsg",
    "sys_enter_close",
    "sys_enter_close_range",
    "sys_enter_dup2",
    "sys_enter_dup3",
];

/// What is there while system calls are timed.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    Agent(&'static [&'static str]),
    /// Programs that do nothing, on [`TRACEPOINTS`].
    Empty,
}

/// What is compared in a round.
const COMPARED: [(&str, Beside); 4] = [
    ("no agent", Beside::Nothing),
    ("an agent", Beside::Agent(&[])),
    ("--no-answers", Beside::Agent(&["--no-answers"])),
    ("empty programs", Beside::Empty),
];

/// The mean cost of a kind of system call.
#[derive(Serialize, Deserialize)]
pub struct Cost {
    pub kind: Kind,
    pub watched: bool,
    pub calls: u64,
    pub ns_per_call: f64,
}

/// What a system call takes with the agent beside it, as ratios to without.
#[derive(Serialize, Deserialize)]
pub struct Tax {
    pub kind: Kind,
    pub watched: bool,
    pub with: Spread,
    /// With the agent, which leaves answers alone.
    pub no_answers: Spread,
    /// With programs that do nothing in the agent's place.
    pub empty: Spread,
    /// Nanoseconds that the agent takes above those.
    pub above_empty_ns: Spread,
    pub ns_bare: f64,
}

#[derive(Serialize, Deserialize)]
pub struct Report {
    pub costs: Vec<Cost>,
    pub taxes: Vec<Tax>,
}

/// How many steps [`all`] has.
pub const STEPS: u64 = (COSTS.len() + COMPARED.len() * TAXED.len() * ROUNDS) as u64;

/// Measures all of it; `count` system calls of the cheapest kinds.
pub async fn all(count: u32, bar: &Progress) -> Result<Report> {
    Ok(Report {
        costs: costs(count, bar).await?,
        taxes: taxes(count, bar).await?,
    })
}

async fn costs(count: u32, bar: &Progress) -> Result<Vec<Cost>> {
    let _accounting = Accounting::on()?;
    let agent = Agent::start(&[]).await?;
    let mut costs = Vec::new();
    for (kind, is_watched) in COSTS {
        bar.begin(format!("{kind:?}"));
        costs.push(cost(&agent, kind, is_watched, kind.share(count)).await?);
        bar.done();
    }
    agent.stop().await?;
    Ok(costs)
}

async fn taxes(count: u32, bar: &Progress) -> Result<Vec<Tax>> {
    let mut rounds: Vec<Vec<[f64; COMPARED.len()]>> = TAXED.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        let mut round = [[0.0; COMPARED.len()]; TAXED.len()];
        for (i, (name, beside)) in COMPARED.into_iter().enumerate() {
            let (mut agent, mut empty) = (None, None);
            match beside {
                Beside::Nothing => {}
                Beside::Agent(arguments) => agent = Some(Agent::start(arguments).await?),
                Beside::Empty => empty = Some(EmptyCalls::on(&TRACEPOINTS)?),
            }
            for ((kind, is_watched), times) in TAXED.into_iter().zip(&mut round) {
                bar.begin(format!("{kind:?}, {name}"));
                times[i] = elapsed(agent.as_ref(), kind, is_watched, 4 * kind.share(count)).await?;
                bar.done();
            }
            if let Some(agent) = agent {
                agent.stop().await?;
            }
            drop(empty);
        }
        for (all, round) in rounds.iter_mut().zip(round) {
            all.push(round);
        }
    }
    TAXED
        .into_iter()
        .zip(rounds)
        .map(|((kind, watched), rounds)| tax(kind, watched, &rounds).context("no round"))
        .collect()
}

fn tax(kind: Kind, watched: bool, rounds: &[[f64; COMPARED.len()]]) -> Option<Tax> {
    let ratio = |i: usize| Spread::of(rounds.iter().map(|times| times[i] / times[0]).collect());
    Some(Tax {
        kind,
        watched,
        with: ratio(1)?,
        no_answers: ratio(2)?,
        empty: ratio(3)?,
        above_empty_ns: Spread::of(rounds.iter().map(|times| times[1] - times[3]).collect())?,
        ns_bare: Spread::of(rounds.iter().map(|times| times[0]).collect())?.median,
    })
}

/// Runs and nanoseconds of the programs whose names begin with `prefix`.
async fn account(agent: &Agent, prefix: &str) -> Result<(u64, u64)> {
    let status = agent.status().await?;
    let programs = status["programs"].as_array().context("no programs")?;
    let of_kind = programs.iter().filter(|program| {
        program["name"]
            .as_str()
            .is_some_and(|n| n.starts_with(prefix))
    });
    Ok(of_kind.fold((0, 0), |(runs, ns), program| {
        let number = |name: &str| program[name].as_u64().unwrap_or(0);
        (runs + number("runs"), ns + number("run_nanoseconds"))
    }))
}

/// Starts a process that makes the system calls, lets `ready` wait for whatever it wants, lets it go, and returns the nanoseconds it took.
async fn make(
    kind: Kind,
    count: u32,
    pod: Option<&Pod>,
    ready: impl AsyncFnOnce(u32) -> Result<()>,
    done: impl AsyncFnOnce() -> Result<()>,
) -> Result<u64> {
    let name = kind.to_possible_value().context("kind")?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["make", name.get_name(), &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    if let Some(pod) = pod {
        command.envs(pod.numa());
    }
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let pid = lines.next_line().await?.context("no pid")?.parse()?;
    ready(pid).await?;
    stdin.write_all(b"go\n").await?;
    let ns = lines.next_line().await?.context("no time")?.parse()?;
    done().await?;
    ensure!(child.wait().await?.success(), "{kind:?} failed");
    Ok(ns)
}

fn pod(is_watched: bool) -> Option<Pod> {
    is_watched.then(|| Pod::mono_vertex("bench", "1"))
}

async fn cost(agent: &Agent, kind: Kind, is_watched: bool, count: u32) -> Result<Cost> {
    let before = std::cell::Cell::new((0, 0));
    let after = std::cell::Cell::new((0, 0));
    make(
        kind,
        count,
        pod(is_watched).as_ref(),
        async |pid| {
            if is_watched {
                agent.until_watches(pid).await?;
            }
            before.set(account(agent, kind.programs()).await?);
            Ok(())
        },
        async || {
            after.set(account(agent, kind.programs()).await?);
            Ok(())
        },
    )
    .await?;
    let calls = after.get().0 - before.get().0;
    let ns = after.get().1 - before.get().1;
    ensure!(
        calls >= u64::from(count),
        "{kind:?}: {calls} system calls accounted of {count}"
    );
    Ok(Cost {
        kind,
        watched: is_watched,
        calls,
        ns_per_call: ns as f64 / calls as f64,
    })
}

async fn elapsed(agent: Option<&Agent>, kind: Kind, is_watched: bool, count: u32) -> Result<f64> {
    let ready = async |pid| match agent {
        Some(agent) if is_watched => agent.until_watches(pid).await,
        _ => Ok(()),
    };
    let ns = make(
        kind,
        count,
        pod(is_watched).as_ref(),
        ready,
        async || Ok(()),
    )
    .await?;
    Ok(ns as f64 / f64::from(count))
}
