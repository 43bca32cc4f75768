//! The README's first command: three replicas of a MonoVertex whose source is built on Numaflow's SDK, each asked for its
//! pending count by a data plane's client, and Pendguard beside them, counting.
//!
//! First it audits: the agent's counts stand beside what the sources' handlers counted. Then it is told to enforce, through
//! its API, and the handlers of replicas 1 and 2 are asked for nothing more, while their messages go on. A difference is a
//! failure, and so is an error that a client sees of a call that was to be answered quietly.

#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};
use pendguard_tests::agent::{Agent, Scrape};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::peers::{ClientKind, SourceKind};
use pendguard_tests::protocol::Stats;
use pendguard_tests::replica::Replica;

const REPLICAS: u32 = 3;
/// Messages a second that each replica reads and acknowledges meanwhile.
const RATE: u64 = 200;
/// How often the table is drawn; without a terminal a line is printed every [`LINES`] times.
const DRAW: Duration = Duration::from_millis(500);
const LINES: u32 = 20;

/// Three replicas of a real Numaflow source, and Pendguard counting who asks them what is pending.
#[derive(Parser)]
struct Arguments {
    /// How long it audits, and then how long it enforces
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How often each replica asks, in milliseconds (Numaflow: every 3000 or 5000)
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// How a rejected call ends
    #[arg(long, value_enum, default_value_t = Answer::Quiet)]
    answer: Answer,
}

/// How a rejected call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Answer {
    /// With an error, which a data plane logs
    Unimplemented,
    /// As if there were no count, without an error (only the enforcer `rewrite` has that)
    Quiet,
}

// One thread: its mount namespace holds the bpffs.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match demo(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(arguments: &Arguments) -> Result<()> {
    println!("Starting Pendguard in audit mode (loading its BPF programs) …");
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &[])
        .await
        .context("the agent (it needs root)")?;
    println!(
        "Starting {REPLICAS} replicas of MonoVertex orders, with a source on Numaflow's SDK each …"
    );
    let mut replicas = Vec::new();
    for number in 0..REPLICAS {
        let (client, source) = (ClientKind::Tonic, SourceKind::Rust);
        let mut replica = Replica::start("orders", number, client, source).await?;
        replica.client.background_on(RATE).await?;
        replica
            .client
            .every(Duration::from_millis(arguments.every))
            .await?;
        replicas.push(replica);
    }
    println!(
        "Each reads and acknowledges {RATE} messages/s and asks PendingFn every {} ms, on one connection.\n",
        arguments.every
    );
    watch(arguments.seconds, &agent, &mut replicas).await?;
    audited(arguments, &agent, &mut replicas).await?;
    enforced(arguments, &agent, &mut replicas).await?;
    let mut intact = true;
    for replica in &mut replicas {
        let report = replica.client.background_off().await?;
        intact &= report.intact && report.errors.is_empty();
    }
    agent.stop().await?;
    ensure!(intact, "the replicas' messages were not read intact");
    println!(
        "Every message arrived intact, on the connections that were there from the beginning."
    );
    Ok(())
}

/// What was counted while nothing was rejected, beside what the handlers counted.
async fn audited(arguments: &Arguments, agent: &Agent, replicas: &mut [Replica]) -> Result<()> {
    for replica in replicas.iter_mut() {
        replica.client.every_off().await?;
    }
    let scrape = agent.scrape().await?;
    let mut agree = true;
    let mut table = new_table(&[
        "replica",
        "verdict",
        "messages read",
        "source's handler counted",
        "Pendguard counted",
        "difference",
    ]);
    let mut useless = 0;
    for replica in replicas.iter_mut() {
        let stats = replica.source.stats().await?;
        let counted = replica.counted(&scrape);
        agree &= stats.pending == counted;
        if replica.number != 0 {
            useless += counted;
        }
        table.add_row([
            replica.number.to_string(),
            replica.verdict().to_owned(),
            stats.acked.to_string(),
            stats.pending.to_string(),
            counted.to_string(),
            counted.abs_diff(stats.pending).to_string(),
        ]);
    }
    println!("{table}\n");
    println!(
        "{useless} calls of replicas other than 0 reached the source in {} s: enforcement would have spared it those.\n",
        arguments.seconds
    );
    ensure!(agree, "the agent's counts and the sources' differ");
    Ok(())
}

/// Switches to enforcement at run time, and shows what it changes.
async fn enforced(arguments: &Arguments, agent: &Agent, replicas: &mut [Replica]) -> Result<()> {
    let answer = match arguments.answer {
        Answer::Unimplemented => "unimplemented",
        Answer::Quiet => "quiet",
    };
    let command = ["mode", "enforce", "--answer", answer];
    println!("pendguard {}", command.join(" "));
    let output = agent.command(&command).await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let enforcer = agent.status().await?["enforcer"].to_string();
    let gate = enforcer.contains("gate");
    let others = u64::from(REPLICAS) - 1;
    if gate {
        agent
            .until("the gate stands before replicas 1 and 2", |scrape| {
                scrape.connections("gated") == Some(others)
            })
            .await?;
    }
    // The gate has no quiet answers.
    let quiet = arguments.answer == Answer::Quiet && !gate;
    let before = stats(replicas).await?;
    for replica in replicas.iter_mut() {
        replica
            .client
            .every(Duration::from_millis(arguments.every))
            .await?;
    }
    watch(arguments.seconds, agent, replicas).await?;
    let mut asked = Vec::new();
    for replica in replicas.iter_mut() {
        asked.push(replica.client.every_off().await?);
    }
    let after = stats(replicas).await?;
    let scrape = agent.scrape().await?;
    let mut table = new_table(&[
        "replica",
        "messages read",
        "asked",
        "reached the source's handler",
        "rejected in the kernel",
        "errors at the client",
    ]);
    let mut exact = true;
    for (i, replica) in replicas.iter().enumerate() {
        let reached = after[i].pending - before[i].pending;
        let read = after[i].acked - before[i].acked;
        let rejected = scrape.pending(&replica.pod.name, "rejected");
        let calls: u64 = asked[i].statuses().values().sum();
        let errors: u64 = asked[i].errors.values().sum();
        exact &= read > 0
            && if i == 0 {
                (reached, rejected, errors) == (calls, 0, 0)
            } else {
                (reached, rejected, errors) == (0, calls, if quiet { 0 } else { calls })
            };
        table.add_row([
            replica.number.to_string(),
            read.to_string(),
            calls.to_string(),
            reached.to_string(),
            rejected.to_string(),
            errors.to_string(),
        ]);
    }
    println!("{table}\n");
    ensure!(
        exact,
        "not every call ended as it should, or a replica stopped reading"
    );
    println!(
        "Replicas 1 and 2 reach their source no more{}, and go on reading. Replica 0 is asked as before.",
        if quiet { ", see no error" } else { "" }
    );
    if arguments.answer == Answer::Quiet && !quiet {
        println!(
            "Their calls ended with UNIMPLEMENTED all the same: the enforcer of this machine is the gate, and quiet answers need `rewrite` \
             (`pendguard doctor` says what that takes)."
        );
    }
    Ok(())
}

async fn stats(replicas: &mut [Replica]) -> Result<Vec<Stats>> {
    let mut all = Vec::new();
    for replica in replicas {
        all.push(replica.source.stats().await?);
    }
    Ok(all)
}

/// Shows the table until the time is over.
async fn watch(seconds: u64, agent: &Agent, replicas: &mut [Replica]) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let bar = if terminal {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    bar.set_style(ProgressStyle::with_template("{msg}")?);
    let length = Duration::from_secs(seconds);
    let start = Instant::now();
    let mut tick = tokio::time::interval(DRAW);
    let mut draws = 0;
    while start.elapsed() < length {
        tick.tick().await;
        let scrape = agent.scrape().await?;
        let mut rows = Vec::new();
        for replica in replicas.iter_mut() {
            let stats = replica.source.stats().await?;
            rows.push(row(replica, &scrape, &stats));
        }
        let left = length.saturating_sub(start.elapsed()).as_secs();
        if terminal {
            let mut table = new_table(&[
                "replica",
                "pod",
                "verdict",
                "Pending calls",
                "messages read",
                "connections",
            ]);
            table.add_rows(rows);
            bar.set_message(format!("{table}\n{left} s left"));
        } else if draws % LINES == 0 {
            let line: Vec<_> = rows
                .iter()
                .map(|row| format!("replica {}: {} {}", row[0], row[3], row[2]))
                .collect();
            println!("{left:>4} s left: {}", line.join(", "));
        }
        draws += 1;
    }
    bar.finish_and_clear();
    Ok(())
}

fn row(replica: &Replica, scrape: &Scrape, stats: &Stats) -> [String; 6] {
    let connections = scrape.connections("synced");
    [
        replica.number.to_string(),
        replica.pod.name.clone(),
        replica.verdict().to_owned(),
        stats.pending.to_string(),
        stats.acked.to_string(),
        format!("{} on the node", connections.unwrap_or(0)),
    ]
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(header);
    for (i, column) in table.column_iter_mut().enumerate() {
        if i >= 2 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
