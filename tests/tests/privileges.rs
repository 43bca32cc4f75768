//! What the agent may do, and who may talk to it: no more capabilities than each mode's, and nobody but root.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, binary};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::enforcing::{all, counts, rewrites, until_rejected};
use pendguard_tests::peers::{ClientKind, SourceKind};
use pendguard_tests::privileges::{ADMIN, AUDIT, GATE, paranoid, with_only};
use pendguard_tests::replica::Replica;
use pendguard_tests::scale::calls;
use serde_json::Value;
use tokio::process::Command;

/// `nobody`.
const OTHER_UID: u32 = 65534;

/// What audit takes on this node.
fn audit() -> Result<Vec<&'static str>> {
    let mut capabilities = AUDIT.to_vec();
    if paranoid()? {
        capabilities.push(ADMIN);
    }
    Ok(capabilities)
}

/// The effective capabilities of a process, a bit each.
fn effective(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    Ok(u64::from_str_radix(bits.context("no CapEff")?.trim(), 16)?)
}

/// An agent with these capabilities and no others.
async fn start(capabilities: &[&str], pins: &Path, mode: &str) -> Result<Agent> {
    let agent = Agent::start_by(with_only(capabilities)?, pins, &["--mode", mode]).await?;
    let held = effective(agent.pid().context("it runs")?)?;
    ensure!(
        held.count_ones() as usize == capabilities.len(),
        "{held:#x} is not {capabilities:?}"
    );
    Ok(agent)
}

#[tokio::test]
async fn audit_takes_no_more() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = start(&audit()?, &bpffs.pins(), "audit").await?;
    let mut one = Replica::start("least", 1, ClientKind::Tonic, SourceKind::Rust).await?;
    let n = calls();
    all(&mut one, n, true).await?;
    let scrape = agent.scrape().await?;
    let found = scrape.pending(&one.pod.name, "would_reject");
    ensure!(found == n, "{found} of {n}");
    agent.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_gate_takes_no_more() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let capabilities = [&audit()?[..], &[GATE]].concat();
    let agent = start(&capabilities, &bpffs.pins(), "enforce").await?;
    ensure!(agent.status().await?["enforcer"] == "gate");
    let mut zero = Replica::start("least", 0, ClientKind::Tonic, SourceKind::Rust).await?;
    let mut one = Replica::start("least", 1, ClientKind::Tonic, SourceKind::Rust).await?;
    until_rejected(&mut one).await?;
    let n = calls();
    let late = all(&mut one, n, false).await?;
    all(&mut zero, n, true).await?;
    let scrape = agent.scrape().await?;
    let [admitted, rejected, unresolved] = counts(&one, &scrape);
    ensure!(
        rejected > n - late && unresolved == 0,
        "{admitted} admitted, {rejected} rejected, {unresolved} unresolved, {late} late"
    );
    ensure!(counts(&zero, &scrape) == [n, 0, 0]);
    agent.stop().await?;
    Ok(())
}

/// Only where the kernel lets `rewrite`: in virtual machines that run this with it.
#[tokio::test]
async fn rewriting_takes_no_more() -> Result<()> {
    if !rewrites() {
        println!("left out: the enforcer is not rewrite");
        return Ok(());
    }
    let bpffs = BpfFs::mount()?;
    let mut capabilities = AUDIT.to_vec();
    capabilities.push(ADMIN);
    let agent = start(&capabilities, &bpffs.pins(), "enforce").await?;
    ensure!(agent.status().await?["enforcer"] == "rewrite");
    let mut zero = Replica::start("least", 0, ClientKind::Tonic, SourceKind::Rust).await?;
    let mut one = Replica::start("least", 1, ClientKind::Tonic, SourceKind::Rust).await?;
    let n = calls();
    until_rejected(&mut one).await?;
    all(&mut one, n, false).await?;
    all(&mut zero, n, true).await?;
    let scrape = agent.scrape().await?;
    let [_, rejected, unresolved] = counts(&one, &scrape);
    ensure!(
        rejected == n + 1 && unresolved == 0,
        "{rejected} of {n} and 1 rejected, {unresolved} unresolved"
    );
    ensure!(counts(&zero, &scrape) == [n, 0, 0]);
    agent.stop().await?;
    Ok(())
}

/// Of what each mode takes, nothing can be left out; and `doctor` names what is missing.
#[tokio::test]
async fn each_of_them_is_needed() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let capabilities = [&AUDIT[..], &[GATE]].concat();
    for missing in &capabilities {
        let mut others = audit()?;
        others.push(GATE);
        others.retain(|capability| capability != missing);
        // It stands in for some.
        others.retain(|capability| *capability != ADMIN);
        let output = with_only(&others)?
            .args(["doctor", "--json", "--pin-dir"])
            .arg(bpffs.pins())
            .output()
            .await?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let named = said["checks"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|check| {
                check["id"] == format!("cap_{missing}") && check["outcome"] == "not_supported"
            });
        ensure!(named, "without {missing}: {said}");
        let broken = if *missing == GATE {
            "enforcement"
        } else {
            "audit"
        };
        ensure!(
            said[broken]["outcome"] == "not_supported",
            "without {missing}: {said}"
        );
        ensure!(output.status.code() == Some(if *missing == GATE { 1 } else { 2 }));
    }
    Ok(())
}

/// Not even where the directory would let them: the socket itself is root's.
#[tokio::test]
async fn nobody_else_talks_to_it() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let socket = agent.socket();
    let directory = socket.parent().context("its directory")?;
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755))?;
    let reachable = directory.join("pendguard");
    std::fs::copy(binary()?, &reachable)?;
    for verb in [&["status"][..], &["mode", "off"], &["watch"]] {
        let output = Command::new(&reachable)
            .args(verb)
            .arg("--api-socket")
            .arg(&socket)
            .uid(OTHER_UID)
            .gid(OTHER_UID)
            .output()
            .await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && error.contains("only the user who runs the agent"),
            "{verb:?}: {}: {error}",
            output.status
        );
    }
    ensure!(
        agent.status().await?["mode"] == "audit",
        "nothing was changed"
    );
    agent.stop().await?;
    Ok(())
}
