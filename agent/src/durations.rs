//! How long calls took: a histogram with the kernel's buckets.
#![forbid(unsafe_code)]

use std::time::Duration;

use agent_common::abi::answers::{BOUNDS, BOUNDS_NS, BUCKETS};

/// A histogram of durations. Only its filled buckets take memory: a replica's calls take about as long as each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many are in each bucket that isn't empty, in order. A bucket's number is below [`BUCKETS`], so `u16` has room for it.
    filled: Vec<(u16, u64)>,
    sum: u64,
}

impl Durations {
    /// A histogram with these buckets (see [`agent_common::abi::answers`]), whose durations add up to `sum` ns. Nothing where there are
    /// more buckets than the kernel has.
    pub fn new(buckets: &[u64], sum: u64) -> Option<Self> {
        (buckets.len() <= BUCKETS).then(|| Self {
            filled: (0..)
                .zip(buckets.iter().copied())
                .filter(|(_, n)| *n > 0)
                .collect(),
            sum,
        })
    }

    /// Adds all that another one has.
    pub fn add(&mut self, other: &Self) {
        for &(bucket, more) in &other.filled {
            self.fill(bucket, more);
        }
        self.sum += other.sum;
    }

    /// Adds one duration.
    pub fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.fill(agent_common::abi::answers::bucket(&BOUNDS_NS, ns) as u16, 1);
        self.sum = self.sum.saturating_add(ns);
    }

    fn fill(&mut self, bucket: u16, more: u64) {
        match self
            .filled
            .binary_search_by_key(&bucket, |(bucket, _)| *bucket)
        {
            Ok(at) => self.filled[at].1 += more,
            Err(at) => self.filled.insert(at, (bucket, more)),
        }
    }

    /// What came since `before`, an earlier state of the same histogram; nothing where it isn't one.
    pub fn since(&self, before: &Self) -> Self {
        let mut new = self.clone();
        for (bucket, n) in &mut new.filled {
            *n = n.saturating_sub(before.bucket(*bucket));
        }
        new.filled.retain(|(_, n)| *n > 0);
        new.sum = new.sum.saturating_sub(before.sum);
        new
    }

    fn bucket(&self, bucket: u16) -> u64 {
        match self
            .filled
            .binary_search_by_key(&bucket, |(bucket, _)| *bucket)
        {
            Ok(at) => self.filled[at].1,
            Err(_) => 0,
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.filled.iter().map(|(_, n)| n).sum()
    }

    /// Their sum in ns.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// How many are in each bucket that isn't empty, in order.
    pub fn filled(&self) -> impl Iterator<Item = (usize, u64)> {
        self.filled.iter().map(|&(bucket, n)| (bucket.into(), n))
    }

    /// How many are in each bucket, up to the last one that isn't empty.
    pub fn buckets(&self) -> Vec<u64> {
        let len = self
            .filled
            .last()
            .map_or(0, |(last, _)| usize::from(*last) + 1);
        let mut buckets = vec![0; len];
        for (bucket, n) in self.filled() {
            buckets[bucket] = n;
        }
        buckets
    }

    /// Their mean.
    pub fn mean(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.sum.checked_div(self.count())?))
    }

    /// The duration below which the part `q` (0 to 1) of them lies, as if those of a bucket were spread over it evenly. A
    /// bucket's bounds lie at most 8 % apart.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * count as f64;
        let mut below = 0;
        for (i, n) in self.filled() {
            if (below + n) as f64 >= rank {
                let from = if i == 0 { 0 } else { BOUNDS_NS[i - 1] };
                // Of what lies beyond the last bound, the bound is all that is known.
                let to = if i < BOUNDS { BOUNDS_NS[i] } else { from };
                let part = (rank - below as f64) / n as f64;
                let ns = from as f64 + (to - from) as f64 * part.max(0.0);
                return Some(Duration::from_nanos(ns as u64));
            }
            below += n;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations: impl IntoIterator<Item = u64>) -> Durations {
        let mut histogram = Durations::default();
        for ns in durations {
            histogram.record(Duration::from_nanos(ns));
        }
        histogram
    }

    #[test]
    fn nothing_has_no_quantile() {
        let none = Durations::default();
        assert_eq!(
            (none.count(), none.mean(), none.quantile(0.5)),
            (0, None, None)
        );
    }

    #[test]
    fn quantiles_are_close() {
        // 5 ms to 50 ms, evenly.
        let histogram = of((0..10_000).map(|i| 5_000_000 + i * 4_500));
        for (q, ms) in [(0.01, 5.45), (0.5, 27.5), (0.99, 49.55), (1.0, 50.0)] {
            let found = histogram.quantile(q).unwrap().as_secs_f64() * 1e3;
            assert!((found / ms - 1.0).abs() < 0.02, "{q}: {found} ms, not {ms}");
        }
        let mean = histogram.mean().unwrap().as_secs_f64() * 1e3;
        assert!((mean / 27.5 - 1.0).abs() < 0.001, "{mean}");
    }

    #[test]
    fn what_is_too_long_is_at_least_the_last_bound() {
        let histogram = of([300_000_000_000]);
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_secs(100)));
    }

    #[test]
    fn sums_and_differences() {
        let (a, b) = (of([20_000, 3_000_000]), of([20_000]));
        let mut both = a.clone();
        both.add(&b);
        assert_eq!((both.count(), both.sum()), (3, 3_040_000));
        assert_eq!(both.since(&b), a);
        assert_eq!(b.since(&both).count(), 0);
        assert_eq!(both.since(&both), Durations::default());
    }

    #[test]
    fn buckets_are_what_it_is_made_of() {
        let a = of([1, 20_000, 20_000, 3_000_000]);
        let buckets = a.buckets();
        assert_eq!(buckets.iter().sum::<u64>(), 4);
        assert_eq!(buckets.last(), Some(&1));
        assert_eq!(Durations::new(&buckets, a.sum()), Some(a));
        assert_eq!(Durations::new(&[0; BUCKETS + 1], 0), None);
    }
}
