//! What was seen of a fault, in figures.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::peers::target_directory;

/// Writes down what was seen of a fault, for the table of `cargo xtask faults`, which says what was expected.
///
/// # Errors
/// It can't be written.
pub fn seen(fault: &str, seen: &str) -> Result<()> {
    println!("{fault}: {seen}");
    let name: String = fault
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let directory = target_directory().join("faults");
    let path = directory.join(format!("{name}.json"));
    let row = json!({ "fault": fault, "seen": seen });
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&path, row.to_string() + "\n"))
        .with_context(|| path.display().to_string())
}
