//! How long to wait after a failure: longer each time, and not as long as everybody else.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// Waits of ever twice the length, up to a limit, less up to a half of it by chance: when an API server comes back, the agents
/// of all nodes don't ask at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// From `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// How long to wait after a failure, when all was well for so long before it.
    pub fn wait(&mut self, well_for: Duration) -> Duration {
        if well_for >= self.longest {
            self.next = self.first;
        }
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait - (wait / 2).mul_f64(chance())
    }
}

/// From 0 to 1. The keys of a hash map are chance enough, and need no crate.
fn chance() -> f64 {
    let random = RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn it_doubles_to_a_limit_and_is_never_half_as_long() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        let mut full = FIRST;
        for _ in 0..12 {
            let wait = backoff.wait(Duration::ZERO);
            assert!(wait <= full && wait >= full / 2, "{wait:?} of {full:?}");
            full = (full * 2).min(LONGEST);
        }
        assert_eq!(full, LONGEST);
    }

    #[test]
    fn it_begins_anew_only_when_all_was_well_for_long_enough() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        for _ in 0..12 {
            backoff.wait(Duration::ZERO);
        }
        assert!(backoff.wait(LONGEST - FIRST) >= LONGEST / 2);
        assert!(backoff.wait(LONGEST) <= FIRST);
    }

    #[test]
    fn agents_dont_wait_alike() {
        let waits: std::collections::BTreeSet<_> = (0..32)
            .map(|_| Backoff::new(FIRST, LONGEST).wait(Duration::ZERO))
            .collect();
        assert!(waits.len() > 8, "{waits:?}");
    }
}
