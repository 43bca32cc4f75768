//! A real Prometheus that scrapes an agent: what the dashboard and the rules are tested with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::agent::free_address;
use crate::peers::target_directory;
use crate::wait::{WAIT_LIMIT, scaled, wait_for};

/// How long it may take to answer a query.
const QUERY_LIMIT: Duration = Duration::from_secs(20);
/// The name of the agent's job: the alerts know agents by it.
const JOB: &str = "pendguard";

/// Where one of its programs is: what `cargo xtask setup --tests` unpacked, or else the one on PATH.
fn program(name: &str) -> PathBuf {
    let unpacked = target_directory()
        .join("tools/prometheus/usr/bin")
        .join(name);
    if unpacked.exists() {
        unpacked
    } else {
        name.into()
    }
}

/// Where the shipped rules are; their tests are beside them.
#[must_use]
pub fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy/prometheus/rules.yaml")
}

/// Runs `promtool`, which has to be content.
///
/// # Errors
/// What it says.
pub async fn promtool(arguments: &[&str], file: &Path) -> Result<String> {
    let output = Command::new(program("promtool"))
        .args(arguments)
        .arg(file)
        .output()
        .await
        .context("promtool (run `cargo xtask setup --tests`)")?;
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let said = said.concat();
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(said)
}

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

/// A series that was asked for.
#[derive(Clone, Debug, Deserialize)]
pub struct Series {
    /// Its labels.
    pub metric: BTreeMap<String, String>,
    /// Times in seconds and values: one, or those of a range.
    #[serde(alias = "value", deserialize_with = "points")]
    pub values: Vec<(f64, f64)>,
}

/// A rule that was loaded.
#[derive(Clone, Debug, Deserialize)]
pub struct Rule {
    /// Its name, or that of the series that it records.
    pub name: String,
    /// Its expression.
    pub query: String,
    /// `alerting` or `recording`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `ok`, `err` or `unknown`: not evaluated yet.
    pub health: String,
    /// Why the last evaluation failed.
    #[serde(default, rename = "lastError")]
    pub last_error: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Found {
    Vector(Vec<Series>),
    Matrix(Vec<Series>),
    // Of no interest, but valid.
    Scalar(serde_json::Value),
    String(serde_json::Value),
}

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Points {
    One((f64, String)),
    Many(Vec<(f64, String)>),
}

fn points<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<(f64, f64)>, D::Error> {
    let points = match Points::deserialize(deserializer)? {
        Points::One(point) => vec![point],
        Points::Many(points) => points,
    };
    points
        .into_iter()
        .map(|(time, value)| {
            let value = value.parse().map_err(D::Error::custom)?;
            Ok((time, value))
        })
        .collect()
}

impl Prometheus {
    /// Starts one on loopback that scrapes `agent` and evaluates `rules` every second, and waits until it is ready.
    ///
    /// # Errors
    /// It doesn't start.
    pub async fn start(agent: SocketAddr, rules: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = free_address()?;
        let config = directory.path().join("prometheus.yml");
        // JSON is YAML, too.
        let text = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [agent]}]}],
        });
        std::fs::write(&config, text.to_string())?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let child = Command::new(program("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting prometheus (run `cargo xtask setup --tests`)")?;
        let mut prometheus = Self {
            child,
            address,
            directory,
        };
        prometheus.ready().await?;
        Ok(prometheus)
    }

    async fn ready(&mut self) -> Result<()> {
        wait_for("prometheus is ready", WAIT_LIMIT, async || {
            if let Some(status) = self.child.try_wait()? {
                let log = std::fs::read_to_string(self.directory.path().join("log"))?;
                bail!("prometheus ended ({status}): {log}");
            }
            let ready = matches!(self.get("/-/ready", &[]).await, Ok((200, _)));
            Ok(ready.then_some(()))
        })
        .await
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<(u16, String)> {
        let url = format!("http://{}{path}", self.address);
        let parameters: Vec<_> = parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(scaled(QUERY_LIMIT)))
                .build()
                .into();
            let mut answer = agent.get(&url).query_pairs(parameters).call()?;
            let status = answer.status().as_u16();
            Ok((status, answer.body_mut().read_to_string()?))
        })
        .await?
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, parameters: &[(&str, &str)]) -> Result<T> {
        let (status, text) = self.get(path, parameters).await?;
        let answer: Answer<T> = serde_json::from_str(&text)
            .with_context(|| format!("{path} {parameters:?} answers {status}: {text}"))?;
        match answer {
            Answer {
                data: Some(data),
                error: None,
            } => Ok(data),
            Answer { error, .. } => bail!(
                "{path} {parameters:?}: {}",
                error.as_deref().unwrap_or("no data")
            ),
        }
    }

    /// Evaluates an expression now.
    ///
    /// # Errors
    /// It is none.
    pub async fn query(&self, expression: &str) -> Result<Vec<Series>> {
        self.series("/api/v1/query", &[("query", expression)]).await
    }

    /// Evaluates an expression from `start` to `end`, in seconds since 1970, every `step` seconds.
    ///
    /// # Errors
    /// It is none.
    pub async fn range(
        &self,
        expression: &str,
        (start, end): (f64, f64),
        step: f64,
    ) -> Result<Vec<Series>> {
        let [start, end, step] = [start, end, step].map(|number| number.to_string());
        let parameters = [
            ("query", expression),
            ("start", &start),
            ("end", &end),
            ("step", &step),
        ];
        self.series("/api/v1/query_range", &parameters).await
    }

    async fn series(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Vec<Series>> {
        match self.ask(path, parameters).await? {
            Found::Vector(series) | Found::Matrix(series) => Ok(series),
            Found::Scalar(value) | Found::String(value) => bail!("{parameters:?} is {value}"),
        }
    }

    /// The values of a label over the series that match.
    ///
    /// # Errors
    /// The selector is none.
    pub async fn label_values(&self, selector: &str, label: &str) -> Result<Vec<String>> {
        let path = format!("/api/v1/label/{label}/values");
        self.ask(&path, &[("match[]", selector)]).await
    }

    /// The rules that it has loaded.
    ///
    /// # Errors
    /// It doesn't say.
    pub async fn rules(&self) -> Result<Vec<Rule>> {
        let Groups { groups } = self.ask("/api/v1/rules", &[]).await?;
        Ok(groups.into_iter().flat_map(|group| group.rules).collect())
    }

    /// Kills it; its data goes with it.
    ///
    /// # Errors
    /// It has ended already.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(self.directory.path().join("log"))?;
            bail!("prometheus ended by itself ({status}): {log}");
        }
        Ok(self.child.kill().await?)
    }
}
