//! Asking a running agent.
#![forbid(unsafe_code)]

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::pb;
use super::pb::agent_client::AgentClient;
use crate::engine::SETTING;

/// How long an agent may take for an answer.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Octets of an answer at most: a full node's replicas with long names are a few hundred KiB.
const MAX_ANSWER: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no agent.
    #[error(
        "no agent listens on {}; start one with `pendguard run`, or name its socket with --api-socket",
        .0.display()
    )]
    NoAgent(PathBuf),
    /// There may be one, but it isn't for us.
    #[error("{}: permission denied; only the user who runs the agent (root) may ask it", .0.display())]
    Denied(PathBuf),
    /// The socket can't be used.
    #[error("{}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no agent, or not one that speaks this API.
    #[error("{}: {source}", path.display())]
    Transport {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// It was there, and ended before it had answered.
    #[error("the agent on {} has gone", .0.display())]
    Gone(PathBuf),
    /// The agent refuses.
    #[error("the agent on {} says: {} ({})", path.display(), status.message(), status.code())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What it says.
        status: Box<tonic::Status>,
    },
}

/// Everything that an agent tells.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of itself.
    pub status: pb::GetStatusResponse,
    /// Of its node's replicas.
    pub replicas: Vec<pb::Replica>,
    /// Upper bounds of the buckets of their durations, in ns.
    pub bucket_bounds: Vec<u64>,
}

/// Asks for everything.
pub async fn fetch(path: &Path) -> Result<Report, ClientError> {
    Asker::new(path).ask().await
}

/// Asks for everything again and again, over one connection for as long as it holds.
#[derive(Debug)]
pub struct Asker {
    path: PathBuf,
    client: Option<AgentClient<Channel>>,
}

impl Asker {
    /// It connects when it is to ask.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            client: None,
        }
    }

    /// Asks for everything.
    pub async fn ask(&mut self) -> Result<Report, ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => agent(&self.path, DEADLINE).await?,
        };
        let status = client
            .get_status(pb::GetStatusRequest {})
            .await
            .map_err(|status| refused(&self.path, status))?;
        let list = client
            .list_replicas(pb::ListReplicasRequest {})
            .await
            .map_err(|status| refused(&self.path, status))?
            .into_inner();
        // After an error it is a new one: it says best why there is no agent.
        self.client = Some(client);
        Ok(Report {
            status: status.into_inner(),
            replicas: list.replicas,
            bucket_bounds: list.bucket_bounds,
        })
    }
}

/// What a watcher is told.
pub use pb::watch_calls_response::Event;

/// Calls as they happen.
#[derive(Debug)]
pub struct Calls {
    path: PathBuf,
    stream: Streaming<pb::WatchCallsResponse>,
}

impl Calls {
    /// The next call, or how many were lost; [`ClientError::Gone`] once the agent has ended.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            match self.stream.message().await {
                // What a later version tells besides.
                Ok(Some(pb::WatchCallsResponse { event: None })) => {}
                Ok(Some(pb::WatchCallsResponse { event: Some(event) })) => return Ok(event),
                Ok(None) => return Err(ClientError::Gone(self.path.clone())),
                // It was killed.
                Err(status) if status.source().is_some() => {
                    return Err(ClientError::Gone(self.path.clone()));
                }
                Err(status) => return Err(refused(&self.path, status)),
            }
        }
    }
}

/// Watches calls from now on.
pub async fn watch(path: &Path, request: pb::WatchCallsRequest) -> Result<Calls, ClientError> {
    let mut client = agent(path, DEADLINE).await?;
    let stream = client
        .watch_calls(request)
        .await
        .map_err(|status| refused(path, status))?;
    Ok(Calls {
        path: path.to_owned(),
        stream: stream.into_inner(),
    })
}

/// Sets a mode.
pub async fn set_mode(
    path: &Path,
    request: pb::SetModeRequest,
) -> Result<pb::SetModeResponse, ClientError> {
    let mut client = agent(path, SETTING).await?;
    let response = client.set_mode(request).await;
    Ok(response
        .map_err(|status| refused(path, status))?
        .into_inner())
}

async fn agent(path: &Path, deadline: Duration) -> Result<AgentClient<Channel>, ClientError> {
    let channel = connect(path, deadline).await?;
    Ok(AgentClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}

fn refused(path: &Path, status: tonic::Status) -> ClientError {
    // What the transport says, and not the agent.
    if status.code() == tonic::Code::Unknown && status.source().is_some() {
        return ClientError::Gone(path.to_owned());
    }
    ClientError::Refused {
        path: path.to_owned(),
        status: Box::new(status),
    }
}

/// Connects to the agent on a socket; it may take that long for an answer.
pub async fn connect(path: &Path, deadline: Duration) -> Result<Channel, ClientError> {
    // Once before tonic does, which would bury the reason.
    let stream = UnixStream::connect(path).await.map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoAgent(path)
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(path),
            _ => ClientError::Connect { path, source },
        }
    })?;
    let mut first = Some(stream);
    let socket = path.to_owned();
    let connector = service_fn(move |_: Uri| {
        let first = first.take();
        let socket = socket.clone();
        async move {
            match first {
                Some(stream) => Ok(stream),
                None => UnixStream::connect(socket).await,
            }
            .map(TokioIo::new)
        }
    });
    // The authority is of no meaning on a Unix socket, but HTTP/2 wants one.
    Endpoint::from_static("http://localhost")
        .timeout(deadline)
        .connect_timeout(DEADLINE)
        .connect_with_connector(connector)
        .await
        .map_err(|source| ClientError::Transport {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn no_agent_is_said_plainly() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let missing = fetch(&path).await.unwrap_err().to_string();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let dead = fetch(&path).await.unwrap_err().to_string();
        for error in [missing, dead] {
            assert!(error.contains(&*path.to_string_lossy()), "{error}");
            assert!(error.contains("pendguard run"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_no_agent_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let error = fetch(&path).await.unwrap_err().to_string();
        assert!(!error.contains("Unknown error"), "{error}");
    }

    #[tokio::test]
    async fn an_agent_that_ends_meanwhile_has_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let begin_and_end = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Its SETTINGS, with which the client takes it for a server.
            stream
                .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
                .await
                .unwrap();
            // How it begins is less, and with a request it is more.
            let mut asked = [0; 100];
            stream.read_exact(&mut asked).await.unwrap();
        };
        let (error, ()) = tokio::join!(fetch(&path), begin_and_end);
        let error = error.unwrap_err();
        assert!(matches!(error, ClientError::Gone(_)), "{error}");
    }
}
