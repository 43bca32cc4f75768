//! `/metrics`, `/healthz` and `/readyz`.
//!
//! One request a connection, every connection has a deadline, and there are only so many at once: a slow or greedy client
//! costs a bounded amount of memory and none of the agent's time.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Source;
use super::accept::Format;
use super::metrics;
use crate::engine::Unresponsive;

/// Connections at once at most; more wait in the kernel.
const MAX_CONNECTIONS: usize = 64;
/// Scrapes at once at most, the sending of the answer included; one more is answered 503.
const MAX_SCRAPES: usize = 4;
const _: () = assert!(
    MAX_SCRAPES < MAX_CONNECTIONS,
    "probes get through while scrapes are stuck"
);
/// How long a connection may take from its start to its end.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(15);
/// How long a client may take to send its request.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Octets of a request's head at most, which is also the smallest that hyper can work with.
const MAX_HEAD: usize = 8192;

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address} (--metrics-listen): {source}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Takes the address. Connections wait until [`serve`] runs.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError { address, source })
}

/// Serves until told to stop, and then until the connections that are there have ended.
pub async fn serve(listener: TcpListener, source: Source, stop: CancellationToken) {
    let server = Server {
        source,
        scrapes: Arc::new(Semaphore::new(MAX_SCRAPES)),
    };
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tasks = TaskTracker::new();
    let accept = async {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = server.clone().connection(stream, stop.clone());
                    tasks.spawn(async move {
                        let _permit = permit;
                        // Too late is too late: what isn't through by now is dropped.
                        let _ = tokio::time::timeout(CONNECTION_DEADLINE, connection).await;
                    });
                }
                // The client is gone already, or the agent is out of descriptors: that passes, but not faster by asking
                // at once.
                Err(error) => {
                    debug!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    let () = stop.run_until_cancelled(accept).await.unwrap_or_default();
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

#[derive(Clone)]
struct Server {
    source: Source,
    scrapes: Arc<Semaphore>,
}

/// A scrape's permit. It goes when the connection goes, and so covers the sending.
type Held = Arc<Mutex<Option<OwnedSemaphorePermit>>>;
type Answer = Response<Full<Bytes>>;

impl Server {
    async fn connection(self, stream: TcpStream, stop: CancellationToken) {
        let held = Held::default();
        let asked = AtomicBool::new(false);
        let service = service_fn(|request| {
            asked.store(true, Ordering::Relaxed);
            let server = self.clone();
            let held = Arc::clone(&held);
            async move { Ok::<_, Infallible>(server.answer(&request, &held).await) }
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = &mut connection => result,
            () = stop.cancelled() => {
                // Who hasn't asked by now isn't waited for.
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            debug!(%error, "connection to the metrics address");
        }
    }

    async fn answer(&self, request: &Request<Incoming>, held: &Held) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            let headers = answer.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/metrics" => self.metrics(Format::wanted(request.headers()), held).await,
            "/healthz" => self.health().await,
            "/readyz" => self.ready().await,
            "/" => text(StatusCode::OK, "pendguard: /metrics /healthz /readyz\n"),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /metrics, /healthz and /readyz\n",
            ),
        }
    }

    async fn metrics(&self, format: Format, held: &Held) -> Answer {
        let Ok(permit) = Arc::clone(&self.scrapes).try_acquire_owned() else {
            let mut answer = text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many scrapes at once\n",
            );
            let headers = answer.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return answer;
        };
        if let Ok(mut held) = held.lock() {
            *held = Some(permit);
        }
        let families = match self.source.families().await {
            Ok(families) => families,
            Err(error) => return unresponsive(error),
        };
        match metrics::render(&families, format) {
            Ok(body) => {
                let mut answer = answer(StatusCode::OK, format.content_type(), body);
                let headers = answer.headers_mut();
                headers.insert(VARY, HeaderValue::from(ACCEPT));
                answer
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// Alive is who answers, and whose engine answers: that it isn't ready is no reason to restart it.
    async fn health(&self) -> Answer {
        match self.source.engine.ready().await {
            Ok(_) => text(StatusCode::OK, "ok\n"),
            Err(error) => unresponsive(error),
        }
    }

    async fn ready(&self) -> Answer {
        match self.source.engine.ready().await {
            Ok(Ok(())) => text(StatusCode::OK, "ready\n"),
            Ok(Err(reason)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            Err(error) => unresponsive(error),
        }
    }
}

fn unresponsive(error: Unresponsive) -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::engine::Handle;
    use crate::engine::fake::{self, Fake};

    struct Running {
        address: SocketAddr,
        engine: Arc<Fake>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start() -> Running {
        let engine = Fake::new(fake::three());
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let handle = Handle::new(Arc::clone(&engine) as Arc<dyn crate::engine::Engine>);
        let task = tokio::spawn(serve(listener, Source::new(handle), stop.clone()));
        Running {
            address,
            engine,
            stop,
            task,
        }
    }

    async fn raw(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        raw(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    #[tokio::test]
    async fn metrics_health_and_readiness() {
        let running = start().await;
        let metrics = get(running.address, "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200 "), "{metrics}");
        assert!(
            metrics.contains("content-type: text/plain; version=0.0.4"),
            "{metrics}"
        );
        assert!(metrics.contains("pendguard_calls_total{"), "{metrics}");
        for path in ["/healthz", "/readyz", "/", "/healthz?verbose"] {
            let answer = get(running.address, path).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        }
        *running.engine.ready.lock().unwrap() = Err("the first scan is under way".to_owned());
        let ready = get(running.address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
        assert!(ready.ends_with("the first scan is under way\n"), "{ready}");
        let health = get(running.address, "/healthz").await;
        assert!(health.starts_with("HTTP/1.1 200 "), "{health}");
    }

    #[tokio::test]
    async fn openmetrics_for_who_asks_for_it() {
        let running = start().await;
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n";
        let answer = raw(running.address, request).await;
        assert!(
            answer.contains(
                "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
            ),
            "{answer}"
        );
        assert!(answer.contains("vary: accept\r\n"), "{answer}");
        assert!(
            answer.contains("# TYPE pendguard_calls counter\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\n# EOF\n"), "{answer}");
    }

    #[tokio::test]
    async fn other_requests_are_refused() {
        let running = start().await;
        for (request, status) in [
            ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            (
                "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
                "405",
            ),
            ("garbage\r\n\r\n", "400"),
        ] {
            let answer = raw(running.address, request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
        }
        let head = raw(running.address, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && !head.contains("pendguard_"),
            "{head}"
        );
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(2 * MAX_HEAD));
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        // The server may hang up before all is sent.
        let _ = stream.write_all(long.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_flag() {
        let running = start().await;
        let error = listen(running.address).await.unwrap_err().to_string();
        assert!(error.contains(&running.address.to_string()), "{error}");
        assert!(error.contains("--metrics-listen"), "{error}");
    }

    #[tokio::test]
    async fn slow_clients_neither_block_probes_nor_outlive_a_stop() {
        let running = start().await;
        // Scrapes that are never read, and connections that never say anything.
        let mut slow = Vec::new();
        for i in 0..MAX_CONNECTIONS - 1 {
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            if i % 2 == 0 {
                stream.write_all(b"GET /metrics HT").await.unwrap();
            }
            slow.push(stream);
        }
        assert!(
            get(running.address, "/healthz")
                .await
                .starts_with("HTTP/1.1 200 ")
        );
        running.stop.cancel();
        tokio::time::timeout(Duration::from_secs(2), running.task)
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_cut_off() {
        let running = start().await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let mut answer = Vec::new();
        let before = tokio::time::Instant::now();
        // An error (reset) will do as well as an end.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(before.elapsed() <= CONNECTION_DEADLINE + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn too_many_scrapes_at_once_are_told_so() {
        let server = Server {
            source: Source::new(Handle::new(Fake::new(fake::three()))),
            scrapes: Arc::new(Semaphore::new(1)),
        };
        let (first, second) = (Held::default(), Held::default());
        assert_eq!(
            server.metrics(Format::Text, &first).await.status(),
            StatusCode::OK
        );
        let refused = server.metrics(Format::Text, &second).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key(RETRY_AFTER));
        drop(first);
        assert_eq!(
            server.metrics(Format::Text, &second).await.status(),
            StatusCode::OK
        );
    }
}
