//! How much the tests do: less of everything in a virtual machine without hardware support. How long it may take is
//! [`wait`](crate::wait)'s to say.

use std::env;

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

/// Calls of each replica where every one must be accounted for.
#[must_use]
pub fn calls() -> u64 {
    match scale() {
        Scale::Full => 10_000,
        Scale::Fast => 500,
        Scale::Vm => 200,
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
