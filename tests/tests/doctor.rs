//! What `pendguard doctor` says of a kernel is what the agent does on it: on this one, on older and newer ones, and under lockdown
//! (`cargo xtask vm --test doctor`).

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, binary, free_address};
use pendguard_tests::bpffs::BpfFs;
use serde_json::Value;
use tokio::process::Command;

/// Whatever the environment says: which tap and which enforcer there are is what is asked here.
const AUTO: [&str; 4] = ["--tap", "auto", "--enforcer", "auto"];

/// What `doctor` says, and its exit status.
async fn doctor(pins: &Path) -> Result<(Value, Option<i32>)> {
    let output = Command::new(binary()?)
        .args(["doctor", "--json", "--pin-dir"])
        .arg(pins)
        .output()
        .await?;
    let said = serde_json::from_slice(&output.stdout).with_context(|| {
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        format!("doctor says no JSON: {complaint}")
    })?;
    Ok((said, output.status.code()))
}

/// Why an agent doesn't start that must not.
async fn refusal(pins: &Path, mode: &str) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let output = Command::new(binary()?)
        .args(["run", "--mode", mode])
        .args(AUTO)
        .args([
            "--metrics-listen",
            &free_address()?.to_string(),
            "--pin-dir",
        ])
        .arg(pins)
        .arg("--api-socket")
        .arg(directory.path().join("api.sock"))
        .output()
        .await?;
    let log = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(1),
        "mode {mode}: {}: {log}",
        output.status
    );
    Ok(log)
}

/// Starts an agent, and returns what it says of itself.
async fn status(pins: &Path, mode: &str) -> Result<Value> {
    let arguments = [&["--mode", mode][..], &AUTO].concat();
    let agent = Agent::start_at(pins, &arguments).await?;
    let status = agent.status().await?;
    agent.stop().await?;
    Ok(status)
}

#[tokio::test]
async fn what_it_says_is_so() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let pins = bpffs.pins();
    let (said, exit) = doctor(&pins).await?;
    let possible = |what: &str| said[what]["outcome"] != "not_supported";
    let because = |what: &str| said[what]["because"].to_string();
    println!(
        "exit {exit:?}, audit {}, enforcement {}, tap {}, enforcer {}, not used {}",
        said["audit"], said["enforcement"], said["tap"], said["enforcer"], said["not_used"]
    );
    let expected = match (possible("audit"), possible("enforcement")) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    };
    ensure!(exit == Some(expected), "exit {exit:?}: {said}");
    if !possible("audit") {
        // Before 5.15 the tap can't be loaded, and nothing else is a reason for that.
        ensure!(because("audit").contains("kernel"), "{said}");
        let kernel = said["checks"].as_array().into_iter().flatten();
        let mut kernel = kernel.filter(|check| check["id"] == "kernel");
        let kernel = kernel.next().context("doctor says nothing of the kernel")?;
        let consequence = kernel["consequence"].as_str().unwrap_or_default();
        ensure!(consequence.contains("5.15"), "{kernel}");
        let log = refusal(&pins, "audit").await?;
        ensure!(log.contains("tap_") || log.contains("fd_"), "{log}");
        return Ok(());
    }
    let audit = status(&pins, "audit").await?;
    ensure!(audit["tap"] == said["tap"], "{audit}: {said}");
    if possible("enforcement") {
        let enforce = status(&pins, "enforce").await?;
        ensure!(enforce["enforcer"] == said["enforcer"], "{enforce}: {said}");
    } else {
        let log = refusal(&pins, "enforce").await?;
        ensure!(
            log.contains("can't enforce") && log.contains("pendguard doctor"),
            "{log}"
        );
    }
    Ok(())
}
