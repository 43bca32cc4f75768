//! The agent as a child process: the shipped binary, as a user runs it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::wait::{WAIT_LIMIT, scaled, wait_for, within};

/// How long the agent may take to be ready: it loads its programs, and the verifier takes its time on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// How long it may take to answer a request.
const GET_LIMIT: Duration = Duration::from_secs(10);

/// The method that is watched by default.
pub const PENDING: &str = "/source.v1.Source/PendingFn";

/// Where the agent's binary is: PENDGUARD_BIN, or what `cargo xtask build` made.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("PENDGUARD_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/release/pendguard"),
        PathBuf::from,
    );
    ensure!(
        path.exists(),
        "{} is missing: run `cargo xtask build`, or set PENDGUARD_BIN",
        path.display()
    );
    Ok(path)
}

/// A running agent.
pub struct Agent {
    child: Child,
    _directory: TempDir,
    metrics: SocketAddr,
    socket: PathBuf,
    log: tokio::task::JoinHandle<Vec<String>>,
}

impl Agent {
    /// Starts the agent with a socket and a port of its own, and waits until it is ready.
    pub async fn start(arguments: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(arguments, &[])?;
        agent.ready().await?;
        Ok(agent)
    }

    /// Starts the agent with its pins in that directory, and waits until it is ready.
    pub async fn start_at(pins: &Path, arguments: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn_at(pins, arguments)?;
        agent.ready().await?;
        Ok(agent)
    }

    /// Starts the agent with these variables, and waits until it is ready.
    pub async fn start_with(arguments: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let mut agent = Self::spawn(arguments, env)?;
        agent.ready().await?;
        Ok(agent)
    }

    /// The same without waiting.
    pub fn spawn_at(pins: &Path, arguments: &[&str]) -> Result<Self> {
        let pins = pins.to_str().context("a path in UTF-8")?;
        Self::spawn(arguments, &[("PENDGUARD_PIN_DIR", pins)])
    }

    /// Waits until it watches a process.
    pub async fn until_watches(&self, pid: u32) -> Result<()> {
        let what = format!("process {pid} is watched");
        wait_for(&what, WAIT_LIMIT, async || {
            let status = self.status().await?;
            let mut replicas = status["replicas"].as_array().into_iter().flatten();
            let watched = replicas.any(|replica| {
                let pids = replica["pids"].as_array();
                pids.is_some_and(|pids| pids.contains(&Value::from(pid)))
            });
            Ok(watched.then_some(()))
        })
        .await
    }

    /// Kills it at once, as the kernel does when memory is short.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Starts the agent without waiting.
    pub fn spawn(arguments: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        Self::spawn_by(Command::new(binary()?), arguments, env)
    }

    /// Starts the agent by a command that ends in its binary's name, with its pins in that directory, and waits until it is ready.
    pub async fn start_by(command: Command, pins: &Path, arguments: &[&str]) -> Result<Self> {
        let pins = pins.to_str().context("a path in UTF-8")?;
        let mut agent = Self::spawn_by(command, arguments, &[("PENDGUARD_PIN_DIR", pins)])?;
        agent.ready().await?;
        Ok(agent)
    }

    /// Starts the agent with its pins in that directory and its own default of `--answer`, and waits until it is ready.
    pub async fn start_as_shipped(pins: &Path, arguments: &[&str]) -> Result<Self> {
        let pins = pins.to_str().context("a path in UTF-8")?;
        let env = [("PENDGUARD_PIN_DIR", pins)];
        let mut agent = Self::spawn_as(Command::new(binary()?), arguments, &env)?;
        agent.ready().await?;
        Ok(agent)
    }

    /// Starts an agent that has its address and its socket's path from elsewhere, and waits until it is ready.
    pub async fn start_elsewhere(
        command: Command,
        metrics: SocketAddr,
        socket: PathBuf,
    ) -> Result<Self> {
        let mut agent = Self::begin(command, tempfile::tempdir()?, metrics, socket)?;
        agent.ready().await?;
        Ok(agent)
    }

    /// Tests see by UNIMPLEMENTED which calls were rejected; those of quiet answers ask for these.
    fn spawn_by(mut command: Command, arguments: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        command.env("PENDGUARD_ANSWER", "unimplemented");
        Self::spawn_as(command, arguments, env)
    }

    fn spawn_as(mut command: Command, arguments: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let metrics = free_address()?;
        let socket = directory.path().join("api.sock");
        command
            .args(["run", "--metrics-listen", &metrics.to_string()])
            .arg("--api-socket")
            .arg(&socket)
            .args(arguments)
            // Never the node's own, where another agent may have pinned something.
            .env("PENDGUARD_PIN_DIR", directory.path().join("pins"))
            .envs(env.iter().copied());
        Self::begin(command, directory, metrics, socket)
    }

    fn begin(
        mut command: Command,
        directory: TempDir,
        metrics: SocketAddr,
        socket: PathBuf,
    ) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting the agent")?;
        let stderr = child.stderr.take().context("the agent's log")?;
        let log = tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            let mut log = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                if std::env::var_os("PENDGUARD_TEST_LOG").is_some() {
                    eprintln!("agent: {line}");
                }
                log.push(line);
            }
            log
        });
        Ok(Self {
            child,
            _directory: directory,
            metrics,
            socket,
            log,
        })
    }

    async fn ready(&mut self) -> Result<()> {
        wait_for("the agent is ready", START_LIMIT, async || {
            if let Some(status) = self.child.try_wait()? {
                let log = (&mut self.log).await?;
                bail!("the agent ended ({status}): {}", log.join("\n"));
            }
            let ready = matches!(self.get("/readyz").await, Ok((200, _)));
            Ok(ready.then_some(()))
        })
        .await
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The address of its metrics.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// A page of its HTTP server: status and body.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("http://{}{path}", self.metrics);
        tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(scaled(GET_LIMIT)))
                .build()
                .into();
            let mut answer = agent.get(&url).call()?;
            let status = answer.status().as_u16();
            Ok((status, answer.body_mut().read_to_string()?))
        })
        .await?
    }

    /// A scrape.
    pub async fn scrape(&self) -> Result<Scrape> {
        let (status, text) = self.get("/metrics").await?;
        ensure!(status == 200, "/metrics answers {status}: {text}");
        let lines = text.lines().map(|line| Ok(line.to_owned()));
        let samples = prometheus_parse::Scrape::parse(lines)?.samples;
        Ok(Scrape { samples })
    }

    /// What `pendguard status --json` says.
    pub async fn status(&self) -> Result<Value> {
        let output = self.command(&["status", "--json"]).await?;
        ensure!(
            output.status.success(),
            "status: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Runs a command of `pendguard` against this agent's socket.
    pub async fn command(&self, arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(binary()?)
            .args(arguments)
            .arg("--api-socket")
            .arg(self.socket())
            .output()
            .await?)
    }

    /// Waits until `condition` holds for a scrape, and returns that scrape.
    pub async fn until(
        &self,
        what: &str,
        mut condition: impl FnMut(&Scrape) -> bool,
    ) -> Result<Scrape> {
        let mut last = None;
        wait_for(what, WAIT_LIMIT, async || {
            let scrape = self.scrape().await?;
            if condition(&scrape) {
                return Ok(Some(scrape));
            }
            last = Some(scrape);
            Ok(None)
        })
        .await
        .with_context(|| format!("the last scrape: {last:?}"))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("the agent has ended already")?;
        let pid = Pid::from_raw(pid.try_into()?).context("pid 0")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Sends SIGTERM, waits for a clean end, and returns the log.
    pub async fn stop(mut self) -> Result<Vec<String>> {
        self.signal(Signal::TERM)?;
        let status = within("the agent stops", STOP_LIMIT, self.child.wait()).await??;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(self.log.await?)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for it to end by itself: exit code and log.
    pub async fn ended(mut self) -> Result<(Option<i32>, String)> {
        let status = within("the agent ends", START_LIMIT, self.child.wait()).await??;
        Ok((status.code(), self.log.await?.join("\n")))
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let pid = self.pid().context("the agent has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

/// An address on which nothing listens now.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// One scrape of the metrics.
pub struct Scrape {
    samples: Vec<prometheus_parse::Sample>,
}

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for sample in &self.samples {
            writeln!(
                f,
                "{} {:?} {:?}",
                sample.metric, sample.labels, sample.value
            )?;
        }
        Ok(())
    }
}

impl Scrape {
    /// The sum of a metric's samples that have these labels, or `None` where there are none.
    pub fn sum(&self, metric: &str, labels: &[(&str, &str)]) -> Option<u64> {
        let mut sum = None;
        for sample in self.samples.iter().filter(|sample| {
            sample.metric == metric
                && labels
                    .iter()
                    .all(|(name, value)| sample.labels.get(name) == Some(*value))
        }) {
            let value = match sample.value {
                prometheus_parse::Value::Counter(v)
                | prometheus_parse::Value::Gauge(v)
                | prometheus_parse::Value::Untyped(v) => v,
                _ => continue,
            };
            *sum.get_or_insert(0) += value as u64;
        }
        sum
    }

    /// How many calls of PendingFn were timed for a replica of this number and workload, by how they ended.
    pub fn timed(&self, workload: &str, replica: u32, method: &str) -> BTreeMap<String, u64> {
        let replica = replica.to_string();
        let is = |sample: &prometheus_parse::Sample, name, value: &str| {
            sample.labels.get(name) == Some(value)
        };
        self.samples
            .iter()
            .filter(|sample| sample.metric == "pendguard_call_duration_seconds_count")
            .filter(|sample| {
                is(sample, "workload", workload)
                    && is(sample, "replica", &replica)
                    && is(sample, "method", method)
            })
            .filter_map(|sample| {
                let count = match sample.value {
                    prometheus_parse::Value::Untyped(n)
                    | prometheus_parse::Value::Counter(n)
                    | prometheus_parse::Value::Gauge(n) => n as u64,
                    _ => return None,
                };
                Some((sample.labels.get("code")?.to_owned(), count))
            })
            .collect()
    }

    /// PendingFn calls of a replica with a verdict; 0 where there are none.
    pub fn pending(&self, pod: &str, verdict: &str) -> u64 {
        let labels = [("pod", pod), ("method", PENDING), ("verdict", verdict)];
        self.sum("pendguard_calls_total", &labels).unwrap_or(0)
    }

    /// Calls of a replica whose method is not known.
    pub fn unresolved(&self, pod: &str) -> u64 {
        let labels = [("pod", pod), ("verdict", "unresolved")];
        self.sum("pendguard_calls_total", &labels).unwrap_or(0)
    }

    /// Entries of a map of the agent's; 0 where it doesn't say.
    pub fn map_entries(&self, map: &str) -> u64 {
        self.sum("pendguard_map_entries", &[("map", map)])
            .unwrap_or(0)
    }

    /// Calls that may have been missed; `None`: it doesn't say.
    pub fn events_lost(&self) -> Option<u64> {
        self.sum("pendguard_events_lost_total", &[])
    }

    /// Connections in a state, `synced` or `unsynced`; `None`: it doesn't say.
    pub fn connections(&self, state: &str) -> Option<u64> {
        self.sum("pendguard_connections", &[("state", state)])
    }

    /// What could not be parsed of what clients sent, by reason, without the zeros. Of answers nothing: where the other end speaks no
    /// HTTP/2, or doesn't answer, these are without a time.
    pub fn unparsed_sends(&self) -> BTreeMap<String, u64> {
        let mut unparsed = self.unparsed();
        unparsed.retain(|reason, _| !["answer", "untimed"].contains(&reason.as_str()));
        unparsed
    }

    /// All unparsed, by reason, without the zeros.
    pub fn unparsed(&self) -> BTreeMap<String, u64> {
        self.samples
            .iter()
            .filter(|sample| sample.metric == "pendguard_unparsed_total")
            .filter_map(|sample| {
                let reason = sample.labels.get("reason")?.to_owned();
                let n = self.sum("pendguard_unparsed_total", &[("reason", &reason)])?;
                (n > 0).then_some((reason, n))
            })
            .collect()
    }
}

/// A pod as Numaflow describes it to its containers.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    env: BTreeMap<String, String>,
}

impl Pod {
    /// A replica of a MonoVertex, in namespace `test`. Pod names are unique within this process.
    pub fn mono_vertex(workload: &str, replica: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "{workload}-mv-{replica}-{:x}{serial:03x}",
            std::process::id() & 0xfff
        );
        let object = serde_json::json!({
            "metadata": {"name": workload, "namespace": "test"},
            "spec": {"source": {"udsource": {"container": {"image": "source:1"}}}, "sink": {"log": {}}},
        });
        let env = [
            ("NUMAFLOW_NAMESPACE", "test"),
            ("NUMAFLOW_POD", &name),
            ("NUMAFLOW_REPLICA", replica),
            ("NUMAFLOW_MONO_VERTEX_NAME", workload),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            name: name.clone(),
            env: BTreeMap::from(env),
        }
        .with_object(&object)
    }

    fn with_object(mut self, object: &Value) -> Self {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(object.to_string());
        self.env.insert("NUMAFLOW_MONO_VERTEX_OBJECT".into(), text);
        self
    }

    /// With another value of a variable, or without it.
    #[must_use]
    pub fn set(mut self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.env.insert(name.into(), value.into()),
            None => self.env.remove(name),
        };
        self
    }

    /// The environment of the container `numa`.
    pub fn numa(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// The environment of the container `udsource`.
    pub fn udsource(&self) -> impl Iterator<Item = (&str, &str)> {
        self.numa()
            .filter(|(name, _)| !name.ends_with("_OBJECT"))
            .chain([("NUMAFLOW_UD_CONTAINER_TYPE", "udsource")])
    }
}
