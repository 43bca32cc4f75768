//! The kernel's accounting of BPF programs.

use anyhow::{Context as _, Result};

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The accounting is on, and becomes what it was when this is dropped.
#[derive(Debug)]
pub struct Accounting(String);

impl Accounting {
    /// Turns it on.
    ///
    /// # Errors
    /// It takes root.
    pub fn on() -> Result<Self> {
        let before = std::fs::read_to_string(STATS).context(STATS)?;
        std::fs::write(STATS, "1").context(STATS)?;
        Ok(Self(before))
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(STATS, &self.0) {
            eprintln!("{STATS} stays on: {error}");
        }
    }
}
