//! Modes that are set at run time: in effect when the command returns, for exactly the replicas that were meant.

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Pod, Scrape};
use pendguard_tests::raw::Raw;
use serde_json::Value;

/// A replica and its connection.
struct Caller {
    pod: Pod,
    raw: Raw,
    fd: String,
    stream: u32,
}

impl Caller {
    async fn start(replica: &str) -> Result<Self> {
        let pod = Pod::mono_vertex("mode", replica);
        let mut raw = Raw::start(pod.numa()).await?;
        let fd = raw.connection("unix").await?.to_string();
        Ok(Self {
            pod,
            raw,
            fd,
            stream: 1,
        })
    }

    async fn call(&mut self, times: u32) -> Result<()> {
        for _ in 0..times {
            let (fd, stream) = (&self.fd, self.stream);
            self.raw.run(&format!("call {fd} writev {stream}")).await?;
            self.stream += 2;
        }
        Ok(())
    }

    fn counts(&self, scrape: &Scrape) -> [u64; 3] {
        ["admitted", "would_reject", "rejected"].map(|v| scrape.pending(&self.pod.name, v))
    }
}

async fn set(agent: &Agent, arguments: &[&str]) -> Result<Value> {
    let all: Vec<&str> = ["mode", "--json"]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    let output = agent.command(&all).await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {error}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test]
async fn off_and_audit_are_exact() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let mut zero = Caller::start("0").await?;
    let mut one = Caller::start("1").await?;
    let mut two = Caller::start("2").await?;
    agent
        .until("three replicas", |scrape| {
            let audited = [("namespace", "test"), ("mode", "audit")];
            scrape.sum("pendguard_replicas", &audited) == Some(3)
        })
        .await?;
    let mut expected = [[0_u64; 3]; 3];
    // Who counts what after each change, column by column: replica 0's are admitted, the others' would be rejected.
    for (arguments, counted) in [
        (vec!["audit"], [true, true, true]),
        (vec!["off"], [false; 3]),
        (
            vec!["audit", "--pod", &*one.pod.name.clone()],
            [false, true, false],
        ),
        (vec!["audit", "--namespace", "t*t"], [true, true, true]),
        (
            vec![
                "off",
                "--namespace",
                "test",
                "--pod",
                &*two.pod.name.clone(),
            ],
            [true, true, false],
        ),
        (vec!["off", "--namespace", "tes"], [true, true, false]),
        (vec!["off"], [false; 3]),
        (vec!["audit"], [true, true, true]),
    ] {
        let answer = set(&agent, &arguments).await?;
        let living = counted.iter().filter(|c| **c).count();
        ensure!(
            answer["replicas"]["audit"] == living,
            "{arguments:?}: {answer}"
        );
        ensure!(
            answer["replicas"]["off"] == 3 - living,
            "{arguments:?}: {answer}"
        );
        let nobody = arguments.contains(&"tes");
        let warnings = answer["warnings"].as_array().context("no warnings")?;
        ensure!(warnings.is_empty() != nobody, "{arguments:?}: {answer}");
        for (i, caller) in [&mut zero, &mut one, &mut two].into_iter().enumerate() {
            caller.call(20).await?;
            expected[i][usize::from(i > 0)] += if counted[i] { 20 } else { 0 };
        }
        let scrape = agent.scrape().await?;
        for (caller, expected) in [&zero, &one, &two].into_iter().zip(expected) {
            let counts = caller.counts(&scrape);
            ensure!(
                counts == expected,
                "{arguments:?}: {counts:?} for {expected:?}"
            );
        }
    }
    agent.stop().await?;
    for caller in [zero, one, two] {
        caller.raw.end().await?;
    }
    Ok(())
}

/// What is set is for those to come, too, and is gone with the agent.
#[tokio::test]
async fn who_comes_later_gets_what_was_set() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let answer = set(&agent, &["off", "--namespace", "test"]).await?;
    ensure!(answer["warnings"][0].is_string(), "{answer}");
    let mut caller = Caller::start("1").await?;
    agent
        .until("a replica that is off", |scrape| {
            let off = [("namespace", "test"), ("mode", "off")];
            scrape.sum("pendguard_replicas", &off) == Some(1)
        })
        .await?;
    caller.call(20).await?;
    ensure!(caller.counts(&agent.scrape().await?) == [0; 3]);
    let status = agent.status().await?;
    ensure!(status["overrides"][0]["namespace"] == "test", "{status}");
    ensure!(status["overrides"][0]["mode"] == "off", "{status}");
    ensure!(status["mode"] == "audit", "{status}");
    agent.stop().await?;
    let agent = Agent::start(&[]).await?;
    ensure!(agent.status().await?["overrides"] == serde_json::json!([]));
    caller.call(20).await?;
    ensure!(caller.counts(&agent.scrape().await?) == [0, 20, 0]);
    agent.stop().await?;
    caller.raw.end().await
}
