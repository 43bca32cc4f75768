//! Costs by the kernel's accounting, and system calls' times with and without the agent.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use indicatif::{ProgressBar, ProgressStyle};
use pendguard_tests::accounting::Accounting;
use pendguard_tests::agent::{Agent, Pod};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::kinds::Kind;

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

/// The mean cost of a kind of system call.
#[derive(Serialize)]
pub struct Cost {
    pub kind: Kind,
    pub watched: bool,
    pub calls: u64,
    pub ns_per_call: f64,
}

/// Ratios of one run's rounds.
#[derive(Serialize)]
pub struct Ratio {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// What a system call takes with the agent, as ratios to without.
#[derive(Serialize)]
pub struct Tax {
    pub kind: Kind,
    pub watched: bool,
    pub with: Ratio,
    /// With the agent, which leaves answers alone.
    pub no_answers: Ratio,
    pub ns_bare: f64,
}

#[derive(Serialize)]
pub struct Report {
    pub kernel: String,
    pub costs: Vec<Cost>,
    pub taxes: Vec<Tax>,
}

/// Measures all of it; `count` system calls of the cheapest kinds.
pub async fn all(count: u32) -> Result<Report> {
    let bar = ProgressBar::new((COSTS.len() + 3 * TAXED.len() * ROUNDS) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    let costs = costs(count, &bar).await?;
    let taxes = taxes(count, &bar).await?;
    bar.finish_and_clear();
    Ok(Report {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        costs,
        taxes,
    })
}

async fn costs(count: u32, bar: &ProgressBar) -> Result<Vec<Cost>> {
    let _accounting = Accounting::on()?;
    let agent = Agent::start(&[]).await?;
    let mut costs = Vec::new();
    for (kind, is_watched) in COSTS {
        bar.set_message(format!("{kind:?}"));
        costs.push(cost(&agent, kind, is_watched, kind.share(count)).await?);
        bar.inc(1);
    }
    agent.stop().await?;
    Ok(costs)
}

async fn taxes(count: u32, bar: &ProgressBar) -> Result<Vec<Tax>> {
    /// The agents of a round.
    const AGENTS: [(&str, Option<&[&str]>); 3] = [
        ("no agent", None),
        ("an agent", Some(&[])),
        ("--no-answers", Some(&["--no-answers"])),
    ];
    let mut rounds: Vec<Vec<[f64; 3]>> = TAXED.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        let mut round = [[0.0; 3]; TAXED.len()];
        for (i, (name, arguments)) in AGENTS.into_iter().enumerate() {
            let agent = match arguments {
                Some(arguments) => Some(Agent::start(arguments).await?),
                None => None,
            };
            for ((kind, is_watched), times) in TAXED.into_iter().zip(&mut round) {
                bar.set_message(format!("{kind:?}, {name}"));
                times[i] = elapsed(agent.as_ref(), kind, is_watched, 4 * kind.share(count)).await?;
                bar.inc(1);
            }
            if let Some(agent) = agent {
                agent.stop().await?;
            }
        }
        for (all, round) in rounds.iter_mut().zip(round) {
            all.push(round);
        }
    }
    Ok(TAXED
        .into_iter()
        .zip(rounds)
        .map(|((kind, watched), rounds)| tax(kind, watched, &rounds))
        .collect())
}

fn tax(kind: Kind, watched: bool, rounds: &[[f64; 3]]) -> Tax {
    let ratio = |i: usize| {
        let mut ratios: Vec<_> = rounds.iter().map(|times| times[i] / times[0]).collect();
        ratios.sort_by(f64::total_cmp);
        Ratio {
            median: ratios[ratios.len() / 2],
            least: ratios[0],
            most: ratios[ratios.len() - 1],
        }
    };
    let mut bare: Vec<_> = rounds.iter().map(|times| times[0]).collect();
    bare.sort_by(f64::total_cmp);
    Tax {
        kind,
        watched,
        with: ratio(1),
        no_answers: ratio(2),
        ns_bare: bare[bare.len() / 2],
    }
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
