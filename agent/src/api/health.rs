//! `grpc.health.v1.Health`: serving is who is ready, as `/readyz` says.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::pb::agent_server::AgentServer;
use super::service::AgentService;
use crate::engine::Handle;

/// How often a watched status is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The service. It asks when it is asked: nothing runs while nobody watches.
#[derive(Clone)]
pub(super) struct HealthService {
    pub(super) engine: Handle,
    pub(super) stop: CancellationToken,
}

/// Whether there is such a service; the empty name means the whole server.
fn known(service: &str) -> bool {
    ["", <AgentServer<AgentService> as NamedService>::NAME].contains(&service)
}

async fn status(engine: &Handle) -> ServingStatus {
    match engine.ready().await {
        Ok(Ok(())) => ServingStatus::Serving,
        Ok(Err(_)) | Err(_) => ServingStatus::NotServing,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !known(&request.get_ref().service) {
            return Err(Status::not_found("no such service"));
        }
        Ok(Response::new(response(status(&self.engine).await)))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let known = known(&request.get_ref().service);
        let Self { engine, stop } = self.clone();
        let watching = async move {
            let mut last = None;
            loop {
                // The protocol wants an answer for a service that may still come.
                let now = match known {
                    true => status(&engine).await,
                    false => ServingStatus::ServiceUnknown,
                };
                if last != Some(now) && sender.send(Ok(response(now))).await.is_err() {
                    return;
                }
                last = Some(now);
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    () = sender.closed() => return,
                }
            }
        };
        tokio::spawn(async move { stop.run_until_cancelled(watching).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
