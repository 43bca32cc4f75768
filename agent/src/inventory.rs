//! The replicas of this node, their processes, and what those called.
//!
//! A process has a slot of counters in the kernel. When it ends, or runs another program, what the slot holds is *banked*
//! with its replica, so that a replica's counters never fall; a container that restarts within its pod goes on
//! counting where it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use agent_common::abi::{Slot, verdict};

use crate::model::{Identity, Mode, Quieted, ReplicaStatus, Verdict};
use crate::policy::{Ruling, Say};
use crate::tap::answers::ByCode;

/// How long a replica that has gone is still shown, so that the last scrape sees its last counts.
pub const SHOWN_AFTER_DEATH: Duration = Duration::from_secs(300);

/// How many that have gone are shown at most: the last ones. Somebody who starts one process after the other, each under another name,
/// fills neither the agent's memory nor Prometheus'.
pub const MAX_GONE: usize = 1024;

struct Process {
    identity: Identity,
    slot: u32,
    /// What the policy said when the process was found: what it called before counts by that, whatever is set later.
    found: Ruling,
    /// What the policy said of it last.
    ruling: Ruling,
    /// What discovery says of it besides.
    say: Say,
}

struct Record {
    /// What the policy said last of that one of its processes which may be rejected most: they may be known more or less well.
    ruling: Ruling,
    numaflow_version: Option<String>,
    since: SystemTime,
    gone: Option<SystemTime>,
    pids: BTreeSet<u32>,
    calls: BTreeMap<(usize, Verdict), u64>,
    rejected_before: BTreeMap<usize, u64>,
    quieted: Quieted,
    quieted_before: Quieted,
    unresolved: u64,
    durations: ByCode,
    durations_before: ByCode,
    /// When the source answered a pending count last, in ns since boot, and the count.
    pending: Option<(u64, i64)>,
}

impl Record {
    /// Takes over all that is banked with what turned out to be the same replica.
    fn absorb(&mut self, other: Self) {
        for (key, n) in other.calls {
            *self.calls.entry(key).or_default() += n;
        }
        for (method, n) in other.rejected_before {
            *self.rejected_before.entry(method).or_default() += n;
        }
        self.quieted.add(&other.quieted);
        self.quieted_before.add(&other.quieted_before);
        self.unresolved += other.unresolved;
        add_durations(&mut self.durations, &other.durations);
        add_durations(&mut self.durations_before, &other.durations_before);
        self.pending = self.pending.max(other.pending);
        self.since = self.since.min(other.since);
    }

    /// Takes over the rejected calls and the durations of a pod that was the same replica.
    fn inherit(&mut self, pod: &Self) {
        add_durations(&mut self.durations_before, &pod.durations);
        add_durations(&mut self.durations_before, &pod.durations_before);
        self.quieted_before.add(&pod.quieted);
        self.quieted_before.add(&pod.quieted_before);
        let own = pod
            .calls
            .iter()
            .filter(|((_, verdict), _)| *verdict == Verdict::Rejected)
            .map(|((method, _), n)| (method, n));
        for (method, n) in own.chain(&pod.rejected_before) {
            *self.rejected_before.entry(*method).or_default() += n;
        }
    }
}

/// The one of two rulings under which more is rejected.
fn stricter(one: Ruling, other: Ruling) -> Ruling {
    if other.mode > one.mode { other } else { one }
}

/// What a call with this verdict is shown as, whose process was `found` under a ruling.
pub fn shown(ruling: u32, found: Ruling) -> Option<Verdict> {
    match ruling {
        verdict::ADMITTED => Some(Verdict::Admitted),
        verdict::WOULD_REJECT => Some(Verdict::WouldReject),
        verdict::REJECTED => Some(Verdict::Rejected),
        // It went through, or nobody wants it counted.
        verdict::CANDIDATE => match found.verdict {
            Some(Verdict::Rejected) => Some(Verdict::Admitted),
            verdict => verdict,
        },
        _ => None,
    }
}

/// Adds a slot's calls. Those that a candidate made went through, or nobody wants them counted: that depends on what the
/// policy said when it was `found`.
fn add_calls(calls: &mut BTreeMap<(usize, Verdict), u64>, slot: &Slot, found: Ruling) {
    for (method, by_verdict) in slot.calls.iter().enumerate() {
        for (ruling, &n) in (0..).zip(by_verdict) {
            if let Some(verdict) = shown(ruling, found).filter(|_| n > 0) {
                *calls.entry((method, verdict)).or_default() += n;
            }
        }
    }
}

/// Adds durations.
fn add_durations(to: &mut ByCode, more: &ByCode) {
    for (of, durations) in more {
        to.entry(*of).or_default().add(durations);
    }
}

/// What is known of the answers to a process's calls.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    /// How long they took.
    pub durations: ByCode,
    /// The last pending count, and when it was answered, in ns since boot.
    pub pending: Option<(u64, i64)>,
    /// Rejected calls for which a quiet answer was asked.
    pub quieted: Quieted,
}

/// Adds all that a slot holds.
fn include(status: &mut ReplicaStatus, slot: &Slot, found: Ruling) {
    add_calls(&mut status.calls, slot, found);
    status.unresolved += slot.unresolved;
    status.synced += slot.synced;
    status.unsynced += slot.unsynced;
    status.latched += slot.latched;
    status.gated += slot.gated;
}

/// Calls in a slot that enforcement should have rejected and that went through, because nobody knew yet whose they were.
fn missed(slot: &Slot, found: Ruling) -> u64 {
    if found.verdict != Some(Verdict::Rejected) {
        return 0;
    }
    let calls = slot.calls.iter();
    calls.map(|by| by[verdict::CANDIDATE as usize]).sum()
}

/// All replicas and their processes.
pub struct Inventory {
    methods: usize,
    replicas: BTreeMap<Identity, Record>,
    processes: HashMap<u32, Process>,
    /// [`missed`] calls of processes that have ended.
    missed: u64,
}

impl Inventory {
    /// An empty inventory for this many watched methods.
    pub fn new(methods: usize) -> Self {
        Self {
            methods,
            replicas: BTreeMap::new(),
            processes: HashMap::new(),
            missed: 0,
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
        record.gone = None;
        record.pids.insert(pid);
        // The same program of the same process may be told of twice.
        let before = self.processes.get(&pid).filter(|p| p.slot == slot);
        let found = before.map_or(ruling, |process| process.found);
        let process = Process {
            identity: identity.clone(),
            slot,
            found,
            ruling,
            say: Say::default(),
        };
        self.processes.insert(pid, process);
        self.settle(&identity);
        arrived
    }

    /// Which ruling is shown of a replica.
    fn settle(&mut self, identity: &Identity) {
        if let Some(record) = self.replicas.get_mut(identity) {
            let processes = record.pids.iter().filter_map(|pid| self.processes.get(pid));
            let strictest = processes.map(|process| process.ruling).reduce(stricter);
            record.ruling = strictest.unwrap_or(record.ruling);
        }
    }

    /// What discovery says of a process besides whose it is.
    pub fn note(&mut self, pid: u32, say: Say, numaflow_version: Option<String>) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.say = say;
        if let Some(record) = self.replicas.get_mut(&process.identity)
            && numaflow_version.is_some()
        {
            record.numaflow_version = numaflow_version;
        }
    }

    /// A process turns out to be another replica's than was thought, with all that it called: its counters go with it. If the replica
    /// that it was taken for has no other process, it never was, and what is banked with it goes too; returned is whether that is so,
    /// and whether the other one is new or had gone.
    pub fn rename(&mut self, pid: u32, identity: &Identity, now: SystemTime) -> (bool, bool) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return (false, false);
        };
        let ruling = process.ruling;
        let before = std::mem::replace(&mut process.identity, identity.clone());
        if before == *identity {
            return (false, false);
        }
        let alone = self.replicas.get_mut(&before).is_some_and(|record| {
            record.pids.remove(&pid);
            record.pids.is_empty()
        });
        let banked = if alone {
            self.replicas.remove(&before)
        } else {
            None
        };
        let record = self.record(identity, ruling, now);
        let arrived = record.pids.is_empty();
        record.pids.insert(pid);
        record.gone = None;
        if let Some(banked) = banked {
            record.absorb(banked);
        }
        self.settle(&before);
        self.settle(identity);
        (alone, arrived)
    }

    fn record(&mut self, identity: &Identity, ruling: Ruling, now: SystemTime) -> &mut Record {
        self.replicas
            .entry(identity.clone())
            .or_insert_with(|| Record {
                ruling,
                numaflow_version: None,
                since: now,
                gone: None,
                pids: BTreeSet::new(),
                calls: BTreeMap::new(),
                rejected_before: BTreeMap::new(),
                quieted: Quieted::default(),
                quieted_before: Quieted::default(),
                unresolved: 0,
                durations: ByCode::new(),
                durations_before: ByCode::new(),
                pending: None,
            })
    }

    /// What the policy said last of each process.
    pub fn rulings(&self) -> impl Iterator<Item = Ruling> + '_ {
        self.processes.values().map(|process| process.ruling)
    }

    /// The highest slot that a process has; 0 where none has one.
    pub fn last_slot(&self) -> u32 {
        let slots = self.processes.values().map(|process| process.slot);
        slots.max().unwrap_or_default()
    }

    /// The slot of a process, if it is known.
    pub fn slot(&self, pid: u32) -> Option<u32> {
        self.processes.get(&pid).map(|p| p.slot)
    }

    /// What the policy said when a process was found, if it is known.
    pub fn found(&self, pid: u32) -> Option<Ruling> {
        self.processes.get(&pid).map(|p| p.found)
    }

    /// Whose a process is, if it is known.
    pub fn identity(&self, pid: u32) -> Option<&Identity> {
        self.processes.get(&pid).map(|p| &p.identity)
    }

    /// What the policy said last of a process, if it is known.
    pub fn ruling(&self, pid: u32) -> Option<Ruling> {
        self.processes.get(&pid).map(|p| p.ruling)
    }

    /// What discovery says of a process, if it is known.
    pub fn say(&self, pid: u32) -> Option<Say> {
        self.processes.get(&pid).map(|p| p.say)
    }

    /// Asks the policy again about every process of a replica that lives.
    pub fn rule(&mut self, ruling: impl Fn(&Identity, Say) -> Ruling) {
        for process in self.processes.values_mut() {
            process.ruling = ruling(&process.identity, process.say);
        }
        let living: Vec<Identity> = self.living().cloned().collect();
        for identity in &living {
            self.settle(identity);
        }
    }

    /// How many living replicas there are with each mode; modes without any are left out.
    pub fn modes(&self) -> BTreeMap<Mode, u64> {
        let mut modes = BTreeMap::new();
        for record in self.replicas.values().filter(|r| r.gone.is_none()) {
            *modes.entry(record.ruling.mode).or_default() += 1;
        }
        modes
    }

    /// Replicas that live.
    pub fn living(&self) -> impl Iterator<Item = &Identity> {
        self.replicas
            .iter()
            .filter(|(_, record)| record.gone.is_none())
            .map(|(identity, _)| identity)
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
        self.missed += missed(slot, process.found);
        let record = self.replicas.get_mut(&process.identity)?;
        add_calls(&mut record.calls, slot, process.found);
        record.unresolved += slot.unresolved;
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
            self.missed += missed(slot, record.ruling);
            add_calls(&mut record.calls, slot, record.ruling);
            record.unresolved += slot.unresolved;
        }
    }

    /// Adds what is known of the answers to a process's calls, which has ended.
    pub fn bank_answers(&mut self, identity: &Identity, answered: &Answered) {
        if let Some(record) = self.replicas.get_mut(identity) {
            add_durations(&mut record.durations, &answered.durations);
            record.quieted.add(&answered.quieted);
            record.pending = record.pending.max(answered.pending);
        }
    }

    /// Adds to what is shown of the replicas what is known of the answers to their living processes' calls; `of` reads a slot.
    pub fn include_answers(
        &self,
        replicas: &mut [ReplicaStatus],
        of: impl Fn(u32) -> Option<Answered>,
    ) {
        for status in replicas {
            let Some(record) = self.replicas.get(&status.identity) else {
                continue;
            };
            let mut pending = record.pending;
            for pid in &record.pids {
                let process = self.processes.get(pid).filter(|p| p.slot != 0);
                if let Some(answered) = process.and_then(|p| of(p.slot)) {
                    add_durations(&mut status.durations, &answered.durations);
                    status.quieted.add(&answered.quieted);
                    pending = pending.max(answered.pending);
                }
            }
            status.pending = pending.map(|(_, count)| count);
        }
    }

    /// What a process's call with this verdict counts as ([`verdict`]), and whose it was; `None` for what isn't counted.
    pub fn call(&self, pid: u32, slot: u32, ruling: u32) -> Option<(&Identity, Verdict)> {
        let process = self.processes.get(&pid).filter(|p| p.slot == slot)?;
        Some((&process.identity, shown(ruling, process.found)?))
    }

    /// Forgets replicas that went long ago. Their rejected calls go on in another pod that is the same replica, so that
    /// the sum of both, which is exported, never falls while one of them is shown.
    pub fn expire(&mut self, now: SystemTime) {
        let mut gone: Vec<SystemTime> = self.replicas.values().filter_map(|r| r.gone).collect();
        // Those that went before this are too many.
        let oldest = (gone.len() > MAX_GONE).then(|| {
            let kept = gone.len() - MAX_GONE;
            *gone.select_nth_unstable(kept).1
        });
        let expired = |record: &Record| {
            record.gone.is_some_and(|gone| {
                oldest.is_some_and(|oldest| gone < oldest)
                    || now
                        .duration_since(gone)
                        .is_ok_and(|age| age >= SHOWN_AFTER_DEATH)
            })
        };
        let expired: Vec<_> = self.replicas.extract_if(.., |_, r| expired(r)).collect();
        if expired.is_empty() {
            return;
        }
        // Their rejected calls go on in another pod that is the same replica.
        let mut heirs: HashMap<_, _> = self
            .replicas
            .iter_mut()
            .map(|(identity, record)| (identity.place(), record))
            .collect();
        for (identity, record) in &expired {
            if let Some(heir) = heirs.get_mut(&identity.place()) {
                heir.inherit(record);
            }
        }
    }

    /// Calls that enforcement should have rejected and that went through before anybody knew whose they were; `read` reads
    /// a slot.
    pub fn missed(&self, read: impl Fn(u32) -> Slot) -> u64 {
        let living = self.processes.values();
        living
            .filter(|p| p.slot != 0 && p.found.verdict == Some(Verdict::Rejected))
            .map(|p| missed(&read(p.slot), p.found))
            .sum::<u64>()
            + self.missed
    }

    /// Adds what another build's programs count for one of a replica's processes.
    pub fn include(&self, status: &mut ReplicaStatus, pid: u32, slot: &Slot) {
        if let Some(process) = self.processes.get(&pid) {
            include(status, slot, process.found);
        }
    }

    /// All replicas with their counts; `read` reads a slot.
    pub fn replicas(&self, read: impl Fn(u32) -> Slot) -> Vec<ReplicaStatus> {
        self.replicas
            .iter()
            .map(|(identity, record)| {
                let mut status = ReplicaStatus {
                    identity: identity.clone(),
                    mode: record.ruling.mode,
                    mode_from: record.ruling.mode_from,
                    answer: record.ruling.answer,
                    pids: record.pids.iter().copied().collect(),
                    since: record.since,
                    gone: record.gone,
                    calls: record.calls.clone(),
                    rejected_before: record.rejected_before.clone(),
                    quieted: record.quieted,
                    quieted_before: record.quieted_before,
                    loud: None,
                    unresolved: record.unresolved,
                    durations: record.durations.clone(),
                    durations_before: record.durations_before.clone(),
                    pending: None,
                    synced: 0,
                    unsynced: 0,
                    latched: 0,
                    gated: 0,
                    numaflow_version: record.numaflow_version.clone(),
                };
                for pid in &record.pids {
                    if let Some(process) = self.processes.get(pid).filter(|p| p.slot != 0) {
                        include(&mut status, &read(process.slot), process.found);
                    }
                }
                // A replica that never called is shown with 0: that is what an upgrade that took effect looks like.
                if let Some(verdict) = record.ruling.verdict {
                    for method in 0..self.methods {
                        status.calls.entry((method, verdict)).or_default();
                    }
                }
                status
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use agent_common::abi::answers::Code;

    use super::*;
    use crate::durations::Durations;
    use crate::model::{Answer, Kind, ModeFrom, Replica};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const USELESS: Ruling = Ruling {
        mode: Mode::Audit,
        verdict: Some(Verdict::WouldReject),
        answer: Answer::Unimplemented,
        mode_from: ModeFrom::Default,
    };
    const ENFORCED: Ruling = Ruling {
        mode: Mode::Enforce,
        verdict: Some(Verdict::Rejected),
        answer: Answer::Unimplemented,
        mode_from: ModeFrom::Default,
    };
    const OFF: Ruling = Ruling {
        mode: Mode::Off,
        verdict: None,
        answer: Answer::Unimplemented,
        mode_from: ModeFrom::Default,
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
    fn of_those_that_have_gone_the_last_are_kept() {
        let mut inventory = Inventory::new(1);
        let number = MAX_GONE as u32 + 100;
        for replica in 0..number {
            let at = NOW + Duration::from_millis(replica.into());
            inventory.add(replica + 1, identity(replica), 0, USELESS, at);
            inventory.remove(replica + 1, &Slot::ZERO, at);
        }
        // One that is there stays, however old.
        inventory.add(number + 1, identity(number), 0, USELESS, NOW);
        inventory.expire(NOW + Duration::from_secs(2));
        let all = inventory.replicas(|_| Slot::ZERO);
        assert_eq!(all.len(), MAX_GONE + 1);
        let oldest = all
            .iter()
            .filter(|r| r.gone.is_some())
            .map(|r| r.gone)
            .min();
        assert_eq!(oldest, Some(Some(NOW + Duration::from_millis(100))));
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

    fn answered(ms: u64, pending: Option<(u64, i64)>) -> Answered {
        let mut durations = Durations::default();
        durations.record(Duration::from_millis(ms));
        Answered {
            durations: ByCode::from([((0, Code::Ok), durations)]),
            pending,
            quieted: Quieted::default(),
        }
    }

    #[test]
    fn durations_outlive_the_process_and_the_pod() {
        let pod = |name: &str| Identity {
            pod: name.into(),
            ..identity(1)
        };
        let mut inventory = Inventory::new(1);
        inventory.add(10, pod("a"), 1, USELESS, NOW);
        inventory.bank_answers(&pod("a"), &answered(5, Some((7, 42))));
        inventory.remove(10, &Slot::ZERO, NOW);
        inventory.add(11, pod("a"), 2, USELESS, NOW);
        let all = |inventory: &Inventory, living: Option<Answered>| {
            let mut all = inventory.replicas(|_| Slot::ZERO);
            inventory.include_answers(&mut all, |_| living.clone());
            all
        };
        // What a process answered later is newer, whatever it is.
        let shown = all(&inventory, Some(answered(5, Some((8, 3)))));
        assert_eq!(shown[0].durations[&(0, Code::Ok)].count(), 2);
        assert_eq!(shown[0].pending, Some(3));
        let shown = all(&inventory, Some(answered(5, Some((6, 3)))));
        assert_eq!(shown[0].pending, Some(42));
        inventory.remove(11, &Slot::ZERO, NOW);
        inventory.add(12, pod("b"), 3, USELESS, NOW);
        inventory.expire(NOW + SHOWN_AFTER_DEATH);
        let shown = all(&inventory, None);
        assert_eq!((shown.len(), shown[0].pending), (1, None));
        assert!(shown[0].durations.is_empty());
        assert_eq!(shown[0].durations_before[&(0, Code::Ok)].count(), 1);
    }

    #[test]
    fn a_call_is_its_process_s_as_long_as_that_has_the_slot() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(1), 1, ENFORCED, NOW);
        let call = |slot, ruling| inventory.call(10, slot, ruling).map(|(_, verdict)| verdict);
        assert_eq!(call(1, verdict::REJECTED), Some(Verdict::Rejected));
        assert_eq!(call(1, verdict::CANDIDATE), Some(Verdict::Admitted));
        assert_eq!(call(1, verdict::OFF), None);
        assert_eq!(call(2, verdict::REJECTED), None);
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

    #[test]
    fn under_enforcement_what_a_candidate_called_went_through_and_is_a_failure() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(1), 1, ENFORCED, NOW);
        inventory.add(20, identity(0), 2, USELESS, NOW);
        let read = |number| match number {
            1 => slot([1, 2, 3, 4], 0),
            _ => slot([0, 0, 50, 0], 0),
        };
        let all = inventory.replicas(read);
        assert_eq!(all[1].calls[&(0, Verdict::Admitted)], 1 + 3);
        assert_eq!(all[1].calls[&(0, Verdict::WouldReject)], 2);
        assert_eq!(all[1].calls[&(0, Verdict::Rejected)], 4);
        assert_eq!(inventory.missed(read), 3);
        // What is set later changes nothing of it, nor does the end of the process or of its replica.
        inventory.rule(|_, _| OFF);
        assert_eq!(inventory.missed(read), 3);
        inventory.rule(|_, _| ENFORCED);
        inventory.remove(20, &read(2), NOW);
        inventory.remove(10, &read(1), NOW);
        let none = |_| unreachable!("no process is left");
        assert_eq!(inventory.missed(none), 3);
        inventory.expire(NOW + SHOWN_AFTER_DEATH);
        assert_eq!(inventory.missed(none), 3);
    }

    #[test]
    fn no_counter_falls_when_the_mode_changes() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(1), 1, USELESS, NOW);
        inventory.remove(10, &slot([1, 10, 100, 1000], 0), NOW);
        inventory.add(11, identity(1), 1, USELESS, NOW);
        let read = |_| slot([1, 10, 100, 1000], 0);
        let before = inventory.replicas(read).remove(0).calls;
        assert_eq!(before[&(0, Verdict::WouldReject)], 220);
        for ruling in [OFF, ENFORCED, USELESS] {
            inventory.rule(|_, _| ruling);
            let status = inventory.replicas(read).remove(0);
            assert_eq!((status.mode, &status.calls), (ruling.mode, &before));
            assert_eq!(inventory.ruling(11), Some(ruling));
            assert_eq!(inventory.modes(), BTreeMap::from([(ruling.mode, 1)]));
        }
    }

    #[test]
    fn of_processes_that_are_known_more_or_less_well_the_strictest_is_shown() {
        let mut inventory = Inventory::new(1);
        let held = Say {
            annotation: None,
            held: true,
        };
        inventory.add(10, identity(1), 1, ENFORCED, NOW);
        inventory.add(11, identity(1), 2, USELESS, NOW);
        inventory.note(11, held, Some("v1.4.5".to_owned()));
        let shown = |inventory: &Inventory| inventory.replicas(|_| Slot::ZERO).remove(0);
        assert_eq!(shown(&inventory).mode, Mode::Enforce);
        assert_eq!(
            shown(&inventory).numaflow_version.as_deref(),
            Some("v1.4.5")
        );
        inventory.rule(|_, say| if say.held { USELESS } else { ENFORCED });
        assert_eq!(inventory.ruling(10), Some(ENFORCED));
        assert_eq!(inventory.ruling(11), Some(USELESS));
        assert_eq!(shown(&inventory).mode, Mode::Enforce);
        inventory.note(10, held, None);
        inventory.rule(|_, say| if say.held { USELESS } else { ENFORCED });
        assert_eq!(shown(&inventory).mode, Mode::Audit);
    }

    #[test]
    fn a_process_that_was_taken_for_another_takes_its_counts_with_it() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(1), 1, USELESS, NOW);
        inventory.bank(&identity(1), &slot([0, 5, 0, 0], 2));
        let read = |_| slot([0, 7, 0, 0], 0);
        assert_eq!(inventory.rename(10, &identity(1), NOW), (false, false));
        assert_eq!(inventory.rename(10, &identity(2), NOW), (true, true));
        let [only] = &inventory.replicas(read)[..] else {
            panic!("one")
        };
        assert_eq!(only.identity, identity(2));
        assert_eq!(only.calls[&(0, Verdict::WouldReject)], 12);
        assert_eq!((only.unresolved, &*only.pids), (2, &[10][..]));
        // The other one stays where it has another process.
        inventory.add(11, identity(3), 2, USELESS, NOW);
        assert_eq!(inventory.rename(10, &identity(3), NOW), (true, false));
        assert_eq!(inventory.rename(10, &identity(4), NOW), (false, true));
        let all = inventory.replicas(read);
        let living: Vec<_> = all.iter().map(|r| (&r.identity, &*r.pids)).collect();
        assert_eq!(
            living,
            [(&identity(3), &[11][..]), (&identity(4), &[10][..])]
        );
    }

    #[test]
    fn off_is_shown_without_calls() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(1), 1, OFF, NOW);
        let status = inventory.replicas(|_| slot([0, 0, 7, 0], 0)).remove(0);
        assert_eq!((status.mode, status.calls.len()), (Mode::Off, 0));
        // The next call would be counted, and so is shown with 0.
        inventory.rule(|_, _| ENFORCED);
        let status = inventory.replicas(|_| slot([0, 0, 7, 0], 0)).remove(0);
        assert_eq!(status.calls, BTreeMap::from([((0, Verdict::Rejected), 0)]));
    }

    #[test]
    fn the_dead_are_not_ruled_again() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(1), 1, USELESS, NOW);
        inventory.remove(10, &Slot::ZERO, NOW);
        inventory.rule(|_, _| OFF);
        assert_eq!(inventory.replicas(|_| Slot::ZERO)[0].mode, Mode::Audit);
        assert_eq!(
            (inventory.modes().len(), inventory.living().count()),
            (0, 0)
        );
    }

    #[test]
    fn a_program_that_is_told_of_twice_keeps_what_it_was_found_under() {
        let mut inventory = Inventory::new(1);
        inventory.add(10, identity(1), 1, ENFORCED, NOW);
        inventory.add(10, identity(1), 1, USELESS, NOW);
        assert_eq!(inventory.missed(|_| slot([0, 0, 3, 0], 0)), 3);
        // Another program has another slot.
        inventory.add(10, identity(1), 2, USELESS, NOW);
        assert_eq!(inventory.missed(|_| slot([0, 0, 3, 0], 0)), 0);
    }

    #[test]
    fn rejections_outlive_the_pod_as_long_as_its_replica_has_another() {
        let pod = |name: &str| Identity {
            pod: name.into(),
            ..identity(1)
        };
        let rejected = |inventory: &Inventory| -> u64 {
            let all = inventory.replicas(|_| slot([0, 0, 0, 1], 0));
            let own = all
                .iter()
                .filter_map(|r| r.calls.get(&(0, Verdict::Rejected)));
            let before = all.iter().flat_map(|r| r.rejected_before.values());
            own.chain(before).sum()
        };
        let mut inventory = Inventory::new(1);
        inventory.add(9, identity(2), 9, ENFORCED, NOW);
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            let later = NOW + SHOWN_AFTER_DEATH * i as u32;
            inventory.add(10, pod(name), 1, ENFORCED, later);
            inventory.remove(10, &slot([5, 0, 0, 100], 0), later);
            // The one before is forgotten now.
            inventory.expire(later);
        }
        assert_eq!(inventory.replicas(|_| Slot::ZERO).len(), 2);
        assert_eq!(rejected(&inventory), 300 + 1);
        // Replica 2 inherits nothing.
        inventory.expire(NOW + SHOWN_AFTER_DEATH * 10);
        assert_eq!(rejected(&inventory), 1);
    }
}
