//! The one connection.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::proto::source_client::SourceClient;
use crate::wait::wait_for;

/// Numaflow gives tonic this address, and a connector that ignores it: it only ends up in `:authority`.
const UNUSED_ADDRESS: &str = "http://[::]:50051";
/// The largest message, as in Numaflow's data plane.
const MAX_MESSAGE: usize = 64 << 20;
/// How long a source may take to answer IsReady.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// Where a source listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`
    Tcp(String),
}

/// A client of the service, on an open connection.
#[must_use]
pub fn client(channel: Channel) -> SourceClient<Channel> {
    SourceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Connects, and asks IsReady until the answer is OK, as the data plane does when it starts. Also says how many
/// IsReady calls that took.
///
/// # Errors
/// The source wasn't ready within the limit.
pub async fn connect(target: &Target) -> Result<(Channel, u64)> {
    let mut attempts = 0;
    let mut failure = "no attempt".to_owned();
    let connected = wait_for("the source is ready", READY_LIMIT, async || {
        match open(target).await {
            Ok(channel) => {
                attempts += 1;
                match client(channel.clone()).is_ready(()).await {
                    Ok(answer) if answer.get_ref().ready => return Ok(Some(channel)),
                    Ok(_) => "the source answers that it is not ready".clone_into(&mut failure),
                    Err(status) => {
                        failure = format!("{:?}: {}", status.code(), status.message());
                    }
                }
            }
            Err(error) => failure = format!("{error:#}"),
        }
        Ok(None)
    })
    .await;
    let channel = connected.with_context(|| format!("{target:?}: {failure}"))?;
    Ok((channel, attempts))
}

async fn open(target: &Target) -> Result<Channel> {
    match target {
        Target::Unix(path) => {
            let path = path.clone();
            Endpoint::from_static(UNUSED_ADDRESS)
                .connect_with_connector(service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                }))
                .await
                .context("the Unix socket")
        }
        Target::Tcp(address) => Endpoint::from_shared(format!("http://{address}"))?
            .connect()
            .await
            .context("the TCP address"),
    }
}
