//! Connecting to the collector.
//!
//! tonic's own connector looks names up on as many threads as it takes; here they are [`super::RESOLVERS`], so that a name server
//! that hangs takes none of the threads that scrapes need.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tonic::transport::{Channel, Uri};
use tower::service_fn;

use super::{Endpoint, RESOLVERS};

/// How long it may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Makes channels to one collector.
pub struct Connector {
    endpoint: Endpoint,
    resolvers: Arc<Semaphore>,
}

impl Connector {
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            resolvers: Arc::new(Semaphore::new(RESOLVERS)),
        }
    }

    /// A channel that connects when it is first used. It must be made on the runtime.
    pub fn channel(&self) -> Channel {
        let endpoint = self.endpoint.clone();
        let resolvers = Arc::clone(&self.resolvers);
        let connect = service_fn(move |_: Uri| {
            let stream = stream(endpoint.clone(), Arc::clone(&resolvers));
            async {
                match tokio::time::timeout(DEADLINE, stream).await {
                    Ok(stream) => stream.map(TokioIo::new),
                    Err(_) => Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "no connection within 5 s",
                    )),
                }
            }
        });
        tonic::transport::Endpoint::from(self.endpoint.uri.clone())
            .connect_with_connector_lazy(connect)
    }
}

async fn stream(endpoint: Endpoint, resolvers: Arc<Semaphore>) -> io::Result<TcpStream> {
    let addresses = resolve(endpoint, resolvers).await?;
    TcpStream::connect(&*addresses).await
}

async fn resolve(endpoint: Endpoint, resolvers: Arc<Semaphore>) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = endpoint.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, endpoint.port)]);
    }
    let permit = resolvers
        .try_acquire_owned()
        .map_err(|_| io::Error::other("its name is still being looked up"))?;
    tokio::task::spawn_blocking(move || {
        // Held by the thread, not by who waits for it.
        let _permit = permit;
        let addresses = (&*endpoint.host, endpoint.port).to_socket_addrs()?;
        Ok(addresses.collect())
    })
    .await
    .map_err(io::Error::other)?
}
