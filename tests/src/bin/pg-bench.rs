//! What the tap costs, by the kernel's own accounting (`kernel.bpf_stats_enabled`) and by the clock with and without it.
//!
//! Costs of programs are means over many sends of one kind, made by a process of their own. The accounting itself reads the
//! clock twice a run, and that is in the figures: the kind `Refused` shows how much it is. Ratios compare rounds of one run, with and without the agent in turn.

#![forbid(unsafe_code)]

use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use pendguard_tests::accounting::Accounting;
use pendguard_tests::agent::{Agent, Pod};
use pendguard_tests::wait::{WAIT_LIMIT, wait_for};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

const ROUNDS: usize = 5;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The tap: ns per send, and what system calls take with and without it
    Tap {
        /// Fewer sends
        #[arg(long)]
        quick: bool,
        /// Print JSON and nothing else on standard output
        #[arg(long)]
        json: bool,
    },
    /// A sender, started by `tap`
    #[command(hide = true)]
    Send { kind: Kind, count: u32 },
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// PendingFn as Numaflow's Rust data plane sends it: 60 bytes, three frames.
    Pending,
    /// A request for messages: one DATA frame of 13 bytes.
    Read,
    /// A DATA frame of 16 KiB.
    Bulk,
    /// Eight bytes that are no HTTP/2.
    Other,
    /// A write that the kernel refuses: the program leaves with its first instructions. What it takes is the
    /// accounting and the call of a program.
    Refused,
    /// One byte to /dev/null.
    Null,
    /// `getppid`, which no program is attached to.
    Unhooked,
}

/// The mean cost of a kind of send.
#[derive(Serialize)]
struct Cost {
    kind: Kind,
    watched: bool,
    sends: u64,
    ns_per_send: f64,
}

/// What a system call takes with the tap, as a ratio to without.
#[derive(Serialize)]
struct Tax {
    kind: Kind,
    median: f64,
    least: f64,
    most: f64,
    ns_bare: f64,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    costs: Vec<Cost>,
    taxes: Vec<Tax>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().what {
        What::Send { kind, count } => send(kind, count),
        What::Tap { quick, json } => tap(quick, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// As in the captures of Numaflow 1.4.5 (tests/fixtures).
const BLOCK: &[u8] = &[
    0x83, 0x86, 0xc1, 0x04, 0x94, 0x61, 0x07, 0xb6, 0xc2, 0x15, 0x7e, 0xe1, 0x5f, 0x71, 0xed, 0xb0,
    0x85, 0x63, 0x59, 0x6a, 0x90, 0xd5, 0x4d, 0x86, 0xaf, 0xc0, 0xbf, 0xbe,
];
/// The first request's block inserts what later ones refer to.
const FIRST: &[u8] = &[
    0x83, 0x86, 0x04, 0x01, b'/', 0x40, 1, b'a', 1, b'b', 0x40, 1, b'c', 1, b'd', 0x40, 1, b'e', 1,
    b'f', 0x40, 1, b'g', 1, b'h',
];

/// Sends `count` times what `kind` says and prints the nanoseconds that it took; waits for a line before.
fn send(kind: Kind, count: u32) -> Result<()> {
    println!("{}", std::process::id());
    std::io::stdin().lock().read_line(&mut String::new())?;
    let elapsed = match kind {
        Kind::Unhooked => {
            let start = Instant::now();
            for _ in 0..count {
                std::hint::black_box(rustix::process::getppid());
            }
            start.elapsed()
        }
        Kind::Null => {
            let mut null = std::fs::File::create("/dev/null")?;
            let start = Instant::now();
            for _ in 0..count {
                null.write_all(&[0])?;
            }
            start.elapsed()
        }
        Kind::Refused => {
            // Open for reading only.
            let mut refused = std::fs::File::open("/dev/null")?;
            let start = Instant::now();
            for _ in 0..count {
                std::hint::black_box(refused.write(&[0]).is_err());
            }
            start.elapsed()
        }
        _ => send_on_socket(kind, count)?,
    };
    println!("{}", elapsed.as_nanos());
    Ok(())
}

fn send_on_socket(kind: Kind, count: u32) -> Result<Duration> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while theirs.read(&mut buffer).is_ok_and(|n| n > 0) {}
    });
    if kind != Kind::Other {
        ours.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        ours.write_all(&frame(4, 0, 0, &[]))?;
        ours.write_all(&frame(1, 4, 1, FIRST))?;
    }
    let read = frame(0, 0, 1, &[0; 13]);
    let bulk = frame(0, 0, 1, &[0; 16384]);
    let start = Instant::now();
    for i in 0..count {
        match kind {
            Kind::Pending => {
                let stream = 3 + 2 * i;
                let mut call = frame(1, 4, stream, BLOCK);
                call.extend(frame(0, 0, stream, &[0; 5]));
                call.extend(frame(0, 1, stream, &[]));
                ours.write_all(&call)?;
            }
            Kind::Read => ours.write_all(&read)?,
            Kind::Bulk => ours.write_all(&bulk)?,
            _ => ours.write_all(&[1, 0, 0, 0, 0, 0, 0, 0])?,
        }
    }
    let elapsed = start.elapsed();
    drop(ours);
    reader.join().ok();
    Ok(elapsed)
}

/// Runs and nanoseconds of the programs at the exits of sends.
async fn account(agent: &Agent) -> Result<(u64, u64)> {
    let status = agent.status().await?;
    let programs = status["programs"].as_array().context("no programs")?;
    let taps = programs.iter().filter(|program| {
        program["name"]
            .as_str()
            .is_some_and(|n| n.starts_with("tap_"))
    });
    Ok(taps.fold((0, 0), |(runs, ns), program| {
        let number = |name: &str| program[name].as_u64().unwrap_or(0);
        (runs + number("runs"), ns + number("run_nanoseconds"))
    }))
}

/// Starts a sender, lets `ready` wait for whatever it wants, lets it go, and returns the nanoseconds it took.
async fn sender(
    kind: Kind,
    count: u32,
    pod: Option<&Pod>,
    ready: impl AsyncFnOnce(u32) -> Result<()>,
    done: impl AsyncFnOnce() -> Result<()>,
) -> Result<u64> {
    let name = kind.to_possible_value().context("kind")?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["send", name.get_name(), &count.to_string()])
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
    ensure!(child.wait().await?.success(), "the sender failed");
    Ok(ns)
}

/// Waits until the agent watches `pid`.
async fn watched(agent: &Agent, pid: u32) -> Result<()> {
    let what = format!("process {pid} is watched");
    wait_for(&what, WAIT_LIMIT, async || {
        let status = agent.status().await?;
        let mut replicas = status["replicas"].as_array().into_iter().flatten();
        let watched = replicas.any(|r| {
            r["pids"]
                .as_array()
                .is_some_and(|p| p.contains(&Value::from(pid)))
        });
        Ok(watched.then_some(()))
    })
    .await
}

async fn cost(agent: &Agent, kind: Kind, is_watched: bool, count: u32) -> Result<Cost> {
    let pod = is_watched.then(|| Pod::mono_vertex("bench", "1"));
    let before = std::cell::Cell::new((0, 0));
    let after = std::cell::Cell::new((0, 0));
    sender(
        kind,
        count,
        pod.as_ref(),
        async |pid| {
            if is_watched {
                watched(agent, pid).await?;
            }
            before.set(account(agent).await?);
            Ok(())
        },
        async || {
            after.set(account(agent).await?);
            Ok(())
        },
    )
    .await?;
    let sends = after.get().0 - before.get().0;
    let ns = after.get().1 - before.get().1;
    ensure!(
        sends >= u64::from(count),
        "{sends} sends accounted of {count}"
    );
    Ok(Cost {
        kind,
        watched: is_watched,
        sends,
        ns_per_send: ns as f64 / sends as f64,
    })
}

async fn elapsed(kind: Kind, count: u32) -> Result<f64> {
    let ns = sender(kind, count, None, async |_| Ok(()), async || Ok(())).await?;
    Ok(ns as f64 / f64::from(count))
}

fn tap(quick: bool, json: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(measure(if quick { 50_000 } else { 500_000 }))?;
    let text = serde_json::to_string_pretty(&report)?;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/bench");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("tap.json"), &text)?;
    if json {
        println!("{text}");
        return Ok(());
    }
    let mut table = Table::new();
    table.set_header(["send", "process", "sends", "ns per send"]);
    for cost in &report.costs {
        table.add_row([
            format!("{:?}", cost.kind),
            (if cost.watched { "watched" } else { "unwatched" }).to_owned(),
            cost.sends.to_string(),
            format!("{:.0}", cost.ns_per_send),
        ]);
    }
    println!("Linux {}\n{table}", report.kernel);
    let mut table = Table::new();
    table.set_header([
        "system call of an unwatched process",
        "with the tap / without",
        "range",
        "ns without",
    ]);
    for tax in &report.taxes {
        table.add_row([
            format!("{:?}", tax.kind),
            format!("{:.2}", tax.median),
            format!("{:.2} to {:.2}", tax.least, tax.most),
            format!("{:.0}", tax.ns_bare),
        ]);
    }
    println!("{table}\ntarget/bench/tap.json has the same.");
    Ok(())
}

async fn measure(count: u32) -> Result<Report> {
    let kinds = [Kind::Pending, Kind::Read, Kind::Bulk, Kind::Other];
    let taxed = [Kind::Null, Kind::Unhooked];
    let bar = ProgressBar::new((kinds.len() + 2 + 2 * taxed.len() * ROUNDS) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    let mut costs = Vec::new();
    {
        let _accounting = Accounting::on()?;
        let agent = Agent::start(&[]).await?;
        for kind in kinds {
            bar.set_message(format!("{kind:?}, watched"));
            let count = if kind == Kind::Bulk {
                count / 10
            } else {
                count
            };
            costs.push(cost(&agent, kind, true, count).await?);
            bar.inc(1);
        }
        for kind in [Kind::Pending, Kind::Refused] {
            bar.set_message(format!("{kind:?}, unwatched"));
            costs.push(cost(&agent, kind, false, count).await?);
            bar.inc(1);
        }
        agent.stop().await?;
    }
    let mut rounds = vec![Vec::new(); taxed.len()];
    for _ in 0..ROUNDS {
        let mut bare = Vec::new();
        for kind in taxed {
            bar.set_message(format!("{kind:?} without the tap"));
            bare.push(elapsed(kind, 4 * count).await?);
            bar.inc(1);
        }
        let agent = Agent::start(&[]).await?;
        for (i, kind) in taxed.into_iter().enumerate() {
            bar.set_message(format!("{kind:?} with the tap"));
            rounds[i].push((elapsed(kind, 4 * count).await?, bare[i]));
            bar.inc(1);
        }
        agent.stop().await?;
    }
    bar.finish_and_clear();
    let taxes = taxed
        .into_iter()
        .zip(rounds)
        .map(|(kind, rounds)| tax(kind, &rounds));
    Ok(Report {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        costs,
        taxes: taxes.collect(),
    })
}

/// The ratio of each round, and their median.
fn tax(kind: Kind, rounds: &[(f64, f64)]) -> Tax {
    let mut ratios: Vec<_> = rounds.iter().map(|(with, bare)| with / bare).collect();
    ratios.sort_by(f64::total_cmp);
    let mut bare: Vec<_> = rounds.iter().map(|(_, bare)| *bare).collect();
    bare.sort_by(f64::total_cmp);
    Tax {
        kind,
        median: ratios[ratios.len() / 2],
        least: ratios[0],
        most: ratios[ratios.len() - 1],
        ns_bare: bare[bare.len() / 2],
    }
}
