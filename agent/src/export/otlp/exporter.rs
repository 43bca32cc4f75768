//! Sending, from time to time.
//!
//! One request is under way at a time and none is kept: what a collector misses comes with the next, since all counts are cumulative.
#![forbid(unsafe_code)]

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::Target;
use super::connect::Connector;
use super::request::Sender;
use crate::engine::Unresponsive;
use crate::export::Source;

/// How long a collector may take for one request, connecting included.
const DEADLINE: Duration = Duration::from_secs(10);

/// Sends a node's metrics to a collector.
pub struct Exporter {
    target: Target,
    deadline: Duration,
    source: Source,
    failures: Arc<AtomicU64>,
    sender: Sender,
    connector: Connector,
    /// Left from the last request, if that went well.
    channel: Option<Channel>,
    failing: bool,
}

/// Why metrics didn't arrive.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Unresponsive(#[from] Unresponsive),
    #[error("no answer within {} s", .0.as_secs_f64())]
    Slow(Duration),
    #[error("{}", said(.0))]
    Refused(Box<tonic::Status>),
    #[error("{points} data points were not taken: {message}")]
    Partial { points: i64, message: String },
}

/// What a status says; of one that the transport made, only what caused it says anything.
fn said(status: &tonic::Status) -> String {
    let mut text = status.code().to_string();
    let mut cause = status.source();
    let mut more = status.message().to_owned();
    loop {
        if !more.is_empty() && !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        let Some(error) = cause else { return text };
        more = error.to_string();
        cause = error.source();
    }
}

impl Exporter {
    /// An exporter of what `source` tells, which counts its failures there.
    pub fn new(target: Target, source: &mut Source) -> Self {
        let failures = Arc::new(AtomicU64::new(0));
        source.otlp_failures = Some(Arc::clone(&failures));
        Self {
            connector: Connector::new(target.endpoint.clone()),
            target,
            deadline: DEADLINE,
            source: source.clone(),
            failures,
            sender: Sender::new(),
            channel: None,
            failing: false,
        }
    }

    /// Sends until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        info!(
            endpoint = %self.target.endpoint,
            interval_s = self.target.interval.as_secs_f64(),
            "sending metrics over OTLP"
        );
        let sending = async {
            let interval = self.target.interval;
            // Not at once: the agent is still looking around.
            let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let result = self.export().await;
                self.note(result);
            }
        };
        stop.run_until_cancelled(sending).await;
    }

    async fn export(&mut self) -> Result<(), ExportError> {
        let families = self.source.families().await?;
        let request = self.sender.request(&families);
        drop(families);
        // Taken out, and put back only after a good answer: of a connection on which something went wrong, nobody knows whether it still
        // leads anywhere, and the kernel may take a quarter of an hour to find out.
        let channel = self.channel.take();
        let channel = channel.unwrap_or_else(|| self.connector.channel());
        match tokio::time::timeout(self.deadline, send(channel.clone(), request)).await {
            Ok(result) => result?,
            Err(_) => return Err(ExportError::Slow(self.deadline)),
        }
        self.channel = Some(channel);
        Ok(())
    }

    /// Says that sending fails when it begins to, and that it doesn't any more; counts every time.
    fn note(&mut self, result: Result<(), ExportError>) {
        let endpoint = &self.target.endpoint;
        let failed_before = std::mem::replace(&mut self.failing, result.is_err());
        match result {
            Ok(()) if failed_before => {
                let failures = self.failures.load(Ordering::Relaxed);
                info!(%endpoint, failures, "metrics arrive over OTLP again");
            }
            Ok(()) => debug!(%endpoint, "metrics sent over OTLP"),
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                if failed_before {
                    debug!(%endpoint, "metrics not sent over OTLP: {error}");
                } else {
                    warn!(
                        %endpoint,
                        "metrics not sent over OTLP: {error} (told once; pendguard_otlp_failures_total counts)"
                    );
                }
            }
        }
    }
}

async fn send(channel: Channel, request: ExportMetricsServiceRequest) -> Result<(), ExportError> {
    let answer = MetricsServiceClient::new(channel)
        .export(request)
        .await
        .map_err(|status| ExportError::Refused(Box::new(status)))?;
    match answer.into_inner().partial_success {
        Some(partial) if partial.rejected_data_points > 0 => Err(ExportError::Partial {
            points: partial.rejected_data_points,
            message: partial.error_message,
        }),
        // A collector may have something to say though it took everything.
        Some(partial) if !partial.error_message.is_empty() => {
            debug!(message = partial.error_message, "the collector says");
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
        MetricsService, MetricsServiceServer,
    };
    use opentelemetry_proto::tonic::collector::metrics::v1::{
        ExportMetricsPartialSuccess, ExportMetricsServiceResponse,
    };
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Code, Request, Response, Status};

    use super::*;
    use crate::engine::Handle;
    use crate::engine::fake::{self, Fake};

    /// What a collector does with a request.
    #[derive(Clone, Copy)]
    enum Manner {
        Take,
        Fail,
        Part,
        Hang,
    }

    struct Collector {
        manner: Mutex<Manner>,
        got: mpsc::UnboundedSender<ExportMetricsServiceRequest>,
        under_way: AtomicUsize,
        most: AtomicUsize,
    }

    /// One less under way, however the request ends.
    struct Leave<'a>(&'a AtomicUsize);

    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[derive(Clone)]
    struct Service(Arc<Collector>);

    #[tonic::async_trait]
    impl MetricsService for Service {
        async fn export(
            &self,
            request: Request<ExportMetricsServiceRequest>,
        ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
            let collector = &*self.0;
            let now = collector.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            collector.most.fetch_max(now, Ordering::SeqCst);
            let _leave = Leave(&collector.under_way);
            let _ = collector.got.send(request.into_inner());
            let manner = *collector.manner.lock().unwrap();
            let mut response = ExportMetricsServiceResponse::default();
            match manner {
                Manner::Take => {}
                Manner::Fail => return Err(Status::new(Code::ResourceExhausted, "full")),
                Manner::Part => {
                    response.partial_success = Some(ExportMetricsPartialSuccess {
                        rejected_data_points: 3,
                        error_message: "too old".to_owned(),
                    });
                }
                Manner::Hang => std::future::pending().await,
            }
            Ok(Response::new(response))
        }
    }

    struct Running {
        collector: Arc<Collector>,
        got: mpsc::UnboundedReceiver<ExportMetricsServiceRequest>,
        address: SocketAddr,
        server: JoinHandle<()>,
    }

    impl Running {
        async fn start(address: &str, manner: Manner) -> Self {
            let listener = TcpListener::bind(address).await.unwrap();
            let address = listener.local_addr().unwrap();
            let (sender, got) = mpsc::unbounded_channel();
            let collector = Arc::new(Collector {
                manner: Mutex::new(manner),
                got: sender,
                under_way: AtomicUsize::new(0),
                most: AtomicUsize::new(0),
            });
            let service = MetricsServiceServer::new(Service(Arc::clone(&collector)));
            let server = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener));
            Self {
                collector,
                got,
                address,
                server: tokio::spawn(async { server.await.unwrap() }),
            }
        }

        fn manner(&self, manner: Manner) {
            *self.collector.manner.lock().unwrap() = manner;
        }
    }

    struct Sending {
        source: Source,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    /// An exporter in a hurry.
    fn send_to(endpoint: &str) -> Sending {
        let target = Target {
            endpoint: endpoint.parse().unwrap(),
            interval: Duration::from_millis(20),
        };
        let mut source = Source::new(Handle::new(Fake::new(fake::three())));
        let mut exporter = Exporter::new(target, &mut source);
        exporter.deadline = Duration::from_millis(200);
        let stop = CancellationToken::new();
        let task = tokio::spawn(exporter.run(stop.clone()));
        Sending { source, stop, task }
    }

    impl Sending {
        fn failures(&self) -> u64 {
            let failures = self.source.otlp_failures.as_ref().unwrap();
            failures.load(Ordering::Relaxed)
        }

        async fn failures_reach(&self, count: u64) {
            let reached = async {
                while self.failures() < count {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), reached)
                .await
                .expect("failures");
        }

        /// It ends at once, whatever is under way.
        async fn stop(self) {
            self.stop.cancel();
            tokio::time::timeout(Duration::from_secs(2), self.task)
                .await
                .unwrap()
                .unwrap();
        }
    }

    async fn next(running: &mut Running) -> ExportMetricsServiceRequest {
        tokio::time::timeout(Duration::from_secs(20), running.got.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// Two requests without a failure between them.
    async fn goes_well(running: &mut Running, sending: &Sending) {
        let well = async {
            loop {
                let before = sending.failures();
                while running.got.try_recv().is_ok() {}
                for _ in 0..3 {
                    next(running).await;
                }
                if sending.failures() == before {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), well)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_collector_gets_everything_again_and_again() {
        let mut running = Running::start("127.0.0.1:0", Manner::Take).await;
        let sending = send_to(&format!("http://{}", running.address));
        let mut times = Vec::new();
        for _ in 0..3 {
            let request = next(&mut running).await;
            let scope = &request.resource_metrics[0].scope_metrics[0];
            let names: Vec<&str> = scope.metrics.iter().map(|m| &*m.name).collect();
            assert!(names.contains(&"pendguard.calls"), "{names:?}");
            assert!(names.contains(&"pendguard.otlp_failures"), "{names:?}");
            let resource = request.resource_metrics[0].resource.as_ref().unwrap();
            let keys: Vec<&str> = resource.attributes.iter().map(|a| &*a.key).collect();
            for key in ["service.name", "service.version", "host.name"] {
                assert!(keys.contains(&key), "{keys:?}");
            }
            let Some(opentelemetry_proto::tonic::metrics::v1::metric::Data::Sum(sum)) =
                &scope.metrics[0].data
            else {
                panic!("a sum")
            };
            let point = &sum.data_points[0];
            times.push((point.start_time_unix_nano, point.time_unix_nano));
        }
        // One start, later times.
        assert!(
            times
                .windows(2)
                .all(|t| t[0].0 == t[1].0 && t[0].1 < t[1].1)
        );
        assert_eq!(sending.failures(), 0);
        sending.stop().await;
    }

    #[tokio::test]
    async fn names_are_looked_up() {
        let mut running = Running::start("127.0.0.1:0", Manner::Take).await;
        let sending = send_to(&format!("http://localhost:{}", running.address.port()));
        goes_well(&mut running, &sending).await;
        sending.stop().await;
    }

    #[tokio::test]
    async fn a_failing_collector_is_counted_and_forgiven() {
        let mut running = Running::start("127.0.0.1:0", Manner::Fail).await;
        let sending = send_to(&format!("http://{}", running.address));
        sending.failures_reach(2).await;
        running.manner(Manner::Part);
        sending.failures_reach(sending.failures() + 3).await;
        running.manner(Manner::Take);
        goes_well(&mut running, &sending).await;
        sending.stop().await;
    }

    #[tokio::test]
    async fn a_slow_collector_has_one_request_and_holds_up_nothing() {
        let mut running = Running::start("127.0.0.1:0", Manner::Hang).await;
        let sending = send_to(&format!("http://{}", running.address));
        sending.failures_reach(2).await;
        // Scrapes go on, and tell.
        let families = sending.source.families().await.unwrap();
        let failures = families
            .iter()
            .find(|f| f.name() == "pendguard_otlp_failures_total")
            .unwrap();
        assert!(failures.get_metric()[0].get_counter().get_value() >= 2.0);
        sending.failures_reach(3).await;
        // The one that is given up may still be there when the next comes.
        assert!(running.collector.most.load(Ordering::SeqCst) <= 2);
        running.manner(Manner::Take);
        goes_well(&mut running, &sending).await;
        running.manner(Manner::Hang);
        next(&mut running).await;
        sending.stop().await;
    }

    #[tokio::test]
    async fn a_collector_that_was_away_is_found_again() {
        let running = Running::start("127.0.0.1:0", Manner::Take).await;
        let address = running.address.to_string();
        running.server.abort();
        let _ = running.server.await;
        let sending = send_to(&format!("http://{address}"));
        sending.failures_reach(3).await;
        let mut running = Running::start(&address, Manner::Take).await;
        goes_well(&mut running, &sending).await;
        sending.stop().await;
    }

    #[tokio::test]
    async fn who_takes_connections_and_says_nothing_is_no_collector() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sending = send_to(&format!("http://{}", listener.local_addr().unwrap()));
        sending.failures_reach(2).await;
        sending.stop().await;
    }

    #[tokio::test]
    async fn reasons_say_something() {
        let mut source = Source::new(Handle::new(Fake::new(fake::three())));
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let target = Target {
            endpoint: format!("http://{address}").parse().unwrap(),
            interval: Duration::from_secs(60),
        };
        let mut exporter = Exporter::new(target, &mut source);
        let away = exporter.export().await.unwrap_err().to_string();
        assert!(away.contains("refused"), "{away}");
        let running = Running::start("127.0.0.1:0", Manner::Fail).await;
        exporter.connector = Connector::new(format!("http://{}", running.address).parse().unwrap());
        let full = exporter.export().await.unwrap_err().to_string();
        assert!(full.ends_with(": full"), "{full}");
        running.manner(Manner::Part);
        let part = exporter.export().await.unwrap_err().to_string();
        assert_eq!(part, "3 data points were not taken: too old");
    }

    #[tokio::test]
    async fn it_is_said_once_that_it_fails_and_once_that_it_does_not() {
        let mut source = Source::new(Handle::new(Fake::new(fake::three())));
        let target = Target {
            endpoint: "http://127.0.0.1:1".parse().unwrap(),
            interval: Duration::from_secs(60),
        };
        let mut exporter = Exporter::new(target, &mut source);
        let log = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_writer(Log(Arc::clone(&log)))
            .finish();
        let slow = || Err(ExportError::Slow(DEADLINE));
        tracing::subscriber::with_default(subscriber, || {
            for result in [Ok(()), slow(), slow(), Ok(()), Ok(()), slow()] {
                exporter.note(result);
            }
        });
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        let levels: Vec<&str> = log
            .lines()
            .filter_map(|l| l.split_whitespace().next())
            .collect();
        assert_eq!(levels, ["WARN", "INFO", "WARN"], "{log}");
        assert!(log.contains("no answer within 10 s"), "{log}");
        assert_eq!(exporter.failures.load(Ordering::Relaxed), 3);
    }

    #[derive(Clone)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(octets);
            Ok(octets.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }
}
