//! The image in containers that have what the manifests give them, and no more: audit, enforcement, uninstallation.
//!
//! Not here: what the kubelet, the runtime's own seccomp profile, AppArmor and SELinux add or forbid.

mod cluster;
mod exec;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::deployment::{Container, Image, Node, added, objects, pod_spec, run};
use pendguard_tests::enforcing::{JOIN_LIMIT, all, counts, until_rejected};
use pendguard_tests::kernel::preempts_tracepoints;
use pendguard_tests::privileges::paranoid;
use pendguard_tests::protocol::Method;
use pendguard_tests::replica::Replica;
use pendguard_tests::scale::amount;
use pendguard_tests::wait::wait_for;
use rustix::system::uname;
use serde_json::{Value, json};

/// `nobody`: source pods seldom run as root.
const USER: u32 = 65534;
/// Calls of each replica.
const CALLS: u64 = 200;
/// What enforces in the tests' namespace.
const ENFORCE: &str = "mode = \"audit\"\n[[rule]]\nnamespace = \"test\"\nmode = \"enforce\"\nanswer = \"unimplemented\"\n";
const AUDIT: &str = "mode = \"audit\"\n";
/// The largest that the image may be.
const LIMIT: u64 = 25 << 20;
/// The image's bill of materials.
const SBOM: &str = "usr/share/doc/pendguard/sbom.cdx.json";

/// What an overlay makes its pods of.
async fn overlay(name: &str) -> Result<Value> {
    let objects = objects(&format!("kustomize/overlays/{name}")).await?;
    Ok(pod_spec(&objects)?.clone())
}

/// The same of the one that is for this node's kernel.
async fn overlay_here(name: &str) -> Result<Value> {
    let suffix = if paranoid()? { "-debian" } else { "" };
    overlay(&format!("{name}{suffix}")).await
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
    for licence in [
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "LICENSE-GPL-2.0",
        "LICENSE-LGPL-2.1",
        "NOTICE-glibc",
        "NOTICE-libgcc",
    ] {
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
        ("glibc", true),
        ("libgcc", true),
        ("rust-std", true),
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
    let find = |name: &str| {
        components
            .iter()
            .find(|component| component["name"] == name)
    };
    let glibc = find("glibc").context("no glibc")?;
    ensure!(
        glibc["licenses"][0]["expression"] == "LGPL-2.1-or-later",
        "{glibc}"
    );
    // The program says of which compiler its standard library is: places in it are part of messages.
    let std = find("rust-std").context("no rust-std")?;
    let purl = std["purl"].as_str().unwrap_or_default();
    let (_, commit) = purl.split_once('@').context("no commit")?;
    let place = format!("/rustc/{commit}/library/");
    let program = std::fs::read(image.root().join("usr/bin/pendguard"))?;
    let mut windows = program.windows(place.len());
    ensure!(
        windows.any(|window| window == place.as_bytes()),
        "the program has another standard library than {std}"
    );
    Ok(())
}

#[tokio::test]
async fn audit() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay_here("audit").await?;
    let node = Node::new(AUDIT)?;
    // One that is there before, and one that comes later.
    let mut one = Replica::start_as_user("container-audit", 1, USER).await?;
    let container = Container::start(&image, &node, &pod).await?;
    holds_only(&container, &pod)?;
    let mut zero = Replica::start_as_user("container-audit", 0, USER).await?;
    for replica in [&mut zero, &mut one] {
        all(replica, CALLS, true).await?;
    }
    let agent = &container.agent;
    agent
        .until("all calls", |scrape| {
            [&zero, &one].map(|replica| replica.counted(scrape)) == [CALLS; 2]
        })
        .await?;
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
    let pod = overlay_here("enforce-gate").await?;
    let node = Node::new(ENFORCE)?;
    let mut zero = Replica::start_as_user("container-gate", 0, USER).await?;
    let mut one = Replica::start_as_user("container-gate", 1, USER).await?;
    let Some(container) = gate(&image, &node, &pod).await? else {
        return Ok(());
    };
    holds_only(&container, &pod)?;
    enforces(&container, "gate").await?;
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

    let said = uninstall(&image, &node, &mut one).await?;
    ensure!(said.contains("behind the gate"), "it waited: {said}");
    all(&mut zero, CALLS, true).await?;
    Ok(())
}

/// The same in the sender's buffer, where not a single call comes too early.
#[tokio::test]
async fn rewriting() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay("enforce-rewrite").await?;
    let node = Node::new(ENFORCE)?;
    let mut zero = Replica::start_as_user("container-rewrite", 0, USER).await?;
    let mut one = Replica::start_as_user("container-rewrite", 1, USER).await?;
    let Some(container) = rewriter(&image, &node, &pod).await? else {
        return Ok(());
    };
    holds_only(&container, &pod)?;
    enforces(&container, "rewrite").await?;
    until_rejected(&mut one).await?;
    none_is_admitted(&mut one).await?;
    all(&mut zero, CALLS, true).await?;
    let scrape = container.agent.scrape().await?;
    let [_, rejected, unresolved] = counts(&one, &scrape);
    ensure!(
        rejected == CALLS + 1 && unresolved == 0,
        "{rejected} of {CALLS} and 1 rejected, {unresolved} unresolved"
    );
    ensure!(counts(&zero, &scrape) == [CALLS, 0, 0], "{scrape:?}");
    container.agent.stop().await?;
    none_is_admitted(&mut one).await?;

    let container = Container::start(&image, &node, &pod).await?;
    none_is_admitted(&mut one).await?;
    container.agent.stop().await?;

    uninstall(&image, &node, &mut one).await?;
    all(&mut zero, CALLS, true).await?;
    Ok(())
}

/// An agent with a gate; `None` where the kernel is not safe for one, which must be told.
async fn gate(image: &Image, node: &Node, pod: &Value) -> Result<Option<Container>> {
    let started = Container::start(image, node, pod).await;
    if !preempts_tracepoints()? {
        return started.map(Some);
    }
    let refused = started.err().context("a gate where holds may be skipped")?;
    let said = format!("{refused:#}");
    ensure!(said.contains("may pass its hold unseen"), "{said}");
    ensure!(!node.pins().exists(), "it leaves nothing behind");
    println!("left out: the kernel preempts programs, and the gate is refused");
    Ok(None)
}

/// An agent that rewrites; `None` where the kernel doesn't allow it, which must be told.
async fn rewriter(image: &Image, node: &Node, pod: &Value) -> Result<Option<Container>> {
    let error = match Container::start(image, node, pod).await {
        Ok(container) => return Ok(Some(container)),
        Err(error) => format!("{error:#}"),
    };
    let lockdown = std::env::var("PENDGUARD_TEST_LOCKDOWN");
    ensure!(
        lockdown.as_deref() != Ok("none"),
        "nothing forbids it: {error}"
    );
    let refused = "this node can't enforce: enforcer rewrite: the kernel refuses it";
    ensure!(error.contains(refused), "{error}");
    ensure!(!node.pins().exists(), "it leaves nothing behind");
    println!("left out: the kernel does not let programs write to processes");
    Ok(None)
}

async fn enforces(container: &Container, enforcer: &str) -> Result<()> {
    let status = container.agent.status().await?;
    ensure!(status["enforcer"] == enforcer, "{status}");
    ensure!(status["warnings"] == json!([]), "{status}");
    Ok(())
}

async fn none_is_admitted(one: &mut Replica) -> Result<()> {
    let admitted = all(one, CALLS, false).await?;
    ensure!(admitted == 0, "{admitted} of {CALLS} were admitted");
    Ok(())
}

/// As the DaemonSet does: nothing is rejected any more at once, and when the connections have closed nothing is left. Returns what it said.
async fn uninstall(image: &Image, node: &Node, one: &mut Replica) -> Result<String> {
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
    ensure!(!node.pins().exists(), "what is left: {said}");
    Ok(said)
}

#[tokio::test]
async fn each_capability_is_needed_to_count() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay_here("audit").await?;
    let one = Replica::start_as_user("container-less", 1, USER).await?;
    let pid = one.client.pid();
    // No audit needs it where another one does the same.
    let spared = if reads_environments(pid)? {
        &["SYS_PTRACE"][..]
    } else {
        &[]
    };
    Scenario {
        image,
        pod,
        rejects: false,
    }
    .without_each(spared)
    .await
}

#[tokio::test]
async fn each_capability_is_needed_for_the_gate() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay_here("enforce-gate").await?;
    if preempts_tracepoints()? {
        return gate(&image, &Node::new(ENFORCE)?, &pod).await.map(drop);
    }
    // From Linux 6.9 on CAP_SYS_ADMIN stands in for it (`bpf_token_capable`).
    let spared = if paranoid()? && kernel()? >= (6, 9) {
        &["NET_ADMIN"][..]
    } else {
        &[]
    };
    Scenario {
        image,
        pod,
        rejects: true,
    }
    .without_each(spared)
    .await
}

#[tokio::test]
async fn each_capability_is_needed_to_rewrite() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay("enforce-rewrite").await?;
    let Some(container) = rewriter(&image, &Node::new(ENFORCE)?, &pod).await? else {
        return Ok(());
    };
    container.agent.stop().await?;
    Scenario {
        image,
        pod,
        rejects: true,
    }
    .without_each(&[])
    .await
}

/// Major and minor version of the kernel.
fn kernel() -> Result<(u32, u32)> {
    let uname = uname();
    let release = uname.release().to_str()?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("which version is {release}?"),
    }
}

/// Whether CAP_PERFMON opens the environment of another user's process, as newer kernels let it (seen on 6.18).
fn reads_environments(pid: u32) -> Result<bool> {
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-all,+perfmon,+dac_read_search"])
        .args(["--inh-caps", "-all", "--", "cat"])
        .arg(format!("/proc/{pid}/environ"))
        .output()?;
    Ok(output.status.success() && !output.stdout.is_empty())
}

/// What an agent did.
#[derive(Debug)]
enum Done {
    /// It did what it is for, so long after it was ready.
    After(Duration),
    /// It was ready, and did nothing.
    Nothing,
    /// It ended, and said this.
    Ended(String),
}

/// What an agent does in its overlay, and doesn't with less.
struct Scenario {
    image: Image,
    pod: Value,
    /// It rejects, or it counts.
    rejects: bool,
}

impl Scenario {
    /// How long it is tried whether calls are rejected that can't be, beside what it takes where they can be.
    fn never() -> Duration {
        amount(Duration::from_secs(3), Duration::from_secs(1))
    }

    /// Of what the overlay adds nothing can be left out but what is `spared` on this kernel: the agent ends, finds nobody, or rejects nothing.
    async fn without_each(&self, spared: &[&str]) -> Result<()> {
        let capabilities = added(&self.pod["containers"][0]);
        ensure!(capabilities.len() >= 3, "{capabilities:?}");
        let took = match self.with(&capabilities, JOIN_LIMIT).await? {
            Done::After(took) => took,
            done => anyhow::bail!("with all of {capabilities:?}: {done:?}"),
        };
        let limit = took + Self::never();
        for missing in &capabilities {
            if spared.contains(&missing.as_str()) {
                println!("without {missing}: left out, this kernel has another one for it");
                continue;
            }
            let mut others = capabilities.clone();
            others.retain(|capability| capability != missing);
            let done = self.with(&others, limit).await;
            match done.with_context(|| format!("without {missing}"))? {
                Done::After(took) => anyhow::bail!("{missing} is not needed: {took:?}"),
                // An agent that ends for another reason would prove nothing.
                Done::Ended(said) => ensure!(
                    said.contains("CAP_") || said.contains("not permitted"),
                    "without {missing}: {said}"
                ),
                Done::Nothing => {}
            }
        }
        Ok(())
    }

    /// What it does with these within `limit`, once it is ready.
    async fn with(&self, capabilities: &[String], limit: Duration) -> Result<Done> {
        // A replica of its own: what has been pinned for another one may still be in its way.
        let mut one = Replica::start_as_user("container-less", 1, USER).await?;
        let node = Node::new(if self.rejects { ENFORCE } else { AUDIT })?;
        let mut pod = self.pod.clone();
        agent(&mut pod)["securityContext"]["capabilities"]["add"] = json!(capabilities);
        let container = match Container::start(&self.image, &node, &pod).await {
            Ok(container) => container,
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(said.contains("the agent ended"), "{said}");
                return Ok(Done::Ended(said));
            }
        };
        let started = Instant::now();
        let works = if self.rejects {
            let rejected = wait_for("a call is rejected", limit, async || {
                let called = one.client.call(Method::PendingFn, 1).await?;
                Ok((called.ok == 0).then_some(()))
            });
            let outcome = rejected.await;
            let some = outcome.is_ok();
            let scrape = container.agent.scrape().await?;
            let [_, rejected, _] = counts(&one, &scrape);
            ensure!(some == (rejected > 0), "{outcome:?}, {scrape:?}");
            some
        } else {
            // Whoever is there when it begins is counted from its first call on.
            all(&mut one, CALLS, true).await?;
            one.counted(&container.agent.scrape().await?) > 0
        };
        let took = started.elapsed();
        container.agent.stop().await?;
        Ok(if works {
            Done::After(took)
        } else {
            Done::Nothing
        })
    }
}

/// Where `perf_event_paranoid` is above 2, kernels differ in whether tracepoints take CAP_SYS_ADMIN. The overlays without it count every call there,
/// whichever the tap, or are refused with the reason.
#[tokio::test]
async fn the_overlays_for_other_kernels() -> Result<()> {
    if !paranoid()? {
        println!("left out: they are for this kernel");
        return Ok(());
    }
    let image = Image::unpack()?;
    let mut one = Replica::start_as_user("container-plain", 1, USER).await?;
    for tap in ["fentry", "tracepoint"] {
        let mut pod = overlay("audit").await?;
        let env = agent(&mut pod)["env"].as_array_mut().context("no env")?;
        env.push(json!({"name": "PENDGUARD_TAP", "value": tap}));
        let node = Node::new(AUDIT)?;
        let container = match Container::start(&image, &node, &pod).await {
            Ok(container) => container,
            Err(error) => {
                let said = format!("{error:#}");
                let told = said.contains("the agent ended") && said.contains("CAP_SYS_ADMIN");
                ensure!(told, "{tap}: {said}");
                println!("{tap}: refused without CAP_SYS_ADMIN");
                continue;
            }
        };
        holds_only(&container, &pod)?;
        all(&mut one, CALLS, true).await?;
        let counted = one.counted(&container.agent.scrape().await?);
        ensure!(counted == CALLS, "{tap}: {counted} of {CALLS}");
        println!("{tap}: works without CAP_SYS_ADMIN");
        container.agent.stop().await?;
    }
    Ok(())
}

/// A node that is a container itself, or a pod without `hostPID`.
#[tokio::test]
async fn another_pid_namespace_is_refused() -> Result<()> {
    let image = Image::unpack()?;
    let mut pod = overlay_here("audit").await?;
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
