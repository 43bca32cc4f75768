//! An HTTP/2 proxy on hyper: one connection to the source for each of a client's.

use std::path::Path;

use anyhow::{Context as _, Result};
use hyper::body::Incoming;
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};

/// Serves until the process is ended.
pub async fn run(listen: &Path, upstream: &Path) -> Result<()> {
    let listener = UnixListener::bind(listen).with_context(|| listen.display().to_string())?;
    loop {
        let (connection, _) = listener.accept().await?;
        let source = UnixStream::connect(upstream)
            .await
            .with_context(|| upstream.display().to_string())?;
        let (sender, driver) = client::handshake(TokioExecutor::new(), TokioIo::new(source))
            .await
            .context("the source")?;
        tokio::spawn(driver);
        let service = service_fn(move |request| hand_on(sender.clone(), request));
        tokio::spawn(async move {
            let serve = server::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(connection), service);
            // A client that goes away is no failure of the proxy's.
            let _ = serve.await;
        });
    }
}

/// Bodies and trailers pass as they come, in both directions.
async fn hand_on(
    mut source: client::SendRequest<Incoming>,
    request: Request<Incoming>,
) -> hyper::Result<Response<Incoming>> {
    source.ready().await?;
    source.send_request(request).await
}
