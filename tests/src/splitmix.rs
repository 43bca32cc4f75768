//! SplitMix64: numbers that depend on a seed alone, so that both ends of a connection can make the same ones.

use std::ops::RangeInclusive;

/// A sequence of numbers.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// The sequence of that seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number of that range, of which none is left out.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (first, last) = range.into_inner();
        first + self.word() % (last - first + 1)
    }

    /// A number of that range, small ones as often as large ones: each power of two has the same chance.
    pub fn scattered(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (first, last) = range.into_inner();
        let bits = u64::from((last + 1 - first).ilog2());
        let most = 1 << self.within(0..=bits);
        first + self.within(0..=most.min(last - first + 1) - 1)
    }

    /// Fills `out` up to `len`.
    pub fn fill(&mut self, out: &mut Vec<u8>, len: usize) {
        while out.len() < len {
            let wanted = (len - out.len()).min(size_of::<u64>());
            out.extend_from_slice(&self.word().to_le_bytes()[..wanted]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept_and_reached() {
        let mut numbers = SplitMix::new(1);
        let mut seen = [0; 4];
        for _ in 0..1000 {
            seen[numbers.within(3..=6) as usize - 3] += 1;
            let n = numbers.scattered(1..=65_536);
            assert!((1..=65_536).contains(&n), "{n}");
        }
        assert!(seen.iter().all(|n| *n > 200), "{seen:?}");
        let small = (0..1000).filter(|_| numbers.scattered(1..=65_536) <= 16);
        assert!(small.count() > 100);
    }
}
