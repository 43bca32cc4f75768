//! Calls as they happen, for whoever watches.
//!
//! The kernel tells of single calls only while somebody watches ([`Hub::watchers`]). A watcher that is too slow is told how many calls it
//! missed, and holds up nobody.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use agent_common::abi::answers::Code;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast};

use crate::model::{Identity, Verdict};

/// Calls that are kept for watchers which don't keep up.
const BACKLOG: usize = 4096;

/// A call of a watched method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it was sent.
    pub at: SystemTime,
    /// Whose it was.
    pub identity: Arc<Identity>,
    /// Full path of the method.
    pub method: Arc<str>,
    /// What became of it.
    pub verdict: Verdict,
    /// How it ended; `None` where answers aren't followed on its connection.
    pub code: Option<Code>,
    /// How long it took until the answer had ended, where that is known.
    pub duration: Option<Duration>,
    /// The pending count that it was answered, where it was one.
    pub pending: Option<i64>,
    /// The process that called, in the initial pid namespace.
    pub pid: u32,
    /// Its file descriptor of the connection.
    pub fd: u32,
    /// The call's HTTP/2 stream.
    pub stream: u32,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A call.
    Call(Arc<Call>),
    /// So many calls that it is not told of.
    Lost(u64),
}

/// An event, and how many calls those before it were about.
type Numbered = (u64, Event);

impl Event {
    /// How many calls it is about.
    fn calls(&self) -> u64 {
        match self {
            Self::Call(_) => 1,
            Self::Lost(lost) => *lost,
        }
    }
}

/// Hands calls on to all who watch.
#[derive(Debug)]
pub struct Hub {
    sender: broadcast::Sender<Numbered>,
    /// How many calls the events so far were about. Held while an event is sent, so that numbers are in order.
    calls: Mutex<u64>,
    watchers: AtomicUsize,
    changed: Notify,
}

impl Hub {
    /// A hub that nobody watches.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            sender: broadcast::Sender::new(BACKLOG),
            calls: Mutex::new(0),
            watchers: AtomicUsize::new(0),
            changed: Notify::new(),
        })
    }

    /// Watches from now on.
    pub fn subscribe(self: &Arc<Self>) -> Subscription {
        self.watchers.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_one();
        // Nothing in it can be half done: it is one number.
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        Subscription {
            receiver: self.sender.subscribe(),
            seen: *calls,
            next: VecDeque::new(),
            hub: Arc::downgrade(self),
        }
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        self.watchers.load(Ordering::SeqCst)
    }

    /// Waits until somebody has come or gone since the last time. For one who waits only.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Tells all who watch.
    pub fn tell(&self, event: Event) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let about = event.calls();
        // Nobody watches any more: nobody misses it.
        let _ = self.sender.send((*calls, event));
        *calls += about;
    }
}

/// One who watches, until it is dropped.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Numbered>,
    /// How many calls it was told of, or told that it missed.
    seen: u64,
    /// What comes next, before anything else.
    next: VecDeque<Event>,
    hub: Weak<Hub>,
}

impl Subscription {
    /// The next event; `None` once the hub has gone, which is when the agent ends.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.next.pop_front() {
                self.seen += event.calls();
                return Some(event);
            }
            match self.receiver.recv().await {
                Ok((before, event)) => {
                    let missed = before.saturating_sub(self.seen);
                    self.next
                        .extend((missed > 0).then_some(Event::Lost(missed)));
                    self.next.push_back(event);
                }
                // How many events that were says nothing of calls: the next event's number does.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.watchers.fetch_sub(1, Ordering::SeqCst);
            hub.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_watches_is_counted_and_told() {
        let hub = Hub::new();
        hub.tell(Event::Lost(1));
        assert_eq!(hub.watchers(), 0);
        let mut one = hub.subscribe();
        let mut two = hub.subscribe();
        assert_eq!(hub.watchers(), 2);
        hub.tell(Event::Lost(7));
        assert_eq!(one.next().await, Some(Event::Lost(7)));
        assert_eq!(two.next().await, Some(Event::Lost(7)));
        drop(one);
        assert_eq!(hub.watchers(), 1);
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_exactly_how_much_it_missed() {
        let hub = Hub::new();
        let mut slow = hub.subscribe();
        // Beyond the backlog there are 100 events, some of which are about more than one call.
        for i in 0..BACKLOG as u64 + 100 {
            hub.tell(Event::Lost(i));
        }
        assert_eq!(slow.next().await, Some(Event::Lost((0..100).sum())));
        for i in 100..BACKLOG as u64 + 100 {
            assert_eq!(slow.next().await, Some(Event::Lost(i)));
        }
        hub.tell(Event::Lost(1));
        assert_eq!(slow.next().await, Some(Event::Lost(1)));
        // One who comes now has missed nothing.
        let mut late = hub.subscribe();
        hub.tell(Event::Lost(2));
        assert_eq!(late.next().await, Some(Event::Lost(2)));
    }
}
