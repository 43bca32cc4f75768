//! The replicas of this node, their processes, and what those called.
//!
//! A process has a slot of counters in the kernel. When it ends, or runs another program, what the slot holds is *banked*
//! with its replica, so that a replica's counters never fall; a container that restarts within its pod goes on
//! counting where it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use agent_common::abi::{Slot, verdict};

use crate::model::{Identity, Mode, ReplicaStatus, Verdict};

/// How long a replica that has gone is still shown, so that the last scrape sees its last counts.
pub const SHOWN_AFTER_DEATH: Duration = Duration::from_secs(300);

/// What the policy says of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The mode that applies to it.
    pub mode: Mode,
    /// What its next watched call counts as.
    pub verdict: Verdict,
}

impl Ruling {
    /// The programs' number for the verdict.
    pub const fn in_kernel(self) -> u32 {
        match self.verdict {
            Verdict::WouldReject => verdict::WOULD_REJECT,
            Verdict::Admitted | Verdict::Unresolved => verdict::ADMITTED,
        }
    }
}

struct Process {
    identity: Identity,
    slot: u32,
}

struct Record {
    ruling: Ruling,
    since: SystemTime,
    gone: Option<SystemTime>,
    pids: BTreeSet<u32>,
    calls: BTreeMap<(usize, Verdict), u64>,
    unresolved: u64,
}

impl Record {
    fn bank(&mut self, slot: &Slot) {
        add_calls(&mut self.calls, slot, self.ruling);
        self.unresolved += slot.unresolved;
    }
}

/// Adds a slot's calls. Those that a candidate made count as what the policy says of its replica.
fn add_calls(calls: &mut BTreeMap<(usize, Verdict), u64>, slot: &Slot, ruling: Ruling) {
    for (method, by_verdict) in slot.calls.iter().enumerate() {
        let of = [
            (verdict::ADMITTED, Verdict::Admitted),
            (verdict::WOULD_REJECT, Verdict::WouldReject),
            (verdict::CANDIDATE, ruling.verdict),
        ];
        for (number, verdict) in of {
            let n = by_verdict[number as usize];
            if n > 0 {
                *calls.entry((method, verdict)).or_default() += n;
            }
        }
    }
}

/// All replicas and their processes.
pub struct Inventory {
    methods: usize,
    replicas: BTreeMap<Identity, Record>,
    processes: HashMap<u32, Process>,
}

impl Inventory {
    /// An empty inventory for this many watched methods.
    pub fn new(methods: usize) -> Self {
        Self {
            methods,
            replicas: BTreeMap::new(),
            processes: HashMap::new(),
        }
    }

    /// Notes that process `pid` is one of that replica, with its counters in `slot`. Returns whether the replica is new
    /// or had gone.
    pub fn add(
        &mut self,
        pid: u32,
        identity: Identity,
        slot: u32,
        ruling: Ruling,
        now: SystemTime,
    ) -> bool {
        let record = self.record(&identity, ruling, now);
        let arrived = record.pids.is_empty();
        record.ruling = ruling;
        record.gone = None;
        record.pids.insert(pid);
        self.processes.insert(pid, Process { identity, slot });
        arrived
    }

    fn record(&mut self, identity: &Identity, ruling: Ruling, now: SystemTime) -> &mut Record {
        self.replicas
            .entry(identity.clone())
            .or_insert_with(|| Record {
                ruling,
                since: now,
                gone: None,
                pids: BTreeSet::new(),
                calls: BTreeMap::new(),
                unresolved: 0,
            })
    }

    /// The slot of a process, if it is known.
    pub fn slot(&self, pid: u32) -> Option<u32> {
        self.processes.get(&pid).map(|p| p.slot)
    }

    /// Whose a process is, if it is known.
    pub fn identity(&self, pid: u32) -> Option<&Identity> {
        self.processes.get(&pid).map(|p| &p.identity)
    }

    /// Pids of all known processes.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.processes.keys().copied()
    }

    /// Processes known.
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// Notes that a process ended, with what its slot held. Returns its replica if that was the last process of it.
    pub fn remove(&mut self, pid: u32, slot: &Slot, now: SystemTime) -> Option<Identity> {
        let process = self.processes.remove(&pid)?;
        let record = self.replicas.get_mut(&process.identity)?;
        record.bank(slot);
        record.pids.remove(&pid);
        if !record.pids.is_empty() {
            return None;
        }
        record.gone = Some(now);
        Some(process.identity)
    }

    /// Adds what a process that is gone already left in its slot.
    pub fn bank(&mut self, identity: &Identity, slot: &Slot) {
        if let Some(record) = self.replicas.get_mut(identity) {
            record.bank(slot);
        }
    }

    /// Forgets replicas that went long ago.
    pub fn expire(&mut self, now: SystemTime) {
        self.replicas.retain(|_, record| {
            record.gone.is_none_or(|gone| {
                now.duration_since(gone)
                    .is_ok_and(|age| age < SHOWN_AFTER_DEATH)
            })
        });
    }

    /// All replicas with their counts; `read` reads a slot.
    pub fn replicas(&self, read: impl Fn(u32) -> Slot) -> Vec<ReplicaStatus> {
        self.replicas
            .iter()
            .map(|(identity, record)| {
                let mut status = ReplicaStatus {
                    identity: identity.clone(),
                    mode: record.ruling.mode,
                    pids: record.pids.iter().copied().collect(),
                    since: record.since,
                    gone: record.gone,
                    calls: record.calls.clone(),
                    unresolved: record.unresolved,
                    synced: 0,
                    unsynced: 0,
                };
                for pid in &record.pids {
                    if let Some(process) = self.processes.get(pid).filter(|p| p.slot != 0) {
                        let slot = read(process.slot);
                        add_calls(&mut status.calls, &slot, record.ruling);
                        status.unresolved += slot.unresolved;
                        status.synced += slot.synced;
                        status.unsynced += slot.unsynced;
                    }
                }
                // A replica that never called is shown with 0: that is what an upgrade that took effect looks like.
                for method in 0..self.methods {
                    status
                        .calls
                        .entry((method, record.ruling.verdict))
                        .or_default();
                }
                status
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, Replica};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const USELESS: Ruling = Ruling {
        mode: Mode::Audit,
        verdict: Verdict::WouldReject,
    };

    fn identity(replica: u32) -> Identity {
        Identity {
            namespace: "ns".into(),
            kind: Kind::MonoVertex,
            workload: "mv".into(),
            vertex: String::new(),
            pod: format!("mv-mv-{replica}-abcde"),
            replica: Replica::Number(replica),
        }
    }

    fn slot(calls: [u64; verdict::COUNT], unresolved: u64) -> Slot {
        let mut slot = Slot::ZERO;
        slot.calls[0] = calls;
        slot.unresolved = unresolved;
        slot.synced = 1;
        slot
    }

    #[test]
    fn a_restarted_process_goes_on_counting() {
        let mut inventory = Inventory::new(1);
        assert!(inventory.add(10, identity(1), 1, USELESS, NOW));
        assert_eq!(
            inventory.remove(10, &slot([1, 2, 3, 0], 4), NOW),
            Some(identity(1))
        );
        assert!(inventory.add(11, identity(1), 2, USELESS, NOW));
        let all = inventory.replicas(|_| slot([0, 10, 0, 0], 1));
        assert_eq!(all.len(), 1);
        // What a candidate called counts as what the policy says.
        assert_eq!(all[0].calls[&(0, Verdict::WouldReject)], 2 + 3 + 10);
        assert_eq!(all[0].calls[&(0, Verdict::Admitted)], 1);
        assert_eq!((all[0].unresolved, all[0].synced), (5, 1));
        assert_eq!((all[0].pids.as_slice(), all[0].gone), (&[11][..], None));
    }

    #[test]
    fn processes_of_one_pod_are_one_replica() {
        let mut inventory = Inventory::new(1);
        assert!(inventory.add(10, identity(0), 1, USELESS, NOW));
        assert!(!inventory.add(11, identity(0), 2, USELESS, NOW));
        assert_eq!(
            inventory.replicas(|_| slot([5, 0, 0, 0], 0))[0].calls[&(0, Verdict::Admitted)],
            10
        );
        assert_eq!(inventory.remove(10, &Slot::ZERO, NOW), None);
        assert_eq!(inventory.remove(11, &Slot::ZERO, NOW), Some(identity(0)));
        assert_eq!(inventory.remove(11, &Slot::ZERO, NOW), None);
    }

    #[test]
    fn a_silent_replica_shows_zero() {
        let mut inventory = Inventory::new(2);
        inventory.add(10, identity(3), 1, USELESS, NOW);
        let calls = &inventory.replicas(|_| Slot::ZERO)[0].calls;
        assert_eq!(calls.len(), 2);
        assert!(calls.values().all(|n| *n == 0));
    }

    #[test]
    fn the_dead_are_shown_for_a_while() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(3), 1, USELESS, NOW);
        inventory.remove(10, &slot([0, 7, 0, 0], 0), NOW);
        inventory.expire(NOW + SHOWN_AFTER_DEATH / 2);
        let all = inventory.replicas(|_| unreachable!("it has no process"));
        assert_eq!(all[0].calls[&(0, Verdict::WouldReject)], 7);
        assert_eq!(all[0].gone, Some(NOW));
        inventory.expire(NOW + SHOWN_AFTER_DEATH);
        assert!(inventory.replicas(|_| Slot::ZERO).is_empty());
    }

    #[test]
    fn what_found_no_slot_is_not_counted_as_anyones() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(3), 0, USELESS, NOW);
        let all = inventory.replicas(|_| unreachable!("slot 0 is nobody's"));
        assert_eq!(all[0].calls[&(0, Verdict::WouldReject)], 0);
    }
}
