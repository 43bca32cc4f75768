//! `pendguard run`: bind, observe, serve, drain.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::server::ServeError;
use crate::api::socket::{ApiSocket, SocketError};
use crate::api::{self, About};
use crate::engine::{self, Engine, Handle};
use crate::export::http::{self, ListenError};
use crate::observer::Observer;
use crate::settings::Settings;
use crate::tap;

/// How long answers that are under way may take once the agent was told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a hanging engine can hold up the end.
const ABANDON: Duration = Duration::from_secs(1);

/// Runs the agent until it is told to stop.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    // One thread: the agent is woken by scrapes and by processes that come and go, never by calls.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(engine::CALLERS + 1)
        .build()
        .context("can't start the asynchronous runtime")?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::install()?;
        // Before anything is attached: an agent that can't be asked must not observe.
        let bound = Bound::new(settings).await?;
        let methods = settings.methods.clone();
        let tap = tokio::task::spawn_blocking(move || tap::start(&methods))
            .await
            .context("the tap's thread")??;
        let observer = Observer::new(tap, settings.methods.clone(), settings.policy.clone());
        // Scrapes are answered while the observer still looks around; `/readyz` says when it has.
        tokio::select! {
            result = Arc::clone(&observer).run() => result.context("following the processes of the node")?,
            result = serve(observer, bound, shutdown.wait()) => result?,
        }
        anyhow::Ok(())
    });
    runtime.shutdown_timeout(ABANDON);
    result
}

/// What the agent is asked through, taken but not yet served.
pub struct Bound {
    metrics: TcpListener,
    /// Where the metrics really are: the port may have been 0.
    pub metrics_address: SocketAddr,
    api: ApiSocket,
}

/// Why the agent can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address of the metrics.
    #[error(transparent)]
    Metrics(#[from] ListenError),
    /// The API's socket.
    #[error(transparent)]
    Api(#[from] SocketError),
    /// The listener has no address.
    #[error("the metrics' listener: {0}")]
    Address(#[from] std::io::Error),
}

impl Bound {
    /// Takes the address of the metrics and the API's socket.
    pub async fn new(settings: &Settings) -> Result<Self, BindError> {
        // The socket first: of two agents on a node, it is the one that names the other.
        let api = ApiSocket::bind(&settings.api_socket).await?;
        let metrics = http::listen(settings.metrics_listen).await?;
        Ok(Self {
            metrics_address: metrics.local_addr()?,
            metrics,
            api,
        })
    }
}

/// Serves metrics and API until `shutdown`, then lets the answers that are under way end. The engine is dropped last.
pub async fn serve(
    engine: Arc<dyn Engine>,
    bound: Bound,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    info!(metrics = %bound.metrics_address, "serving");
    let stop = CancellationToken::new();
    let handle = Handle::new(Arc::clone(&engine));
    let metrics = http::serve(bound.metrics, handle.clone(), stop.clone());
    let api = api::server::serve(bound.api, handle, About::now(), stop.clone());
    let mut servers = std::pin::pin!(async { tokio::join!(metrics, api).1 });
    let early = tokio::select! {
        result = &mut servers => Some(result),
        () = shutdown => None,
    };
    let result = match early {
        // A server that ends by itself has failed; the other one is dropped with it.
        Some(result) => result,
        None => {
            stop.cancel();
            match tokio::time::timeout(DRAIN, servers).await {
                Ok(result) => result,
                Err(_) => {
                    warn!(
                        "some clients are still connected after {} s: dropped",
                        DRAIN.as_secs()
                    );
                    Ok(())
                }
            }
        }
    };
    drop(engine);
    result
}

/// SIGTERM and SIGINT.
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// From now on, neither ends the process by itself.
    pub fn install() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("can't wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("can't wait for SIGINT")?,
        })
    }

    /// Until one of them comes.
    pub async fn wait(mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "stopping");
    }
}
