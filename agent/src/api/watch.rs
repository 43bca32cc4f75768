//! Calls as they happen, for one client: those that it asked for, and how many it missed.
#![forbid(unsafe_code)]

use globset::GlobMatcher;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{convert, pb};
use crate::model::{Replica, Verdict};
use crate::policy;
use crate::watch::{Call, Event, Subscription};

/// Answers that are ready before the connection takes them. What a client doesn't read beyond these waits in the hub, where it counts as
/// lost once there is too much of it.
const READY: usize = 64;

/// What a client is told.
pub(super) type Calls = ReceiverStream<Result<pb::WatchCallsResponse, Status>>;

/// Which calls a client wants: those that match all that is there.
#[derive(Debug, Default)]
pub(super) struct Filter {
    namespace: Option<GlobMatcher>,
    workload: Option<GlobMatcher>,
    replica: Option<Replica>,
    /// Any, if there is none.
    verdicts: Vec<Verdict>,
}

impl Filter {
    /// What a request asks for; INVALID_ARGUMENT where it can't be meant.
    pub(super) fn new(request: &pb::WatchCallsRequest) -> Result<Self, Status> {
        let glob = |of, text: &Option<String>| {
            text.as_deref()
                .map(|text| policy::glob(of, text))
                .transpose()
                .map_err(|error| Status::invalid_argument(error.to_string()))
        };
        Ok(Self {
            namespace: glob("namespace", &request.namespace)?,
            workload: glob("workload", &request.workload)?,
            replica: request
                .replica
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(|error: crate::model::NoReplica| {
                    Status::invalid_argument(error.to_string())
                })?,
            verdicts: request
                .verdicts
                .iter()
                .map(|&number| verdict(number))
                .collect::<Result<_, _>>()?,
        })
    }

    fn matches(&self, call: &Call) -> bool {
        let identity = &call.identity;
        let glob = |glob: &Option<GlobMatcher>, text: &str| {
            glob.as_ref().is_none_or(|glob| glob.is_match(text))
        };
        glob(&self.namespace, &identity.namespace)
            && glob(&self.workload, &identity.workload)
            && self
                .replica
                .is_none_or(|replica| replica == identity.replica)
            && (self.verdicts.is_empty() || self.verdicts.contains(&call.verdict))
    }

    /// What the client is told of an event, if it is for it. What was lost may have been for it.
    fn answer(&self, event: Event) -> Option<pb::WatchCallsResponse> {
        use pb::watch_calls_response::Event as Told;
        let told = match event {
            Event::Call(call) if self.matches(&call) => Told::Call(convert::call(&call)?),
            Event::Call(_) => return None,
            Event::Lost(lost) => Told::Lost(lost),
        };
        Some(pb::WatchCallsResponse { event: Some(told) })
    }
}

fn verdict(number: i32) -> Result<Verdict, Status> {
    match pb::Verdict::try_from(number) {
        Ok(pb::Verdict::Admitted) => Ok(Verdict::Admitted),
        Ok(pb::Verdict::WouldReject) => Ok(Verdict::WouldReject),
        Ok(pb::Verdict::Rejected) => Ok(Verdict::Rejected),
        // Leaving it out would tell of more than was asked for, or of nothing.
        Ok(pb::Verdict::Unspecified) | Err(_) => Err(Status::invalid_argument(format!(
            "verdict {number} is none of admitted, would_reject and rejected"
        ))),
    }
}

/// Tells of calls until the client goes or the agent stops. Who watches no more has unsubscribed by then.
pub(super) fn calls(mut events: Subscription, filter: Filter, stop: CancellationToken) -> Calls {
    let (sender, receiver) = mpsc::channel(READY);
    let telling = async move {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = sender.closed() => return,
            };
            let Some(event) = event else { return };
            let Some(answer) = filter.answer(event) else {
                continue;
            };
            if sender.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    };
    tokio::spawn(async move { stop.run_until_cancelled(telling).await });
    ReceiverStream::new(receiver)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::engine::fake;
    use crate::watch::Hub;

    fn of(request: pb::WatchCallsRequest) -> Filter {
        Filter::new(&request).unwrap()
    }

    fn call(replica: Replica, verdict: Verdict) -> Call {
        Call {
            verdict,
            ..fake::call(replica)
        }
    }

    #[test]
    fn a_filter_wants_all_that_it_names() {
        let admitted = call(Replica::Number(0), Verdict::Admitted);
        let rejected = call(Replica::Number(12), Verdict::Rejected);
        let unknown = call(Replica::Unknown, Verdict::Admitted);
        let text = |text: &str| Some(text.to_owned());
        let all = pb::WatchCallsRequest::default;
        for (request, expected) in [
            (all(), [true; 3]),
            (
                pb::WatchCallsRequest {
                    namespace: text("pay*"),
                    workload: text("{orders,x}"),
                    ..all()
                },
                [true; 3],
            ),
            (
                pb::WatchCallsRequest {
                    namespace: text("pay"),
                    ..all()
                },
                [false; 3],
            ),
            (
                pb::WatchCallsRequest {
                    workload: text("orders?"),
                    ..all()
                },
                [false; 3],
            ),
            (
                pb::WatchCallsRequest {
                    replica: text("12"),
                    ..all()
                },
                [false, true, false],
            ),
            (
                pb::WatchCallsRequest {
                    replica: text("unknown"),
                    ..all()
                },
                [false, false, true],
            ),
            (
                pb::WatchCallsRequest {
                    replica: text("0"),
                    verdicts: vec![
                        pb::Verdict::Rejected.into(),
                        pb::Verdict::WouldReject.into(),
                    ],
                    ..all()
                },
                [false; 3],
            ),
            (
                pb::WatchCallsRequest {
                    verdicts: vec![pb::Verdict::Admitted.into()],
                    ..all()
                },
                [true, false, true],
            ),
        ] {
            let filter = of(request.clone());
            let wanted = [&admitted, &rejected, &unknown].map(|call| filter.matches(call));
            assert_eq!(wanted, expected, "{request:?}");
        }
    }

    #[test]
    fn what_cant_be_meant_is_refused_with_its_reason() {
        let all = pb::WatchCallsRequest::default;
        let text = |text: &str| Some(text.to_owned());
        let long = "x".repeat(254);
        for (request, reason) in [
            (
                pb::WatchCallsRequest {
                    namespace: text(""),
                    ..all()
                },
                "namespace is empty",
            ),
            (
                pb::WatchCallsRequest {
                    workload: text("a["),
                    ..all()
                },
                "workload is no glob",
            ),
            (
                pb::WatchCallsRequest {
                    workload: text(&long),
                    ..all()
                },
                "254 octets",
            ),
            (
                pb::WatchCallsRequest {
                    replica: text("+1"),
                    ..all()
                },
                "\"+1\" is neither",
            ),
            (
                pb::WatchCallsRequest {
                    replica: text(""),
                    ..all()
                },
                "\"\" is neither",
            ),
            (
                pb::WatchCallsRequest {
                    replica: text("4294967296"),
                    ..all()
                },
                "neither",
            ),
            (
                pb::WatchCallsRequest {
                    verdicts: vec![0],
                    ..all()
                },
                "verdict 0",
            ),
            (
                pb::WatchCallsRequest {
                    verdicts: vec![1, 99],
                    ..all()
                },
                "verdict 99",
            ),
        ] {
            let status = Filter::new(&request).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(reason), "{status}");
        }
    }

    #[test]
    fn a_call_of_no_known_method_is_not_told() {
        let call = Arc::new(call(Replica::Number(1), Verdict::Unresolved));
        assert_eq!(
            of(pb::WatchCallsRequest::default()).answer(Event::Call(call)),
            None
        );
    }

    #[tokio::test]
    async fn who_goes_has_unsubscribed() {
        let hub = Hub::new();
        let stop = CancellationToken::new();
        let one = calls(hub.subscribe(), Filter::default(), stop.clone());
        let mut two = calls(hub.subscribe(), Filter::default(), stop.clone());
        assert_eq!(hub.watchers(), 2);
        drop(one);
        let unsubscribed = async |left| {
            let waits = async {
                while hub.watchers() != left {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(5), waits).await
        };
        unsubscribed(1).await.unwrap();
        stop.cancel();
        assert!(two.next().await.is_none());
        unsubscribed(0).await.unwrap();
    }

    #[tokio::test]
    async fn what_isnt_taken_is_lost_and_counted() {
        const CALLS: u64 = 20_000;
        let hub = Hub::new();
        let mut calls = calls(hub.subscribe(), Filter::default(), CancellationToken::new());
        let call = Arc::new(call(Replica::Number(1), Verdict::WouldReject));
        for i in 0..CALLS {
            hub.tell(Event::Call(Arc::clone(&call)));
            if i % 1000 == 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(hub);
        let (mut told, mut lost) = (0, 0);
        while let Some(answer) = calls.next().await {
            match answer.unwrap().event {
                Some(pb::watch_calls_response::Event::Call(_)) => told += 1,
                Some(pb::watch_calls_response::Event::Lost(n)) => lost += n,
                None => panic!("an event without one"),
            }
        }
        assert_eq!(told + lost, CALLS);
        assert!(lost > 10_000, "{lost}");
    }
}
