//! Where the peers are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::PeerError;

/// A program to run, with the arguments that come before its own.
#[derive(Debug)]
pub struct Program {
    /// The executable.
    pub executable: PathBuf,
    /// Such as the script, for an interpreter.
    pub arguments: Vec<OsString>,
}

impl Program {
    fn binary(executable: PathBuf) -> Self {
        Self {
            executable,
            arguments: Vec::new(),
        }
    }
}

/// This package's directory.
fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo and `cargo xtask setup` put what they build.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => directory.into(),
        None => package().with_file_name("target"),
    }
}

/// The place that the variable names, or else `default`; it has to exist.
fn find(
    what: &'static str,
    variable: &'static str,
    default: PathBuf,
) -> Result<PathBuf, PeerError> {
    let path = std::env::var_os(variable).map_or(default, PathBuf::from);
    if path.exists() {
        return Ok(path);
    }
    Err(PeerError::Missing {
        what,
        path,
        variable,
    })
}

/// The source on the Rust SDK.
pub fn source() -> Result<Program, PeerError> {
    let default = target().join("release/pg-source");
    find("the source", "PENDGUARD_PG_SOURCE", default).map(Program::binary)
}

/// The tonic client.
pub fn tonic() -> Result<Program, PeerError> {
    let default = target().join("release/pg-client");
    find("the tonic client", "PENDGUARD_PG_CLIENT", default).map(Program::binary)
}

/// Both ends of connections of which every byte is known.
pub fn stress() -> Result<PathBuf, PeerError> {
    let default = target().join("release/pg-stress");
    find("pg-stress", "PENDGUARD_PG_STRESS", default)
}

/// What makes calls as fast as they are answered.
///
/// # Errors
/// It isn't built.
pub fn bench() -> Result<PathBuf, PeerError> {
    let default = target().join("release/pg-bench");
    find("pg-bench", "PENDGUARD_PG_BENCH", default)
}

/// The grpc-go peers; arguments say which.
pub fn go(arguments: &[&str]) -> Result<Program, PeerError> {
    let default = target().join("peers/go-peer");
    Ok(Program {
        executable: find("the grpc-go peer", "PENDGUARD_PEER_GO", default)?,
        arguments: arguments.iter().map(Into::into).collect(),
    })
}

/// A C-core peer: a Python with grpcio, and the script.
pub fn python(script: &str) -> Result<Program, PeerError> {
    let default = target().join("peers/venv/bin/python");
    let executable = find("Python with grpcio", "PENDGUARD_PEER_PYTHON", default)?;
    let script = package().join("peers/python").join(script);
    Ok(Program {
        executable,
        arguments: vec![script.into()],
    })
}

/// A grpc-js peer: Node, and the script beside its modules.
pub fn node(script: &str) -> Result<Program, PeerError> {
    let directory = package().join("peers/node");
    find(
        "grpc-js",
        "PENDGUARD_PEER_NODE_MODULES",
        directory.join("node_modules"),
    )?;
    let executable = std::env::var_os("PENDGUARD_NODE").unwrap_or_else(|| "node".into());
    Ok(Program {
        executable: executable.into(),
        arguments: vec![directory.join(script).into()],
    })
}
