//! The one connection.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::proto::source_client::SourceClient;
use crate::scale::patience;

/// Numaflow gives tonic this address, and a connector that ignores it: it only ends up in `:authority`.
const UNUSED_ADDRESS: &str = "http://[::]:50051";
/// The largest message, as in Numaflow's data plane.
const MAX_MESSAGE: usize = 64 << 20;
/// How long a source may take to answer IsReady.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// The pause between two attempts.
const RETRY: Duration = Duration::from_millis(100);

/// Where a source listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`
    Tcp(String),
}

/// Connects, and asks IsReady until the answer is OK, as the data plane does when it starts. Also says how many
/// IsReady calls that took.
///
/// # Errors
/// The source wasn't ready within the limit.
pub async fn connect(target: &Target) -> Result<(SourceClient<Channel>, u64)> {
    let start = Instant::now();
    let mut attempts = 0;
    loop {
        let failure = match open(target).await {
            Ok(channel) => {
                let mut client = SourceClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE);
                attempts += 1;
                match client.is_ready(()).await {
                    Ok(answer) if answer.get_ref().ready => return Ok((client, attempts)),
                    Ok(_) => "the source answers that it is not ready".to_owned(),
                    Err(status) => format!("{:?}: {}", status.code(), status.message()),
                }
            }
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() > patience(READY_LIMIT) {
            bail!("{target:?} was not ready in {READY_LIMIT:?}: {failure}");
        }
        sleep(RETRY).await;
    }
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
