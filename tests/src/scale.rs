//! How much the tests do and how long they wait: less of it, and longer, in a virtual machine without hardware support.

use std::env;
use std::sync::OnceLock;
use std::time::Duration;

/// How much the tests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// What is claimed.
    Full,
    /// `cargo xtask test --fast`.
    Fast,
    /// `cargo xtask vm`: every kind of thing, but few of each.
    Vm,
}

/// What PENDGUARD_TEST_SCALE says: `fast`, `vm`; anything else is full.
#[must_use]
pub fn scale() -> Scale {
    match env::var("PENDGUARD_TEST_SCALE").as_deref() {
        Ok("fast") => Scale::Fast,
        Ok("vm") => Scale::Vm,
        _ => Scale::Full,
    }
}

/// `full`, or `small` in a virtual machine.
#[must_use]
pub fn amount<T>(full: T, small: T) -> T {
    match scale() {
        Scale::Full | Scale::Fast => full,
        Scale::Vm => small,
    }
}

/// How long to wait where a machine of usual speed takes less than `limit`: that, times PENDGUARD_TEST_SLOW.
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        env::var("PENDGUARD_TEST_SLOW")
            .ok()
            .and_then(|factor| factor.parse().ok())
            .unwrap_or(1)
    });
    limit * *factor
}
