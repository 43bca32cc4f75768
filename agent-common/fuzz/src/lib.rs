//! What the fuzz targets share: the reference of the tests, and the layout of an input.

use std::sync::OnceLock;

use agent_common::h2::paths::PathTable;

#[path = "../../tests/reference/mod.rs"]
pub mod reference;

/// The table of [`reference::PATHS`].
pub fn table() -> &'static PathTable {
    static TABLE: OnceLock<Box<PathTable>> = OnceLock::new();
    TABLE.get_or_init(|| reference::table(reference::PATHS))
}

/// An input is the number of octets that say how the stream is cut, these octets, and what the stream is made of.
pub fn parts(input: &[u8]) -> (&[u8], &[u8]) {
    let Some((&n, rest)) = input.split_first() else {
        return (&[], &[]);
    };
    rest.split_at(rest.len().min(n as usize))
}
