//! Quiet answers: with `rewrite` a rejected call of tonic's succeeds without a count, and the source's handler is never entered; with the gate,
//! and for every client of which nothing is proven, it is rejected with UNIMPLEMENTED, and counted with the reason.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Pod, Scrape};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::client::connect::Target;
use pendguard_tests::enforcing::{JOIN_LIMIT, RATE, intact, rejections, rewrites};
use pendguard_tests::peers::{Client, ClientKind, ClientOptions, SourceKind};
use pendguard_tests::protocol::{Called, Method, Tally};
use pendguard_tests::replica::{Replica, client_options};
use pendguard_tests::scale::{amount, calls};
use pendguard_tests::wait::{WAIT_LIMIT, wait_for, within};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

const QUIET: [&str; 4] = ["--mode", "enforce", "--answer", "quiet"];
/// What PendingFn's answer says that has no result.
const ABSENT: &str = "absent";

/// The rejected calls of a workload's replica, by answer and reason, without zeros.
fn manners(scrape: &Scrape, workload: &str, replica: u32) -> BTreeMap<(String, String), u64> {
    let replica = replica.to_string();
    let mut found = BTreeMap::new();
    for answer in ["quiet", "unimplemented"] {
        for reason in [
            "policy",
            "enforcer",
            "client",
            "unknown_client",
            "indexed",
            "order",
            "split",
            "answers",
            "full",
        ] {
            let labels = [
                ("workload", workload),
                ("replica", &*replica),
                ("answer", answer),
                ("reason", reason),
            ];
            let n = scrape.sum("pendguard_rejections_total", &labels);
            if let Some(n @ 1..) = n {
                found.insert((answer.to_owned(), reason.to_owned()), n);
            }
        }
    }
    found
}

fn unedited(scrape: &Scrape) -> Option<u64> {
    let labels = [("reason", "unedited")];
    scrape.sum("pendguard_enforcement_failures_total", &labels)
}

/// Whether a call was rejected, and how: quietly or not.
fn rejected(called: &Called) -> Option<bool> {
    if called.values.contains_key(ABSENT) {
        Some(true)
    } else {
        (rejections(&called.errors) > 0).then_some(false)
    }
}

/// Calls one by one until one is rejected in that way.
async fn until(client: &mut Client, quiet: bool) -> Result<()> {
    let what = format!("a call is rejected, quiet: {quiet}");
    wait_for(&what, JOIN_LIMIT, async || {
        let called = client.call(Method::PendingFn, 1).await?;
        Ok((rejected(&called) == Some(quiet)).then_some(()))
    })
    .await
}

/// A client in the data plane's place with no more calls in flight than can be quiet at once.
async fn calm(replica: &mut Replica, give_up: Option<u64>) -> Result<()> {
    let options = ClientOptions {
        concurrency: Some(4),
        give_up,
        ..client_options(&replica.pod)
    };
    replica.client = Client::start(ClientKind::Tonic, &replica.source.unix(), &options).await?;
    Ok(())
}

/// The handler's entries so far.
async fn handled(replica: &mut Replica) -> Result<u64> {
    Ok(replica.source.stats().await?.pending)
}

/// Calls that must all be quiet, beside IsReady calls that must stay what they are.
async fn all_quiet(replica: &mut Replica, n: u64) -> Result<()> {
    let before = handled(replica).await?;
    let called = replica.client.call(Method::PendingFn, n).await?;
    let expected = Tally::from([(ABSENT.to_owned(), n)]);
    ensure!(called.values == expected, "{called:?}");
    ensure!(called.errors.is_empty(), "{called:?}");
    ensure!(
        handled(replica).await? == before,
        "the handler was not entered"
    );
    let ready = replica.client.call(Method::IsReady, n).await?;
    let expected = Tally::from([("true".to_owned(), n)]);
    ensure!(ready.values == expected, "{ready:?}");
    Ok(())
}

/// Replicas 0, 1 and 2 under load.
async fn nobody_notices(source: SourceKind) -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_as_shipped(&bpffs.pins(), &["--mode", "enforce"]).await?;
    let workload = format!("quiet-{source}");
    let n = calls();
    let mut zero = Replica::start(&workload, 0, ClientKind::Tonic, source).await?;
    let before = handled(&mut zero).await?;
    let called = zero.client.call(Method::PendingFn, n).await?;
    ensure!(called.ok == n && !called.values.contains_key(ABSENT));
    ensure!(handled(&mut zero).await? == before + n);
    for number in [1, 2] {
        let mut replica = Replica::start(&workload, number, ClientKind::Tonic, source).await?;
        calm(&mut replica, None).await?;
        until(&mut replica.client, rewrites()).await?;
        let first = handled(&mut replica).await?;
        replica.client.background_on(RATE).await?;
        if rewrites() {
            all_quiet(&mut replica, n).await?;
        } else {
            let called = replica.client.call(Method::PendingFn, n).await?;
            let entered = handled(&mut replica).await? - first;
            ensure!(
                rejections(&called.errors) + entered == n && called.ok == entered,
                "{called:?}, {entered} handled"
            );
            ensure!(!called.values.contains_key(ABSENT), "{called:?}");
        }
        intact(&mut replica).await?;
        let scrape = agent.scrape().await?;
        let counted = scrape.pending(&replica.pod.name, "rejected");
        let manners = manners(&scrape, &workload, number);
        let key = if rewrites() {
            ("quiet", "policy")
        } else {
            ("unimplemented", "enforcer")
        };
        let key = (key.0.to_owned(), key.1.to_owned());
        ensure!(
            manners == BTreeMap::from([(key, counted)]) && counted > 0,
            "{manners:?} of {counted}"
        );
        ensure!(!rewrites() || counted > n, "{counted}");
        // It is the default: nobody has asked for it.
        let status = agent.status().await?;
        ensure!(status["warnings"] == serde_json::json!([]), "{status}");
    }
    let scrape = agent.scrape().await?;
    ensure!(unedited(&scrape) == Some(0), "{scrape:?}");
    ensure!(scrape.unparsed().is_empty(), "{:?}", scrape.unparsed());
    agent.stop().await?;
    Ok(())
}

#[tokio::test]
async fn nobody_notices_on_rust() -> Result<()> {
    nobody_notices(SourceKind::Rust).await
}

#[tokio::test]
async fn nobody_notices_on_python() -> Result<()> {
    nobody_notices(SourceKind::Python).await
}

/// Clients of which nothing is proven: a call of theirs never succeeds without a count (Go's data plane would crash).
async fn falls_back(client: ClientKind, reasons: &[&str]) -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let agent = Agent::start_at(&bpffs.pins(), &QUIET).await?;
    let workload = format!("quiet-{client}");
    let mut replica = Replica::start(&workload, 1, client, SourceKind::Rust).await?;
    until(&mut replica.client, false).await?;
    let first = handled(&mut replica).await?;
    let n = calls();
    let called = replica.client.call(Method::PendingFn, n).await?;
    let entered = handled(&mut replica).await? - first;
    ensure!(
        rejections(&called.errors) + entered == n && called.ok == entered,
        "{called:?}, {entered} handled"
    );
    ensure!(!rewrites() || entered == 0, "{entered} handled");
    ensure!(!called.values.contains_key(ABSENT), "{called:?}");
    let status = agent.status().await?;
    let said = status["warnings"].to_string();
    let has_none = said.contains("quiet answers are asked for, and the enforcer gate has none");
    ensure!(has_none != rewrites(), "{said}");
    let scrape = agent.scrape().await?;
    let manners = manners(&scrape, &workload, 1);
    let counted = scrape.pending(&replica.pod.name, "rejected");
    let reasons = if rewrites() { reasons } else { &["enforcer"] };
    let known = |(answer, reason): &(String, String)| {
        answer == "unimplemented" && reasons.contains(&&**reason)
    };
    ensure!(manners.keys().all(known), "{manners:?}");
    ensure!(
        manners.values().sum::<u64>() == counted && counted > 0,
        "{manners:?} of {counted}"
    );
    agent.stop().await?;
    Ok(())
}

#[tokio::test]
async fn grpc_go_falls_back() -> Result<()> {
    falls_back(ClientKind::GrpcGo, &["client", "indexed"]).await
}

#[tokio::test]
async fn c_core_falls_back() -> Result<()> {
    falls_back(
        ClientKind::GrpcCore,
        &["client", "unknown_client", "indexed"],
    )
    .await
}

#[tokio::test]
async fn node_falls_back() -> Result<()> {
    falls_back(ClientKind::GrpcJs, &["client", "unknown_client", "indexed"]).await
}

/// A source that hands over its answers an octet at a time: wherever a receive ends, the answer is edited.
#[tokio::test]
async fn receives_that_end_anywhere() -> Result<()> {
    if !rewrites() {
        println!("left out: the enforcer has no quiet answers");
        return Ok(());
    }
    let bpffs = BpfFs::mount()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("source.sock");
    let mut source = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/raw/slow.py"))
        .arg(&socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = source.stdout.take().context("no standard output")?;
    let mut lines = BufReader::new(out).lines();
    let said = within("slow.py listens", WAIT_LIMIT, lines.next_line()).await??;
    ensure!(said.as_deref() == Some("listening"), "{said:?}");
    let agent = Agent::start_at(&bpffs.pins(), &QUIET).await?;
    let options = client_options(&Pod::mono_vertex("quiet-slow", "1"));
    let target = Target::Unix(socket);
    let mut client = Client::start(ClientKind::Tonic, &target, &options).await?;
    until(&mut client, true).await?;
    for (method, n, value) in [
        (Method::PendingFn, amount(200, 40), ABSENT),
        (Method::IsReady, 20, "true"),
    ] {
        let called = client.call(method, n).await?;
        let expected = Tally::from([(value.to_owned(), n)]);
        ensure!(
            called.values == expected && called.errors.is_empty(),
            "{called:?}"
        );
    }
    let scrape = agent.scrape().await?;
    ensure!(unedited(&scrape) == Some(0), "{scrape:?}");
    agent.stop().await?;
    Ok(())
}

async fn set(agent: &Agent, arguments: &[&str]) -> Result<()> {
    let output = agent.command(arguments).await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {error}");
    Ok(())
}

/// All that happens to a connection and to the agent meanwhile.
#[tokio::test]
async fn it_is_safe_whatever_happens() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let workload = "quiet-faults";
    // Older than the agent: what its user-agent is was sent before, and so it isn't known.
    let mut old = Replica::start(workload, 5, ClientKind::Tonic, SourceKind::Rust).await?;
    let agent = Agent::start_at(&bpffs.pins(), &QUIET).await?;
    until(&mut old.client, false).await?;
    let reasons = manners(&agent.scrape().await?, workload, 5);
    let expected = if rewrites() {
        "unknown_client"
    } else {
        "enforcer"
    };
    ensure!(
        reasons.keys().all(|(_, reason)| reason == expected) && !reasons.is_empty(),
        "{reasons:?}"
    );
    drop(old);
    if !rewrites() {
        agent.stop().await?;
        return Ok(());
    }
    let mut replica = Replica::start(workload, 1, ClientKind::Tonic, SourceKind::Rust).await?;
    calm(&mut replica, None).await?;
    until(&mut replica.client, true).await?;

    // At run time, and back.
    for (answer, quiet) in [("unimplemented", false), ("quiet", true)] {
        set(&agent, &["mode", "enforce", "--answer", answer]).await?;
        let called = replica.client.call(Method::PendingFn, 20).await?;
        ensure!(rejected(&called) == Some(quiet), "{answer}: {called:?}");
        ensure!(
            called.values.len() + called.errors.len() == 1,
            "{answer}: {called:?}"
        );
        let status = agent.status().await?;
        ensure!(
            status["overrides"][0]["answer"] == answer,
            "{}",
            status["overrides"]
        );
    }
    set(&agent, &["mode", "audit"]).await?;
    let called = replica.client.call(Method::PendingFn, 20).await?;
    ensure!(called.ok == 20 && rejected(&called).is_none(), "{called:?}");
    set(&agent, &["mode", "enforce", "--answer", "quiet"]).await?;
    all_quiet(&mut replica, 20).await?;

    // Calls that are reset mid-way leave nothing behind: the places of as many more are free. (A server ends a connection on which too many
    // are, and the next one's first call isn't quiet.)
    calm(&mut replica, Some(1)).await?;
    until(&mut replica.client, true).await?;
    let called = replica.client.call(Method::PendingFn, calls()).await?;
    ensure!(
        called.values.keys().all(|value| value == ABSENT)
            && !called.errors.contains_key("INTERNAL"),
        "{called:?}"
    );
    calm(&mut replica, None).await?;
    until(&mut replica.client, true).await?;
    all_quiet(&mut replica, 50).await?;

    // The source goes, and comes back: the client's next connection says anew who it is.
    replica.restart_source().await?;
    until(&mut replica.client, true).await?;
    all_quiet(&mut replica, 50).await?;
    let before = agent.scrape().await?;
    ensure!(unedited(&before) == Some(0), "{before:?}");

    // The agent is killed between requests and their answers; nothing changes, and the next one goes on counting.
    replica.client.every(Duration::from_millis(2)).await?;
    agent.kill().await?;
    all_quiet(&mut replica, 50).await?;
    let agent = Agent::start_at(&bpffs.pins(), &QUIET).await?;
    let every = replica.client.every_off().await?;
    let scrape = agent.scrape().await?;
    ensure!(
        every.errors.is_empty() && every.values == Tally::from([(ABSENT.to_owned(), every.ok)]),
        "{every:?}, unedited {:?}, lost {:?}",
        unedited(&scrape),
        scrape.sum("pendguard_events_lost_total", &[])
    );
    let key = ("quiet".to_owned(), "policy".to_owned());
    let counted = manners(&agent.scrape().await?, workload, 1);
    let counted = counted.get(&key).context("none is counted")?;
    ensure!(*counted >= every.ok, "{counted} of {}", every.ok);
    all_quiet(&mut replica, 50).await?;
    let scrape = agent.scrape().await?;
    ensure!(unedited(&scrape) == Some(0), "{scrape:?}");
    agent.stop().await?;
    Ok(())
}
