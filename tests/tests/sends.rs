//! Every way to hand bytes to the kernel, and everything that can go wrong with it: what was sent counts, once, and
//! nothing else does.

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Pod, Scrape};
use pendguard_tests::peers::{Client, ClientKind, ClientOptions, Source, SourceOptions};
use pendguard_tests::protocol::Method;
use pendguard_tests::raw::Raw;
use pendguard_tests::record::fixture::to_hex;
use pendguard_tests::scale::amount;
use pendguard_tests::wait::{WAIT_LIMIT, wait_for};

const CALLS: [&str; 4] = ["write", "writev", "sendto", "sendmsg"];
/// PendingFn as tonic sends it, on stream 1, in hexadecimal, without the three indexed fields at the end: a block of 24
/// octets.
const REQUEST: &str = "000018010400000001838604946107b6c2157ee15f71edb08563596a90d54d86af";
const REQUEST_LEN: usize = 33;

fn request(stream: u32) -> String {
    let mut hex = REQUEST.to_owned();
    hex.replace_range(10..18, &format!("{stream:08x}"));
    hex
}

async fn counted(agent: &Agent, pod: &Pod) -> Result<u64> {
    Ok(agent.scrape().await?.pending(&pod.name, "would_reject"))
}

#[tokio::test]
async fn every_system_call_in_every_shape() -> Result<()> {
    ensure!(request(1).len() == 2 * REQUEST_LEN);
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("shapes", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let mut expected = 0;
    for kind in ["unix", "tcp"] {
        for call in CALLS {
            let fd = raw.connection(kind).await?;
            // Whole, cut in two anywhere over two sends, and in as many buffers as there are bytes.
            let mut stream = 1;
            raw.run(&format!("send {fd} {call} {}", request(stream)))
                .await?;
            for cut in 1..REQUEST_LEN {
                stream += 2;
                let whole = request(stream);
                let (a, b) = whole.split_at(2 * cut);
                raw.run(&format!("send {fd} {call} {a}")).await?;
                raw.run(&format!("send {fd} {call} {b}")).await?;
            }
            stream += 2;
            let octets: Vec<_> = (0..REQUEST_LEN)
                .map(|i| request(stream)[2 * i..2 * i + 2].to_owned())
                .collect();
            raw.run(&format!("send {fd} {call} {}", octets.join(" ")))
                .await?;
            expected += 1 + REQUEST_LEN as u64;
            let scrape = agent.scrape().await?;
            let seen = scrape.pending(&pod.name, "would_reject");
            ensure!(
                seen == expected && scrape.unparsed_sends().is_empty(),
                "{kind} {call}: {seen} of {expected}, {:?}, events lost: {:?}",
                scrape.unparsed_sends(),
                scrape.events_lost()
            );
        }
    }
    raw.end().await?;
    agent.stop().await?;
    Ok(())
}

/// From memory that the kernel moves meanwhile (it makes huge pages of small ones, and compacts): for a moment it can't be read.
#[tokio::test]
async fn from_memory_that_is_moved() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("moved", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let requests = amount(20_000, 2_000);
    let mut expected = 0;
    for call in CALLS {
        let fd = raw.connection("unix").await?;
        let answer = raw.run(&format!("moved {fd} {call} 1 {requests}")).await?;
        let (moves, _) = answer.split_once(' ').context("an answer")?;
        let moves: u64 = moves.parse()?;
        expected += requests;
        let scrape = agent.scrape().await?;
        let seen = scrape.pending(&pod.name, "would_reject");
        let unparsed = scrape.unparsed_sends();
        println!("{call}: {seen} of {expected}, {moves} moves, {unparsed:?}");
        ensure!(moves > 0, "nothing was moved");
        // Few, of which each counts, and may be the first of two that can't be followed.
        let unreadable: u64 = unparsed.values().sum();
        ensure!(
            unparsed.keys().all(|reason| reason == "unreadable") && unreadable * 100 <= expected,
            "{call}: {unparsed:?} of {expected}"
        );
        ensure!(
            seen <= expected && expected <= seen + 2 * unreadable,
            "{call}: {seen} of {expected}, {unparsed:?}"
        );
    }
    raw.end().await?;
    agent.stop().await?;
    Ok(())
}

/// A full socket: the kernel takes a part of a send, or nothing of it. Only what it took counts.
#[tokio::test]
async fn partial_and_refused_sends() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("partial", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let requests = amount(200, 60);
    let mut expected = 0;
    let (mut partial, mut refused) = (0, 0);
    for kind in ["unix 4096", "tcp 4096"] {
        for (seed, call) in CALLS.into_iter().enumerate() {
            let fd = raw.connection(kind).await?;
            let answer = raw
                .run(&format!("pump {fd} {call} 1 {requests} {seed}"))
                .await?;
            let mut numbers = answer.split_whitespace().map(str::parse::<u64>);
            partial += numbers.next().transpose()?.unwrap_or(0);
            refused += numbers.next().transpose()?.unwrap_or(0);
            expected += requests;
            let scrape = agent.scrape().await?;
            let seen = scrape.pending(&pod.name, "would_reject");
            ensure!(
                seen == expected && scrape.unparsed_sends().is_empty(),
                "{kind} {call}: {seen} of {expected}, {:?}",
                scrape.unparsed_sends()
            );
        }
    }
    // Or this tested nothing.
    ensure!(
        partial > 0 && refused > 0,
        "{partial} partial, {refused} refused"
    );
    raw.end().await?;
    agent.stop().await?;
    Ok(())
}

/// What no client may send: counted by reason, without effect on the traffic, and followed again where framing allows.
#[tokio::test]
async fn malformed_http2() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("malformed", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let bad = [
        ("frame", "garbage", "ff".repeat(64)),
        (
            "frame",
            "a frame of 16 MiB on an even stream",
            "ffffff0100fffffffe".to_owned(),
        ),
        (
            "frame",
            "PUSH_PROMISE",
            "00000405000000000100000002".to_owned(),
        ),
        (
            "continuation",
            "CONTINUATION of nothing",
            "000001090400000063ff".to_owned(),
        ),
        (
            "continuation",
            "DATA within a block",
            "00000101000000006382000001000000000063ff".to_owned(),
        ),
        (
            "padding",
            "more padding than payload",
            "000002010c00000063ff82".to_owned(),
        ),
        ("integer", "index 0", "00000101040000006380".to_owned()),
        (
            "integer",
            "an endless integer",
            "000007010400000063ffffffffffffff".to_owned(),
        ),
        (
            "truncated",
            "a block that ends in a field",
            "0000020104000000634003".to_owned(),
        ),
    ];
    let mut expected = 0;
    for (reason, what, hex) in bad {
        let fd = raw.connection("unix").await?;
        let before = agent.scrape().await?;
        raw.run(&format!("send {fd} writev {}", request(1))).await?;
        raw.run(&format!("send {fd} writev {hex}")).await?;
        let after = agent.scrape().await?;
        let more = |scrape: &Scrape| scrape.unparsed_sends().get(reason).copied().unwrap_or(0);
        ensure!(
            more(&after) == more(&before) + 1,
            "{what}: {:?} after {:?}",
            after.unparsed_sends(),
            before.unparsed_sends()
        );
        ensure!(
            after.connections("unsynced") == Some(1),
            "{what}: {after:?}"
        );
        // Picked up again.
        raw.run(&format!("send {fd} writev {}", request(101)))
            .await?;
        expected += 2;
        let seen = counted(&agent, &pod).await?;
        ensure!(seen == expected, "{what}: {seen} of {expected}");
        // Every byte arrived: preface and SETTINGS, two requests, and what was wrong between them.
        let sent = 24 + 9 + 2 * REQUEST_LEN + hex.len() / 2;
        wait_received(&mut raw, &fd, sent).await?;
        raw.run(&format!("close {fd}")).await?;
    }
    // Ten megabytes of one header block, in CONTINUATION frames.
    let fd = raw.connection("unix").await?;
    let before = agent.scrape().await?.unparsed_sends().values().sum::<u64>();
    raw.run(&format!("headers {fd} 10")).await?;
    let after = agent.scrape().await?;
    ensure!(
        after.unparsed_sends().get("block_size") == Some(&1),
        "{:?}",
        after.unparsed_sends()
    );
    ensure!(
        after.unparsed_sends().values().sum::<u64>() == before + 1,
        "once, not once a send: {:?}",
        after.unparsed_sends()
    );
    raw.run(&format!("send {fd} writev {}", request(101)))
        .await?;
    expected += 1;
    let seen = counted(&agent, &pod).await?;
    ensure!(
        seen == expected,
        "after 10 MB of headers: {seen} of {expected}"
    );
    raw.end().await?;
    agent.stop().await?;
    Ok(())
}

async fn wait_received(raw: &mut Raw, fd: &str, bytes: usize) -> Result<()> {
    let mut received = 0;
    wait_for("every byte arrives", WAIT_LIMIT, async || {
        received = raw.run(&format!("received {fd}")).await?.parse()?;
        ensure!(received <= bytes, "{received} bytes arrived of {bytes}");
        Ok((received == bytes).then_some(()))
    })
    .await
    .with_context(|| format!("{received} bytes arrived of {bytes}"))
}

/// What isn't HTTP/2 costs nothing and counts as nothing; TLS is recognised.
#[tokio::test]
async fn other_protocols() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("others", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    for text in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "PUB foo 5\r\nhello\r\n",
        "P",
        "PRI",
        "\n",
        "{\"a\":1}\n",
    ] {
        let fd = raw.run("connect tcp").await?;
        let hex = to_hex(text.as_bytes());
        raw.run(&format!("send {fd} sendto {hex}")).await?;
        raw.run(&format!("send {fd} sendto {hex}")).await?;
    }
    let scrape = agent.scrape().await?;
    ensure!(
        scrape.unparsed_sends().is_empty(),
        "{:?}",
        scrape.unparsed_sends()
    );
    let fd = raw.run("connect tcp").await?;
    // The first bytes of a ClientHello in a TLS record, and what follows on that connection.
    raw.run(&format!(
        "send {fd} sendto 1603010200010001fc0303{}",
        "00".repeat(500)
    ))
    .await?;
    raw.run(&format!("send {fd} sendto 17030300ff{}", "00".repeat(255)))
        .await?;
    let scrape = agent.scrape().await?;
    ensure!(
        scrape.unparsed_sends().get("tls") == Some(&1),
        "{:?}",
        scrape.unparsed_sends()
    );
    ensure!(
        scrape.unparsed_sends().len() == 1,
        "{:?}",
        scrape.unparsed_sends()
    );
    raw.end().await?;
    agent.stop().await?;
    Ok(())
}

/// A descriptor's number comes back as something else: nothing of the old connection is applied to it.
#[tokio::test]
async fn descriptors_that_come_back() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("fds", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let file = tempfile::NamedTempFile::new()?;
    let synced = |scrape: &Scrape| scrape.connections("synced");
    for (way, expected) in [
        ("close", 1),
        ("dup2", 2),
        ("dup3", 3),
        ("close_range", 4),
        ("close_range all", 5),
    ] {
        let fd = raw.connection("unix").await?;
        raw.run(&format!("call {fd} writev 1")).await?;
        let before = agent.scrape().await?;
        ensure!(synced(&before) == Some(1), "{way}: {before:?}");
        match way {
            "close" => raw.run(&format!("close {fd}")).await?,
            "close_range" => raw.run(&format!("close_range {fd} {fd}")).await?,
            "close_range all" => raw.run(&format!("close_range {fd} 4294967295")).await?,
            // A file takes the number.
            _ => {
                raw.run(&format!("file {} 200", file.path().display()))
                    .await?;
                raw.run(&format!("dup2 200 {fd} {way}")).await?
            }
        };
        let after = agent.scrape().await?;
        ensure!(synced(&after) == Some(0), "{way}: {after:?}");
        // The same number, a file: what is written there is the file's.
        if way.starts_with("close") {
            raw.run(&format!("file {} {fd}", file.path().display()))
                .await?;
        }
        raw.run(&format!("send {fd} write 00112233445566778899aabbccddeeff"))
            .await?;
        let scrape = agent.scrape().await?;
        ensure!(
            scrape.unparsed_sends().is_empty(),
            "{way}: {:?}",
            scrape.unparsed_sends()
        );
        let seen = counted(&agent, &pod).await?;
        ensure!(seen == expected, "{way}: {seen} of {expected}");
        raw.run(&format!("close {fd}")).await?;
    }
    raw.end().await?;
    agent.stop().await?;
    Ok(())
}

/// The tap knows descriptors, not transports: every client over plaintext TCP counts the same.
#[tokio::test]
async fn plaintext_tcp() -> Result<()> {
    let calls = amount(300, 60);
    let agent = Agent::start(&[]).await?;
    let directory = tempfile::tempdir()?;
    let mut source = Source::start(&SourceOptions {
        also_tcp: true,
        ..SourceOptions::new(directory.path().join("source.sock"))
    })
    .await?;
    let target = source.tcp().expect("it listens on TCP");
    for kind in ClientKind::ALL {
        let pod = Pod::mono_vertex(&format!("tcp-{kind}"), "2");
        let mut options = ClientOptions::default();
        for (name, value) in pod.numa() {
            options = options.env(name, value);
        }
        let before = source.stats().await?.pending;
        let mut client = Client::start(kind, &target, &options).await?;
        client.background_on(amount(500, 100)).await?;
        client.call(Method::PendingFn, calls).await?;
        client.background_off().await?;
        let handled = source.stats().await?.pending - before;
        let seen = counted(&agent, &pod).await?;
        ensure!(
            handled == calls && seen == calls,
            "{kind}: {seen} counted, {handled} handled"
        );
        client.quit().await?;
    }
    agent.stop().await?;
    Ok(())
}
