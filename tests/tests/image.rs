//! The image in containers that have what the manifests give them, and no more: audit, enforcement, uninstallation.
//!
//! Not here: what the kubelet, the runtime's own seccomp profile, AppArmor and SELinux add or forbid; `rewrite`, which takes a kernel without lockdown.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::deployment::{Container, Image, Node, added, objects, pod_spec, run};
use pendguard_tests::enforcing::{all, counts, until_rejected};
use pendguard_tests::privileges::paranoid;
use pendguard_tests::protocol::Method;
use pendguard_tests::replica::Replica;
use pendguard_tests::wait::wait_for;
use serde_json::{Value, json};

/// `nobody`: source pods seldom run as root.
const USER: u32 = 65534;
/// Calls of each replica.
const CALLS: u64 = 200;
/// What enforces in the tests' namespace.
const ENFORCE: &str = "mode = \"audit\"\n[[rule]]\nnamespace = \"test\"\nmode = \"enforce\"\n";
const AUDIT: &str = "mode = \"audit\"\n";
/// How long it is tried whether calls are rejected that can't be.
const NEVER: Duration = Duration::from_secs(3);
/// The largest that the image may be.
const LIMIT: u64 = 25 << 20;
/// The image's bill of materials.
const SBOM: &str = "usr/share/doc/pendguard/sbom.cdx.json";

/// The overlay for this node's kernel.
async fn overlay(name: &str) -> Result<Value> {
    let suffix = if paranoid()? { "-debian" } else { "" };
    let objects = objects(&format!("kustomize/overlays/{name}{suffix}")).await?;
    Ok(pod_spec(&objects)?.clone())
}

/// The agent's container in a pod.
fn agent(pod: &mut Value) -> &mut Value {
    &mut pod["containers"][0]
}

/// The capabilities by their numbers, a bit each.
fn bits(names: &[String]) -> Result<u64> {
    let number = |name: &str| {
        Some(match name {
            "DAC_READ_SEARCH" => 2,
            "NET_ADMIN" => 12,
            "SYS_PTRACE" => 19,
            "SYS_ADMIN" => 21,
            "PERFMON" => 38,
            "BPF" => 39,
            _ => return None,
        })
    };
    names.iter().try_fold(0, |all, name| {
        let number: u32 = number(name).with_context(|| format!("which one is {name}?"))?;
        Ok(all | 1 << number)
    })
}

/// The kernel gives it what its pod says and no more.
fn holds_only(container: &Container, pod: &Value) -> Result<()> {
    let expected = bits(&added(&pod["containers"][0]))?;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let found = u64::from_str_radix(&container.status(set)?, 16)?;
        ensure!(found == expected, "{set}: {found:#x}, not {expected:#x}");
    }
    for (name, expected) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        let found = container.status(name)?;
        ensure!(found == expected, "{name}: {found}");
    }
    Ok(())
}

#[test]
fn what_is_in_it() -> Result<()> {
    let image = Image::unpack()?;
    let size = Image::size()?;
    ensure!(size <= LIMIT, "{size} octets");
    let files = image.files()?;
    let own = |file: &&String| !file.starts_with("usr/share/doc/pendguard/");
    let others: Vec<_> = files.iter().filter(own).collect();
    ensure!(others == ["usr/bin/pendguard"], "{files:?}");
    for licence in ["LICENSE-APACHE", "LICENSE-MIT", "LICENSE-GPL-2.0"] {
        let path = format!("usr/share/doc/pendguard/{licence}");
        ensure!(files.contains(&path), "{licence} is not in it: {files:?}");
    }
    ensure!(image.config["Entrypoint"] == json!(["/usr/bin/pendguard"]));
    ensure!(image.config["User"] == "0:0", "{}", image.config);
    for (name, value) in [
        ("title", "Pendguard"),
        ("version", env!("CARGO_PKG_VERSION")),
    ] {
        let name = format!("org.opencontainers.image.{name}");
        ensure!(image.config["Labels"][&name] == value, "{}", image.config);
    }
    let sbom: Value = serde_json::from_slice(&std::fs::read(image.root().join(SBOM))?)?;
    ensure!(sbom["bomFormat"] == "CycloneDX");
    ensure!(sbom["metadata"]["component"]["name"] == "pendguard");
    let components = sbom["components"].as_array().context("no components")?;
    // What the agent links, and what the programs in it do; nothing that only tests link.
    for (name, linked) in [
        ("tokio", true),
        ("aya", true),
        ("aya-ebpf", true),
        ("agent-common", true),
        ("tempfile", false),
        ("proptest", false),
    ] {
        let listed = components.iter().any(|component| component["name"] == name);
        ensure!(listed == linked, "{name}: {listed}");
    }
    for component in components {
        let known = |key: &str| {
            component[key]
                .as_array()
                .is_some_and(|list| !list.is_empty())
        };
        ensure!(known("licenses"), "{component}");
    }
    Ok(())
}

#[tokio::test]
async fn audit() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay("audit").await?;
    let node = Node::new(AUDIT)?;
    // One that is there before, and one that comes later.
    let mut one = Replica::start_as_user("container-audit", 1, USER).await?;
    let container = Container::start(&image, &node, &pod).await?;
    holds_only(&container, &pod)?;
    let mut zero = Replica::start_as_user("container-audit", 0, USER).await?;
    for replica in [&mut zero, &mut one] {
        all(replica, CALLS, true).await?;
    }
    let scrape = container.agent.scrape().await?;
    for replica in [&zero, &one] {
        let counted = replica.counted(&scrape);
        ensure!(counted == CALLS, "{counted} of {CALLS}: {scrape:?}");
    }
    let status = container.agent.status().await?;
    ensure!(status["warnings"] == json!([]), "{status}");
    ensure!(!node.pins().exists(), "an audit pins nothing");
    container.agent.stop().await?;
    Ok(())
}

/// Enforcement by the gate; it outlives the pod, the next pod takes it over, and the manifests of `uninstall` take it away.
#[tokio::test]
async fn enforcement() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay("enforce-gate").await?;
    let node = Node::new(ENFORCE)?;
    let mut zero = Replica::start_as_user("container-gate", 0, USER).await?;
    let mut one = Replica::start_as_user("container-gate", 1, USER).await?;
    let container = Container::start(&image, &node, &pod).await?;
    holds_only(&container, &pod)?;
    let status = container.agent.status().await?;
    ensure!(status["enforcer"] == "gate", "{status}");
    ensure!(status["warnings"] == json!([]), "{status}");
    until_rejected(&mut one).await?;
    let late = all(&mut one, CALLS, false).await?;
    all(&mut zero, CALLS, true).await?;
    let scrape = container.agent.scrape().await?;
    let [admitted, rejected, unresolved] = counts(&one, &scrape);
    ensure!(
        rejected > CALLS - late && unresolved == 0,
        "{admitted} admitted, {rejected} rejected, {unresolved} unresolved, {late} late"
    );
    ensure!(counts(&zero, &scrape) == [CALLS, 0, 0], "{scrape:?}");
    container.agent.stop().await?;
    all(&mut one, CALLS, false).await?;

    let container = Container::start(&image, &node, &pod).await?;
    all(&mut one, CALLS, false).await?;
    container.agent.stop().await?;

    uninstall(&image, &node, &mut one).await?;
    all(&mut zero, CALLS, true).await?;
    Ok(())
}

/// As the DaemonSet does: nothing is rejected any more at once, and when the connections have closed nothing is left.
async fn uninstall(image: &Image, node: &Node, one: &mut Replica) -> Result<()> {
    let objects = objects("kustomize/uninstall").await?;
    let pod = pod_spec(&objects)?;
    let seccomp = run(image, node, pod, "seccomp").await?;
    ensure!(seccomp.status.success(), "{seccomp:?}");
    ensure!(node.pins().exists(), "something is pinned");
    let detach = run(image, node, pod, "detach");
    let meanwhile = async {
        let ended = wait_for("a call is admitted", Duration::from_secs(20), async || {
            let called = one.client.call(Method::PendingFn, 1).await?;
            Ok((called.ok == 1).then_some(()))
        });
        ended.await?;
        one.restart_client().await
    };
    let (detach, meanwhile) = tokio::join!(detach, meanwhile);
    meanwhile?;
    let detach = detach?;
    let said = String::from_utf8_lossy(&detach.stdout).into_owned();
    ensure!(detach.status.success(), "{detach:?}");
    ensure!(said.contains("behind the gate"), "it waited: {said}");
    ensure!(!node.pins().exists(), "what is left: {said}");
    Ok(())
}

/// Of what an overlay adds, nothing can be left out: the agent ends, finds nobody, or rejects nothing. (On newer kernels, seen on 6.18, CAP_PERFMON
/// opens `/proc/<pid>/environ`, too; there an audit may do without CAP_SYS_PTRACE. The gate's `pidfd_getfd` never does.)
#[tokio::test]
async fn each_capability_is_needed() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay("enforce-gate").await?;
    let mut one = Replica::start_as_user("container-less", 1, USER).await?;
    let capabilities = added(&pod["containers"][0]);
    ensure!(capabilities.len() >= 4, "{capabilities:?}");
    for missing in &capabilities {
        // Newer kernels take CAP_SYS_ADMIN for it (`bpf_token_capable`), older ones don't.
        if missing == "NET_ADMIN" && capabilities.contains(&"SYS_ADMIN".to_owned()) {
            continue;
        }
        let node = Node::new(ENFORCE)?;
        let mut less = pod.clone();
        let others: Vec<_> = capabilities.iter().filter(|c| *c != missing).collect();
        agent(&mut less)["securityContext"]["capabilities"]["add"] = json!(others);
        match Container::start(&image, &node, &less).await {
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(
                    said.contains("the agent ended"),
                    "without {missing}: {said}"
                );
            }
            Ok(container) => {
                // With all of them it takes some milliseconds.
                let rejected = wait_for("a call is rejected", NEVER, async || {
                    let called = one.client.call(Method::PendingFn, 1).await?;
                    Ok((called.ok == 0).then_some(()))
                });
                ensure!(rejected.await.is_err(), "{missing} is not needed");
                let scrape = container.agent.scrape().await?;
                let [_, rejected, _] = counts(&one, &scrape);
                ensure!(rejected == 0, "{missing} is not needed: {scrape:?}");
                container.agent.stop().await?;
            }
        }
    }
    Ok(())
}

/// A node that is a container itself, or a pod without `hostPID`.
#[tokio::test]
async fn another_pid_namespace_is_refused() -> Result<()> {
    let image = Image::unpack()?;
    let mut pod = overlay("audit").await?;
    pod["hostPID"] = json!(false);
    let node = Node::new(AUDIT)?;
    let Err(error) = Container::start(&image, &node, &pod).await else {
        anyhow::bail!("it runs where it can see nobody");
    };
    let said = format!("{error:#}");
    ensure!(
        said.contains("the agent ended") && said.contains("hostPID: true"),
        "{said}"
    );
    Ok(())
}
