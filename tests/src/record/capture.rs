//! Records a real client that talks to the real source.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::timeout;

use super::fixture::Fixture;
use super::relay::Relay;
use crate::client::connect::Target;
use crate::peers::{Client, ClientKind, ClientOptions, Source, SourceOptions};
use crate::protocol::Method;

/// Small messages and batches: a recording is about headers.
const MESSAGE_BYTES: usize = 32;
const BATCH: u64 = 5;
/// Messages per second: 20 batches.
const RATE: u64 = 100;
/// A call of each method, again and again between the batches.
const ROUNDS: u64 = 6;
/// What the source's PendingFn answers.
const PENDING: i64 = 42;
/// How long the traffic may take to come to the next batch, or to its end.
const LIMIT: Duration = Duration::from_secs(20);

/// Records one session: IsReady, reading and acknowledging in batches, and between them PendingFn, PartitionsFn and
/// IsReady. What the decoder finds in the bytes must be what the client says it did.
///
/// # Errors
/// A peer failed, or the numbers differ.
pub async fn capture(kind: ClientKind) -> Result<Fixture> {
    let directory = tempfile::tempdir()?;
    let upstream = directory.path().join("source.sock");
    let socket = directory.path().join("relay.sock");
    let mut source = Source::start(&SourceOptions {
        message_bytes: Some(MESSAGE_BYTES),
        pending_value: Some(PENDING),
        ..SourceOptions::new(&upstream)
    })
    .await?;
    let relay = Relay::listen(&socket)?;
    let relay = tokio::spawn(async move { relay.run(&upstream).await });
    let options = ClientOptions {
        batch: Some(BATCH),
        ..ClientOptions::default()
    };
    let mut client = Client::start(kind, &Target::Unix(socket), &options).await?;
    let ready = client.ready().clone();

    client.background_on(RATE).await?;
    for round in 1..=ROUNDS {
        for method in [Method::PendingFn, Method::PartitionsFn, Method::IsReady] {
            let called = client.call(method, 1).await?;
            ensure!(called.ok == 1, "{kind}: {called:?}");
        }
        let next_batch = async {
            while source.stats().await?.ack <= round {}
            Ok::<(), anyhow::Error>(())
        };
        timeout(LIMIT, next_batch)
            .await
            .context("no next batch")??;
    }
    let background = client.background_off().await?;
    ensure!(
        background.intact && background.errors.is_empty(),
        "{kind}: {background:?}"
    );
    client.quit().await?;
    let sent = timeout(LIMIT, relay)
        .await
        .context("the connection did not end")???;

    let fixture = Fixture::of_client(format!("{} {}", ready.client, ready.version), &sent)?;
    let stats = source.quit().await?;
    let is_ready = ready.attempts + ROUNDS + background.is_ready;
    for (path, made) in [
        (Method::PendingFn.path(), ROUNDS),
        (Method::PartitionsFn.path(), ROUNDS),
        (Method::IsReady.path(), is_ready),
        ("/source.v1.Source/ReadFn", 1),
        ("/source.v1.Source/AckFn", 1),
    ] {
        let found = fixture.count(path);
        ensure!(
            found == made,
            "{kind}: {made} calls of {path}, but {found} in the bytes"
        );
    }
    let all = 2 * ROUNDS + is_ready + 2;
    ensure!(
        fixture.requests.len() as u64 == all,
        "{kind}: requests that nobody made: {:?}",
        fixture.requests
    );
    ensure!(
        (stats.pending, stats.partitions) == (ROUNDS, ROUNDS),
        "{kind}: {stats:?}"
    );
    Ok(fixture)
}
