//! The source: answers at once, from memory.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, Result, bail};
use numaflow::proto::source as proto;
use pendguard_tests::lines;
use proto::source_server::{Source, SourceServer};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::{Answer, Order, PAYLOAD};
use pendguard_tests::floor::EmptyVerdict;

/// Serves the socket until standard input ends. With `keep` it can put its connections before an empty verdict program.
pub async fn run(socket: &Path, keep: bool) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
    let connections: Arc<Mutex<Vec<OwnedFd>>> = Arc::default();
    let incoming = Incoming {
        listener,
        kept: keep.then(|| Arc::clone(&connections)),
    };
    let server = tonic::transport::Server::builder()
        .add_service(SourceServer::new(Service))
        .serve_with_incoming(incoming);
    let mut server = tokio::spawn(server);
    Answer::Ready.print()?;
    let mut orders = lines::stdin();
    let mut empty: Option<EmptyVerdict> = None;
    loop {
        let line = tokio::select! {
            line = orders.recv() => line,
            ended = &mut server => {
                ended??;
                bail!("the server ended");
            }
        };
        let Some(line) = line else { return Ok(()) };
        match serde_json::from_str(&line)? {
            Order::Empty { on: true } => {
                let connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
                drop(empty.replace(EmptyVerdict::before(&connections)?));
            }
            Order::Empty { on: false } => drop(empty.take()),
            order => bail!("the source is told to {order:?}"),
        }
        Answer::Done.print()?;
    }
}

/// Connections as they come; of those that are to be kept, a second descriptor.
struct Incoming {
    listener: UnixListener,
    kept: Option<Arc<Mutex<Vec<OwnedFd>>>>,
}

impl Stream for Incoming {
    type Item = std::io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (connection, _) = ready!(self.listener.poll_accept(cx))?;
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push(rustix::io::dup(&connection)?);
        }
        Poll::Ready(Some(Ok(connection)))
    }
}

struct Service;

/// The messages of ReadFn.
struct Batches {
    requests: Streaming<proto::ReadRequest>,
    template: proto::ReadResponse,
    /// The next message's number.
    next: u64,
    /// How many of the batch are to come, and its end behind them.
    left: Option<u64>,
}

impl Batches {
    fn message(&mut self) -> proto::ReadResponse {
        let mut message = self.template.clone();
        if let Some(result) = &mut message.result {
            result.offset = Some(proto::Offset {
                offset: self.next.to_be_bytes().to_vec(),
                partition_id: 0,
            });
        }
        self.next += 1;
        message
    }
}

impl Stream for Batches {
    type Item = Result<proto::ReadResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match this.left {
                Some(0) => {
                    this.left = None;
                    return Poll::Ready(Some(Ok(end_of_batch())));
                }
                Some(left) => {
                    this.left = Some(left - 1);
                    return Poll::Ready(Some(Ok(this.message())));
                }
                None => {}
            }
            match ready!(Pin::new(&mut this.requests).poll_next(cx)) {
                Some(Ok(proto::ReadRequest {
                    handshake: Some(handshake),
                    ..
                })) => {
                    return Poll::Ready(Some(Ok(proto::ReadResponse {
                        handshake: Some(handshake),
                        ..Default::default()
                    })));
                }
                Some(Ok(request)) => {
                    this.left = Some(request.request.unwrap_or_default().num_records);
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

fn end_of_batch() -> proto::ReadResponse {
    proto::ReadResponse {
        status: Some(proto::read_response::Status {
            eot: true,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn acknowledged(request: Result<proto::AckRequest, Status>) -> Result<proto::AckResponse, Status> {
    let handshake = request?.handshake;
    let result = handshake
        .is_none()
        .then_some(proto::ack_response::Result { success: Some(()) });
    Ok(proto::AckResponse { result, handshake })
}

#[tonic::async_trait]
impl Source for Service {
    type ReadFnStream = Batches;
    type AckFnStream = Pin<Box<dyn Stream<Item = Result<proto::AckResponse, Status>> + Send>>;

    async fn read_fn(
        &self,
        request: Request<Streaming<proto::ReadRequest>>,
    ) -> Result<Response<Batches>, Status> {
        let result = proto::read_response::Result {
            payload: vec![0x5a; PAYLOAD],
            event_time: Some(prost_types::Timestamp::default()),
            ..Default::default()
        };
        Ok(Response::new(Batches {
            requests: request.into_inner(),
            template: proto::ReadResponse {
                result: Some(result),
                ..Default::default()
            },
            next: 0,
            left: None,
        }))
    }

    async fn ack_fn(
        &self,
        request: Request<Streaming<proto::AckRequest>>,
    ) -> Result<Response<Self::AckFnStream>, Status> {
        Ok(Response::new(Box::pin(
            request.into_inner().map(acknowledged),
        )))
    }

    async fn nack_fn(
        &self,
        _: Request<proto::NackRequest>,
    ) -> Result<Response<proto::NackResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn pending_fn(&self, _: Request<()>) -> Result<Response<proto::PendingResponse>, Status> {
        Ok(Response::new(proto::PendingResponse {
            result: Some(proto::pending_response::Result { count: 42 }),
        }))
    }

    async fn partitions_fn(
        &self,
        _: Request<()>,
    ) -> Result<Response<proto::PartitionsResponse>, Status> {
        Ok(Response::new(proto::PartitionsResponse::default()))
    }

    async fn is_ready(&self, _: Request<()>) -> Result<Response<proto::ReadyResponse>, Status> {
        Ok(Response::new(proto::ReadyResponse { ready: true }))
    }
}
