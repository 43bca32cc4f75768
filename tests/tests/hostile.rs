//! What a pod can do that wants no good, and what it can't: THREAT_MODEL.md says what is to come of each.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pendguard_tests::agent::{Agent, PENDING, Pod};
use pendguard_tests::faults::seen;
use pendguard_tests::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, frame};
use pendguard_tests::raw::Raw;
use pendguard_tests::record::fixture::{from_hex, to_hex};
use pendguard_tests::watch::Watch;

/// A replica, and a connection of its.
async fn replica(agent: &Agent, pod: &Pod) -> Result<(Raw, String)> {
    let mut raw = Raw::start(pod.numa()).await?;
    agent.until_watches(raw.pid().context("it runs")?).await?;
    let fd = raw.connection("unix").await?;
    Ok((raw, fd))
}

/// `n` calls, from `stream` on.
async fn calls(raw: &mut Raw, fd: &str, stream: u32, n: u32) -> Result<()> {
    for i in 0..n {
        raw.run(&format!("call {fd} writev {}", stream + 2 * i))
            .await?;
    }
    Ok(())
}

/// Whoever claims to be another pod falsifies that pod's numbers. The verdict on the pod's own calls stays its own.
#[tokio::test]
async fn a_claimed_identity_is_numbers_alone() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("claimed", "1");
    let (mut one, of_one) = replica(&agent, &pod).await?;
    calls(&mut one, &of_one, 1, 3).await?;
    let (mut same, of_same) = replica(&agent, &pod).await?;
    calls(&mut same, &of_same, 1, 2).await?;
    let zero = pod.clone().set("NUMAFLOW_REPLICA", Some("0"));
    let (mut zero, of_zero) = replica(&agent, &zero).await?;
    calls(&mut zero, &of_zero, 1, 4).await?;
    calls(&mut one, &of_one, 7, 1).await?;
    let scrape = agent
        .until("all are counted", |scrape| {
            scrape.pending(&pod.name, "would_reject") + scrape.pending(&pod.name, "admitted") == 10
        })
        .await?;
    let verdicts = ["would_reject", "admitted"].map(|verdict| scrape.pending(&pod.name, verdict));
    ensure!(verdicts == [6, 4], "{verdicts:?}");
    for raw in [one, same, zero] {
        raw.end().await?;
    }
    agent.stop().await?;
    seen(
        "another pod's identity claimed, and replica 0 of it",
        "its 2 calls counted as that pod's, 4 admitted; the pod's own 4 judged as before",
    )
}

/// Whoever rewrites its environment is who it was when its program began; a child of it, who the environment says then.
#[tokio::test]
async fn an_environment_that_changes() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("changes", "1");
    let (mut raw, fd) = replica(&agent, &pod).await?;
    calls(&mut raw, &fd, 1, 2).await?;
    ensure!(raw.run("environ NUMAFLOW_REPLICA 0").await? == "1");
    calls(&mut raw, &fd, 5, 3).await?;
    let scrape = agent
        .until("its calls are counted", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 5
        })
        .await?;
    ensure!(scrape.pending(&pod.name, "admitted") == 0, "{scrape:?}");
    raw.run("fork writev 4").await?;
    agent
        .until("its child's calls are counted", |scrape| {
            scrape.pending(&pod.name, "would_reject") + scrape.pending(&pod.name, "admitted") == 9
        })
        .await?;
    raw.end().await?;
    agent.stop().await?;
    seen(
        "a replica overwrites its environment after its start",
        "its calls judged as before; 9 of 9 counted",
    )
}

/// An environment that has no end: the agent reads a bounded part of it, and goes on.
#[tokio::test]
async fn an_endless_environment() -> Result<()> {
    const MIB: u64 = 2048;
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("beside", "1");
    let (mut beside, fd) = replica(&agent, &pod).await?;
    let hostile = Pod::mono_vertex("endless", "2");
    let (mut raw, _) = replica(&agent, &hostile).await?;
    let before = agent.resident()?;
    let length = raw.run(&format!("endless {MIB}")).await?;
    ensure!(length == (MIB << 20).to_string(), "{length}");
    // The environment of each child is looked at, if the child lives until then, which none has to on a machine that is busy.
    let mut forks = 0;
    while forks < 500 {
        raw.run("fork writev 1").await?;
        forks += 1;
        if forks >= 20 && agent.status().await?["warnings"] != serde_json::json!([]) {
            break;
        }
    }
    calls(&mut beside, &fd, 1, 5).await?;
    agent
        .until("the other pod's calls are counted", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 5
        })
        .await?;
    // However many processes have it.
    let warnings = agent.status().await?["warnings"].to_string();
    let told = warnings
        .matches("environment can't be read: more than")
        .count();
    ensure!(told == 1, "{warnings}");
    let grown = agent.resident()?.saturating_sub(before) >> 20;
    ensure!(grown < 64, "the agent has grown by {grown} MiB");
    for raw in [beside, raw] {
        raw.end().await?;
    }
    agent.stop().await?;
    seen(
        "an environment of 2 GiB, inherited by forks",
        &format!(
            "{forks} forks, the agent has grown by {grown} MiB; 5 of 5 calls of another pod counted"
        ),
    )
}

/// What is sent by a call that no hook is on, or by another process on the same connection, isn't counted: what this process sends after
/// it is.
#[tokio::test]
async fn what_no_hook_sees() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("unseen", "1");
    let (mut raw, fd) = replica(&agent, &pod).await?;
    calls(&mut raw, &fd, 1, 2).await?;
    raw.run(&format!("unseen {fd} 5")).await?;
    calls(&mut raw, &fd, 7, 3).await?;
    let scrape = agent
        .until("what is seen is counted", |scrape| {
            scrape.pending(&pod.name, "would_reject") >= 5
        })
        .await?;
    let counted = scrape.pending(&pod.name, "would_reject");
    // A number that is left out is one that the client has cancelled, too; nothing is lost by it where nothing was indexed.
    let unparsed = scrape.unparsed_sends();
    ensure!(
        counted == 5 && unparsed.is_empty(),
        "{counted} of 5 counted, {unparsed:?}"
    );
    raw.run(&format!("share {fd} writev 13")).await?;
    calls(&mut raw, &fd, 15, 2).await?;
    let scrape = agent
        .until("what this process sends is counted", |scrape| {
            scrape.pending(&pod.name, "would_reject") >= 7
        })
        .await?;
    // The child's own call is counted where it can be followed: one more, never another verdict.
    let counted = scrape.pending(&pod.name, "would_reject");
    ensure!(
        (7..=8).contains(&counted) && scrape.pending(&pod.name, "admitted") == 0,
        "{counted} of 7 and 1 counted"
    );
    raw.end().await?;
    agent.stop().await?;
    seen(
        "sends that no hook sees (sendmmsg), a connection shared with a child",
        &format!("{counted} of 9 calls counted, as admitted none"),
    )
}

/// A descriptor that came in a message is followed from where it was first used, beside the one that it is a copy of.
#[tokio::test]
async fn a_descriptor_that_is_passed_on() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("passed", "1");
    let (mut raw, fd) = replica(&agent, &pod).await?;
    calls(&mut raw, &fd, 1, 2).await?;
    let copy = raw.run(&format!("pass {fd}")).await?;
    ensure!(copy != fd, "it has the number of its original");
    // In turn: each of the two has gaps in its streams' numbers.
    for turn in 0..3 {
        calls(&mut raw, &copy, 5 + 4 * turn, 1).await?;
        calls(&mut raw, &fd, 7 + 4 * turn, 1).await?;
    }
    raw.run(&format!("close {fd}")).await?;
    calls(&mut raw, &copy, 17, 4).await?;
    let scrape = agent
        .until("each call is counted", |scrape| {
            scrape.pending(&pod.name, "would_reject") == 12
        })
        .await?;
    ensure!(
        scrape.pending(&pod.name, "would_reject") == 12
            && scrape.pending(&pod.name, "admitted") == 0
            && scrape.unparsed_sends().is_empty(),
        "{scrape:?}"
    );
    raw.end().await?;
    agent.stop().await?;
    seen(
        "a descriptor that came in a message (SCM_RIGHTS), used beside its original",
        "12 of 12 calls counted",
    )
}

/// What a pod keeps to itself, each in a place that passes through the agent or its programs.
const SECRETS: [&str; 7] = [
    "secret-of-the-environment",
    "secret-of-the-object",
    "secret-of-an-object-that-is-none",
    "secret-of-a-header",
    "secret-of-a-request",
    "secret-of-an-answer",
    "secret-of-a-status",
];

/// A header field, literal and never indexed (RFC 7541, section 6.2.3), each string without Huffman's code.
fn field(name: &str, value: &str) -> Result<Vec<u8>> {
    let string = |text: &str| -> Result<Vec<u8>> {
        let length = u8::try_from(text.len())?;
        ensure!(length < 127, "{text} is too long");
        Ok([&[length], text.as_bytes()].concat())
    };
    Ok([vec![0x10], string(name)?, string(value)?].concat())
}

/// A gRPC message.
fn message(text: &str) -> Result<Vec<u8>> {
    let length = u32::try_from(text.len())?.to_be_bytes();
    Ok([&[0], &length[..], text.as_bytes()].concat())
}

/// Nothing that a pod keeps to itself is told by the agent: not by its metrics, its API, or its log at its most talkative.
#[tokio::test]
async fn what_a_pod_keeps_to_itself() -> Result<()> {
    let [
        environment,
        in_object,
        in_bad_object,
        header,
        request,
        answer,
        status,
    ] = SECRETS;
    let agent = Agent::start_with(&[], &[("RUST_LOG", "trace")]).await?;
    let object = serde_json::json!({
        "metadata": {"name": "keeps", "namespace": "test"},
        "spec": {
            "source": {"udsource": {"container": {"image": "source:1", "env": [{"name": "TOKEN", "value": in_object}]}}},
            "sink": {"log": {}},
        },
    });
    let pod = Pod::mono_vertex("keeps", "0")
        .set("DATABASE_PASSWORD", Some(environment))
        .set(
            "NUMAFLOW_MONO_VERTEX_OBJECT",
            Some(&STANDARD.encode(object.to_string())),
        );
    let bad = Pod::mono_vertex("odd", "1").set(
        "NUMAFLOW_MONO_VERTEX_OBJECT",
        Some(&STANDARD.encode(format!("{{\"{in_bad_object}\": {in_bad_object}"))),
    );
    let odd = Raw::start(bad.numa()).await?;
    let (mut raw, fd) = replica(&agent, &pod).await?;

    let mut watch = Watch::start(&agent, &[])?;
    // POST, http, and the path as it is.
    let block = [
        &[0x83, 0x86, 0x04, PENDING.len() as u8][..],
        PENDING.as_bytes(),
        &field("authorization", header)?,
    ]
    .concat();
    let headers = [&[0x88][..], &field("set-cookie", header)?].concat();
    let trailers = [field("grpc-status", "13")?, field("grpc-message", status)?].concat();
    let mut stream = 1;
    let line = watch
        .first(async || {
            let call = [
                frame(HEADERS, END_HEADERS, stream, &block),
                frame(DATA, END_STREAM, stream, &message(request)?),
            ];
            raw.run(&format!(
                "send {fd} writev {} {}",
                to_hex(&call[0]),
                to_hex(&call[1])
            ))
            .await?;
            let answered = [
                frame(SETTINGS, 0, 0, &[]),
                frame(HEADERS, END_HEADERS, stream, &headers),
                frame(DATA, 0, stream, &message(answer)?),
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &trailers),
            ];
            raw.run(&format!("reply {fd} {}", to_hex(&answered.concat())))
                .await?;
            stream += 2;
            Ok(())
        })
        .await?;
    ensure!(line.contains("INTERNAL"), "how the call ended: {line}");
    let calls = u64::from(stream / 2);
    agent
        .until("the calls are counted", |scrape| {
            scrape.pending(&pod.name, "admitted") == calls
        })
        .await?;
    let (_, metrics) = agent.get("/metrics").await?;
    let status = agent.status().await?.to_string();
    raw.end().await?;
    odd.end().await?;
    drop(watch);
    let log = agent.stop().await?.join("\n");

    ensure!(
        log.contains(&bad.name),
        "the object that is none isn't told of: {log}"
    );
    let mut searched = 0;
    for (what, text) in [
        ("watch", line),
        ("/metrics", metrics),
        ("status", status),
        ("the log", log),
    ] {
        ensure!(
            text.contains(&pod.name),
            "{what} says nothing of it: {text}"
        );
        searched += text.len();
        for secret in SECRETS {
            for form in [
                secret.to_owned(),
                STANDARD.encode(secret),
                to_hex(secret.as_bytes()),
            ] {
                ensure!(!text.contains(&form), "{what} tells {secret}: {text}");
            }
        }
    }
    seen(
        "secrets in a pod's environment, objects, headers and messages",
        &format!(
            "none of {} in {} KiB of metrics, status, watched calls and log",
            SECRETS.len(),
            searched >> 10
        ),
    )
}

/// What a source may not answer, or answers that no client could read.
fn bad_answers() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let ok = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    let trailers = |status: &str| -> Result<Vec<u8>> {
        Ok(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &field("grpc-status", status)?,
        ))
    };
    let answered = |data: &[u8], status: &str| -> Result<Vec<u8>> {
        Ok([ok.clone(), frame(DATA, 0, 1, data), trailers(status)?].concat())
    };
    Ok(vec![
        ("garbage", vec![0xff; 64]),
        (
            "a frame of 16 MiB on an even stream",
            from_hex("ffffff0100fffffffe")?,
        ),
        ("PUSH_PROMISE", from_hex("00000405000000000100000002")?),
        ("CONTINUATION of nothing", from_hex("000001090400000001ff")?),
        (
            "more padding than payload",
            from_hex("000002010c00000001ff88")?,
        ),
        ("index 0", frame(HEADERS, END_HEADERS, 1, &[0x80])),
        (
            "an endless integer",
            frame(HEADERS, END_HEADERS, 1, &[0xff; 8]),
        ),
        (
            "a block that ends in a field",
            frame(HEADERS, END_HEADERS, 1, &[0x40, 0x03]),
        ),
        (
            "a table of 2^28 octets",
            frame(
                HEADERS,
                END_HEADERS,
                1,
                &[0x3f, 0xe1, 0xff, 0xff, 0x7f, 0x88],
            ),
        ),
        (
            "an index that nothing was inserted for",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0x00]),
        ),
        (
            "an answer to a stream that isn't open",
            frame(HEADERS, END_HEADERS | END_STREAM, 4_001, &[0x88]),
        ),
        ("a status that is no number", answered(&[0; 5], "many")?),
        ("a status that gRPC doesn't have", answered(&[0; 5], "99")?),
        (
            "a status of twenty digits",
            answered(&[0; 5], "00000000000000000013")?,
        ),
        (
            "a message that is longer than its frame says",
            answered(&[0, 0xff, 0xff, 0xff, 0xff, 0x0a], "0")?,
        ),
        (
            "a message within that is longer than its own",
            answered(&[0, 0, 0, 0, 2, 0x0a, 0x7f], "0")?,
        ),
        (
            "a count of eleven octets",
            answered(
                &[&[0, 0, 0, 0, 14, 0x0a, 12, 0x08][..], &[0xff; 11]].concat(),
                "0",
            )?,
        ),
        (
            "a compressed message",
            answered(&[1, 0, 0, 0, 4, 0x0a, 2, 0x08, 42], "0")?,
        ),
        (
            "no status",
            [ok.clone(), frame(DATA, END_STREAM, 1, &[0; 5])].concat(),
        ),
        (
            "RST_STREAM of three octets",
            from_hex("000003030000000001000000")?,
        ),
        ("nothing but ends", trailers("0")?.repeat(20)),
    ])
}

/// A source that answers what it likes harms nobody: its client's calls are counted, what it sends arrives, and no count of pending messages
/// is made up.
#[tokio::test]
async fn a_source_that_answers_anything() -> Result<()> {
    /// What it answers when it answers well: 7 are pending.
    const COUNT: u64 = 7;
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("answers", "1");
    let (mut raw, _) = replica(&agent, &pod).await?;
    let answers = bad_answers()?;
    let mut made = 0;
    for (what, answer) in &answers {
        let fd = raw.connection("unix").await?;
        let mut waiting = frame(SETTINGS, 0, 0, &[]);
        waiting.extend(answer);
        calls(&mut raw, &fd, 1, 1).await?;
        let received = raw.run(&format!("reply {fd} {}", to_hex(&waiting))).await?;
        ensure!(
            received == waiting.len().to_string(),
            "{what}: {received} octets arrived"
        );
        calls(&mut raw, &fd, 3, 2).await?;
        made += 3;
        let scrape = agent
            .until(&format!("the calls around {what}"), |scrape| {
                scrape.pending(&pod.name, "would_reject") == made
            })
            .await?;
        let count = scrape.sum("pendguard_source_pending", &[("workload", "answers")]);
        ensure!(count.unwrap_or(0) == 0, "{what}: a count of {count:?}");
        raw.run(&format!("close {fd}")).await?;
    }
    // Another connection is followed as ever.
    let fd = raw.connection("unix").await?;
    calls(&mut raw, &fd, 1, 1).await?;
    let good = [
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, END_HEADERS, 1, &[0x88]),
        frame(DATA, 0, 1, &[0, 0, 0, 0, 4, 0x0a, 2, 0x08, COUNT as u8]),
        frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &field("grpc-status", "0")?,
        ),
    ];
    raw.run(&format!("reply {fd} {}", to_hex(&good.concat())))
        .await?;
    agent
        .until("the good answer's count", |scrape| {
            scrape.sum("pendguard_source_pending", &[("workload", "answers")]) == Some(COUNT)
        })
        .await?;
    raw.end().await?;
    agent.stop().await?;
    seen(
        "a source that answers anything",
        &format!(
            "{} odd answers: {made} of {made} calls counted, no count of pending messages made up",
            answers.len()
        ),
    )
}
