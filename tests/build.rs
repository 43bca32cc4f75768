//! Generates the client of `source.v1.Source` without a `protoc` binary, and tells the client which tonic it is.

use std::path::Path;

use anyhow::{Context as _, Result};

/// The package whose version a recorded capture names as its encoder.
const TONIC: &str = "tonic";

fn main() -> Result<()> {
    let manifest_dir = std::env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR")?;
    let manifest_dir = Path::new(&manifest_dir);
    let proto_dir = manifest_dir.join("proto");
    let descriptors = protox::compile(["source.proto"], [&proto_dir])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed={}", proto_dir.display());

    // tonic has no constant for its version; the lock file is what was really built.
    let lock = manifest_dir
        .parent()
        .context("the package has no workspace above it")?
        .join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let text = std::fs::read_to_string(&lock).with_context(|| lock.display().to_string())?;
    let version = locked_version(&text, TONIC)
        .with_context(|| format!("{} has no package {TONIC}", lock.display()))?;
    println!("cargo::rustc-env=TONIC_VERSION={version}");
    Ok(())
}

/// The version of `package` in the text of a lock file.
fn locked_version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines.next()?;
    lines
        .next()?
        .strip_prefix("version = \"")?
        .strip_suffix('"')
}
