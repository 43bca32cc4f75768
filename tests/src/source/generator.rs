//! The source's user code: makes messages, checks acknowledgements, counts.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use numaflow::source::{Message, NackOffset, Offset, SourceReadRequest, Sourcer};
use tokio::sync::mpsc::Sender;

use crate::payload::{Chain, Link, MIN_PAYLOAD};
use crate::protocol::Stats;

/// The byte that [`Faults::corrupt`] changes.
const CORRUPT_AT: usize = MIN_PAYLOAD / 2;

/// What a source makes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of each payload.
    pub message_bytes: usize,
    /// Messages there are; `None`: without end.
    pub total: Option<u64>,
    /// What PendingFn answers; `None`: what is left of `total`.
    pub pending: Option<i64>,
    /// How long the handler of PendingFn takes at least and at most; each call takes another time, spread evenly.
    pub pending_delay: Option<(Duration, Duration)>,
    /// What goes wrong.
    pub faults: Faults,
}

/// Damage done on purpose, to prove that clients notice it. Messages are counted from 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A byte of this message is changed.
    pub corrupt: Option<u64>,
    /// This message is not sent.
    pub lose: Option<u64>,
}

/// The source. One reader at a time: messages form one chain, whoever reads them.
#[derive(Debug)]
pub struct Generator {
    options: Options,
    counters: Counters,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct Counters {
    pending: AtomicU64,
    read: AtomicU64,
    ack: AtomicU64,
    nack: AtomicU64,
    partitions: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
    acked: AtomicU64,
    ack_mismatches: AtomicU64,
    abandoned: AtomicU64,
}

#[derive(Debug)]
struct State {
    chain: Chain,
    /// Handed out and not acknowledged yet, in order.
    unacked: VecDeque<Link>,
}

/// What an acknowledged offset turned out to be.
#[derive(Debug, PartialEq, Eq)]
enum Ack {
    /// The oldest message without an acknowledgement, or a later one; then that many were passed over.
    InOrder { passed_over: u64 },
    /// Not a message that waits for an acknowledgement.
    Unexpected,
}

impl State {
    fn acknowledge(&mut self, offset: &[u8]) -> Ack {
        let Some(link) = Link::from_offset(offset) else {
            return Ack::Unexpected;
        };
        // Sequence numbers in the queue are consecutive, so the position is known.
        let position = self
            .unacked
            .front()
            .and_then(|front| link.sequence.checked_sub(front.sequence))
            .and_then(|position| usize::try_from(position).ok())
            .filter(|&position| self.unacked.get(position) == Some(&link));
        let Some(position) = position else {
            return Ack::Unexpected;
        };
        self.unacked.drain(..=position);
        Ack::InOrder {
            passed_over: position as u64,
        }
    }
}

impl Generator {
    /// A source that has not been read yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let chain = Chain::new(options.message_bytes);
        Self {
            options,
            counters: Counters::default(),
            state: Mutex::new(State {
                chain,
                unacked: VecDeque::new(),
            }),
        }
    }

    /// What the handlers saw so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Counters {
            pending,
            read,
            ack,
            nack,
            partitions,
            messages,
            bytes,
            acked,
            ack_mismatches,
            abandoned,
        } = &self.counters;
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        Stats {
            pending: load(pending),
            read: load(read),
            ack: load(ack),
            nack: load(nack),
            partitions: load(partitions),
            messages: load(messages),
            bytes: load(bytes),
            acked: load(acked),
            ack_mismatches: load(ack_mismatches),
            abandoned: load(abandoned),
        }
    }

    /// The state stays consistent whatever panics: each change is one call.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_message(&self) -> Option<Message> {
        let mut state = self.state();
        if self.options.total == Some(state.chain.made()) {
            return None;
        }
        let (mut link, mut value) = state.chain.next_message();
        state.unacked.push_back(link);
        if self.options.faults.lose == Some(link.sequence) {
            (link, value) = state.chain.next_message();
            state.unacked.push_back(link);
        }
        if self.options.faults.corrupt == Some(link.sequence) {
            // Where the sum of the message before it is: in every payload, however short.
            value[CORRUPT_AT] ^= 1;
        }
        Some(Message {
            value,
            offset: Offset {
                offset: link.to_offset().to_vec(),
                partition_id: 0,
            },
            event_time: Utc::now(),
            keys: Vec::new(),
            headers: HashMap::new(),
            user_metadata: None,
        })
    }

    async fn read_batch(&self, request: SourceReadRequest, transmitter: Sender<Message>) {
        self.counters.read.fetch_add(1, Relaxed);
        for sent in 0..request.count {
            let Some(message) = self.next_message() else {
                if sent == 0 {
                    // Nothing will come: the answer is due when the request's time is over.
                    tokio::time::sleep(request.timeout).await;
                }
                return;
            };
            let bytes = message.value.len() as u64;
            if transmitter.send(message).await.is_err() {
                // The reader went away; the next one sees a gap, and the counters agree with what it got.
                return;
            }
            self.counters.messages.fetch_add(1, Relaxed);
            self.counters.bytes.fetch_add(bytes, Relaxed);
        }
    }

    fn acknowledge(&self, offsets: &[Offset]) {
        let Counters {
            ack,
            acked,
            ack_mismatches,
            abandoned,
            ..
        } = &self.counters;
        ack.fetch_add(1, Relaxed);
        let mut state = self.state();
        for offset in offsets {
            match state.acknowledge(&offset.offset) {
                Ack::InOrder { passed_over } if offset.partition_id == 0 => {
                    acked.fetch_add(1, Relaxed);
                    abandoned.fetch_add(passed_over, Relaxed);
                }
                _ => {
                    ack_mismatches.fetch_add(1, Relaxed);
                }
            }
        }
    }

    /// How long this call of PendingFn takes: multiples of the golden ratio lie evenly, however many there are.
    fn delay(&self, call: u64) -> Duration {
        let Some((least, most)) = self.options.pending_delay else {
            return Duration::ZERO;
        };
        let part = (call as f64 * 0.618_033_988_749_895).fract();
        least + most.saturating_sub(least).mul_f64(part)
    }

    /// `None`: not known, which the SDK answers as -1.
    fn backlog(&self) -> Option<usize> {
        self.counters.pending.fetch_add(1, Relaxed);
        let count = self.options.pending.or_else(|| {
            let left = self.options.total? - self.counters.acked.load(Relaxed);
            i64::try_from(left).ok()
        })?;
        usize::try_from(count).ok()
    }
}

/// The generator as the SDK's user code. Shared, because the Unix socket and the TCP port serve the same messages.
#[derive(Debug, Clone)]
pub struct Shared(pub Arc<Generator>);

#[tonic::async_trait]
impl Sourcer for Shared {
    async fn read(&self, request: SourceReadRequest, transmitter: Sender<Message>) {
        self.0.read_batch(request, transmitter).await;
    }

    async fn ack(&self, offsets: Vec<Offset>) {
        self.0.acknowledge(&offsets);
    }

    async fn nack(&self, _offsets: Vec<NackOffset>) {
        self.0.counters.nack.fetch_add(1, Relaxed);
    }

    async fn pending(&self) -> Option<usize> {
        let call = self.0.counters.pending.load(Relaxed);
        let answer = self.0.backlog();
        tokio::time::sleep(self.0.delay(call)).await;
        answer
    }

    async fn active_partitions(&self) -> Option<Vec<i32>> {
        self.0.counters.partitions.fetch_add(1, Relaxed);
        // The SDK then answers with the replica's number, as for most real sources.
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(count: usize) -> Vec<Link> {
        let mut chain = Chain::new(64);
        (0..count).map(|_| chain.next_message().0).collect()
    }

    #[test]
    fn acknowledgements_are_matched_in_order() {
        let links = links(5);
        let mut state = State {
            chain: Chain::new(64),
            unacked: links.iter().copied().collect(),
        };
        let in_order = |passed_over| Ack::InOrder { passed_over };
        assert_eq!(state.acknowledge(&links[0].to_offset()), in_order(0));
        assert_eq!(state.acknowledge(&links[0].to_offset()), Ack::Unexpected);
        assert_eq!(state.acknowledge(&links[3].to_offset()), in_order(2));
        let mut damaged = links[4].to_offset();
        damaged[11] ^= 1;
        assert_eq!(state.acknowledge(&damaged), Ack::Unexpected);
        assert_eq!(state.acknowledge(&damaged[1..]), Ack::Unexpected);
        assert_eq!(state.acknowledge(&links[4].to_offset()), in_order(0));
        assert!(state.unacked.is_empty());
    }

    #[test]
    fn pending_is_the_given_value_or_what_is_left() {
        let pending = |total, pending| {
            Generator::new(Options {
                message_bytes: 64,
                total,
                pending,
                pending_delay: None,
                faults: Faults::default(),
            })
            .backlog()
        };
        assert_eq!(pending(None, None), None);
        assert_eq!(pending(Some(9), None), Some(9));
        assert_eq!(pending(Some(9), Some(42)), Some(42));
        assert_eq!(pending(None, Some(-1)), None);
    }
}
