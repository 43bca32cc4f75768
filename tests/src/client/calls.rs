//! Unary calls, many at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::connect;
use crate::proto::source_client::SourceClient;
use crate::protocol::{Called, Every, Method, Tally};

/// The name of a status, as the gRPC specification spells it.
#[must_use]
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What a call that was given up counts as.
pub const GIVEN_UP: &str = "GIVEN_UP";

/// How calls ended.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// How long they took, in seconds.
    pub seconds: Vec<f64>,
    /// OK answers.
    pub ok: u64,
    /// Other statuses.
    pub errors: Tally,
    /// What the OK answers said.
    pub values: Tally,
}

impl Outcomes {
    fn add(&mut self, outcome: Result<String, Status>) {
        let (tally, key) = match outcome {
            Ok(value) => {
                self.ok += 1;
                (&mut self.values, value)
            }
            Err(status) => (&mut self.errors, code_name(status.code()).to_owned()),
        };
        *tally.entry(key).or_default() += 1;
    }

    fn merge(&mut self, other: Self) {
        self.ok += other.ok;
        self.seconds.extend(other.seconds);
        for (mine, theirs) in [
            (&mut self.errors, other.errors),
            (&mut self.values, other.values),
        ] {
            for (key, count) in theirs {
                *mine.entry(key).or_default() += count;
            }
        }
    }
}

/// What is called.
#[derive(Debug, Clone)]
pub enum Callee {
    /// A method of the service.
    Method(Method),
    /// Any path.
    Path(PathAndQuery),
}

impl Callee {
    fn name(&self) -> &str {
        match self {
            Self::Method(method) => method.name(),
            Self::Path(path) => path.as_str(),
        }
    }

    /// One call; what the answer says, in the words of [`Called::values`].
    async fn call(&self, channel: &Channel) -> Result<String, Status> {
        match self {
            Self::Method(method) => call_once(&mut connect::client(channel.clone()), *method).await,
            Self::Path(path) => {
                call_path(channel, path).await?;
                Ok("answered".to_owned())
            }
        }
    }
}

/// One call of a path; what it answers is not looked at.
///
/// # Errors
/// The status that it ended with.
pub async fn call_path(channel: &Channel, path: &PathAndQuery) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<(), ()>::default();
    grpc.unary(Request::new(()), path.clone(), codec).await?;
    Ok(())
}

/// One call; what the answer says, in the words of [`Called::values`].
async fn call_once(client: &mut SourceClient<Channel>, method: Method) -> Result<String, Status> {
    Ok(match method {
        Method::PendingFn => match client.pending_fn(()).await?.into_inner().result {
            Some(result) => result.count.to_string(),
            None => "absent".to_owned(),
        },
        Method::IsReady => client.is_ready(()).await?.into_inner().ready.to_string(),
        Method::PartitionsFn => match client.partitions_fn(()).await?.into_inner().result {
            Some(result) => {
                let numbers: Vec<String> =
                    result.partitions.iter().map(ToString::to_string).collect();
                numbers.join(",")
            }
            None => "absent".to_owned(),
        },
    })
}

/// Makes `count` calls, `concurrency` of them in flight.
///
/// # Errors
/// A task failed, which is a fault of this program.
pub async fn call(
    channel: &Channel,
    callee: Callee,
    count: u64,
    concurrency: usize,
    give_up: Option<Duration>,
) -> Result<Called> {
    let start = Instant::now();
    let taken = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let (channel, callee) = (channel.clone(), callee.clone());
        let taken = Arc::clone(&taken);
        tasks.spawn(async move {
            let mut outcomes = Outcomes::default();
            while taken.fetch_add(1, Relaxed) < count {
                let begun = Instant::now();
                let call = callee.call(&channel);
                match give_up {
                    None => outcomes.add(call.await),
                    // A call that is dropped is reset.
                    Some(limit) => match tokio::time::timeout(limit, call).await {
                        Ok(outcome) => outcomes.add(outcome),
                        Err(_) => *outcomes.errors.entry(GIVEN_UP.to_owned()).or_default() += 1,
                    },
                }
                outcomes.seconds.push(begun.elapsed().as_secs_f64());
            }
            outcomes
        });
    }
    let mut outcomes = Outcomes::default();
    while let Some(task) = tasks.join_next().await {
        outcomes.merge(task?);
    }
    outcomes.seconds.sort_unstable_by(f64::total_cmp);
    Ok(Called {
        method: callee.name().to_owned(),
        quantiles: quantiles(&outcomes.seconds),
        ok: outcomes.ok,
        errors: outcomes.errors,
        values: outcomes.values,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The median and the 99th percentile of sorted numbers.
fn quantiles(sorted: &[f64]) -> Option<(f64, f64)> {
    let at = |q: f64| {
        let rank = (sorted.len() as f64 * q) as usize;
        sorted.get(rank.min(sorted.len().checked_sub(1)?)).copied()
    };
    Some((at(0.5)?, at(0.99)?))
}

/// PendingFn at an interval, as the data plane calls it.
#[derive(Debug)]
pub struct Ticker {
    stop: watch::Sender<bool>,
    task: JoinHandle<Outcomes>,
}

impl Ticker {
    /// Starts calling. A call that takes longer than the interval delays the next one.
    #[must_use]
    pub fn start(mut client: SourceClient<Channel>, period: Duration) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut outcomes = Outcomes::default();
            loop {
                tokio::select! {
                    // A call is never broken off: between two of them is the only place to stop.
                    _ = stopped.wait_for(|stop| *stop) => return outcomes,
                    _ = ticks.tick() => {}
                }
                outcomes.add(call_once(&mut client, Method::PendingFn).await);
            }
        });
        Self { stop, task }
    }

    /// Stops, and tells what came of it.
    ///
    /// # Errors
    /// The task failed, which is a fault of this program.
    pub async fn stop(self) -> Result<Every> {
        self.stop.send_replace(true);
        let outcomes = self.task.await?;
        Ok(Every {
            count: outcomes.ok + outcomes.errors.values().sum::<u64>(),
            ok: outcomes.ok,
            errors: outcomes.errors,
            values: outcomes.values,
        })
    }
}
