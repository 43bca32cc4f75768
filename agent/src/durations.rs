//! How long calls took: a histogram with the kernel's buckets.
#![forbid(unsafe_code)]

use std::time::Duration;

use agent_common::abi::answers::{BOUNDS, BOUNDS_NS, BUCKETS};

/// A histogram of durations.
#[derive(Clone, PartialEq, Eq)]
pub struct Durations {
    buckets: [u64; BUCKETS],
    sum: u64,
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum: 0,
        }
    }
}

/// Without the buckets that are empty, which most are.
impl std::fmt::Debug for Durations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let filled = self.buckets.iter().enumerate().filter(|(_, n)| **n > 0);
        f.debug_struct("Durations")
            .field("sum", &self.sum)
            .field("buckets", &filled.collect::<Vec<_>>())
            .finish()
    }
}

impl Durations {
    /// A histogram with these buckets (see [`agent_common::abi::answers`]), whose durations add up to `sum` ns.
    pub fn new(buckets: [u64; BUCKETS], sum: u64) -> Self {
        Self { buckets, sum }
    }

    /// Adds all that another one has.
    pub fn add(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(other.buckets) {
            *own += more;
        }
        self.sum += other.sum;
    }

    /// Adds one duration.
    pub fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[agent_common::abi::answers::bucket(&BOUNDS_NS, ns)] += 1;
        self.sum = self.sum.saturating_add(ns);
    }

    /// What came since `before`, an earlier state of the same histogram; nothing where it isn't one.
    pub fn since(&self, before: &Self) -> Self {
        let mut new = self.clone();
        for (own, less) in new.buckets.iter_mut().zip(before.buckets) {
            *own = own.saturating_sub(less);
        }
        new.sum = new.sum.saturating_sub(before.sum);
        new
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum in ns.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// How many are in each bucket.
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// Their mean.
    pub fn mean(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.sum.checked_div(self.count())?))
    }

    /// The duration below which the part `q` (0 to 1) of them lies, as if those of a bucket were spread over it evenly. A
    /// bucket's bounds lie at most 13 % apart.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * count as f64;
        let mut below = 0;
        for (i, &n) in self.buckets.iter().enumerate().filter(|(_, n)| **n > 0) {
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
    }
}
