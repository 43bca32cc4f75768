//! Three things for the agent: the gRPC API, its version, and the BPF programs that it carries.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message as _;

const PROTO: &str = "pendguard/v1/agent.proto";

fn main() {
    let result = api().and_then(|()| programs());
    version();
    if let Err(message) = result {
        // Each line an error of its own, or cargo takes the rest for noise.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

/// Generates `pendguard.v1`, and its descriptors for the reflection service. No `protoc` is needed.
fn api() -> Result<(), String> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile([PROTO], ["proto"]).map_err(|e| format!("{PROTO}: {e:?}"))?;
    let out = out_dir()?.join("pendguard.v1.bin");
    fs::write(&out, descriptors.encode_to_vec()).map_err(|e| format!("{}: {e}", out.display()))?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .map_err(|e| format!("{PROTO}: {e}"))
}

/// Puts the BPF object where the tap includes it from. It is built by another compiler (ARCHITECTURE.md), so not here.
fn programs() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=PENDGUARD_BPF_OBJ");
    let object = match env::var_os("PENDGUARD_BPF_OBJ") {
        Some(path) => PathBuf::from(path),
        None => Path::new("../target/bpf/pendguard.bpf.o").to_owned(),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    fs::copy(&object, out_dir()?.join("pendguard.bpf.o"))
        .map(drop)
        .map_err(|e| {
            format!(
                "the BPF programs are not at {}: {e}\nrun `cargo xtask build`, which builds them first, or name the \
                 object in PENDGUARD_BPF_OBJ",
                object.display()
            )
        })
}

/// The revision and the compiler, for `--version` and `pendguard_build_info`.
fn version() {
    println!("cargo::rerun-if-env-changed=PENDGUARD_REVISION");
    let revision = env::var("PENDGUARD_REVISION")
        .ok()
        .filter(|revision| !revision.is_empty())
        .or_else(|| {
            // HEAD moves on a checkout; its reflog grows with each commit. Both may lie elsewhere in a worktree.
            for file in ["HEAD", "logs/HEAD"] {
                if let Some(path) = output("git", &["rev-parse", "--git-path", file])
                    && Path::new(&path).exists()
                {
                    println!("cargo::rerun-if-changed={path}");
                }
            }
            output("git", &["rev-parse", "--short=12", "HEAD"])
        });
    let rustc = env::var("RUSTC")
        .ok()
        .and_then(|rustc| output(&rustc, &["--version"]));
    for (name, value) in [("REVISION", revision), ("RUSTC", rustc)] {
        let value = value.unwrap_or_else(|| "unknown".to_owned());
        println!("cargo::rustc-env=PENDGUARD_BUILD_{name}={value}");
    }
}

/// What a command printed, if it ran well.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

fn out_dir() -> Result<PathBuf, String> {
    env::var_os("OUT_DIR")
        .map(PathBuf::from)
        .ok_or_else(|| "OUT_DIR is not set".to_owned())
}
