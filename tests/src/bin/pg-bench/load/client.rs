//! The client, in the data plane's place: one connection, on which it reads, acknowledges and calls.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pendguard_tests::agent::PENDING;
use pendguard_tests::client::calls::{call_path, code_name};
use pendguard_tests::client::connect::{Target, client, connect};
use pendguard_tests::lines;
use pendguard_tests::proto::{
    AckRequest, AckResponse, Handshake, Offset, ReadRequest, ReadResponse, ack_request,
    read_request,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::{Answer, BATCH, Called, Order, PAYLOAD, PENDING_EVERY};
use crate::stats::quantile;

/// Connects, and does what standard input says until that ends.
pub async fn run(socket: &Path) -> Result<()> {
    let (channel, _) = connect(&Target::Unix(socket.to_owned())).await?;
    Answer::Ready.print()?;
    let mut orders = lines::stdin();
    let mut reader = None;
    while let Some(line) = orders.recv().await {
        let answer = match serde_json::from_str(&line)? {
            Order::Call {
                path,
                millis,
                in_flight,
            } => {
                let limit = Duration::from_millis(millis);
                Answer::Called(call(&channel, path.parse()?, limit, in_flight).await?)
            }
            Order::Read { rate } => {
                ensure!(reader.is_none(), "it reads already");
                reader = Some(Reader::start(channel.clone(), rate).await?);
                Answer::Done
            }
            Order::Mark => reader.as_ref().context("nothing is read")?.mark(),
            Order::Stop => reader.take().context("nothing is read")?.stop().await?,
            order @ Order::Empty { .. } => bail!("the client is told to {order:?}"),
        };
        answer.print()?;
    }
    Ok(())
}

/// Calls until `limit` is over, at least once.
async fn call(
    channel: &Channel,
    path: PathAndQuery,
    limit: Duration,
    in_flight: usize,
) -> Result<Called> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..in_flight {
        let (channel, path) = (channel.clone(), path.clone());
        tasks.spawn(async move {
            let (mut called, mut times) = (Called::default(), Vec::new());
            loop {
                let at = begun.elapsed();
                let code = match call_path(&channel, &path).await {
                    Ok(()) => Code::Ok,
                    Err(status) => status.code(),
                };
                times.push((begun.elapsed() - at).as_secs_f64() * 1e6);
                match called.statuses.get_mut(code_name(code)) {
                    Some(count) => *count += 1,
                    None => {
                        called.statuses.insert(code_name(code).to_owned(), 1);
                    }
                }
                if begun.elapsed() >= limit {
                    return (called, times);
                }
            }
        });
    }
    let (mut sum, mut times) = (Called::default(), Vec::new());
    while let Some(task) = tasks.join_next().await {
        let (called, more) = task?;
        for (status, count) in called.statuses {
            *sum.statuses.entry(status).or_default() += count;
        }
        times.extend(more);
    }
    sum.seconds = begun.elapsed().as_secs_f64();
    times.sort_unstable_by(f64::total_cmp);
    sum.p50_us = quantile(&times, 0.5).context("no call was made")?;
    sum.p99_us = quantile(&times, 0.99).context("no call was made")?;
    Ok(sum)
}

/// Reading that is under way.
struct Reader {
    begun: Instant,
    shared: Arc<Shared>,
    reading: JoinHandle<Result<()>>,
    asking: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    messages: AtomicU64,
    stop: AtomicBool,
}

impl Reader {
    async fn start(channel: Channel, rate: u64) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let (started, first) = oneshot::channel();
        let mut reading = tokio::spawn(read(channel.clone(), rate, Arc::clone(&shared), started));
        if first.await.is_err() {
            (&mut reading).await??;
            bail!("reading ended at once");
        }
        let asking = tokio::spawn(async move {
            let path = PathAndQuery::from_static(PENDING);
            let mut ticks = interval(PENDING_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // However it ends: with the gate it is rejected.
                let _ = call_path(&channel, &path).await;
            }
        });
        Ok(Self {
            begun: Instant::now(),
            shared,
            reading,
            asking,
        })
    }

    fn mark(&self) -> Answer {
        Answer::Mark {
            nanos: self.begun.elapsed().as_nanos() as u64,
            messages: self.shared.messages.load(Relaxed),
        }
    }

    async fn stop(self) -> Result<Answer> {
        self.asking.abort();
        self.shared.stop.store(true, Relaxed);
        let mark = self.mark();
        self.reading.await??;
        Ok(mark)
    }
}

/// The first message in each direction.
const SOT: Handshake = Handshake { sot: true };
/// Requests that wait for the connection.
const REQUESTS: usize = 4;

/// Reads batch after batch; the acknowledgement of one is on its way while the next is read, as with the data plane's read-ahead.
async fn read(
    channel: Channel,
    rate: u64,
    shared: Arc<Shared>,
    started: oneshot::Sender<()>,
) -> Result<()> {
    let mut client = client(channel);
    let (asks, requests) = mpsc::channel(REQUESTS);
    asks.send(ReadRequest {
        request: None,
        handshake: Some(SOT),
    })
    .await?;
    let mut messages = client
        .read_fn(ReceiverStream::new(requests))
        .await
        .context("ReadFn")?
        .into_inner();
    let first = messages.message().await.context("ReadFn")?;
    ensure!(
        first.is_some_and(|first| first.handshake == Some(SOT)),
        "ReadFn: no handshake"
    );
    let (acks, requests) = mpsc::channel(REQUESTS);
    acks.send(AckRequest {
        request: None,
        handshake: Some(SOT),
    })
    .await?;
    let mut acked = client
        .ack_fn(ReceiverStream::new(requests))
        .await
        .context("AckFn")?
        .into_inner();
    acknowledged(&mut acked).await?;

    let period = match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(BATCH as f64 / rate as f64),
    };
    let mut started = Some(started);
    let mut next_batch = Instant::now();
    let mut next = 0;
    let mut waiting = false;
    while !shared.stop.load(Relaxed) {
        let request = ReadRequest {
            request: Some(read_request::Request {
                num_records: BATCH,
                timeout_in_ms: 1000,
            }),
            handshake: None,
        };
        asks.send(request)
            .await
            .map_err(|_| anyhow!("ReadFn has ended"))?;
        let offsets = batch(&mut messages, &mut next, &shared.messages).await?;
        if waiting {
            acknowledged(&mut acked).await?;
        }
        let request = AckRequest {
            request: Some(ack_request::Request { offsets }),
            handshake: None,
        };
        acks.send(request)
            .await
            .map_err(|_| anyhow!("AckFn has ended"))?;
        waiting = true;
        if let Some(started) = started.take() {
            // Nobody listens only where nobody measures any more.
            let _ = started.send(());
        }
        if rate > 0 {
            // What is late is not made up for: the rate is an upper limit.
            next_batch = (next_batch + period).max(Instant::now());
            sleep_until(next_batch).await;
        }
    }
    acknowledged(&mut acked).await?;
    drop((asks, acks));
    while messages.message().await.context("ReadFn")?.is_some() {}
    while acked.message().await.context("AckFn")?.is_some() {}
    Ok(())
}

/// Reads one batch, of which each message has to be the next one; their offsets.
async fn batch(
    messages: &mut Streaming<ReadResponse>,
    next: &mut u64,
    count: &AtomicU64,
) -> Result<Vec<Offset>> {
    let mut offsets = Vec::with_capacity(BATCH as usize);
    loop {
        let message = messages.message().await.context("ReadFn")?;
        let message = message.context("ReadFn ended")?;
        let Some(result) = message.result else {
            ensure!(
                message.status.is_some_and(|status| status.eot) && offsets.len() as u64 == BATCH,
                "a batch of {} messages",
                offsets.len()
            );
            return Ok(offsets);
        };
        let offset = result.offset.context("a message without an offset")?;
        ensure!(
            result.payload.len() == PAYLOAD && offset.offset == next.to_be_bytes(),
            "message {next} is another one"
        );
        *next += 1;
        count.fetch_add(1, Relaxed);
        offsets.push(offset);
    }
}

async fn acknowledged(acked: &mut Streaming<AckResponse>) -> Result<()> {
    let answer = acked.message().await.context("AckFn")?;
    answer.context("AckFn ended")?;
    Ok(())
}
