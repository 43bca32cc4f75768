//! Faults, on purpose: what is full, comes back, jumps or dies. In each the pods' traffic is as it was, and whatever could not be counted is
//! counted as that. Faults of enforcement are in `enforce_faults`; of processes and descriptors, in `processes` and `sends`.

use std::process::Stdio;
use std::time::Duration;

use agent_common::abi::answers::{MAX_ANSWERS, MAX_HISTOGRAMS};
use agent_common::abi::{MAX_CONNECTIONS, MAX_TARGETS};
use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, PENDING, Pod, Scrape, binary};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::enforcing::{RATE, all, intact, until_rejected};
use pendguard_tests::faults::seen;
use pendguard_tests::peers::{ClientKind, SourceKind};
use pendguard_tests::raw::{self, Raw};
use pendguard_tests::replica::Replica;
use pendguard_tests::scale::{Scale, scale};
use pendguard_tests::wait::wait_for;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tokio::process::Command;

/// Calls without a time.
fn untimed(scrape: &Scrape) -> u64 {
    scrape.unparsed().get("untimed").copied().unwrap_or(0)
}

/// More connections than the map holds. What is followed stays exact; of the others each send is looked at by itself.
#[tokio::test]
async fn more_connections_than_the_map_holds() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let (pod, crowd) = (Pod::mono_vertex("few", "1"), Pod::mono_vertex("crowd", "2"));
    let mut one = Raw::start(pod.numa()).await?;
    let fd = one.connection("unix").await?;
    one.run(&format!("call {fd} writev 1")).await?;
    // So many that none needs more descriptors than a process may have anywhere.
    let processes = 40;
    let each = u64::from(MAX_CONNECTIONS) / processes + 5;
    let n = each * processes;
    let mut many = Vec::new();
    for _ in 0..processes {
        let mut raw = Raw::start(crowd.numa()).await?;
        let intact = raw.run(&format!("many {each}")).await?;
        ensure!(intact == each.to_string(), "{intact} of {each} intact");
        many.push(raw);
    }
    for raw in &mut many {
        let intact = raw.run("again").await?;
        ensure!(intact == each.to_string(), "{intact} of {each} intact");
    }
    for stream in [3, 5] {
        one.run(&format!("call {fd} writev {stream}")).await?;
    }
    let scrape = agent.scrape().await?;
    let full = scrape
        .unparsed_sends()
        .get("table_full")
        .copied()
        .unwrap_or(0);
    let counted = scrape.pending(&crowd.name, "would_reject");
    ensure!(
        scrape.pending(&pod.name, "would_reject") == 3,
        "a connection that is followed: {scrape:?}"
    );
    ensure!(
        full > 0 && counted == 2 * n,
        "{counted} of {} calls counted, {full} times full",
        2 * n
    );
    let warned = agent.command(&["status"]).await?;
    let warned = String::from_utf8(warned.stdout)?;
    ensure!(
        warned.contains("CONNECTIONS"),
        "nothing is said of it: {warned}"
    );
    // Of the answers as many are followed as ANSWERS holds; of what is closed meanwhile, as GONE holds: the rest is without a time.
    let under_way = scrape.map_entries("ANSWERS");
    ensure!(
        under_way == u64::from(MAX_ANSWERS),
        "{under_way} connections' answers are followed"
    );
    agent.signal(Signal::STOP)?;
    for raw in &mut many {
        let left = raw.run("leave").await?;
        ensure!(left == each.to_string(), "{left} of {each} left");
    }
    agent.signal(Signal::CONT)?;
    let timed = agent
        .until(
            "each call is timed or counted as without a time",
            |scrape| {
                let timed: u64 = scrape.timed("crowd", 2, PENDING).values().sum();
                timed + untimed(scrape) >= 2 * n
            },
        )
        .await?;
    let (untimed, timed) = (untimed(&timed), timed.timed("crowd", 2, PENDING));
    ensure!(
        timed.values().sum::<u64>() + untimed == 2 * n,
        "{timed:?}, {untimed} untimed of {}",
        2 * n
    );
    for raw in many {
        raw.end().await?;
    }
    // There is room again, when the kernel has seen their ends.
    let before = agent
        .until("the crowd's connections are gone", |scrape| {
            scrape.connections("synced") <= Some(8)
        })
        .await?;
    let fd = one.connection("unix").await?;
    one.run(&format!("call {fd} writev 1")).await?;
    one.run(&format!("call {fd} writev 3")).await?;
    let after = agent
        .until("what is called now", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 5
        })
        .await?;
    ensure!(
        after.unparsed_sends() == before.unparsed_sends(),
        "{:?} {:?}",
        before.unparsed_sends(),
        after.unparsed_sends()
    );
    one.end().await?;
    agent.stop().await?;
    seen(
        "more connections than CONNECTIONS holds",
        &format!(
            "{n} connections: {counted} of {} calls counted, table_full {full}, {untimed} calls without a time",
            2 * n
        ),
    )
}

/// More processes of replicas than the map holds, which have no slot either, and more durations than there are histograms.
#[tokio::test]
async fn more_processes_than_the_map_holds() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let (pod, crowd) = (
        Pod::mono_vertex("old", "1"),
        Pod::mono_vertex("gathered", "2"),
    );
    let mut one = Raw::start(pod.numa()).await?;
    let fd = one.connection("unix").await?;
    one.run(&format!("call {fd} writev 1")).await?;
    let mut many = Raw::start(crowd.numa()).await?;
    agent.until_watches(many.pid().context("it runs")?).await?;
    let n = u64::from(MAX_TARGETS) + 500;
    let intact = many.run(&format!("gather {n}")).await?;
    ensure!(intact == n.to_string(), "{intact} of {n} intact");
    one.run(&format!("call {fd} writev 3")).await?;
    let full = agent
        .until("what could not be counted is told", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 2 && scrape.events_lost() > Some(0)
        })
        .await?;
    let counted = full.pending(&crowd.name, "would_reject");
    let lost = full.events_lost().unwrap_or(0);
    ensure!(
        counted < n && counted > n / 2 && counted + lost >= n,
        "{counted} of {n} calls counted, {lost} lost"
    );
    let timed: u64 = full.timed("gathered", 2, PENDING).values().sum();
    let untimed = untimed(&full);
    ensure!(
        timed <= counted && timed + untimed >= counted && untimed > 0,
        "{timed} of {counted} calls timed, {untimed} untimed; {MAX_HISTOGRAMS} histograms"
    );
    // Children that get no counters and are gone before they are looked at: what others called without any is not their parent's.
    let scattered = one.run("scatter 200").await?;
    ensure!(scattered == "200", "{scattered} of 200");
    let status = agent.command(&["status"]).await?;
    let status = String::from_utf8(status.stdout)?;
    ensure!(
        status.contains("TARGETS"),
        "nothing is said of it: {status}"
    );
    let resident = agent.resident()? >> 20;
    let ended = many.run("disperse").await?;
    ensure!(ended == n.to_string(), "{ended} of {n} ended");
    // There is room again, when the agent has seen their ends.
    agent
        .until("the crowd has gone", |scrape| {
            scrape.map_entries("TARGETS") < 100
        })
        .await?;
    let new = Pod::mono_vertex("new", "2");
    let mut raw = Raw::start(new.numa()).await?;
    agent.until_watches(raw.pid().context("it runs")?).await?;
    let of_new = raw.connection("unix").await?;
    for stream in [1, 3, 5] {
        raw.run(&format!("call {of_new} writev {stream}")).await?;
    }
    one.run(&format!("call {fd} writev 5")).await?;
    agent
        .until(
            "all of the old replica's calls, and of a new one's",
            |scrape| {
                scrape.pending(&pod.name, "would_reject") == 3
                    && scrape.pending(&new.name, "would_reject") == 3
            },
        )
        .await?;
    for raw in [raw, many, one] {
        raw.end().await?;
    }
    agent.stop().await?;
    seen(
        "more processes than TARGETS holds",
        &format!(
            "{n} processes: {counted} of {n} calls counted, {lost} events counted as lost; {timed} calls timed, {untimed} without a time; the agent at {resident} MiB"
        ),
    )
}

/// No room for the API's socket: the agent says so, and doesn't start.
#[tokio::test]
async fn a_full_file_system() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let directory = tempfile::tempdir()?;
    // Of one inode, which its own directory takes. It goes with this thread's mount namespace.
    mount(
        "full",
        directory.path(),
        "tmpfs",
        MountFlags::empty(),
        Some(c"nr_inodes=1"),
    )?;
    let socket = directory.path().join("api.sock");
    let output = Command::new(binary()?)
        .args(["run", "--metrics-listen", "127.0.0.1:0", "--api-socket"])
        .arg(&socket)
        .arg("--pin-dir")
        .arg(bpffs.pins())
        .output()
        .await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1)
            && error.contains("No space left on device")
            && error.contains(&directory.path().display().to_string()),
        "{}: {error}",
        output.status
    );
    ensure!(!bpffs.pins().exists(), "it leaves nothing behind");
    Ok(())
}

/// More events than the ring holds, while the agent can't read: 3,000 processes of a replica come and go.
#[tokio::test]
async fn more_events_than_the_ring_holds() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("storm", "1");
    let mut one = Raw::start(pod.numa()).await?;
    let fd = one.connection("unix").await?;
    agent.until_watches(one.pid().context("it runs")?).await?;
    agent.signal(Signal::STOP)?;
    one.run("storm 4000").await?;
    one.run(&format!("call {fd} writev 1")).await?;
    agent.signal(Signal::CONT)?;
    let scrape = agent
        .until("the loss is told", |scrape| {
            scrape.events_lost() > Some(0) && scrape.pending(&pod.name, "would_reject") == 1
        })
        .await?;
    let lost = scrape.events_lost().unwrap_or(0);
    // And it goes on: replicas are found, calls are counted.
    let new = Pod::mono_vertex("after-the-storm", "2");
    let mut raw = Raw::start(new.numa()).await?;
    let fd = raw.connection("unix").await?;
    for stream in [1, 3, 5] {
        raw.run(&format!("call {fd} writev {stream}")).await?;
    }
    agent
        .until("a replica that came after it", |scrape| {
            scrape.pending(&new.name, "would_reject") == 3
        })
        .await?;
    raw.end().await?;
    one.end().await?;
    agent.stop().await?;
    seen(
        "more process events than EVENTS holds, the agent stopped meanwhile",
        &format!(
            "4000 processes: {lost} events lost and counted, all calls of both replicas counted"
        ),
    )
}

/// A pid comes back at once, as another replica's.
#[tokio::test]
async fn a_pid_comes_back() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let mut reused = 0;
    for round in 0..200 {
        let old = Pod::mono_vertex(&format!("old-{round}"), "1");
        let mut child = raw::command(old.numa())
            .args(["once", "writev", "3"])
            .stdin(Stdio::null())
            .spawn()?;
        let pid = child.id().context("it runs")?;
        ensure!(child.wait().await?.success());
        // The next process gets the number behind this one, unless a thread of somebody else is faster.
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
        let new = Pod::mono_vertex(&format!("new-{round}"), "0");
        let mut child = raw::command(new.numa())
            .args(["once", "writev", "5"])
            .stdin(Stdio::null())
            .spawn()?;
        let again = child.id() == Some(pid);
        ensure!(child.wait().await?.success());
        agent
            .until("each has its own calls", |scrape| {
                scrape.pending(&old.name, "would_reject") == 3
                    && scrape.pending(&new.name, "admitted") == 5
            })
            .await?;
        reused += u32::from(again);
        if reused == 5 {
            break;
        }
    }
    ensure!(reused == 5, "a pid came back {reused} times only");
    let scrape = agent.scrape().await?;
    ensure!(scrape.events_lost() == Some(0), "{scrape:?}");
    agent.stop().await?;
    seen(
        "a pid comes back as another replica's process",
        &format!("{reused} times: 3 and 5 calls of 3 and 5 counted"),
    )
}

/// The agent gets no memory any more: whatever becomes of it, what it enforces goes on, and the next agent takes over.
#[tokio::test]
async fn the_agent_is_out_of_memory() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &["--mode", "enforce"]).await?;
    let mut replica = Replica::start("starved", 1, ClientKind::Tonic, SourceKind::Rust).await?;
    until_rejected(&mut replica).await?;
    replica.client.background_on(RATE).await?;
    let pid = agent.pid().context("it runs")?;
    let none = Rlimit {
        current: Some(1 << 20),
        maximum: Some(1 << 20),
    };
    prlimit(Pid::from_raw(pid.try_into()?), Resource::As, none)?;
    let mut answered = 0;
    for _ in 0..50 {
        answered += u32::from(agent.scrape().await.is_ok());
    }
    all(&mut replica, 200, false).await?;
    let alive = std::path::Path::new(&format!("/proc/{pid}/exe")).exists();
    drop(agent);
    let agent = Agent::start_at(&bpffs.pins(), &["--mode", "enforce"]).await?;
    all(&mut replica, 200, false).await?;
    intact(&mut replica).await?;
    agent.stop().await?;
    seen(
        "the agent gets no more memory (RLIMIT_AS)",
        &format!(
            "400 calls rejected, reads intact; {answered} of 50 scrapes answered, the agent {}",
            if alive { "lives" } else { "has died" }
        ),
    )
}

/// The wall clock jumps: leases and durations are of another clock. Only in a virtual machine of its own.
#[tokio::test]
async fn the_clock_jumps() -> Result<()> {
    if scale() != Scale::Vm {
        println!("left out: this machine's clock is not the test's");
        return Ok(());
    }
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("clock", "1");
    let mut one = Raw::start(pod.numa()).await?;
    let fd = one.connection("unix").await?;
    for (stream, expected, jump) in [(1, 1, 7_200), (3, 2, -14_400), (5, 3, 7_200)] {
        let mut now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        now.tv_sec += jump;
        rustix::time::clock_settime(rustix::time::ClockId::Realtime, now)?;
        one.run(&format!("call {fd} writev {stream}")).await?;
        wait_for("calls are counted", Duration::from_secs(10), async || {
            let scrape = agent.scrape().await?;
            Ok((scrape.pending(&pod.name, "would_reject") == expected).then_some(()))
        })
        .await?;
    }
    one.end().await?;
    agent.stop().await?;
    seen(
        "the wall clock jumps by hours, forward and back",
        "3 of 3 calls counted",
    )
}
