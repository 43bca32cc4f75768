//! Reading and acknowledging in the background, and IsReady beside it: the traffic that Pendguard must leave alone.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::calls::code_name;
use crate::payload::Verifier;
use crate::proto::source_client::SourceClient;
use crate::proto::{
    AckRequest, AckResponse, Handshake, Offset, ReadRequest, ReadResponse, ack_request,
    read_request,
};
use crate::protocol::{Background as Report, MAX_ERRORS};

/// What Numaflow's data plane asks with.
const READ_TIMEOUT_MS: u32 = 1000;
/// Read requests in a second when a rate is given: few messages each rather than few requests.
const READS_PER_SECOND: u64 = 20;
/// 20 a second; the data plane asks far less often.
const IS_READY_PERIOD: Duration = Duration::from_millis(50);
/// Requests that wait for the connection; the data plane never has more than one.
const REQUESTS: usize = 4;

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The most records of one read request.
    pub batch: u64,
    /// Messages per second; 0 is as fast as possible.
    pub rate: u64,
}

impl Pace {
    /// Records to ask for at a time, and the time between two requests.
    fn requests(self) -> (u64, Option<Duration>) {
        if self.rate == 0 {
            return (self.batch, None);
        }
        let records = (self.rate / READS_PER_SECOND).clamp(1, self.batch);
        #[expect(clippy::cast_precision_loss, reason = "a rate is far below 2^52")]
        let period = Duration::from_secs_f64(records as f64 / self.rate as f64);
        (records, Some(period))
    }
}

/// What reading came to.
#[derive(Debug, Default)]
struct Progress {
    messages: u64,
    bytes: u64,
    acked: u64,
    broken: u64,
    errors: Vec<String>,
    verifier: Verifier,
}

impl Progress {
    fn error(&mut self, error: impl ToString) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error.to_string());
        }
    }
}

/// Traffic that is going on.
#[derive(Debug)]
pub struct Background {
    stop: watch::Sender<bool>,
    reader: JoinHandle<Progress>,
    prober: JoinHandle<(u64, Vec<String>)>,
}

impl Background {
    /// Starts reading, and returns when the first batch has been read. `verifier` goes on where the last background
    /// of this client stopped.
    ///
    /// # Errors
    /// Reading could not start.
    pub async fn start(
        client: &SourceClient<Channel>,
        pace: Pace,
        verifier: Verifier,
    ) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (started, first_batch) = oneshot::channel();
        let mut reader = tokio::spawn(read(
            client.clone(),
            pace,
            verifier,
            started,
            stopped.clone(),
        ));
        if first_batch.await.is_err() {
            let progress = (&mut reader).await?;
            bail!("reading did not start: {}", progress.errors.join("; "));
        }
        let prober = tokio::spawn(probe(client.clone(), stopped));
        Ok(Self {
            stop,
            reader,
            prober,
        })
    }

    /// Finishes the batch in hand, ends both streams, and tells what came of it.
    ///
    /// # Errors
    /// A task failed, which is a fault of this program.
    pub async fn stop(self) -> Result<(Report, Verifier)> {
        self.stop.send_replace(true);
        let mut progress = self.reader.await?;
        let (is_ready, errors) = self.prober.await?;
        for error in errors {
            progress.error(error);
        }
        let report = Report {
            messages: progress.messages,
            bytes: progress.bytes,
            acked: progress.acked,
            is_ready,
            errors: progress.errors,
            intact: progress.broken == 0,
        };
        Ok((report, progress.verifier))
    }
}

/// Asks IsReady until told to stop.
async fn probe(
    mut client: SourceClient<Channel>,
    mut stopped: watch::Receiver<bool>,
) -> (u64, Vec<String>) {
    let mut ticks = interval(IS_READY_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ready = 0;
    let mut errors = Vec::new();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return (ready, errors),
            _ = ticks.tick() => {}
        }
        let error = match client.is_ready(()).await {
            Ok(answer) if answer.get_ref().ready => {
                ready += 1;
                continue;
            }
            Ok(_) => "IsReady: not ready".to_owned(),
            Err(status) => format!("IsReady: {}", code_name(status.code())),
        };
        if errors.len() < MAX_ERRORS {
            errors.push(error);
        }
    }
}

async fn read(
    client: SourceClient<Channel>,
    pace: Pace,
    verifier: Verifier,
    started: oneshot::Sender<()>,
    stopped: watch::Receiver<bool>,
) -> Progress {
    let mut progress = Progress {
        verifier,
        ..Progress::default()
    };
    if let Err(error) = read_batches(client, pace, &mut progress, started, stopped).await {
        progress.error(format_args!("{error:#}"));
    }
    progress
}

/// One task reads and acknowledges in turn, as in the data plane.
async fn read_batches(
    client: SourceClient<Channel>,
    pace: Pace,
    progress: &mut Progress,
    started: oneshot::Sender<()>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut streams = Streams::open(client).await?;
    let mut started = Some(started);
    let (records, period) = pace.requests();
    let mut next = Instant::now();
    while !*stopped.borrow() {
        let offsets = streams.read(records, progress).await?;
        if !offsets.is_empty() {
            let count = offsets.len() as u64;
            streams.ack(offsets).await?;
            progress.acked += count;
        }
        if let Some(started) = started.take() {
            // The driver may have gone away meanwhile; its end is noticed elsewhere.
            let _ = started.send(());
        }
        if let Some(period) = period {
            // Late requests are not made up for: the rate is an upper limit.
            next = (next + period).max(Instant::now());
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => {}
                () = sleep_until(next) => {}
            }
        }
    }
    streams.close().await
}

/// The two bidirectional streams, after their handshakes.
struct Streams {
    read_requests: mpsc::Sender<ReadRequest>,
    read_responses: Streaming<ReadResponse>,
    ack_requests: mpsc::Sender<AckRequest>,
    ack_responses: Streaming<AckResponse>,
}

/// The first message in each direction.
const SOT: Handshake = Handshake { sot: true };

impl Streams {
    async fn open(mut client: SourceClient<Channel>) -> Result<Self> {
        let (read_requests, requests) = mpsc::channel(REQUESTS);
        // The source answers with headers only when it has the handshake, so that goes first.
        read_requests
            .send(ReadRequest {
                request: None,
                handshake: Some(SOT),
            })
            .await?;
        let mut read_responses = client
            .read_fn(ReceiverStream::new(requests))
            .await
            .context("ReadFn")?
            .into_inner();
        let first = read_responses.message().await.context("ReadFn")?;
        if first.and_then(|first| first.handshake) != Some(SOT) {
            bail!("ReadFn: no handshake");
        }

        let (ack_requests, requests) = mpsc::channel(REQUESTS);
        ack_requests
            .send(AckRequest {
                request: None,
                handshake: Some(SOT),
            })
            .await?;
        let mut ack_responses = client
            .ack_fn(ReceiverStream::new(requests))
            .await
            .context("AckFn")?
            .into_inner();
        let first = ack_responses.message().await.context("AckFn")?;
        if first.and_then(|first| first.handshake) != Some(SOT) {
            bail!("AckFn: no handshake");
        }
        Ok(Self {
            read_requests,
            read_responses,
            ack_requests,
            ack_responses,
        })
    }

    /// Reads one batch; the offsets of its messages.
    async fn read(&mut self, records: u64, progress: &mut Progress) -> Result<Vec<Offset>> {
        let request = ReadRequest {
            request: Some(read_request::Request {
                num_records: records,
                timeout_in_ms: READ_TIMEOUT_MS,
            }),
            handshake: None,
        };
        self.read_requests
            .send(request)
            .await
            .map_err(|_| anyhow!("ReadFn: the stream is closed"))?;
        let mut offsets = Vec::new();
        loop {
            let response = self.read_responses.message().await.context("ReadFn")?;
            let response = response.context("ReadFn ended")?;
            if response.status.is_some_and(|status| status.eot) {
                return Ok(offsets);
            }
            let result = response.result.context("ReadFn: no result")?;
            let offset = result.offset.unwrap_or_default();
            progress.messages += 1;
            progress.bytes += result.payload.len() as u64;
            if let Err(broken) = progress.verifier.check(&result.payload, &offset.offset) {
                progress.broken += 1;
                progress.error(broken);
            }
            offsets.push(offset);
        }
    }

    /// Acknowledges one batch.
    async fn ack(&mut self, offsets: Vec<Offset>) -> Result<()> {
        let request = AckRequest {
            request: Some(ack_request::Request { offsets }),
            handshake: None,
        };
        self.ack_requests
            .send(request)
            .await
            .map_err(|_| anyhow!("AckFn: the stream is closed"))?;
        let response = self.ack_responses.message().await.context("AckFn")?;
        let response = response.context("AckFn ended")?;
        response.result.context("AckFn: no result")?;
        Ok(())
    }

    /// Ends both streams in good order.
    async fn close(self) -> Result<()> {
        let Self {
            read_requests,
            mut read_responses,
            ack_requests,
            mut ack_responses,
        } = self;
        drop(read_requests);
        drop(ack_requests);
        while read_responses.message().await.context("ReadFn")?.is_some() {}
        while ack_responses.message().await.context("AckFn")?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_becomes_small_requests() {
        let requests = |rate| Pace { batch: 500, rate }.requests();
        assert_eq!(requests(0), (500, None));
        assert_eq!(requests(1000), (50, Some(Duration::from_millis(50))));
        assert_eq!(requests(2), (1, Some(Duration::from_millis(500))));
        assert_eq!(requests(50_000), (500, Some(Duration::from_millis(10))));
    }
}
