//! Which build this is.
#![forbid(unsafe_code)]

/// The version of the release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The revision that it was built from, or `unknown`.
pub const REVISION: &str = env!("PENDGUARD_BUILD_REVISION");
/// The compiler that built it, as it names itself.
pub const RUSTC: &str = env!("PENDGUARD_BUILD_RUSTC");
/// All of it, for `--version`.
pub const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (revision ",
    env!("PENDGUARD_BUILD_REVISION"),
    ", ",
    env!("PENDGUARD_BUILD_RUSTC"),
    ")"
);
