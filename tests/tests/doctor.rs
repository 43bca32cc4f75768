//! What `pendguard doctor` says of a kernel is what the agent does on it: on this one, on older and newer ones, and under lockdown
//! (`cargo xtask vm --test doctor`).

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use pendguard_tests::agent::{Agent, binary, free_address};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::kernel::preempts_tracepoints;
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
async fn refusal(pins: &Path, mode: &str, how: &[&str]) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let output = Command::new(binary()?)
        .args(["run", "--mode", mode])
        .args(how)
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

/// Where doctor says that programs can't hang on functions, nobody who asks for that gets anything else. On arm64 they can't before
/// Linux 6.4, though the kernel takes them: that is found out, and said.
async fn functions(pins: &Path, said: &Value) -> Result<()> {
    let possible = said["tap"] == "fentry";
    let old = std::env::consts::ARCH == "aarch64" && kernel()? < (6, 4);
    ensure!(!(old && possible), "{said}");
    if possible {
        return Ok(());
    }
    let not_used = said["not_used"].as_array().into_iter().flatten();
    let mut not_used = not_used.filter(|one| one["kind"] == "tap" && one["name"] == "fentry");
    let reason = not_used.next().context("doctor says nothing of fentry")?;
    ensure!(
        reason.to_string().contains("fentry_programs"),
        "{reason}: {said}"
    );
    let log = refusal(pins, "audit", &["--tap", "fentry"]).await?;
    ensure!(
        log.contains("this kernel refuses it") && log.contains("with tap auto"),
        "{log}"
    );
    if old {
        println!("tap fentry: {}", log.trim());
        let programs = said["programs"].to_string();
        for told in [&log, &programs] {
            ensure!(told.contains("arm64's can from Linux 6.4 on"), "{told}");
        }
    }
    Ok(())
}

/// The kernel's number.
fn kernel() -> Result<(u32, u32)> {
    let uname = rustix::system::uname();
    let release = uname.release().to_str()?;
    let numbers: Vec<u32> = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok())
        .collect();
    match numbers[..] {
        [major, minor, ..] => Ok((major, minor)),
        _ => bail!("{release} is no kernel's release"),
    }
}

/// One of its checks.
fn check<'a>(said: &'a Value, id: &str) -> Result<&'a Value> {
    let mut checks = said["checks"].as_array().into_iter().flatten();
    let check = checks.find(|check| check["id"] == id);
    check.with_context(|| format!("doctor says nothing of {id}"))
}

/// How much of itself the kernel keeps from root (kernel_lockdown(7)), as it was booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lockdown {
    None,
    Integrity,
    Confidentiality,
}

impl Lockdown {
    /// What PENDGUARD_TEST_LOCKDOWN says, which `cargo xtask vm` sets.
    fn of_this_boot() -> Result<Option<Self>> {
        Ok(match std::env::var("PENDGUARD_TEST_LOCKDOWN").as_deref() {
            Err(_) => None,
            Ok("none") => Some(Self::None),
            Ok("integrity") => Some(Self::Integrity),
            Ok("confidentiality") => Some(Self::Confidentiality),
            Ok(other) => bail!("PENDGUARD_TEST_LOCKDOWN is {other}"),
        })
    }

    /// Under lockdown, what can't be is said, and that lockdown is why; what can be is said too.
    fn explained(self, said: &Value) -> Result<()> {
        let check = check(said, "lockdown")?;
        let consequence = check["consequence"].as_str().unwrap_or_default();
        let detail = check["detail"].as_str().unwrap_or_default();
        let unused = |name: &str| {
            let mut unused = said["not_used"].as_array().into_iter().flatten();
            unused.any(|it| it["name"] == name)
        };
        match self {
            Self::None => ensure!(consequence.is_empty(), "{check}"),
            Self::Integrity => {
                ensure!(detail == "integrity", "{check}");
                ensure!(consequence.contains("rewrite"), "{check}");
                if said["audit"]["outcome"] == "supported" {
                    let enforcer = (!preempts_tracepoints()?).then_some("gate");
                    ensure!(said["enforcer"].as_str() == enforcer, "{said}");
                    ensure!(unused("rewrite"), "{said}");
                }
            }
            Self::Confidentiality => {
                ensure!(detail == "confidentiality", "{check}");
                ensure!(check["outcome"] == "not_supported", "{check}");
                for what in ["audit", "enforcement"] {
                    ensure!(said[what]["outcome"] == "not_supported", "{said}");
                }
                ensure!(
                    said["audit"]["because"].to_string().contains("lockdown"),
                    "{said}"
                );
                ensure!(
                    said["tap"].is_null() && said["enforcer"].is_null(),
                    "{said}"
                );
            }
        }
        Ok(())
    }
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
    let booted = Lockdown::of_this_boot()?;
    if let Some(lockdown) = booted {
        lockdown.explained(&said)?;
    }
    if !possible("audit") {
        let log = refusal(&pins, "audit", &AUTO).await?;
        if booted == Some(Lockdown::Confidentiality) {
            ensure!(log.contains("confidentiality"), "{log}");
            return Ok(());
        }
        // Before 5.15 the tap can't be loaded, and nothing else is a reason for that.
        ensure!(because("audit").contains("kernel"), "{said}");
        let kernel = check(&said, "kernel")?;
        let consequence = kernel["consequence"].as_str().unwrap_or_default();
        ensure!(consequence.contains("5.15"), "{kernel}");
        ensure!(log.contains("tap_") || log.contains("fd_"), "{log}");
        return Ok(());
    }
    if preempts_tracepoints()? {
        let holds = check(&said, "hold_tracepoints")?;
        ensure!(holds["outcome"] == "not_supported", "{holds}");
        let gate = ["--tap", "auto", "--enforcer", "gate"];
        let log = refusal(&pins, "enforce", &gate).await?;
        ensure!(log.contains("may pass its hold unseen"), "{log}");
    }
    let audit = status(&pins, "audit").await?;
    ensure!(audit["tap"] == said["tap"], "{audit}: {said}");
    functions(&pins, &said).await?;
    if possible("enforcement") {
        let enforce = status(&pins, "enforce").await?;
        ensure!(enforce["enforcer"] == said["enforcer"], "{enforce}: {said}");
    } else {
        let log = refusal(&pins, "enforce", &AUTO).await?;
        ensure!(
            log.contains("can't enforce") && log.contains("pendguard doctor"),
            "{log}"
        );
    }
    Ok(())
}
