//! Calls as the kernel tells of them, made into calls of replicas.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent_common::abi::answers::{CallEvent, Code};
use agent_common::h2::pending;

use crate::inventory::{Inventory, shown};
use crate::model::{Identity, Verdict};
use crate::observer::since_boot;
use crate::policy::Ruling;
use crate::watch::Call;

/// What is kept between two looks at the ring buffer.
#[derive(Debug, Default)]
pub struct Calls {
    /// What the kernel was told last: whether somebody watches.
    pub watched: Option<bool>,
    /// Calls lost that watchers were told of.
    pub lost: u64,
    /// Calls of processes that the agent doesn't know yet, and since when they wait.
    pub unknown: VecDeque<(Instant, CallEvent)>,
    /// Processes that have left lately, by slot.
    pub departed: HashMap<u32, Departed>,
}

/// A process that has left: its pid, whose it was, and what the policy said when it was found.
pub type Departed = (u32, Identity, Option<Ruling>);

impl Calls {
    /// A process leaves a slot.
    pub fn left(&mut self, slot: u32, pid: u32, identity: Identity, found: Option<Ruling>) {
        self.departed.insert(slot, (pid, identity, found));
    }

    /// The call that an event tells of: `None` if it isn't known whose it is, `Some(None)` if it isn't counted.
    pub fn of(
        &self,
        inventory: &Inventory,
        methods: &[String],
        event: &CallEvent,
    ) -> Option<Option<Call>> {
        let (identity, verdict) = if inventory.slot(event.tgid) == Some(event.slot) {
            match inventory.call(event.tgid, event.slot, event.verdict) {
                Some(call) => call,
                None => return Some(None),
            }
        } else {
            let (pid, identity, found) = self.departed.get(&event.slot)?;
            if *pid != event.tgid {
                return None;
            }
            match found.and_then(|found| shown(event.verdict, found)) {
                Some(verdict) => (identity, verdict),
                None => return Some(None),
            }
        };
        Some(call(identity, verdict, methods, event))
    }
}

fn call(
    identity: &Identity,
    verdict: Verdict,
    methods: &[String],
    event: &CallEvent,
) -> Option<Call> {
    let ended = event.end != 0;
    let octets = event.octets.get(..event.len as usize);
    let ago = Duration::from_nanos(since_boot().saturating_sub(event.start));
    Some(Call {
        at: SystemTime::now().checked_sub(ago)?,
        identity: Arc::new(identity.clone()),
        method: methods.get(event.method as usize)?.as_str().into(),
        verdict,
        code: Code::of(event.code).filter(|_| ended),
        duration: ended.then(|| Duration::from_nanos(event.end.saturating_sub(event.start))),
        pending: octets
            .filter(|octets| !octets.is_empty() && event.code == Code::Ok as u32)
            .and_then(pending::count),
        pid: event.tgid,
        fd: event.fd,
        stream: event.stream,
    })
}

#[cfg(test)]
mod tests {
    use agent_common::abi::verdict;
    use agent_common::h2::pending::KEPT;

    use super::*;
    use crate::model::{Answer, Kind, Mode, ModeFrom, Replica};

    const METHOD: &str = "/source.v1.Source/PendingFn";

    fn identity() -> Identity {
        Identity {
            namespace: "ns".into(),
            kind: Kind::MonoVertex,
            workload: "mv".into(),
            vertex: String::new(),
            pod: "mv-mv-1-abcde".into(),
            replica: Replica::Number(1),
        }
    }

    const RULING: Ruling = Ruling {
        mode: Mode::Audit,
        verdict: Some(Verdict::WouldReject),
        answer: Answer::Unimplemented,
        mode_from: ModeFrom::Default,
    };

    fn event() -> CallEvent {
        let mut octets = [0; KEPT];
        octets[..9].copy_from_slice(b"\0\0\0\0\x04\x0a\x02\x08\x05");
        let now = since_boot();
        CallEvent {
            start: now - 30_000_000,
            end: now - 10_000_000,
            tgid: 10,
            slot: 1,
            fd: 7,
            stream: 9,
            method: 0,
            verdict: verdict::CANDIDATE,
            code: 0,
            len: 9,
            octets,
        }
    }

    #[test]
    fn an_event_becomes_the_call_of_its_replica() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(), 1, RULING, SystemTime::now());
        let calls = Calls::default();
        let methods = [METHOD.to_owned()];
        let call = calls.of(&inventory, &methods, &event()).flatten().unwrap();
        assert_eq!(*call.identity, identity());
        assert_eq!(
            (&*call.method, call.verdict),
            (METHOD, Verdict::WouldReject)
        );
        assert_eq!((call.code, call.pending), (Some(Code::Ok), Some(5)));
        assert_eq!(call.duration, Some(Duration::from_millis(20)));
        assert!(call.at.elapsed().unwrap() >= Duration::from_millis(30));
        let untimed = CallEvent {
            end: 0,
            len: 0,
            ..event()
        };
        let call = calls.of(&inventory, &methods, &untimed).flatten().unwrap();
        assert_eq!((call.code, call.duration, call.pending), (None, None, None));
    }

    #[test]
    fn a_process_that_left_is_known_for_a_while_and_another_s_is_not_taken_for_it() {
        let inventory = Inventory::new(1);
        let mut calls = Calls::default();
        let methods = [METHOD.to_owned()];
        assert!(calls.of(&inventory, &methods, &event()).is_none());
        calls.left(1, 10, identity(), Some(RULING));
        assert!(calls.of(&inventory, &methods, &event()).flatten().is_some());
        calls.left(1, 11, identity(), Some(RULING));
        assert!(calls.of(&inventory, &methods, &event()).is_none());
    }
}
