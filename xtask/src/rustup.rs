//! rustup's nightly toolchain, which not every machine has.

use std::process::Command;

use crate::process;

/// The name under which rustup knows it.
pub const NIGHTLY: &str = "nightly";

/// Whether it is installed. Asked before it is named anywhere, or rustup might install it merely because it was.
pub fn has_nightly() -> bool {
    process::probe(Command::new("rustup").args(["toolchain", "list"]))
        .is_some_and(|list| list.lines().any(|name| name.starts_with("nightly-")))
}

/// A program of it.
pub fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", NIGHTLY, program]);
    command
}
