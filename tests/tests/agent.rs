//! The agent itself: how it begins, what it leaves behind, and what it says when it can't work.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Pod, binary, free_address};
use pendguard_tests::kernel::preempts_tracepoints;
use pendguard_tests::raw::Raw;
use pendguard_tests::wait::{WAIT_LIMIT, wait_for};
use tokio::process::Command;

/// How many of the programs hang on `dup2`: arm64 has no such system call.
const DUP2: usize = cfg!(target_arch = "x86_64") as usize;

/// Programs of Pendguard's that the kernel has loaded. Names are cut to 15 characters.
fn loaded() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for program in aya::programs::loaded_programs() {
        let Ok(program) = program else { continue };
        if let Some(name) = program.name_as_str()
            && ["tap_", "fd_", "proc_"].iter().any(|p| name.starts_with(p))
        {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

/// The kernel takes programs away a moment after the last descriptor is closed.
async fn until_unloaded() -> Result<()> {
    let mut left = BTreeSet::new();
    wait_for("the programs are gone", WAIT_LIMIT, async || {
        left = loaded()?;
        Ok(left.is_empty().then_some(()))
    })
    .await
    .with_context(|| format!("still loaded: {left:?}"))
}

/// Runs an agent that must not start, and returns why it says so.
async fn refused(run: &mut Command) -> Result<String> {
    let output = run.output().await?;
    let log = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(1),
        "{:?}: {log}",
        output.status
    );
    Ok(log)
}

/// A command that runs an agent with these listeners.
fn run(binary: &Path, address: &str, socket: &Path) -> Command {
    let mut command = Command::new(binary);
    command
        .args(["run", "--metrics-listen", address, "--api-socket"])
        .arg(socket);
    command
}

fn mounts() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/self/mountinfo")?)
}

#[tokio::test]
async fn nothing_is_left_behind() -> Result<()> {
    until_unloaded().await?;
    let before = mounts()?;
    let agent = Agent::start(&[]).await?;
    let loaded_now = loaded()?;
    // Those that take turns are called the same, with a number; one name is too long for its own.
    let (others, firsts): (BTreeSet<_>, BTreeSet<_>) = loaded_now.into_iter().partition(|name| {
        name.ends_with("_2") || name.ends_with("_3") || name == "fd_close_range_"
    });
    ensure!(firsts.len() == 12 + DUP2, "{firsts:?}");
    ensure!(others.is_empty() != preempts_tracepoints()?, "{others:?}");
    ensure!(mounts()? == before, "a mount that others see");
    let socket = agent.socket();
    ensure!(socket.exists());
    let log = agent.stop().await?;
    ensure!(!socket.exists(), "the socket is still there");
    ensure!(
        log.last().is_some_and(|line| line.contains("stopped")),
        "{log:?}"
    );
    until_unloaded().await?;
    // Nor when it is killed.
    let agent = Agent::start(&[]).await?;
    drop(agent);
    until_unloaded().await?;
    ensure!(mounts()? == before);
    Ok(())
}

/// Where neither tracefs nor bpffs is mounted, and where tracefs is: both are a node's normal state.
#[tokio::test]
async fn with_and_without_tracefs() -> Result<()> {
    for script in [
        "umount /sys/kernel/tracing /sys/kernel/debug 2>/dev/null; exec \"$@\"",
        "mount -t tracefs tracefs /sys/kernel/tracing; exec \"$@\"",
    ] {
        let address = free_address()?.to_string();
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("api.sock");
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(binary()?)
            .args(["run", "--metrics-listen", &address, "--api-socket"])
            .arg(&socket)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let status = wait_for(script, WAIT_LIMIT, async || {
            ensure!(child.try_wait()?.is_none(), "{script}: it ended");
            let status = Command::new(binary()?)
                .args(["status", "--json", "--api-socket"])
                .arg(&socket)
                .output()
                .await?;
            Ok(status.status.success().then_some(status.stdout))
        })
        .await?;
        let status: serde_json::Value = serde_json::from_slice(&status)?;
        let programs = status["programs"].as_array().context("no programs")?;
        ensure!(programs.len() == 14 + DUP2, "{programs:?}");
        ensure!(
            programs.iter().all(|p| p["attached"] == true),
            "{programs:?}"
        );
        child.kill().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_second_agent_is_refused() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pid = agent.pid().context("it ended")?;
    let socket = agent.socket();
    let address = free_address()?.to_string();
    let log = refused(&mut run(&binary()?, &address, &socket)).await?;
    let named = socket.to_str().context("a path")?;
    ensure!(
        log.contains(&pid.to_string()) && log.contains(named),
        "{log}"
    );
    // The first one goes on.
    ensure!(agent.get("/readyz").await?.0 == 200);
    agent.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_is_named() -> Result<()> {
    // What another test's agent has loaded goes a moment after it.
    until_unloaded().await?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("api.sock");
    let log = refused(&mut run(&binary()?, &address, &socket)).await?;
    ensure!(
        log.contains(&address) && log.contains("--metrics-listen"),
        "{log}"
    );
    ensure!(
        loaded()?.is_empty(),
        "attached before it could be asked: {:?}",
        loaded()?
    );
    Ok(())
}

#[tokio::test]
async fn without_privilege_it_says_what_is_missing() -> Result<()> {
    // The binary where `nobody` can reach it.
    let directory = tempfile::Builder::new()
        .prefix("pendguard")
        .tempdir_in("/tmp")?;
    let path = directory.path().join("pendguard");
    std::fs::copy(binary()?, &path)?;
    std::fs::set_permissions(
        directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )?;
    let address = free_address()?.to_string();
    let socket = directory.path().join("api.sock");
    let log = refused(run(&path, &address, &socket).uid(65534).gid(65534)).await?;
    ensure!(log.contains("CAP_"), "{log}");
    Ok(())
}

/// A call is no log line, whoever makes it; what `status` and `/metrics` say of it is asserted too.
#[tokio::test]
async fn calls_are_quiet_and_shown() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let mut pods = Vec::new();
    for replica in ["0", "1"] {
        let pod = Pod::mono_vertex("quiet", replica);
        let mut raw = Raw::start(pod.numa()).await?;
        let fd = raw.connection("unix").await?;
        for i in 0..50 {
            raw.run(&format!("call {fd} writev {}", 2 * i + 1)).await?;
        }
        pods.push((pod, raw));
    }
    agent
        .until("both replicas", |scrape| {
            scrape.pending(&pods[0].0.name, "admitted") == 50
                && scrape.pending(&pods[1].0.name, "would_reject") == 50
        })
        .await?;
    let status = agent.status().await?;
    for (pod, _) in &pods {
        let replicas = status["replicas"].as_array().context("no replicas")?;
        let replica = replicas
            .iter()
            .find(|r| r["pod"] == pod.name.as_str())
            .with_context(|| format!("{} in {status}", pod.name))?;
        ensure!(replica["calls"][0]["count"] == 50, "{replica}");
        ensure!(
            replica["workload"] == "quiet" && replica["namespace"] == "test",
            "{replica}"
        );
    }
    let table = agent.command(&["status"]).await?;
    let table = String::from_utf8(table.stdout)?;
    ensure!(
        table.contains("test/quiet") && table.contains("WOULD_REJECT"),
        "{table}"
    );
    // The machine's other processes may earn a warning, and the kernel's reasons are as long as they must be.
    let long = |line: &str| {
        ["warning: ", "no enforcer "]
            .iter()
            .any(|s| line.starts_with(s))
    };
    ensure!(
        table
            .lines()
            .all(|line| long(line) || line.chars().count() <= 100),
        "{table}"
    );
    let log = agent.stop().await?;
    let about = |pod: &Pod| log.iter().filter(|line| line.contains(&pod.name)).count();
    for (pod, raw) in pods {
        // That it was found is one line, or told again where the interpreter's launcher runs one program after another;
        // its 50 calls are none.
        let told =
            |line: &&String| line.contains("replica watched") || line.contains("replica gone");
        let all = log.iter().filter(|line| line.contains(&pod.name));
        ensure!(all.clone().all(|line| told(&line)), "{log:#?}");
        ensure!((1..=5).contains(&about(&pod)), "{log:#?}");
        raw.end().await?;
    }
    Ok(())
}
