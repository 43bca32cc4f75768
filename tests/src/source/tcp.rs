//! The same source on loopback TCP. The SDK serves Unix sockets only, so this is a second server: the SDK's own
//! generated service over the same user code, with the SDK's behaviour.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use numaflow::proto::source as proto;
use numaflow::source::{Message, Offset, SourceReadRequest, Sourcer};
use proto::source_server::{Source, SourceServer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::generator::Shared;
use super::sdk::MAX_MESSAGE;

/// Messages on their way between the user code and the connection, as in the SDK.
const CHANNEL_SIZE: usize = 1000;

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it listens, with the port that the kernel chose if none was given.
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Listens on `address` and serves.
    ///
    /// # Errors
    /// The address can't be listened on.
    pub async fn start(handler: Shared, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| address.to_string())?;
        let address = listener.local_addr()?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let (stop, stopped) = oneshot::channel::<()>();
        let service = SourceServer::new(Service(handler))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let serve = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming);
        let task = tokio::spawn(async move {
            tokio::select! {
                ended = serve => ended,
                _ = stopped => Ok(()),
            }
        });
        Ok(Self {
            address,
            stop,
            task,
        })
    }

    /// Stops the server and cuts its connections.
    ///
    /// # Errors
    /// The server failed.
    pub async fn stop(self) -> Result<()> {
        // The other end is gone if the server ended already, which is what is wanted.
        let _ = self.stop.send(());
        Ok(self.task.await??)
    }
}

/// The gRPC service over the user code.
#[derive(Debug)]
struct Service(Shared);

type Responses<T> = ReceiverStream<Result<T, Status>>;

/// The first message of each stream has to be a handshake.
fn handshake(first: Option<Option<proto::Handshake>>) -> Result<proto::Handshake, Status> {
    first
        .flatten()
        .ok_or_else(|| Status::invalid_argument("handshake not present"))
}

/// Sends one batch, then its end. `Err`: the client is gone.
async fn forward_batch(
    mut messages: mpsc::Receiver<Message>,
    responses: &mpsc::Sender<Result<proto::ReadResponse, Status>>,
) -> Result<(), mpsc::error::SendError<Result<proto::ReadResponse, Status>>> {
    while let Some(message) = messages.recv().await {
        let time = message.event_time;
        let result = proto::read_response::Result {
            payload: message.value,
            offset: Some(proto::Offset {
                offset: message.offset.offset,
                partition_id: message.offset.partition_id,
            }),
            event_time: Some(prost_types::Timestamp {
                seconds: time.timestamp(),
                nanos: time.timestamp_subsec_nanos().cast_signed(),
            }),
            keys: message.keys,
            headers: message.headers,
            metadata: Some(numaflow::proto::metadata::Metadata::default()),
        };
        let response = proto::ReadResponse {
            result: Some(result),
            ..Default::default()
        };
        responses.send(Ok(response)).await?;
    }
    let end = proto::ReadResponse {
        status: Some(proto::read_response::Status {
            eot: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    responses.send(Ok(end)).await
}

#[tonic::async_trait]
impl Source for Service {
    type ReadFnStream = Responses<proto::ReadResponse>;
    type AckFnStream = Responses<proto::AckResponse>;

    async fn read_fn(
        &self,
        request: Request<Streaming<proto::ReadRequest>>,
    ) -> Result<Response<Self::ReadFnStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?;
        let answer = proto::ReadResponse {
            handshake: Some(handshake(first.map(|first| first.handshake))?),
            ..Default::default()
        };
        let (responses, stream) = mpsc::channel(CHANNEL_SIZE);
        let handler = self.0.clone();
        tokio::spawn(async move {
            if responses.send(Ok(answer)).await.is_err() {
                return;
            }
            while let Ok(Some(request)) = requests.message().await {
                let Some(request) = request.request else {
                    let status = Status::invalid_argument("request not present");
                    // A client that is gone needs no answer.
                    let _ = responses.send(Err(status)).await;
                    return;
                };
                let request = SourceReadRequest {
                    count: usize::try_from(request.num_records).unwrap_or(usize::MAX),
                    timeout: Duration::from_millis(request.timeout_in_ms.into()),
                };
                let (transmitter, messages) = mpsc::channel(CHANNEL_SIZE);
                let (_, forwarded) = tokio::join!(
                    handler.read(request, transmitter),
                    forward_batch(messages, &responses)
                );
                if forwarded.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn ack_fn(
        &self,
        request: Request<Streaming<proto::AckRequest>>,
    ) -> Result<Response<Self::AckFnStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?;
        let answer = proto::AckResponse {
            handshake: Some(handshake(first.map(|first| first.handshake))?),
            ..Default::default()
        };
        let (responses, stream) = mpsc::channel(CHANNEL_SIZE);
        let handler = self.0.clone();
        tokio::spawn(async move {
            if responses.send(Ok(answer)).await.is_err() {
                return;
            }
            while let Ok(Some(request)) = requests.message().await {
                let offsets = request.request.unwrap_or_default().offsets;
                handler
                    .ack(offsets.into_iter().map(Offset::from).collect())
                    .await;
                let answer = proto::AckResponse {
                    result: Some(proto::ack_response::Result { success: Some(()) }),
                    ..Default::default()
                };
                if responses.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn nack_fn(
        &self,
        _request: Request<proto::NackRequest>,
    ) -> Result<Response<proto::NackResponse>, Status> {
        self.0.nack(Vec::new()).await;
        Ok(Response::new(proto::NackResponse {
            result: Some(proto::nack_response::Result { success: Some(()) }),
        }))
    }

    async fn pending_fn(&self, _: Request<()>) -> Result<Response<proto::PendingResponse>, Status> {
        let pending = self.0.pending().await;
        let count = pending.map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX));
        Ok(Response::new(proto::PendingResponse {
            result: Some(proto::pending_response::Result { count }),
        }))
    }

    async fn partitions_fn(
        &self,
        _: Request<()>,
    ) -> Result<Response<proto::PartitionsResponse>, Status> {
        let partitions = self.0.active_partitions().await.unwrap_or_else(|| {
            let replica = std::env::var("NUMAFLOW_REPLICA").unwrap_or_default();
            vec![replica.parse().unwrap_or_default()]
        });
        Ok(Response::new(proto::PartitionsResponse {
            result: Some(proto::partitions_response::Result {
                partitions,
                total_partitions: self.0.total_partitions().await,
            }),
        }))
    }

    async fn is_ready(&self, _: Request<()>) -> Result<Response<proto::ReadyResponse>, Status> {
        Ok(Response::new(proto::ReadyResponse { ready: true }))
    }
}
