//! Enforcement while something goes wrong: nobody's call is rejected by mistake, and no byte is harmed.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Pod, binary};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::enforcing::{
    JOIN_LIMIT, RATE, all, counts, intact, intact_of, rejections, set_mode, until_rejected,
};
use pendguard_tests::faults::seen;
use pendguard_tests::peers::{Client, ClientKind, Source, SourceKind, SourceOptions};
use pendguard_tests::protocol::Method;
use pendguard_tests::raw::Raw;
use pendguard_tests::replica::{Replica, client_options, source_options};
use pendguard_tests::scale::{Scale, amount, scale};
use pendguard_tests::stress::pair::Pair;
use pendguard_tests::tracer::Tracer;
use pendguard_tests::wait::{WAIT_LIMIT, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::Command;

const ENFORCE: [&str; 2] = ["--mode", "enforce"];
/// How long an agent is given for a join, on a machine that does nothing else.
const ONE_JOIN: Duration = Duration::from_secs(3);

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.try_into()?).context("pid 0")?;
    Ok(kill_process(pid, signal)?)
}

/// Replicas 0 and 1, both with everything that a data plane does.
async fn two(workload: &str, client: ClientKind) -> Result<[Replica; 2]> {
    let zero = Replica::start(workload, 0, client, SourceKind::Rust).await?;
    let mut one = Replica::start(workload, 1, client, SourceKind::Rust).await?;
    until_rejected(&mut one).await?;
    Ok([zero, one])
}

/// The source restarts: the client connects anew, and the new connection is joined as the first one was.
#[tokio::test]
async fn the_source_restarts() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    for client in [ClientKind::Tonic, ClientKind::GrpcGo] {
        let [mut zero, mut one] = two("source-restarts", client).await?;
        for _ in 0..amount(3, 1) {
            for replica in [&mut zero, &mut one] {
                replica.restart_source().await?;
                wait_for("the client has connected anew", JOIN_LIMIT, async || {
                    let called = replica.client.call(Method::IsReady, 1).await?;
                    Ok((called.ok == 1).then_some(()))
                })
                .await?;
            }
            until_rejected(&mut one).await?;
            all(&mut one, 200, false).await?;
            all(&mut zero, 200, true).await?;
        }
    }
    agent.stop().await?;
    Ok(())
}

/// The client restarts, beside the same source.
#[tokio::test]
async fn the_client_restarts() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    let [mut zero, mut one] = two("client-restarts", ClientKind::Tonic).await?;
    for _ in 0..amount(5, 2) {
        for replica in [&mut zero, &mut one] {
            replica.restart_client().await?;
        }
        until_rejected(&mut one).await?;
        for replica in [&mut zero, &mut one] {
            replica.client.background_on(RATE).await?;
        }
        all(&mut one, 200, false).await?;
        all(&mut zero, 200, true).await?;
        for replica in [&mut zero, &mut one] {
            intact(replica).await?;
        }
    }
    let scrape = agent.scrape().await?;
    ensure!(counts(&zero, &scrape)[1] == 0, "{scrape:?}");
    agent.stop().await?;
    Ok(())
}

/// Of two agents that are started at once exactly one runs, and it enforces.
#[tokio::test]
async fn two_agents_at_once() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let pins = bpffs.pins();
    let (a, b) = tokio::join!(
        Agent::start_at(&pins, &ENFORCE),
        Agent::start_at(&pins, &ENFORCE)
    );
    let (agent, refused) = match (a, b) {
        (Ok(agent), Err(refused)) | (Err(refused), Ok(agent)) => (agent, refused),
        (Ok(_), Ok(_)) => anyhow::bail!("both run"),
        (Err(a), Err(b)) => anyhow::bail!("none runs: {a:#}; {b:#}"),
    };
    let text = format!("{refused:#}");
    ensure!(text.contains("another agent, pid "), "{text}");
    let [mut zero, mut one] = two("two-agents", ClientKind::Tonic).await?;
    all(&mut one, 100, false).await?;
    all(&mut zero, 100, true).await?;
    agent.stop().await?;
    Ok(())
}

/// Nothing can be pinned: the agent says so, and doesn't start.
#[tokio::test]
async fn a_bpffs_that_is_read_only() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    bpffs.read_only()?;
    let agent = Agent::spawn_at(&bpffs.pins(), &ENFORCE)?;
    let (code, log) = agent.ended().await?;
    ensure!(
        code == Some(1)
            && log.contains("Read-only file system")
            && log.contains(&bpffs.pins().display().to_string()),
        "{code:?}: {log}"
    );
    Ok(())
}

/// What others have in the pin directory stays there, whatever its name begins with; enforcement and `detach` work beside it.
#[tokio::test]
async fn foreign_pins() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let pins = bpffs.pins();
    // A real map of somebody's: one of an agent that is gone.
    let elsewhere = pins.with_file_name("elsewhere");
    Agent::start_at(&elsewhere, &ENFORCE).await?.kill().await?;
    let generation = std::fs::read_dir(&elsewhere)?
        .next()
        .context("its pins")??;
    std::fs::create_dir_all(pins.join("vault"))?;
    std::fs::rename(
        generation.path().join("map_TOTALS"),
        pins.join("vault/map_TOTALS"),
    )?;
    std::fs::rename(generation.path().join("map_PATHS"), pins.join("their_map"))?;
    symlink("/dev/null", pins.join("v-link"))?;

    let agent = Agent::start_at(&pins, &ENFORCE).await?;
    let [mut zero, mut one] = two("foreign", ClientKind::Tonic).await?;
    all(&mut one, 100, false).await?;
    all(&mut zero, 100, true).await?;
    drop((zero, one));
    agent.stop().await?;
    wait_for(
        "everything of the agent's is gone",
        JOIN_LIMIT,
        async || {
            let output = Command::new(binary()?)
                .args(["detach", "--pin-dir"])
                .arg(&pins)
                .output()
                .await?;
            Ok(output.status.success().then_some(()))
        },
    )
    .await?;
    let mut left: Vec<_> = std::fs::read_dir(&pins)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    left.sort();
    ensure!(left == ["their_map", "v-link", "vault"], "{left:?}");
    ensure!(pins.join("vault/map_TOTALS").exists());
    Ok(())
}

/// A client and a source that are stopped for a while, and go on.
#[tokio::test]
async fn stopped_processes() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    let [mut zero, mut one] = two("stopped", ClientKind::Tonic).await?;
    for replica in [&mut zero, &mut one] {
        replica.client.background_on(RATE).await?;
    }
    for pid in [one.client.pid(), zero.client.pid(), one.source.pid()] {
        signal(pid, Signal::STOP)?;
        stopped(pid).await?;
        // The agent looks at it meanwhile: it goes through its connections when a mode is set.
        set_mode(&agent, "audit").await?;
        set_mode(&agent, "enforce").await?;
        signal(pid, Signal::CONT)?;
        all(&mut one, 100, false).await?;
        all(&mut zero, 100, true).await?;
    }
    for replica in [&mut zero, &mut one] {
        intact(replica).await?;
    }
    agent.stop().await?;
    Ok(())
}

async fn stopped(pid: u32) -> Result<()> {
    wait_for("it is stopped", WAIT_LIMIT, async || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let state = status.rsplit(')').next().unwrap_or_default();
        Ok(state.trim_start().starts_with('T').then_some(()))
    })
    .await
}

/// The source doesn't read, before the gate joins and after: what the client has sent waits, and all of it arrives.
#[tokio::test]
async fn a_full_socket() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    for joined in [false, true] {
        let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
        let pair = Pair::start(Pod::mono_vertex("full", "1"), false).await?;
        let reader = pair.reader().context("it runs")?;
        let sending = pair.send_items(amount(1200, 400))?;
        if joined {
            let labels = [("pod", pair.pod.name.as_str()), ("verdict", "rejected")];
            agent
                .until("the gate stands", |scrape| {
                    scrape.sum("pendguard_calls_total", &labels) > Some(0)
                })
                .await?;
        }
        signal(reader, Signal::STOP)?;
        stopped(reader).await?;
        sending.stands_still().await?;
        signal(reader, Signal::CONT)?;
        let sent = sending.ended().await?;
        let read = pair.read().await?;
        ensure!(read.broken == 0 && read.errors.is_empty(), "{read:?}");
        ensure!(
            read.bytes == sent.bytes && (read.joined == 1 || !joined),
            "{sent:?} {read:?}"
        );
        agent.stop().await?;
    }
    Ok(())
}

/// No gate can stand before TCP: calls are admitted, and counted with the reason.
#[tokio::test]
async fn tcp() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    let pod = Pod::mono_vertex("tcp", "1");
    let directory = tempfile::tempdir()?;
    let options = SourceOptions {
        also_tcp: true,
        ..source_options(&directory, SourceKind::Rust, &pod)
    };
    let mut source = Source::start(&options).await?;
    let target = source.tcp().context("it listens on TCP")?;
    let mut client = Client::start(ClientKind::Tonic, &target, &client_options(&pod)).await?;
    client.background_on(RATE).await?;
    let labels = [("reason", "tcp")];
    let failures = "pendguard_enforcement_failures_total";
    let mut calls = 0;
    wait_for("the reason is counted", JOIN_LIMIT, async || {
        calls += client.call(Method::PendingFn, 50).await?.ok;
        let seen = agent.scrape().await?.sum(failures, &labels);
        Ok((seen >= Some(50)).then_some(()))
    })
    .await?;
    let scrape = agent.scrape().await?;
    let handled = source.stats().await?.pending;
    let counted = scrape.pending(&pod.name, "admitted");
    ensure!(
        counted == calls && handled == calls,
        "{counted}, {handled} of {calls}"
    );
    ensure!(scrape.pending(&pod.name, "rejected") == 0, "{scrape:?}");
    intact_of(&mut client).await?;
    agent.stop().await?;
    Ok(())
}

/// Client and source in network and process namespaces of their own, as containers are.
#[tokio::test]
async fn other_namespaces() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    let launcher: Vec<std::ffi::OsString> = [
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    .map(Into::into)
    .into();
    for number in [1, 0] {
        let pod = Pod::mono_vertex("namespaces", &number.to_string());
        let directory = tempfile::tempdir()?;
        let mut options = source_options(&directory, SourceKind::Rust, &pod);
        options.launch.launcher.clone_from(&launcher);
        let mut source = Source::start(&options).await?;
        let mut options = client_options(&pod);
        options.launch.launcher.clone_from(&launcher);
        let mut client = Client::start(ClientKind::Tonic, &source.unix(), &options).await?;
        client.background_on(RATE).await?;
        if number == 1 {
            wait_for("a call is rejected", JOIN_LIMIT, async || {
                let called = client.call(Method::PendingFn, 1).await?;
                Ok((rejections(&called.errors) == 1).then_some(()))
            })
            .await?;
        }
        let before = source.stats().await?.pending;
        let called = client.call(Method::PendingFn, 300).await?;
        let handled = source.stats().await?.pending - before;
        let wanted = if number == 1 { (0, 300) } else { (300, 0) };
        ensure!(
            (called.ok, rejections(&called.errors)) == wanted,
            "{called:?}"
        );
        ensure!(handled == wanted.0, "{handled} handled");
        intact_of(&mut client).await?;
        client.quit().await?;
        source.quit().await?;
    }
    agent.stop().await?;
    Ok(())
}

/// The agent is killed while 16 calls are under way at any time, and the two streams.
#[tokio::test]
async fn killed_under_load() -> Result<()> {
    let calls = amount(20_000, 2_000);
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    let [mut zero, mut one] = two("killed", ClientKind::Tonic).await?;
    for replica in [&mut zero, &mut one] {
        replica.client.background_on(RATE).await?;
    }
    let pod = one.pod.name.clone();
    let before = counts(&one, &agent.scrape().await?);
    let admitted = tokio::spawn(async move {
        all(&mut zero, calls, true).await?;
        anyhow::Ok(zero)
    });
    let rejected = tokio::spawn(async move {
        all(&mut one, calls, false).await?;
        anyhow::Ok(one)
    });
    agent
        .until("calls are under way", |scrape| {
            scrape.pending(&pod, "rejected") > before[1]
        })
        .await?;
    agent.kill().await?;
    let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    let (mut zero, mut one) = (admitted.await??, rejected.await??);
    for replica in [&mut zero, &mut one] {
        intact(replica).await?;
    }
    let scrape = agent.scrape().await?;
    ensure!(counts(&zero, &scrape) == [calls, 0, 0], "{scrape:?}");
    let after = counts(&one, &scrape);
    ensure!(
        after == [before[0], before[1] + calls, 0],
        "{before:?} {after:?}"
    );
    agent.stop().await?;
    Ok(())
}

/// Processes that begin while no agent is there are known to the kernel, and told of: the next agent finds them twice. Each gives its
/// counters back once, or two processes would count in the same ones.
#[tokio::test]
async fn processes_begin_while_no_agent_is_there() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    let [mut zero, mut one] = two("orphans", ClientKind::Tonic).await?;
    agent.kill().await?;
    // More than there are counters in use, so that one too many would not fit.
    let others = 300;
    for _ in 0..others {
        let status = Command::new("true").status().await?;
        ensure!(status.success());
    }
    let agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    // As the last: when its end is known, and its counters have rested, so have theirs.
    let pod = Pod::mono_vertex("last", "1");
    let last = Raw::start(pod.numa()).await?;
    let pid = last.pid().context("it runs")?;
    agent.until_watches(pid).await?;
    last.end().await?;
    let gone = agent
        .until("it is forgotten", |scrape| {
            scrape.map_entries("TARGETS") <= 2
        })
        .await?;
    ensure!(gone.events_lost().is_some(), "{gone:?}");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let status = agent.status().await?;
    ensure!(status["warnings"] == json!([]), "{status}");
    all(&mut zero, 100, true).await?;
    all(&mut one, 100, false).await?;
    agent.stop().await?;
    Ok(())
}

/// The agent is killed right before one of the system calls that it makes while it joins a connection, another one each time: whatever it
/// had begun harms nothing, and the next agent joins the connection.
#[tokio::test]
async fn killed_at_each_step_of_a_join() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let mut agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
    let [mut zero, mut one] = two("steps", ClientKind::Tonic).await?;
    let mut steps = BTreeMap::new();
    // From the event of the client's program on, which calls come when varies; ioctl(2) is used within a hold alone.
    let (of_bpf, of_ioctl) = if scale() == Scale::Full {
        (60, 12)
    } else {
        (8, 4)
    };
    let bpf = (0..of_bpf).map(|i| ("bpf", 1 + i * 120 / of_bpf));
    let ioctl = (0..of_ioctl).map(|i| ("ioctl", 1 + i * 12 / of_ioctl));
    for (call, n) in bpf.chain(ioctl) {
        let pid = agent.pid().context("it runs")?;
        let tracer = Tracer::kill_before(pid, call, n).await?;
        let begun = one.source.stats().await?.pending;
        let (mut calls, mut ok, mut rejected) = (0, 0, 0);
        let mut connected: Option<Instant> = None;
        let killed = wait_for("the agent is killed", WAIT_LIMIT, async || {
            // A join may take fewer such calls: then those of the next one count, too.
            if connected.is_none_or(|since| since.elapsed() > ONE_JOIN) {
                if connected.is_some() {
                    intact(&mut one).await?;
                }
                one.restart_client().await?;
                one.client.background_on(RATE).await?;
                connected = Some(Instant::now());
            }
            let called = one.client.call(Method::PendingFn, 10).await?;
            calls += 10;
            ok += called.ok;
            rejected += rejections(&called.errors);
            Ok(agent.has_ended()?.then_some(()))
        });
        killed.await?;
        let called = one.client.call(Method::PendingFn, 100).await?;
        calls += 100;
        ok += called.ok;
        rejected += rejections(&called.errors);
        let handled = one.source.stats().await?.pending - begun;
        ensure!(
            ok + rejected == calls && handled == ok,
            "{ok} answered, {rejected} rejected, {handled} handled of {calls}"
        );
        *steps.entry(tracer.ended_before().await?).or_insert(0) += 1;
        agent = Agent::start_at(&bpffs.pins(), &ENFORCE).await?;
        until_rejected(&mut one).await?;
        all(&mut one, 100, false).await?;
        all(&mut zero, 100, true).await?;
        intact(&mut one).await?;
    }
    agent.stop().await?;
    ensure!(
        steps.keys().any(|step| step.starts_with("ioctl")),
        "never within a hold: {steps:?}"
    );
    let steps: Vec<_> = steps
        .iter()
        .map(|(step, n)| format!("{n} × `{step}`"))
        .collect();
    seen(
        "the agent is killed right before a system call of a join",
        &format!(
            "{} times, every call answered and every read intact: {}",
            of_bpf + of_ioctl,
            steps.join(", ")
        ),
    )
}
