//! The peers by themselves, without any agent: what the exactness tests count on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::client::connect::Target;
use pendguard_tests::peers::{
    Client, ClientKind, ClientOptions, PeerError, Source, SourceKind, SourceOptions,
};
use pendguard_tests::protocol::{Method, Tally};
use pendguard_tests::scale::amount;
use pendguard_tests::source::generator::Faults;
use pendguard_tests::wait::{WAIT_LIMIT, wait_for, within};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// What the source's PendingFn answers.
const PENDING: i64 = 42;
/// The replica that the source thinks it is; the SDK answers PartitionsFn with it.
const REPLICA: &str = "3";
/// Calls of each method.
fn calls() -> u64 {
    amount(200, 50)
}
/// Messages per second in the background.
fn rate() -> u64 {
    amount(2000, 200)
}
/// Calls of each method where every client meets every source.
fn few() -> u64 {
    amount(50, 20)
}
/// And messages per second.
fn few_rate() -> u64 {
    amount(500, 100)
}
const UNIMPLEMENTED: &str = "UNIMPLEMENTED";

/// How long a source may take to be read to its end, or to be found dead.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// A method that no source has: what Pendguard makes of a call that it rejects. Its path is as long as PendingFn's.
const NO_METHOD: &str = "/source.v1.Source/PendingF=";

async fn source(directory: &TempDir) -> Source {
    let options = SourceOptions {
        also_tcp: true,
        pending_value: Some(PENDING),
        ..SourceOptions::new(directory.path().join("source.sock"))
    };
    Source::start(&options.env("NUMAFLOW_REPLICA", REPLICA))
        .await
        .expect("the source starts")
}

/// Calls that a source has no method for, while messages flow: each is answered, and nothing else notices.
async fn refuse(kind: ClientKind, source: &mut Source, rootless: &str) -> Result<()> {
    let mut client = Client::start(kind, &source.unix(), &ClientOptions::default()).await?;
    let before = source.stats().await?;
    client.background_on(few_rate()).await?;
    let connected = source.connections()?;
    for (path, status) in [(NO_METHOD, UNIMPLEMENTED), ("/", rootless)] {
        let called = client.call_path(path, few()).await?;
        ensure!(
            called.statuses() == tally(status, few()),
            "{path}: {called:?}"
        );
        // The one and the other in turn, and the stream goes on behind them.
        let called = client.call(Method::PendingFn, few()).await?;
        ensure!(called.statuses() == tally("OK", few()), "{called:?}");
        ensure!(
            called.values == tally(&PENDING.to_string(), few()),
            "{called:?}"
        );
        let read = source.stats().await?.acked;
        wait_for("more messages", WAIT_LIMIT, async || {
            Ok((source.stats().await?.acked > read).then_some(()))
        })
        .await?;
    }
    let ready = client.call(Method::IsReady, few()).await?;
    ensure!(ready.values == tally("true", few()), "{ready:?}");
    let partitions = client.call(Method::PartitionsFn, few()).await?;
    ensure!(partitions.values == tally(REPLICA, few()), "{partitions:?}");
    ensure!(
        (connected, source.connections()?) == (1, 1),
        "one connection, the same all the time"
    );
    let report = client.background_off().await?;
    ensure!(report.intact && report.errors.is_empty(), "{report:?}");
    ensure!(report.acked == report.messages, "{report:?}");
    client.quit().await?;

    let after = source.stats().await?;
    ensure!(after.pending - before.pending == 2 * few(), "{after:?}");
    ensure!(after.partitions - before.partitions == few(), "{after:?}");
    ensure!(
        after.messages - before.messages == report.messages
            && after.acked - before.acked == report.acked
            && after.bytes - before.bytes == report.bytes,
        "{after:?} after {before:?}, {report:?}"
    );
    ensure!(
        (after.ack_mismatches, after.abandoned) == (0, 0),
        "{after:?}"
    );
    Ok(())
}

/// Every client with every source.
#[tokio::test]
async fn a_method_that_no_source_has() -> Result<()> {
    let directory = TempDir::new()?;
    for source_kind in SourceKind::ALL {
        let options = SourceOptions {
            kind: source_kind,
            pending_value: Some(PENDING),
            message_bytes: Some(100),
            ..SourceOptions::new(directory.path().join(format!("{source_kind}.sock")))
        };
        let mut source = Source::start(&options.env("NUMAFLOW_REPLICA", REPLICA)).await?;
        // grpc-go up to 1.42 says so of a path without a service; UNIMPLEMENTED is what the others say, and newer ones.
        let rootless = match source.listening().sdk.as_str() {
            "grpc-go 1.33.3" => "RESOURCE_EXHAUSTED",
            _ => UNIMPLEMENTED,
        };
        for kind in ClientKind::ALL {
            refuse(kind, &mut source, rootless)
                .await
                .with_context(|| format!("{kind} and {source_kind}"))?;
        }
        let last = source.stats().await?;
        ensure!(source.quit().await? == last, "{source_kind}");
    }
    Ok(())
}

/// A great many refused calls are all reported, as what they are.
#[tokio::test]
async fn many_refused_calls() -> Result<()> {
    let many = amount(10_000, 300);
    let directory = TempDir::new()?;
    let mut source = source(&directory).await;
    for kind in ClientKind::ALL {
        let mut client = Client::start(kind, &source.unix(), &ClientOptions::default()).await?;
        let called = client.call_path(NO_METHOD, many).await?;
        ensure!(
            called.statuses() == tally(UNIMPLEMENTED, many),
            "{kind}: {called:?}"
        );
        client.quit().await?;
    }
    ensure!(source.stats().await?.pending == 0);
    Ok(())
}

/// What the other sources can't do they refuse, rather than do something else.
#[tokio::test]
async fn a_source_says_what_it_cannot_do() -> Result<()> {
    let directory = TempDir::new()?;
    for kind in [SourceKind::Node, SourceKind::Go] {
        let refused = Source::start(&SourceOptions {
            kind,
            total: Some(1),
            ..SourceOptions::new(directory.path().join("source.sock"))
        })
        .await;
        ensure!(
            matches!(&refused, Err(PeerError::Failed { message, .. }) if message.contains("total")),
            "{kind}: {refused:?}"
        );
    }
    Ok(())
}

/// Not available is -1, on every source, however it is said; and a short payload is a whole one.
#[tokio::test]
async fn a_source_that_knows_nothing() -> Result<()> {
    let directory = TempDir::new()?;
    for kind in SourceKind::ALL {
        for pending_value in [None, Some(-7)] {
            let source = Source::start(&SourceOptions {
                kind,
                pending_value,
                message_bytes: Some(1),
                ..SourceOptions::new(directory.path().join("source.sock"))
            })
            .await?;
            let options = ClientOptions::default();
            let mut client = Client::start(ClientKind::Tonic, &source.unix(), &options).await?;
            client.background_on(0).await?;
            let called = client.call(Method::PendingFn, 1).await?;
            ensure!(called.values == tally("-1", 1), "{kind}: {called:?}");
            let report = client.background_off().await?;
            ensure!(
                report.intact && report.bytes == 16 * report.messages,
                "{kind}: {report:?}"
            );
            client.quit().await?;
            source.quit().await?;
        }
    }
    Ok(())
}

fn tally(key: &str, count: u64) -> Tally {
    Tally::from([(key.to_owned(), count)])
}

/// Calls of all methods while messages flow: both sides count the same, and no byte is lost.
async fn drive(kind: ClientKind, source: &mut Source, target: &Target) -> Result<(), PeerError> {
    let before = source.stats().await?;
    let mut client = Client::start(kind, target, &ClientOptions::default()).await?;
    assert_eq!(client.ready().client, kind.name());
    assert_eq!(client.ready().pid, client.pid());

    client.background_on(rate()).await?;
    client.every(Duration::from_millis(10)).await?;
    for (method, value) in [
        (Method::PendingFn, PENDING.to_string()),
        (Method::IsReady, true.to_string()),
        (Method::PartitionsFn, REPLICA.to_owned()),
    ] {
        let called = client.call(method, calls()).await?;
        assert_eq!(called.ok, calls(), "{kind}: {called:?}");
        assert_eq!(called.errors, Tally::new(), "{kind}");
        assert_eq!(called.values, Tally::from([(value, calls())]), "{kind}");
    }
    if matches!(target, Target::Unix(_)) {
        let connections = source.connections().expect("the source runs");
        assert_eq!(connections, 1, "{kind} uses one connection");
    }
    let every = client.every_off().await?;
    assert_eq!(
        (every.count, every.errors),
        (every.ok, Tally::new()),
        "{kind}"
    );
    let first = client.background_off().await?;
    // A second time on the same connection, as fast as it goes; the chain goes on.
    client.background_on(0).await?;
    let second = client.background_off().await?;
    for report in [&first, &second] {
        assert!(report.intact, "{kind}: {report:?}");
        assert_eq!(report.errors, [""; 0], "{kind}");
        assert!(report.messages > 0, "{kind}: {report:?}");
        assert_eq!(report.acked, report.messages, "{kind}");
    }
    client.quit().await?;

    let after = source.stats().await?;
    assert_eq!(
        after.pending - before.pending,
        calls() + every.count,
        "{kind}"
    );
    assert_eq!(after.partitions - before.partitions, calls(), "{kind}");
    let messages = first.messages + second.messages;
    assert_eq!(after.messages - before.messages, messages, "{kind}");
    assert_eq!(after.acked - before.acked, messages, "{kind}");
    assert_eq!(
        after.bytes - before.bytes,
        first.bytes + second.bytes,
        "{kind}"
    );
    assert_eq!((after.ack_mismatches, after.abandoned), (0, 0), "{kind}");
    assert_eq!(after.nack, 0, "{kind}");
    Ok(())
}

#[tokio::test]
async fn every_client_and_the_source_count_the_same() -> Result<(), PeerError> {
    let directory = TempDir::new().expect("a directory for the socket");
    let mut source = source(&directory).await;
    let tcp = source.tcp().expect("the source listens on TCP");
    for target in [source.unix(), tcp] {
        for kind in ClientKind::ALL {
            drive(kind, &mut source, &target).await?;
        }
    }
    let last = source.stats().await?;
    assert_eq!(source.quit().await?, last);
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .expect("the directory is there")
        .collect();
    assert!(left.is_empty(), "the SDK removes its files: {left:?}");
    Ok(())
}

#[tokio::test]
async fn an_exhausted_source_has_nothing_pending() -> Result<(), PeerError> {
    let directory = TempDir::new().expect("a directory for the socket");
    let total = 1000;
    let mut source = Source::start(&SourceOptions {
        total: Some(total),
        message_bytes: Some(64),
        ..SourceOptions::new(directory.path().join("source.sock"))
    })
    .await?;
    let options = ClientOptions::default();
    let mut client = Client::start(ClientKind::Tonic, &source.unix(), &options).await?;
    let left = client.call(Method::PendingFn, 1).await?;
    assert_eq!(left.values, Tally::from([(total.to_string(), 1)]));

    client.background_on(0).await?;
    let done = async {
        while source.stats().await?.acked < total {}
        Ok::<(), PeerError>(())
    };
    within("the source is read to its end", READ_LIMIT, done)
        .await
        .expect("it is")?;
    let report = client.background_off().await?;
    assert_eq!((report.messages, report.bytes), (total, total * 64));
    let left = client.call(Method::PendingFn, 1).await?;
    assert_eq!(left.values, Tally::from([("0".to_owned(), 1)]));
    Ok(())
}

#[tokio::test]
async fn a_dead_source_shows_in_the_background() -> Result<(), PeerError> {
    let directory = TempDir::new().expect("a directory for the socket");
    for kind in ClientKind::ALL {
        let source = source(&directory).await;
        let options = ClientOptions::default();
        let mut client = Client::start(kind, &source.unix(), &options).await?;
        client.background_on(100).await?;
        drop(source);
        let failed = async {
            while client.call(Method::PendingFn, 1).await?.errors.is_empty() {}
            Ok::<(), PeerError>(())
        };
        within("calls fail", READ_LIMIT, failed)
            .await
            .expect("they do")?;
        let report = client.background_off().await?;
        assert!(!report.errors.is_empty(), "{kind}: {report:?}");
        client.quit().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_command_that_makes_no_sense_ends_the_client() -> Result<(), PeerError> {
    let directory = TempDir::new().expect("a directory for the socket");
    let source = source(&directory).await;
    for kind in ClientKind::ALL {
        let options = ClientOptions::default();
        let mut client = Client::start(kind, &source.unix(), &options).await?;
        let refused = client.background_off().await;
        assert!(
            matches!(&refused, Err(PeerError::Failed { message, .. }) if message == "the background is off"),
            "{kind}: {refused:?}"
        );
        let ended = client.quit().await;
        assert!(
            matches!(
                &ended,
                Err(PeerError::Pipe { .. } | PeerError::Status { .. })
            ),
            "{kind}: {ended:?}"
        );
    }
    Ok(())
}

/// A check that can't fail proves nothing: every client notices a changed byte and a lost message.
#[tokio::test]
async fn damage_is_noticed() -> Result<(), PeerError> {
    let directory = TempDir::new().expect("a directory for the socket");
    for kind in ClientKind::ALL {
        let mut source = Source::start(&SourceOptions {
            faults: Faults {
                corrupt: Some(10),
                lose: Some(20),
            },
            ..SourceOptions::new(directory.path().join("source.sock"))
        })
        .await?;
        let options = ClientOptions::default();
        let mut client = Client::start(kind, &source.unix(), &options).await?;
        client.background_on(0).await?;
        let report = client.background_off().await?;
        assert!(!report.intact, "{kind}: {report:?}");
        let [changed, lost] = &report.errors[..] else {
            panic!("{kind}: {report:?}");
        };
        assert!(changed.starts_with("message 10: sum "), "{kind}: {changed}");
        assert_eq!(lost, "message 21 came, expected 20", "{kind}");
        let stats = source.stats().await?;
        assert_eq!((stats.abandoned, stats.ack_mismatches), (1, 0), "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn a_terminated_source_tells_its_counters() -> Result<(), PeerError> {
    let directory = TempDir::new().expect("a directory for the socket");
    let source = source(&directory).await;
    let options = ClientOptions::default();
    let mut client = Client::start(ClientKind::Tonic, &source.unix(), &options).await?;
    client.call(Method::PendingFn, calls()).await?;
    let pid = rustix::process::Pid::from_raw(source.pid().cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert_eq!(source.stopped().await?.pending, calls());
    Ok(())
}

/// As in the exactness tests: three replicas at once, each with a source of its own.
#[tokio::test]
async fn three_of_a_kind_run_at_once() -> Result<(), PeerError> {
    let directory = TempDir::new().expect("a directory for the sockets");
    for kind in ClientKind::ALL {
        let mut replicas = JoinSet::new();
        for replica in 0..3_u64 {
            let socket = directory.path().join(format!("{kind}-{replica}.sock"));
            replicas.spawn(async move {
                let source =
                    SourceOptions::new(socket).env("NUMAFLOW_REPLICA", replica.to_string());
                let source = Source::start(&source).await?;
                let options = ClientOptions::default();
                let mut client = Client::start(kind, &source.unix(), &options).await?;
                client.background_on(rate()).await?;
                let called = client.call(Method::PartitionsFn, calls()).await?;
                assert_eq!(called.values, Tally::from([(replica.to_string(), calls())]));
                assert!(client.background_off().await?.intact, "{kind}");
                client.quit().await?;
                source.quit().await
            });
        }
        while let Some(replica) = replicas.join_next().await {
            let stats = replica.expect("the replica's task ends")?;
            assert_eq!((stats.partitions, stats.pending), (calls(), 0), "{kind}");
        }
    }
    Ok(())
}
