//! `pendguard.v1.Agent`.
#![forbid(unsafe_code)]

use std::time::SystemTime;

use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::pb::agent_server::Agent;
use super::watch::{self, Calls, Filter};
use super::{convert, pb};
use crate::engine::{Handle, Unresponsive};

/// What the agent knows of itself.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started: SystemTime,
}

impl About {
    /// This process, started now.
    pub fn now() -> Self {
        Self {
            pid: std::process::id(),
            started: SystemTime::now(),
        }
    }
}

/// The service.
#[derive(Clone)]
pub(super) struct AgentService {
    pub(super) engine: Handle,
    pub(super) about: About,
    /// Ends the streams.
    pub(super) stop: CancellationToken,
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn get_status(
        &self,
        _: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        let snapshot = self.engine.snapshot().await.map_err(unavailable)?;
        let ready = self.engine.ready().await.map_err(unavailable)?;
        let status = convert::status(self.about, snapshot, ready);
        Ok(Response::new(status))
    }

    async fn list_replicas(
        &self,
        _: Request<pb::ListReplicasRequest>,
    ) -> Result<Response<pb::ListReplicasResponse>, Status> {
        let snapshot = self.engine.snapshot().await.map_err(unavailable)?;
        Ok(Response::new(convert::replicas(snapshot)))
    }

    async fn set_mode(
        &self,
        request: Request<pb::SetModeRequest>,
    ) -> Result<Response<pb::SetModeResponse>, Status> {
        let change = convert::change(request.get_ref())?;
        let result = self.engine.set_mode(change).await.map_err(|error| {
            Status::unavailable(format!(
                "{error}; the mode may be set all the same: `pendguard status` shows it"
            ))
        })?;
        let changed = result.map_err(|refused| convert::refused(&refused))?;
        Ok(Response::new(convert::changed(changed)))
    }

    type WatchCallsStream = Calls;

    async fn watch_calls(
        &self,
        request: Request<pb::WatchCallsRequest>,
    ) -> Result<Response<Self::WatchCallsStream>, Status> {
        let filter = Filter::new(request.get_ref())?;
        let calls = watch::calls(self.engine.watch(), filter, self.stop.clone());
        Ok(Response::new(calls))
    }
}

fn unavailable(error: Unresponsive) -> Status {
    Status::unavailable(error.to_string())
}
