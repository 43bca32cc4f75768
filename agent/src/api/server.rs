//! Serving the API.
#![forbid(unsafe_code)]

use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Builder;
use tracing::debug;

use super::health::HealthService;
use super::pb;
use super::pb::agent_server::AgentServer;
use super::service::{About, AgentService};
use super::socket::ApiSocket;
use crate::engine::{Handle, SETTING};

/// How long a call may take. Streams are not meant: it is the time to their first answer.
const CALL_DEADLINE: Duration = SETTING.saturating_add(Duration::from_secs(5));
/// Calls at once on one connection at most.
const MAX_CALLS: usize = 32;

/// Why serving has ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The services' own descriptors can't be read.
    #[error("the API's descriptors: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server has failed.
    #[error("the API's server: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until told to stop, and then until the calls that are there have ended. The socket's file goes with it.
pub async fn serve(
    socket: ApiSocket,
    engine: Handle,
    about: About,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let (listener, _file) = socket.into_parts();
    let agent = AgentService {
        engine: engine.clone(),
        about,
        stop: stop.clone(),
    };
    let health = HealthService {
        engine,
        stop: stop.clone(),
    };
    Server::builder()
        .timeout(CALL_DEADLINE)
        .concurrency_limit_per_connection(MAX_CALLS)
        .add_service(AgentServer::new(agent))
        .add_service(HealthServer::new(health))
        .add_service(reflection().build_v1()?)
        // What older tools ask for.
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(accept(listener, stop.clone()), stop.cancelled_owned())
        .await?;
    Ok(())
}

fn reflection() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// The connections. tonic would ask again at once after an error, and so spin while descriptors are short.
fn accept(
    listener: UnixListener,
    stop: CancellationToken,
) -> ReceiverStream<std::io::Result<UnixStream>> {
    let (sender, receiver) = mpsc::channel(1);
    let accept = async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if sender.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    debug!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    tokio::spawn(async move { stop.run_until_cancelled(accept).await });
    ReceiverStream::new(receiver)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use tokio_stream::StreamExt as _;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    use super::*;
    use crate::api::client;
    use crate::engine::fake::{self, Fake};

    struct Running {
        directory: tempfile::TempDir,
        path: std::path::PathBuf,
        engine: Arc<Fake>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<Result<(), ServeError>>,
    }

    async fn start() -> Running {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let socket = ApiSocket::bind(&path).await.unwrap();
        let engine = Fake::new(fake::three());
        let stop = CancellationToken::new();
        let about = About {
            pid: 42,
            started: SystemTime::UNIX_EPOCH,
        };
        let handle = Handle::new(Arc::clone(&engine) as Arc<dyn crate::engine::Engine>);
        let task = tokio::spawn(serve(socket, handle, about, stop.clone()));
        Running {
            directory,
            path,
            engine,
            stop,
            task,
        }
    }

    #[tokio::test]
    async fn status_and_replicas_over_the_socket() {
        let running = start().await;
        let report = client::fetch(&running.path).await.unwrap();
        assert_eq!(report.status.pid, 42);
        assert_eq!(report.status.not_ready, "");
        assert_eq!(report.replicas.len(), 3);
    }

    async fn set_mode(
        running: &Running,
        mode: pb::Mode,
        namespace: Option<&str>,
        pod: Option<&str>,
    ) -> Result<pb::SetModeResponse, tonic::Status> {
        let request = pb::SetModeRequest {
            mode: mode.into(),
            namespace: namespace.map(str::to_owned),
            pod: pod.map(str::to_owned),
            answer: 0,
        };
        match client::set_mode(&running.path, request).await {
            Ok(response) => Ok(response),
            Err(client::ClientError::Refused { status, .. }) => Err(*status),
            Err(other) => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn a_mode_is_set_over_the_socket() {
        let running = start().await;
        let pod = Some("orders-mv-1-abcde");
        let set = set_mode(&running, pb::Mode::Off, Some("pay*"), pod)
            .await
            .unwrap();
        let counts: Vec<_> = set
            .replicas
            .iter()
            .map(|c| (c.mode(), c.replicas))
            .collect();
        assert_eq!(
            counts,
            [
                (pb::Mode::Off, 1),
                (pb::Mode::Audit, 2),
                (pb::Mode::Enforce, 0)
            ]
        );
        assert_eq!(set.warnings, ["a warning"]);
        let report = client::fetch(&running.path).await.unwrap();
        let [shown] = &report.status.overrides[..] else {
            panic!("one")
        };
        assert_eq!((shown.mode(), shown.namespace()), (pb::Mode::Off, "pay*"));
        assert_eq!(shown.pod.as_deref(), pod);
        assert_eq!(report.replicas[1].mode(), pb::Mode::Off);
        assert_eq!(report.status.mode(), pb::Mode::Audit);
        // Of the node.
        set_mode(&running, pb::Mode::Off, None, None).await.unwrap();
        let report = client::fetch(&running.path).await.unwrap();
        assert_eq!(report.status.mode(), pb::Mode::Off);
        let [everything] = &report.status.overrides[..] else {
            panic!("one")
        };
        assert!(everything.namespace.is_none() && everything.pod.is_none());
    }

    #[tokio::test]
    async fn a_mode_that_cant_be_set_is_refused_with_its_reason() {
        use tonic::Code::{FailedPrecondition, InvalidArgument, ResourceExhausted};
        let running = start().await;
        let long = "x".repeat(254);
        for (mode, namespace, pod, code, reason) in [
            (pb::Mode::Unspecified, None, None, InvalidArgument, "mode 0"),
            (
                pb::Mode::Off,
                Some(""),
                None,
                InvalidArgument,
                "namespace is empty",
            ),
            (
                pb::Mode::Off,
                None,
                Some(""),
                InvalidArgument,
                "pod is empty",
            ),
            (pb::Mode::Off, Some("a["), None, InvalidArgument, "a["),
            (
                pb::Mode::Off,
                Some(&*long),
                None,
                InvalidArgument,
                "254 octets",
            ),
            (
                pb::Mode::Enforce,
                Some("a"),
                None,
                FailedPrecondition,
                "not tried",
            ),
        ] {
            let status = set_mode(&running, mode, namespace, pod).await.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(reason), "{status}");
        }
        // A mode of a later version.
        let later = pb::SetModeRequest {
            mode: 99,
            ..pb::SetModeRequest::default()
        };
        let error = client::set_mode(&running.path, later).await.unwrap_err();
        assert!(error.to_string().contains("mode 99"), "{error}");
        for (mode, answer, reason) in [
            (pb::Mode::Enforce, 99, "answer 99"),
            (pb::Mode::Audit, 2, "with mode audit nothing is rejected"),
        ] {
            let request = pb::SetModeRequest {
                mode: mode.into(),
                answer,
                ..pb::SetModeRequest::default()
            };
            let error = client::set_mode(&running.path, request).await.unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert_eq!(running.engine.policy.lock().unwrap().overrides(), []);
        for i in 0..crate::policy::MAX_OVERRIDES {
            let pod = format!("p{i}");
            let set = set_mode(&running, pb::Mode::Off, None, Some(&pod)).await;
            assert!(set.is_ok(), "{set:?}");
        }
        let full = set_mode(&running, pb::Mode::Off, None, Some("more")).await;
        assert_eq!(full.unwrap_err().code(), ResourceExhausted);
        // There is an enforcer now, and room again.
        running.engine.snapshot.lock().unwrap().enforcer_reason = None;
        let enforced = set_mode(&running, pb::Mode::Enforce, None, None).await;
        assert_eq!(enforced.unwrap().replicas[2].replicas, 3);
    }

    #[tokio::test]
    async fn health_follows_readiness() {
        let running = start().await;
        let channel = client::connect(&running.path, client::DEADLINE)
            .await
            .unwrap();
        let mut health = HealthClient::new(channel);
        let request = |service: &str| HealthCheckRequest {
            service: service.to_owned(),
        };
        for service in ["", "pendguard.v1.Agent"] {
            let answer = health.check(request(service)).await.unwrap();
            assert_eq!(answer.get_ref().status(), ServingStatus::Serving);
        }
        let unknown = health.check(request("other")).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        let mut watch = health.watch(request("")).await.unwrap().into_inner();
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        *running.engine.ready.lock().unwrap() = Err("on purpose".to_owned());
        let second = watch.next().await.unwrap().unwrap();
        assert_eq!(second.status(), ServingStatus::NotServing);
    }

    #[tokio::test]
    async fn reflection_names_the_services() {
        let running = start().await;
        let channel = client::connect(&running.path, client::DEADLINE)
            .await
            .unwrap();
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::once(request))
            .await
            .unwrap()
            .into_inner();
        let answer = answers.next().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}")
        };
        let names: Vec<&str> = list.service.iter().map(|s| &*s.name).collect();
        for name in ["pendguard.v1.Agent", "grpc.health.v1.Health"] {
            assert!(names.contains(&name), "{names:?}");
        }
    }

    #[tokio::test]
    async fn calls_are_told_as_they_happen() {
        use crate::model::Replica;
        use crate::watch::Event;
        let running = start().await;
        let request = |replica: &str| pb::WatchCallsRequest {
            replica: Some(replica.to_owned()),
            ..pb::WatchCallsRequest::default()
        };
        let refused = client::watch(&running.path, request("one")).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("\"one\" is neither"), "{refused}");
        let mut calls = client::watch(&running.path, request("1")).await.unwrap();
        let hub = &running.engine.hub;
        assert_eq!(hub.watchers(), 1);
        for replica in [Replica::Number(0), Replica::Number(1), Replica::Unknown] {
            hub.tell(Event::Call(Arc::new(fake::call(replica))));
        }
        hub.tell(Event::Lost(3));
        let client::Event::Call(call) = calls.next().await.unwrap() else {
            panic!("a call")
        };
        assert_eq!((call.replica, &*call.pod), (Some(1), "orders-mv-1-abcde"));
        assert_eq!(call.verdict(), pb::Verdict::WouldReject);
        assert_eq!((&*call.code, call.pending), ("OK", Some(42)));
        assert_eq!((call.pid, call.fd, call.stream), (4711, 9, 17));
        assert_eq!(call.duration.unwrap().to_string(), "0.003250s");
        assert_eq!(call.sent.unwrap().to_string(), "2023-11-14T22:13:21.234Z");
        assert_eq!(calls.next().await.unwrap(), client::Event::Lost(3));
        running.stop.cancel();
        let gone = calls.next().await.unwrap_err();
        assert!(matches!(gone, client::ClientError::Gone(_)), "{gone}");
        let ended = tokio::time::timeout(Duration::from_secs(5), running.task).await;
        ended.unwrap().unwrap().unwrap();
        assert_eq!(running.engine.hub.watchers(), 0);
    }

    #[tokio::test]
    async fn a_client_that_doesnt_read_misses_calls_and_learns_how_many() {
        use crate::model::Replica;
        use crate::watch::Event;
        const CALLS: u64 = 30_000;
        let running = start().await;
        let mut calls = client::watch(&running.path, pb::WatchCallsRequest::default())
            .await
            .unwrap();
        let call = Arc::new(fake::call(Replica::Number(1)));
        for i in 0..CALLS {
            running.engine.hub.tell(Event::Call(Arc::clone(&call)));
            if i % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        // Others are answered meanwhile.
        assert_eq!(
            client::fetch(&running.path).await.unwrap().replicas.len(),
            3
        );
        let (mut told, mut lost) = (0, 0);
        while told + lost < CALLS {
            match calls.next().await.unwrap() {
                client::Event::Call(_) => told += 1,
                client::Event::Lost(n) => lost += n,
            }
        }
        assert_eq!(told + lost, CALLS);
        assert!(lost > 0, "it was all kept somewhere");
        drop(calls);
        let unsubscribed = async {
            while running.engine.hub.watchers() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(5), unsubscribed).await;
        waited.unwrap();
    }

    #[tokio::test]
    async fn a_stop_ends_it_and_removes_the_socket() {
        let running = start().await;
        let channel = client::connect(&running.path, client::DEADLINE)
            .await
            .unwrap();
        let mut health = HealthClient::new(channel);
        let mut watch = health
            .watch(HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert!(watch.next().await.unwrap().is_ok());
        running.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), running.task).await;
        ended.unwrap().unwrap().unwrap();
        assert!(!running.path.exists());
        assert_eq!(
            std::fs::read_dir(running.directory.path()).unwrap().count(),
            0
        );
    }
}
