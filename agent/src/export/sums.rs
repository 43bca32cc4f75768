//! What the pods of a replica add up to. Every exporter takes its numbers from here, so that they show the same.
//!
//! Sums are needed even where a replica has one pod: no two series may have the same labels, whatever the inventory holds, or
//! Prometheus refuses the whole scrape.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use agent_common::abi::Manner;
use agent_common::abi::answers::{BOUNDS, BOUNDS_NS, BUCKETS, Code};

use crate::durations::Durations;
use agent_common::h2::quiet::PENDING;

use crate::model::{Answer, Identity, Kind, Replica, Snapshot, Verdict};

/// What pods that are the same replica have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat<'a> {
    /// Kubernetes namespace.
    pub namespace: &'a str,
    /// MonoVertex or Pipeline.
    pub kind: Kind,
    /// Name of the MonoVertex or Pipeline.
    pub workload: &'a str,
    /// Name of the vertex; empty for a MonoVertex.
    pub vertex: &'a str,
    /// Number of the replica.
    pub replica: Replica,
}

impl<'a> From<&'a Identity> for Seat<'a> {
    fn from(identity: &'a Identity) -> Self {
        Self {
            namespace: &identity.namespace,
            kind: identity.kind,
            workload: &identity.workload,
            vertex: &identity.vertex,
            replica: identity.replica,
        }
    }
}

/// Calls of each pod by method and verdict. Those whose method is not known have an empty one.
pub fn calls(snapshot: &Snapshot) -> BTreeMap<(&Identity, &str, Verdict), u64> {
    let mut sums = BTreeMap::new();
    for replica in &snapshot.replicas {
        let identity = &replica.identity;
        for (&(method, verdict), &count) in &replica.calls {
            let key = (identity, path(snapshot, method), verdict);
            *sums.entry(key).or_default() += count;
        }
        *sums.entry((identity, "", Verdict::Unresolved)).or_default() += replica.unresolved;
    }
    sums
}

/// The rejected calls of all pods of a replica, by how they ended and why so. One that may be rejected is there from the start, with 0.
pub fn rejections(snapshot: &Snapshot) -> BTreeMap<(Seat<'_>, &str, Answer, &'static str), u64> {
    let mut sums: BTreeMap<_, u64> = BTreeMap::new();
    for replica in &snapshot.replicas {
        let seat = Seat::from(&replica.identity);
        let own = replica
            .calls
            .iter()
            .filter(|((_, verdict), _)| *verdict == Verdict::Rejected)
            .map(|((method, _), count)| (method, count));
        let before = &replica.rejected_before;
        let own = own.map(|(method, count)| (method, count, &replica.quieted, replica.loud));
        let before = before
            .iter()
            .map(|(method, count)| (method, count, &replica.quieted_before, None));
        for (&method, &count, quieted, loud) in own.chain(before) {
            let path = path(snapshot, method);
            let key = |answer, manner: Manner| (seat, path, answer, manner.name());
            let mut count = count;
            if path == PENDING {
                for (manner, n) in quieted.counts().filter(|(_, n)| *n > 0) {
                    *sums.entry(key(Answer::of(manner), manner)).or_default() += n;
                }
                count = loud.unwrap_or(count.saturating_sub(quieted.sum()));
                if replica.answer == Answer::Quiet {
                    sums.entry(key(Answer::Quiet, Manner::Quiet)).or_default();
                    if count == 0 {
                        continue;
                    }
                }
            }
            *sums
                .entry(key(Answer::Unimplemented, Manner::Quiet))
                .or_default() += count;
        }
    }
    sums
}

/// How long the calls of all pods of a replica took.
pub fn durations(snapshot: &Snapshot) -> BTreeMap<(Seat<'_>, &str, Code), Distribution> {
    let mut sums: BTreeMap<_, Distribution> = BTreeMap::new();
    for replica in &snapshot.replicas {
        let seat = Seat::from(&replica.identity);
        let before = &replica.durations_before;
        for (&(method, code), durations) in replica.durations.iter().chain(before) {
            let key = (seat, path(snapshot, method), code);
            sums.entry(key).or_default().add(durations);
        }
    }
    sums
}

/// The pending count that each living replica was told last. Of pods that are the same replica (an old one that is being
/// replaced, say) the newest that was told one counts, and of those that are as old as each other the last by name.
pub fn pending(snapshot: &Snapshot) -> BTreeMap<Seat<'_>, i64> {
    let mut newest = BTreeMap::new();
    for replica in snapshot.replicas.iter().filter(|r| r.gone.is_none()) {
        let Some(pending) = replica.pending else {
            continue;
        };
        let this = (replica.since, &replica.identity.pod, pending);
        match newest.entry(Seat::from(&replica.identity)) {
            Entry::Vacant(place) => drop(place.insert(this)),
            Entry::Occupied(mut place) if *place.get() < this => drop(place.insert(this)),
            Entry::Occupied(_) => {}
        }
    }
    newest
        .into_iter()
        .map(|(seat, (_, _, pending))| (seat, pending))
        .collect()
}

fn path(snapshot: &Snapshot, method: usize) -> &str {
    snapshot.methods.get(method).map_or("", String::as_str)
}

/// Whether exporters show this bound: those whose mantissa is 1, 2.5 or 5.
const fn is_shown(bound: u64) -> bool {
    let mut mantissa = bound;
    while mantissa.is_multiple_of(10) {
        mantissa /= 10;
    }
    matches!(mantissa, 1 | 25 | 5)
}

/// How many bounds are shown.
const SHOWN: usize = {
    let (mut i, mut shown) = (0, 0);
    while i < BOUNDS {
        shown += is_shown(BOUNDS_NS[i]) as usize;
        i += 1;
    }
    shown
};

/// Upper bounds of exported buckets in ns, inclusive. Each is also a bound of the kernel's finer buckets, so nothing is
/// estimated.
pub const SHOWN_NS: [u64; SHOWN] = {
    let mut bounds = [0; SHOWN];
    let (mut i, mut at) = (0, 0);
    while i < BOUNDS {
        if is_shown(BOUNDS_NS[i]) {
            bounds[at] = BOUNDS_NS[i];
            at += 1;
        }
        i += 1;
    }
    bounds
};

/// The exported bucket of each of the kernel's.
const SHOWN_OF: [usize; BUCKETS] = {
    let mut of = [SHOWN; BUCKETS];
    let (mut i, mut at) = (0, 0);
    while i < BOUNDS {
        of[i] = at;
        at += is_shown(BOUNDS_NS[i]) as usize;
        i += 1;
    }
    of
};

/// Durations by exported bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// How many there are in each bucket; those beyond the last bound come last.
    counts: [u64; SHOWN + 1],
    /// Their sum in ns.
    sum: u128,
}

impl Distribution {
    fn add(&mut self, durations: &Durations) {
        for (bucket, count) in durations.filled() {
            self.counts[SHOWN_OF[bucket]] += count;
        }
        self.sum += u128::from(durations.sum());
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum in seconds.
    pub fn seconds(&self) -> f64 {
        self.sum as f64 / 1e9
    }

    /// Each bound in seconds, and how many durations are at most that long.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut below = 0;
        SHOWN_NS
            .iter()
            .zip(&self.counts)
            .map(move |(bound, count)| {
                below += count;
                (*bound as f64 / 1e9, below)
            })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::engine::fake;

    #[test]
    fn bounds_are_one_two_and_a_half_and_five() {
        assert_eq!(SHOWN, 22);
        let seconds: Vec<String> = SHOWN_NS
            .iter()
            .map(|ns| (*ns as f64 / 1e9).to_string())
            .collect();
        assert_eq!(
            seconds.join(" "),
            "0.00001 0.000025 0.00005 0.0001 0.00025 0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 25 50 \
             100"
        );
    }

    #[test]
    fn what_is_as_long_as_a_bound_is_in_its_bucket() {
        let mut durations = Durations::default();
        for ns in SHOWN_NS {
            durations.record(Duration::from_nanos(ns));
            durations.record(Duration::from_nanos(ns + 1));
        }
        let mut distribution = Distribution::default();
        distribution.add(&durations);
        for (i, (_, below)) in (0..).zip(distribution.cumulative()) {
            assert_eq!(below, 2 * i + 1);
        }
        assert_eq!(distribution.count(), 2 * SHOWN as u64);
        let sum: u64 = SHOWN_NS.iter().map(|ns| 2 * ns + 1).sum();
        assert_eq!(distribution.seconds(), sum as f64 / 1e9);
    }

    #[test]
    fn of_pods_that_are_the_same_replica_the_newest_living_tells() {
        let mut snapshot = fake::empty();
        let pod = |name: &str, since: u64, pending| {
            let mut replica = fake::replica(Replica::Number(0), 1);
            replica.identity.pod = name.to_owned();
            replica.since = SystemTime::UNIX_EPOCH + Duration::from_secs(since);
            replica.pending = pending;
            replica
        };
        let told = |snapshot: &Snapshot| pending(snapshot).into_values().collect::<Vec<_>>();
        snapshot.replicas = vec![pod("a", 5, None)];
        assert!(told(&snapshot).is_empty());
        snapshot.replicas = vec![
            pod("b", 9, Some(2)),
            pod("a", 5, Some(1)),
            pod("c", 11, None),
        ];
        assert_eq!(told(&snapshot), [2]);
        snapshot.replicas.reverse();
        assert_eq!(told(&snapshot), [2]);
        // One that has left tells nothing any more.
        for replica in &mut snapshot.replicas {
            replica.gone = (replica.identity.pod == "b").then_some(SystemTime::UNIX_EPOCH);
        }
        assert_eq!(told(&snapshot), [1]);
        for names in [["a", "b"], ["b", "a"]] {
            snapshot.replicas = names
                .map(|name| pod(name, 5, Some(i64::from(name == "b"))))
                .into();
            assert_eq!(told(&snapshot), [1]);
        }
    }
}
