//! The table of faults: what each was to lead to, and what was seen.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::json;

/// Where the rows are: `cargo xtask test` makes a table of them.
fn directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")),
        PathBuf::from,
    );
    target.join("faults")
}

/// Writes a row down: the fault, what was expected, and what was seen.
///
/// # Errors
/// It can't be written.
pub fn seen(fault: &str, expected: &str, seen: &str) -> Result<()> {
    println!("{fault}: {seen}");
    let name: String = fault
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let path = directory().join(format!("{name}.json"));
    let row = json!({ "fault": fault, "expected": expected, "seen": seen });
    fs::create_dir_all(directory())
        .and_then(|()| fs::write(&path, row.to_string() + "\n"))
        .with_context(|| path.display().to_string())
}
