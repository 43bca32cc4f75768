//! Which processes are watched: from their first instruction to their end, and no others.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use pendguard_tests::agent::{Agent, Pod, Scrape};
use pendguard_tests::raw::{self, Raw};
use pendguard_tests::scale::amount;
use rustix::process::Signal;
use serde_json::json;
use tokio::process::Child;

/// A process that connects, calls and ends as fast as it can.
fn once(pod: &Pod, calls: u32) -> Result<Child> {
    Ok(raw::command(pod.numa())
        .args(["once", "writev", &calls.to_string()])
        .stdin(Stdio::null())
        .spawn()?)
}

/// A replica's first call counts, and so do all calls of one that is gone before the agent could look at it.
#[tokio::test]
async fn the_first_call_of_a_new_replica_counts() -> Result<()> {
    let processes: u64 = amount(40, 12);
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("newborn", "1");
    for _ in 0..processes / 4 {
        let mut children = (0..4).map(|_| once(&pod, 3)).collect::<Result<Vec<_>>>()?;
        for child in &mut children {
            ensure!(child.wait().await?.success());
        }
    }
    agent
        .until("all calls of processes that are gone", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 3 * processes
        })
        .await?;
    let scrape = agent.scrape().await?;
    ensure!(scrape.events_lost() == Some(0), "{scrape:?}");
    agent.stop().await?;
    Ok(())
}

/// A process whose first thread has ended goes on, and so does what is counted of it; it is forgotten when its last thread has ended, of
/// which nothing tells.
#[tokio::test]
async fn the_first_thread_ends_first() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("headless", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let pid = raw.pid().context("it runs")?;
    agent.until_watches(pid).await?;
    let fd = raw.connection("unix").await?;
    raw.run(&format!("call {fd} writev 1")).await?;
    let thread: u32 = raw.run("abdicate").await?.parse()?;
    ensure!(thread != pid, "another thread goes on");
    // Longer than the agent looks often whether it is gone.
    tokio::time::sleep(Duration::from_secs(3)).await;
    raw.run(&format!("call {fd} writev 3")).await?;
    agent
        .until("the call of the thread that goes on", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 2
        })
        .await?;
    ensure!(agent.scrape().await?.map_entries("TARGETS") == 1);
    raw.end().await?;
    agent
        .until("the process is forgotten", |scrape| {
            scrape.map_entries("TARGETS") == 0
                && scrape.sum("pendguard_replicas", &[]).unwrap_or(0) == 0
                && scrape.pending(&pod.name, "would_reject") == 2
        })
        .await?;
    agent.stop().await?;
    Ok(())
}

/// A call on a connection of its own is counted.
async fn its_call_counts(agent: &Agent, pod: &Pod, raw: &mut Raw) -> Result<()> {
    let fd = raw.connection("unix").await?;
    raw.run(&format!("call {fd} writev 1")).await?;
    agent
        .until("its call", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 1
        })
        .await?;
    Ok(())
}

/// Processes that run one program after the other, in the midst of which the agent looks at them: what they are in the end is watched, from
/// the first call on.
#[tokio::test]
async fn one_program_after_the_other() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    for i in 0..amount(60, 6) {
        let pod = Pod::mono_vertex(&format!("chain-{i}"), "1");
        let mut raw = Raw::of(raw::command_behind(&["env"; 30], pod.numa())).await?;
        its_call_counts(&agent, &pod, &mut raw).await?;
        raw.end().await?;
    }
    agent.stop().await?;
    Ok(())
}

/// One whose first thread had ended before the agent began is found like any other.
#[tokio::test]
async fn the_first_thread_has_ended_before() -> Result<()> {
    let pod = Pod::mono_vertex("beheaded", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let pid = raw.pid().context("it runs")?;
    let thread: u32 = raw.run("abdicate").await?.parse()?;
    ensure!(thread != pid, "another thread goes on");
    let agent = Agent::start(&[]).await?;
    agent.until_watches(pid).await?;
    its_call_counts(&agent, &pod, &mut raw).await?;
    raw.end().await?;
    agent.stop().await?;
    Ok(())
}

/// A child that has called and ended, and that its parent doesn't wait for, has no environment any more when the agent looks at it: what it
/// called is its parent's all the same.
#[tokio::test]
async fn nobody_waits_for_a_child_that_has_ended() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("careless", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    agent.until_watches(raw.pid().context("it runs")?).await?;
    agent.signal(Signal::STOP)?;
    let status = raw.run("leave_dead write 3").await?;
    ensure!(status == "0", "the child failed: {status}");
    agent.signal(Signal::CONT)?;
    agent
        .until("the child's calls", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 3
        })
        .await?;
    let scrape = agent.scrape().await?;
    ensure!(scrape.events_lost() == Some(0), "{scrape:?}");
    raw.end().await?;
    agent.stop().await?;
    Ok(())
}

/// While the agent is stopped the kernel goes on counting, also for replicas that come meanwhile, whatever they do.
#[tokio::test]
async fn an_agent_that_is_stopped_loses_nothing() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let old = Pod::mono_vertex("old", "1");
    let mut old_raw = Raw::start(old.numa()).await?;
    let old_fd = old_raw.connection("unix").await?;
    agent
        .until("the replica is watched", |scrape| {
            scrape.sum("pendguard_replicas", &[]) == Some(1)
        })
        .await?;
    agent.signal(Signal::STOP)?;
    let new = Pod::mono_vertex("new", "2");
    let mut raw = Raw::start(new.numa()).await?;
    for i in 0..5 {
        let fd = raw.connection("unix").await?;
        raw.run(&format!("call {fd} writev 1")).await?;
        old_raw
            .run(&format!("call {old_fd} writev {}", 2 * i + 1))
            .await?;
        // All descriptors of a process that nobody has classified yet.
        raw.run(&format!("close_range {fd} 4294967295")).await?;
    }
    raw.run("fork write 3").await?;
    raw.exec().await?;
    let fd = raw.connection("unix").await?;
    raw.run(&format!("call {fd} sendto 1")).await?;
    agent.signal(Signal::CONT)?;
    let scrape = agent
        .until("what was called meanwhile", |scrape| {
            scrape.pending(&old.name, "would_reject") == 5
                && scrape.pending(&new.name, "would_reject") >= 1
        })
        .await?;
    // What ran before the exec is told apart from what runs now, and whose it was can't be asked any more: it is either
    // counted or lost, and nothing is both or neither.
    let counted = scrape.pending(&new.name, "would_reject");
    let lost = scrape.events_lost();
    ensure!(
        lost == Some(9 - counted),
        "{counted} counted, {lost:?} lost"
    );
    raw.end().await?;
    old_raw.end().await?;
    agent.stop().await?;
    Ok(())
}

/// Who is watched, told from the environment; and what a watched call of it counts as.
#[tokio::test]
async fn identities() -> Result<()> {
    let object = |source: serde_json::Value| {
        let text = json!({"spec": {"source": source, "sink": {"log": {}}}}).to_string();
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let pipeline = |pod: Pod, object: &str| {
        pod.set("NUMAFLOW_MONO_VERTEX_NAME", None)
            .set("NUMAFLOW_MONO_VERTEX_OBJECT", None)
            .set("NUMAFLOW_PIPELINE_NAME", Some("pl"))
            .set("NUMAFLOW_VERTEX_NAME", Some("in"))
            .set("NUMAFLOW_VERTEX_OBJECT", Some(object))
    };
    let udsource = object(json!({"udsource": {"container": {"image": "x"}}}));
    let generator = object(json!({"generator": {"rpu": 5}}));
    let no_source = object(json!(null));
    let plain = |replica| Pod::mono_vertex("who", replica);
    // (what, pod, replica label and verdict if it is watched)
    let cases = [
        ("replica 0", plain("0"), Some(("0", "admitted"))),
        ("replica 12", plain("12"), Some(("12", "would_reject"))),
        (
            "no number",
            plain("x").set("NUMAFLOW_REPLICA", Some("abc")),
            Some(("unknown", "admitted")),
        ),
        (
            "no replica",
            plain("y").set("NUMAFLOW_REPLICA", None),
            Some(("unknown", "admitted")),
        ),
        (
            "no object",
            plain("3").set("NUMAFLOW_MONO_VERTEX_OBJECT", None),
            Some(("3", "would_reject")),
        ),
        (
            "a pipeline's source",
            pipeline(plain("4"), &udsource),
            Some(("4", "would_reject")),
        ),
        (
            "a pipeline's built-in source",
            pipeline(plain("5"), &generator),
            None,
        ),
        (
            "a pipeline's other vertex",
            pipeline(plain("6"), &no_source),
            None,
        ),
        (
            "a MonoVertex's built-in source",
            plain("7").set("NUMAFLOW_MONO_VERTEX_OBJECT", Some(&generator)),
            None,
        ),
        (
            "the user's container",
            plain("8").set("NUMAFLOW_UD_CONTAINER_TYPE", Some("udsource")),
            None,
        ),
        (
            "no Numaflow",
            plain("9")
                .set("NUMAFLOW_MONO_VERTEX_NAME", None)
                .set("NUMAFLOW_NAMESPACE", None)
                .set("NUMAFLOW_POD", None),
            None,
        ),
    ];
    let agent = Agent::start(&[]).await?;
    for (what, pod, expected) in cases {
        let mut raw = Raw::start(pod.numa()).await?;
        let fd = raw.connection("unix").await?;
        raw.run(&format!("call {fd} writev 1")).await?;
        let name = pod.name.clone();
        match expected {
            Some((replica, verdict)) => {
                let labels = [
                    ("pod", name.as_str()),
                    ("replica", replica),
                    ("verdict", verdict),
                    ("method", pendguard_tests::agent::PENDING),
                ];
                agent
                    .until(what, |scrape| {
                        scrape.sum("pendguard_calls_total", &labels) == Some(1)
                    })
                    .await?;
            }
            None => {
                // Until the agent has decided, the process is a candidate. Another process that began later shows
                // that it has.
                let marker = Pod::mono_vertex("marker", "1");
                let later = Raw::start(marker.numa()).await?;
                let scrape = agent
                    .until(what, |scrape| {
                        scrape
                            .sum("pendguard_calls_total", &[("pod", &marker.name)])
                            .is_some()
                    })
                    .await?;
                ensure!(
                    scrape
                        .sum("pendguard_calls_total", &[("pod", &name)])
                        .is_none(),
                    "{what}: {scrape:?}"
                );
                later.end().await?;
            }
        }
        raw.end().await?;
    }
    agent.stop().await?;
    Ok(())
}

/// Forks without a program of their own, programs begun in the same process, and the end.
#[tokio::test]
async fn families() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("family", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let calls = |n| {
        let name = pod.name.clone();
        move |scrape: &pendguard_tests::agent::Scrape| scrape.pending(&name, "would_reject") == n
    };
    for _ in 0..10 {
        raw.run("fork write 5").await?;
    }
    agent.until("calls of forked children", calls(50)).await?;
    let fd = raw.connection("unix").await?;
    raw.run(&format!("call {fd} sendmsg 1")).await?;
    raw.exec().await?;
    let fd = raw.connection("unix").await?;
    raw.run(&format!("call {fd} sendmsg 1")).await?;
    agent
        .until("calls before and after exec", calls(52))
        .await?;
    let replicas = [("namespace", "test"), ("mode", "audit")];
    agent
        .until("one replica", |scrape| {
            scrape.sum("pendguard_replicas", &replicas) == Some(1)
        })
        .await?;
    raw.end().await?;
    let scrape = agent
        .until("no replica", |scrape| {
            scrape.sum("pendguard_replicas", &replicas).unwrap_or(0) == 0
        })
        .await?;
    // It is shown for a while, with all its calls.
    ensure!(
        scrape.pending(&pod.name, "would_reject") == 52,
        "{scrape:?}"
    );
    ensure!(scrape.connections("synced") == Some(0), "{scrape:?}");
    ensure!(scrape.events_lost() == Some(0), "{scrape:?}");
    agent.stop().await?;
    Ok(())
}

/// A process that the programs have met often, as one that isn't watched, runs a replica's program: its first call counts.
#[tokio::test]
async fn a_stranger_becomes_a_replica() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("stranger", "1");
    let directory = tempfile::tempdir()?;
    let fifo = directory.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode)?;
    let script = format!(
        "read go < {}; i=0; while [ $i -lt 300 ]; do echo; i=$((i+1)); done > /dev/null; exec env \"$@\"",
        fifo.display()
    );
    let variables: Vec<_> = pod.numa().map(|(k, v)| format!("{k}={v}")).collect();
    let mut launcher = vec!["sh", "-c", &script, "sh"];
    launcher.extend(variables.iter().map(String::as_str));
    let command = raw::command_behind(&launcher, std::iter::empty());
    let go = async {
        // Until then the shell itself is a candidate.
        let dropped = |scrape: &Scrape| scrape.map_entries("TARGETS") == 0;
        agent.until("the shell is nobody's", dropped).await?;
        tokio::fs::write(&fifo, "go\n").await?;
        anyhow::Ok(())
    };
    let (raw, gone) = tokio::join!(Raw::of(command), go);
    gone?;
    let mut raw = raw?;
    let fd = raw.connection("unix").await?;
    for stream in [1, 3, 5] {
        raw.run(&format!("call {fd} write {stream}")).await?;
    }
    agent
        .until("its calls", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 3
        })
        .await?;
    raw.end().await?;
    agent.stop().await?;
    Ok(())
}

/// A large node: 250 pods among 2,000 processes, there before the agent.
#[tokio::test]
async fn a_large_node() -> Result<()> {
    let (pods_wanted, processes_wanted) = amount((250, 2000), (25, 200));
    let mut pods = Vec::new();
    let mut processes = Vec::new();
    for i in 0..processes_wanted {
        let mut command = tokio::process::Command::new("sleep");
        command.arg("600").kill_on_drop(true);
        if i % (processes_wanted / pods_wanted) == 0 {
            let pod =
                Pod::mono_vertex("large", &(i / (processes_wanted / pods_wanted)).to_string());
            command.envs(pod.numa());
            pods.push(pod);
        }
        processes.push(command.spawn()?);
    }
    let agent = Agent::start(&[]).await?;
    // Ready means that all were found.
    let scrape = agent.scrape().await?;
    ensure!(
        scrape.sum("pendguard_replicas", &[("namespace", "test")]) == Some(pods_wanted as u64),
        "{:?}",
        scrape.sum("pendguard_replicas", &[])
    );
    let status = agent.status().await?;
    ensure!(
        status["replicas"]
            .as_array()
            .is_some_and(|all| all.len() == pods_wanted)
    );
    for _ in 0..20 {
        agent.scrape().await?;
    }
    let resident = agent.resident()?;
    println!(
        "agent: {:.1} MiB resident with {pods_wanted} pods and {processes_wanted} processes",
        resident as f64 / f64::from(1 << 20)
    );
    ensure!(resident <= 20 << 20, "{resident} bytes resident");
    // Nobody asks and nobody calls: it does next to nothing.
    let pid = agent.pid().context("it ended")?;
    let (cpu, start) = (cpu(pid)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let share = (self::cpu(pid)? - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    println!(
        "agent: {:.2} % of a CPU while nothing happens",
        100.0 * share
    );
    ensure!(
        share < amount(0.01, 0.1),
        "{share} of a CPU while nothing happens"
    );
    drop(processes);
    agent
        .until("all gone", |scrape| {
            scrape.sum("pendguard_replicas", &[]).unwrap_or(0) == 0
        })
        .await?;
    agent.stop().await?;
    Ok(())
}

/// CPU time that a process has used.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .context("stat")?
        .split_whitespace()
        .collect();
    // utime and stime are fields 14 and 15; the state, field 3, is the first here.
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(
        1000 * ticks / rustix::param::clock_ticks_per_second(),
    ))
}
