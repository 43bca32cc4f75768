//! How long the tests may take, where somebody limits that: on a slow machine less is tested, and it is said what was left out, rather
//! than nothing because the time was over.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// The variable: minutes for all of it. Unset: no limit.
const VARIABLE: &str = "PENDGUARD_TEST_MINUTES";

/// When the time is over, if it is limited.
#[derive(Clone, Copy)]
pub struct Budget {
    end: Option<Instant>,
}

impl Budget {
    /// What the variable says, from now on.
    pub fn from_environment() -> Result<Self> {
        let minutes = match std::env::var(VARIABLE) {
            Ok(text) => Some(
                text.parse::<u64>()
                    .with_context(|| format!("{VARIABLE}={text:?} is no number of minutes"))?,
            ),
            Err(_) => None,
        };
        Ok(Self::limited(minutes))
    }

    fn limited(minutes: Option<u64>) -> Self {
        Self {
            end: minutes.map(|n| Instant::now() + Duration::from_secs(60 * n)),
        }
    }

    /// Whether so many minutes are left.
    pub fn has(self, minutes: u64) -> bool {
        let need = Duration::from_secs(60 * minutes);
        self.end
            .is_none_or(|end| end.saturating_duration_since(Instant::now()) >= need)
    }

    /// What is left, in words.
    pub fn left(self) -> String {
        match self.end {
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                format!("{} of {VARIABLE}'s minutes are left", left.as_secs() / 60)
            }
            None => "there is no limit".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_there_is_always_time() {
        assert!(Budget::limited(None).has(1 << 40));
    }

    #[test]
    fn a_limit_is_one() {
        let budget = Budget::limited(Some(10));
        assert!(budget.has(9) && !budget.has(11), "{}", budget.left());
    }
}
