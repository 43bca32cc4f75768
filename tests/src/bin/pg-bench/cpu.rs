//! CPU time of processes, threads of the kernel included, to the nanosecond: the scheduler's own account.
//!
//! What a BPF program takes is the time of the process in whose system call it runs, and what a socket map puts off is that of a
//! thread of the kernel's (`kworker`): both are in what is summed here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result};

/// The kernel's threads are the children of this process.
const KTHREADD: u32 = 2;

/// How long each thread of some processes has run.
#[derive(Clone, Debug, Default)]
pub struct Threads(BTreeMap<u32, u64>);

impl Threads {
    /// The threads of these processes. A process that has ended has none.
    pub fn of(processes: impl IntoIterator<Item = u32>) -> Self {
        let mut threads = BTreeMap::new();
        for process in processes {
            let Ok(entries) = fs::read_dir(format!("/proc/{process}/task")) else {
                continue;
            };
            for entry in entries.flatten() {
                let stat = fs::read_to_string(entry.path().join("schedstat"));
                let thread = entry.file_name().to_string_lossy().parse();
                if let (Ok(stat), Ok(thread)) = (stat, thread)
                    && let Some(run) = stat.split(' ').next().and_then(|run| run.parse().ok())
                {
                    threads.insert(thread, run);
                }
            }
        }
        Self(threads)
    }

    /// Those of the kernel.
    pub fn of_kernel() -> Result<Self> {
        let children = children_of(&BTreeSet::from([KTHREADD]))?;
        Ok(Self::of(children))
    }

    /// Nanoseconds since an earlier look, of threads that are there now.
    pub fn since(&self, before: &Self) -> u64 {
        let one = |(thread, run): (&u32, &u64)| {
            run.saturating_sub(before.0.get(thread).copied().unwrap_or(0))
        };
        self.0.iter().map(one).sum()
    }
}

/// A process and its children.
pub fn family(process: u32) -> Result<Vec<u32>> {
    let mut all = vec![process];
    all.extend(children_of(&BTreeSet::from([process]))?);
    Ok(all)
}

fn children_of(parents: &BTreeSet<u32>) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        // One that has ended meanwhile is nobody's.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if parent(&stat).is_some_and(|parent| parents.contains(&parent)) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// The parent in `/proc/<pid>/stat`; the name before it may have anything in it.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Resident memory of some processes, in bytes; what they share counts for each.
pub fn resident(processes: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for process in processes {
        let path = format!("/proc/{process}/status");
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
            .with_context(|| format!("{path}: no VmRSS"))?;
        sum += kib * 1024;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("7 (a) b) (c) S 42 7 7"), Some(42));
        assert_eq!(parent("7 (a"), None);
    }

    #[test]
    fn time_is_that_of_threads_that_are_there() {
        let before = Threads(BTreeMap::from([(1, 10), (2, 50)]));
        let after = Threads(BTreeMap::from([(1, 15), (3, 7)]));
        assert_eq!(after.since(&before), 12);
    }

    #[test]
    fn work_shows() {
        let own = std::process::id();
        let before = Threads::of([own]);
        let begun = std::time::Instant::now();
        while begun.elapsed().as_millis() < 20 {
            std::hint::spin_loop();
        }
        // Another thread's time may count, too, but none of it is lost.
        assert!(Threads::of([own]).since(&before) > 1_000_000);
        assert!(resident(&[own]).unwrap() > 100_000);
        assert!(family(own).unwrap().contains(&own));
    }
}
