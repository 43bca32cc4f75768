//! Rejection in the sender's buffer: what the source reads, what is counted, and the sender's own memory, which must be as it
//! was behind every system call (`raw.py` looks each time).
//!
//! Where the kernel doesn't allow it (lockdown), it must be refused, and what is left be told.

use agent_common::abi::MAX_EDITS;
use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Pod, Scrape};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::faults::seen;
use pendguard_tests::raw::Raw;
use pendguard_tests::record::fixture::to_hex;
use pendguard_tests::scale::amount;
use pendguard_tests::wait::{WAIT_LIMIT, wait_for};

const CALLS: [&str; 4] = ["write", "writev", "sendto", "sendmsg"];
const ENFORCE: [&str; 4] = ["--mode", "enforce", "--enforcer", "rewrite"];
/// PendingFn as tonic sends it, up to its path, and the path.
const HEAD: &str = "000018010400000001838604";
const PATH: &str = "946107b6c2157ee15f71edb08563596a90d54d86af";

fn request(stream: u32) -> String {
    let mut hex = format!("{HEAD}{PATH}");
    hex.replace_range(10..18, &format!("{stream:08x}"));
    hex
}

/// An agent that rewrites; `None` where the kernel doesn't allow it, which must be told.
async fn agent(bpffs: &BpfFs) -> Result<Option<Agent>> {
    let agent = match Agent::start_at(&bpffs.pins(), &ENFORCE).await {
        Ok(agent) => agent,
        Err(error) => {
            let said = format!("{error:#}");
            let lockdown = std::env::var("PENDGUARD_TEST_LOCKDOWN");
            ensure!(
                lockdown.as_deref() != Ok("none"),
                "nothing forbids it: {said}"
            );
            let refused = "this node can't enforce: enforcer rewrite: the kernel refuses it";
            ensure!(
                said.contains("exit status: 1") && said.contains(refused),
                "{said}"
            );
            ensure!(!bpffs.pins().exists(), "it leaves nothing behind");
            return Ok(None);
        }
    };
    ensure!(agent.status().await?["enforcer"] == "rewrite");
    Ok(Some(agent))
}

/// A replica whose calls are to be rejected.
async fn replica(agent: &Agent, workload: &str) -> Result<(Pod, Raw)> {
    let pod = Pod::mono_vertex(workload, "1");
    let raw = Raw::start(pod.numa()).await?;
    wait_for("it is known", WAIT_LIMIT, async || {
        let status = agent.status().await?;
        let replicas = status["replicas"].as_array();
        let known = replicas
            .into_iter()
            .flatten()
            .any(|one| one["pod"] == pod.name);
        Ok(known.then_some(()))
    })
    .await?;
    Ok((pod, raw))
}

/// All of it with one agent: it takes its time to load.
#[tokio::test]
async fn what_is_sent_is_rewritten() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    // Older than the agent.
    let pod = Pod::mono_vertex("rewrite-old", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let old = raw.connection("unix").await?;
    raw.run(&format!("call {old} writev 1")).await?;
    let Some(agent) = agent(&bpffs).await? else {
        return Ok(());
    };
    older_connections(&mut raw, old).await?;
    every_system_call_in_every_shape(&agent).await?;
    sends_that_are_sent_in_part(&agent).await?;
    what_goes_to_a_file_is_left_alone(&agent).await?;
    let scrape = agent.scrape().await?;
    let unparsed = scrape.unparsed_sends();
    ensure!(unparsed.is_empty(), "{unparsed:?}");
    let left = not_restored(&scrape)?;
    ensure!(left == 0, "{left}");
    more_sends_than_the_map_holds(&agent).await?;
    from_memory_that_is_moved(&agent).await?;
    agent.stop().await?;
    Ok(())
}

/// What the peer has read: the path, its substitute; all else must be what was sent.
async fn read(raw: &mut Raw, fd: &str) -> Result<[u64; 2]> {
    let answer = wait_for("all is read", WAIT_LIMIT, async || {
        let answer = raw.run(&format!("read {fd}")).await?;
        Ok((answer != "-").then_some(answer))
    })
    .await?;
    let words: Vec<u64> = answer
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [pending, blocked, intact] = words[..] else {
        anyhow::bail!("{answer}");
    };
    ensure!(intact == 1, "something else has changed");
    Ok([pending, blocked])
}

/// Calls that were admitted and rejected, and those of the former that could not be rejected because of how they were sent.
fn counts(scrape: &Scrape, pod: &Pod) -> [u64; 3] {
    let split = [("reason", "split")];
    [
        scrape.pending(&pod.name, "admitted"),
        scrape.pending(&pod.name, "rejected"),
        scrape
            .sum("pendguard_enforcement_failures_total", &split)
            .unwrap_or(0),
    ]
}

async fn every_system_call_in_every_shape(agent: &Agent) -> Result<()> {
    let (pod, mut raw) = replica(agent, "shape").await?;
    for kind in ["unix", "tcp"] {
        for call in CALLS {
            let before = counts(&agent.scrape().await?, &pod);
            let fd = raw.connection(kind).await?;
            let (mut stream, mut rejected, mut admitted) = (1, 0, 0);
            let mut next = || {
                stream += 2;
                request(stream)
            };
            // Whole: the very first call of the connection too.
            raw.run(&format!("send {fd} {call} {}", next())).await?;
            rejected += 1;
            // Cut in two, anywhere: the octet in which the paths differ is the last.
            let len = (HEAD.len() + PATH.len()) / 2;
            for cut in 1..len {
                let whole = next();
                let (a, b) = whole.split_at(2 * cut);
                raw.run(&format!("send {fd} {call} {a}")).await?;
                raw.run(&format!("send {fd} {call} {b}")).await?;
                rejected += 1;
            }
            // In several buffers of one send: up to four pieces of the path.
            for size in [5, 7, 11] {
                let whole = next();
                let pieces: Vec<&str> = (0..len)
                    .step_by(size)
                    .map(|at| &whole[2 * at..2 * (at + size).min(len)])
                    .collect();
                raw.run(&format!("send {fd} {call} {}", pieces.join(" ")))
                    .await?;
                let of_path = pieces.len() - HEAD.len() / 2 / size;
                let joined = matches!(call, "write" | "sendto");
                if joined || of_path <= 4 {
                    rejected += 1;
                } else {
                    admitted += 1;
                }
            }
            let seen = read(&mut raw, &fd).await?;
            ensure!(
                seen == [admitted, rejected],
                "{kind} {call}: {seen:?} is not {:?}",
                [admitted, rejected]
            );
            let after = counts(&agent.scrape().await?, &pod);
            let counted = [0, 1, 2].map(|i| after[i] - before[i]);
            ensure!(
                counted == [admitted, rejected, admitted],
                "{kind} {call}: {counted:?}"
            );
        }
    }
    Ok(())
}

/// A slow reader behind a small buffer: the kernel takes a part, or nothing, and what is left is sent again.
async fn sends_that_are_sent_in_part(agent: &Agent) -> Result<()> {
    let (pod, mut raw) = replica(agent, "part").await?;
    let requests = amount(3000, 200);
    let mut in_part = 0;
    for (seed, (kind, call)) in [
        ("unix", "write"),
        ("tcp", "writev"),
        ("unix", "writev"),
        ("tcp", "sendmsg"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = counts(&agent.scrape().await?, &pod);
        let fd = raw.run(&format!("connect {kind} 4096")).await?;
        raw.run(&format!("start {fd}")).await?;
        let answer = raw
            .run(&format!("pump {fd} {call} 1 {requests} {seed}"))
            .await?;
        let partial = answer.split(' ').next().context("an answer")?;
        in_part += partial.parse::<u64>()?;
        let [pending, blocked] = read(&mut raw, &fd).await?;
        let after = counts(&agent.scrape().await?, &pod);
        let counted = [0, 1, 2].map(|i| after[i] - before[i]);
        // One that the sender itself has cut in too many pieces is admitted whole, and counted.
        ensure!(
            pending + blocked == requests,
            "{kind} {call}: {pending} and {blocked} of {requests}"
        );
        ensure!(
            counted == [pending, blocked, pending],
            "{kind} {call}: {counted:?} is not {pending}, {blocked}"
        );
        ensure!(
            blocked > requests / 2,
            "{kind} {call}: {blocked} of {requests}"
        );
    }
    ensure!(in_part > 0, "nothing was sent in part");
    Ok(())
}

/// More threads in a send that was rewritten than the map has room for: of the others nothing is rewritten, and each counts.
async fn more_sends_than_the_map_holds(agent: &Agent) -> Result<()> {
    let (pod, mut raw) = replica(agent, "stuck").await?;
    let n = u64::from(MAX_EDITS) + 30;
    let stuck = raw.run(&format!("stick {n}")).await?;
    ensure!(stuck == n.to_string(), "{stuck} of {n} sends are under way");
    let paths = raw.run("free").await?;
    let (pending, blocked) = paths.split_once(' ').context("two numbers")?;
    let (pending, blocked): (u64, u64) = (pending.parse()?, blocked.parse()?);
    ensure!(
        pending + blocked == n && (1..=u64::from(MAX_EDITS)).contains(&blocked) && pending >= 30,
        "{pending} and {blocked} of {n}"
    );
    let scrape = agent.scrape().await?;
    let full = [("reason", "full")];
    let full = scrape.sum("pendguard_enforcement_failures_total", &full);
    let [admitted, rejected, _] = counts(&scrape, &pod);
    ensure!(
        [admitted, rejected] == [pending, blocked] && full == Some(pending),
        "{admitted}, {rejected} and {full:?} of {pending} and {blocked}"
    );
    seen(
        "more rewritten sends under way than EDITS holds",
        &format!("{n} sends: {blocked} rejected, {pending} admitted and counted as full"),
    )
}

/// From memory that the kernel moves meanwhile: for a moment it can be neither read nor written. A call may pass for that, and seldom what
/// was overwritten can't be put back: either counts.
async fn from_memory_that_is_moved(agent: &Agent) -> Result<()> {
    let (pod, mut raw) = replica(agent, "moved").await?;
    // Where two processors take turns on one, a program that tries again keeps the kernel from its end: few are tried there.
    let requests = amount(3000, 150);
    let mut moves = 0;
    for call in CALLS {
        let before = agent.scrape().await?;
        let fd = raw.connection("unix").await?;
        let answer = raw.run(&format!("moved {fd} {call} 1 {requests}")).await?;
        let (moved, left) = answer.split_once(' ').context("an answer")?;
        let left: u64 = left.parse()?;
        moves += moved.parse::<u64>()?;
        let [pending, blocked] = read(&mut raw, &fd).await?;
        let after = agent.scrape().await?;
        let counted = [0, 1].map(|i| counts(&after, &pod)[i] - counts(&before, &pod)[i]);
        let unreadable = unreadable(&after) - unreadable(&before);
        // Where a function's program waits, the kernel skips it for other tasks on that CPU.
        let skipped = after.events_lost().unwrap_or(0) - before.events_lost().unwrap_or(0);
        println!(
            "{call}: {pending} {blocked} of {requests}, {counted:?} counted, {unreadable} unreadable, {left} left, {skipped} skipped"
        );
        let told = not_restored(&after)? - not_restored(&before)?;
        ensure!(
            told <= left && left <= told + skipped && left * 20 <= requests,
            "{call}: {left} of {requests} left, {told} told"
        );
        ensure!(
            pending + blocked == requests && blocked > requests / 2,
            "{call}: {pending} and {blocked} of {requests}"
        );
        // A send that can't be read is not counted, nor one whose substitute stayed: few, and none twice.
        for (sent, counted) in [(pending, counted[0]), (blocked, counted[1])] {
            ensure!(
                counted <= sent && (sent - counted) * 20 <= requests,
                "{call}: {counted} of {sent}, {unreadable} unreadable, {skipped} skipped"
            );
        }
    }
    ensure!(moves > 0, "nothing was moved");
    Ok(())
}

/// Calls whose substitute stayed in the sender's memory.
fn not_restored(scrape: &Scrape) -> Result<u64> {
    let labels = [("reason", "not_restored")];
    let calls = scrape.sum("pendguard_enforcement_failures_total", &labels);
    calls.context("not_restored isn't counted")
}

/// Sends that could not be read.
fn unreadable(scrape: &Scrape) -> u64 {
    scrape
        .unparsed_sends()
        .get("unreadable")
        .copied()
        .unwrap_or(0)
}

/// A descriptor that comes back as a file, and one that was a file all the time.
async fn what_goes_to_a_file_is_left_alone(agent: &Agent) -> Result<()> {
    let (_, mut raw) = replica(agent, "alone").await?;
    let directory = tempfile::tempdir()?;
    let fd = raw.connection("unix").await?;
    raw.run(&format!("call {fd} writev 1")).await?;
    ensure!(read(&mut raw, &fd).await? == [0, 1]);
    for name in ["again", "always"] {
        let path = directory.path().join(name);
        let to = if name == "again" {
            raw.run(&format!("close {fd}")).await?;
            fd.clone()
        } else {
            "700".to_owned()
        };
        let to = raw.run(&format!("file {} {to}", path.display())).await?;
        raw.run(&format!("start {to}")).await?;
        raw.run(&format!("call {to} write 1")).await?;
        let written = std::fs::read(&path)?;
        let hex = to_hex(&written);
        ensure!(hex.contains(&PATH[2..]), "{name}: {hex}");
    }
    Ok(())
}

/// Connections that are older than the agent, and those that were never connected (a pair): /proc tells that they are sockets.
async fn older_connections(raw: &mut Raw, old: String) -> Result<()> {
    let pair = raw.connection("pair").await?;
    for fd in [old, pair] {
        let mut stream = 1;
        wait_for("a call is rejected", WAIT_LIMIT, async || {
            stream += 2;
            raw.run(&format!("call {fd} writev {stream}")).await?;
            Ok((read(raw, &fd).await?[1] > 0).then_some(()))
        })
        .await?;
    }
    Ok(())
}
