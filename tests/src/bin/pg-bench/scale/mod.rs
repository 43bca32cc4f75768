//! What the agent costs as the node grows: pods, connections, watched calls, and what everybody else does.

pub mod crowd;

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use comfy_table::Table;
use pendguard_tests::accounting::Accounting;
use pendguard_tests::agent::{Agent, Pod};
use pendguard_tests::wait::within;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::sleep;

use crate::cpu::Threads;
use crate::progress::Progress;
use crate::rounds::sample::run_times;
use crate::stats::{Line, Spread};

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Pods, each with eight connections.
    Pods,
    /// Connections of one pod.
    Connections,
    /// Watched calls a second, of one pod with eight connections.
    Calls,
    /// Writes a second of a process that is not watched.
    Writes,
}

impl Axis {
    const ALL: [(Self, &'static [u64]); 4] = [
        (Self::Pods, &[1, 50, 100, 150, 200, 250]),
        (Self::Connections, &[1, 500, 1000, 1500, 2000]),
        (Self::Calls, &[1, 1000, 10_000, 25_000, 50_000, 100_000]),
        (Self::Writes, &[0, 1000, 2500, 5000, 10_000]),
    ];

    /// As the tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods (eight connections each)",
            Self::Connections => "connections of one pod",
            Self::Calls => "watched calls a second",
            Self::Writes => "writes a second of an unwatched process",
        }
    }
}

/// What the agent took at one point of an axis.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    pub axis: Axis,
    pub x: f64,
    /// What was asked for and what was done a second, where that is a rate.
    pub done: f64,
    /// Resident memory in bytes.
    pub resident: f64,
    /// Milliseconds of CPU time a second, while nobody scrapes.
    pub cpu_ms: f64,
    /// Nanoseconds of the programs for each of what is done, by the kernel's accounting.
    pub programs_ns: Option<f64>,
    /// How long a scrape takes, in milliseconds.
    pub scrape_ms: Spread,
    /// Bytes of a scrape.
    pub scrape_bytes: f64,
    /// From a pod's start to its being in the metrics, in milliseconds.
    pub watched_ms: Option<Spread>,
}

/// What is fitted of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    Resident,
    Cpu,
    Scrape,
}

impl Point {
    /// A quantity in the unit of the tables: MiB, ms a second, ms.
    pub fn of(&self, quantity: Quantity) -> f64 {
        match quantity {
            Quantity::Resident => self.resident / f64::from(1 << 20),
            Quantity::Cpu => self.cpu_ms,
            Quantity::Scrape => self.scrape_ms.median,
        }
    }
}

/// The line through the points of an axis.
pub fn fit(points: &[Point], axis: Axis, quantity: Quantity) -> Option<Line> {
    let of_axis = points.iter().filter(|point| point.axis == axis);
    let points: Vec<_> = of_axis.map(|point| (point.x, point.of(quantity))).collect();
    Line::through(&points)
}

/// How many points there are.
pub fn count(quick: bool) -> u64 {
    let places = Axis::ALL
        .iter()
        .map(|(_, places)| chosen(places, quick).len());
    places.sum::<usize>() as u64
}

/// With `quick`, the first, the middle and the last.
fn chosen(places: &[u64], quick: bool) -> Vec<u64> {
    match places {
        [first, .., last] if quick => vec![*first, places[places.len() / 2], *last],
        _ => places.to_vec(),
    }
}

/// Measures all points.
pub async fn run(quick: bool, bar: &Progress) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    for (axis, places) in Axis::ALL {
        for place in chosen(places, quick) {
            bar.begin(format!("{place} {}", axis.name()));
            let point = point(axis, place, quick).await;
            points.push(point.with_context(|| format!("{place} {}", axis.name()))?);
            bar.done();
        }
    }
    Ok(points)
}

/// How long an answer of a process may take.
const LIMIT: Duration = Duration::from_secs(60);
/// A second: where less is done, what else is written on the machine shows.
const ENOUGH: u64 = 1000;
/// The programs at the exits of sends, by which all of it is done, with all that they continue in.
const PROGRAMS: &str = "tap_";
/// Nanoseconds that a program takes at least.
const LEAST: f64 = 10.0;
/// Connections of a pod, where that is not what grows.
const CONNECTIONS: u64 = 8;

async fn point(axis: Axis, x: u64, quick: bool) -> Result<Point> {
    let agent = Agent::start(&[]).await?;
    let mut scraper = Scraper::of(&agent);
    let (pods, connections) = match axis {
        Axis::Pods => (x, CONNECTIONS),
        Axis::Connections => (1, x),
        Axis::Calls => (1, CONNECTIONS),
        Axis::Writes => (1, 1),
    };
    let mut crowd = Vec::new();
    for i in 0..pods {
        let pod = Pod::mono_vertex("scale", &i.to_string());
        crowd.push(Crowd::start(connections, Some(&pod)).await?);
    }
    scraper.until(pods).await?;
    let stranger = Crowd::start(0, None).await?;
    let (mut worker, order) = match axis {
        Axis::Calls => (crowd.pop().context("no pod")?, Some(format!("calls {x}"))),
        Axis::Writes => (stranger, Some(format!("writes {x}"))),
        _ => (stranger, None),
    };
    let time = Duration::from_secs(if quick { 1 } else { 3 });
    let pid = agent.pid().context("the agent has ended")?;
    let before = Threads::of([pid]);
    let begun = Instant::now();
    let done = worker.work(order.as_deref(), time).await?;
    let cpu = Threads::of([pid]).since(&before) as f64 / 1e6;
    let cpu_ms = cpu / begun.elapsed().as_secs_f64();
    let programs_ns = match &order {
        Some(order) if x >= ENOUGH => Some(programs(&agent, &mut worker, order).await?),
        _ => None,
    };
    let mut times = Vec::new();
    let mut scrape_bytes = 0.0;
    for _ in 0..if quick { 5 } else { 21 } {
        let begun = Instant::now();
        scrape_bytes = scraper.scrape()?.len() as f64;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let watched_ms = match axis {
        Axis::Pods => Some(time_to_watched(&mut scraper, pods, quick).await?),
        _ => None,
    };
    let point = Point {
        axis,
        x: x as f64,
        done: done as f64 / time.as_secs_f64(),
        resident: agent.resident()? as f64,
        cpu_ms,
        programs_ns,
        scrape_ms: Spread::of(times).context("no scrape")?,
        scrape_bytes,
        watched_ms,
    };
    crowd.push(worker);
    for process in crowd {
        process.end().await?;
    }
    agent.stop().await?;
    Ok(point)
}

/// Nanoseconds of the programs for each of what the worker does in a second.
async fn programs(agent: &Agent, worker: &mut Crowd, order: &str) -> Result<f64> {
    let _accounting = Accounting::on()?;
    let spent = async || {
        let times = run_times(agent).await?;
        let of_sends = times.iter().filter(|(name, _)| name.starts_with(PROGRAMS));
        anyhow::Ok(of_sends.map(|(_, nanoseconds)| nanoseconds).sum::<u64>())
    };
    let before = spent().await?;
    let done = worker.work(Some(order), Duration::from_secs(1)).await?;
    let each = (spent().await? - before) as f64 / done as f64;
    // No send passes its program in less: then it wasn't these programs that saw them.
    ensure!(each >= LEAST, "{order}: {each} ns in the programs for each");
    Ok(each)
}

/// Starts pods, one after another, and looks how long each takes to be in the metrics.
async fn time_to_watched(scraper: &mut Scraper, pods: u64, quick: bool) -> Result<Spread> {
    let mut times = Vec::new();
    for _ in 0..if quick { 3 } else { 9 } {
        let pod = Pod::mono_vertex("late", "1");
        let begun = Instant::now();
        let process = Crowd::start(1, Some(&pod)).await?;
        scraper.until(pods + 1).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        process.end().await?;
        scraper.until(pods).await?;
    }
    Spread::of(times).context("no pod")
}

/// A process of [`crowd`].
struct Crowd {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    async fn start(connections: u64, pod: Option<&Pod>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["crowd", &connections.to_string()])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if let Some(pod) = pod {
            command.envs(pod.numa());
        }
        let mut child = command.spawn()?;
        let mut crowd = Self {
            stdin: child.stdin.take().context("no standard input")?,
            lines: BufReader::new(child.stdout.take().context("no standard output")?).lines(),
            child,
        };
        let first = crowd.line().await?;
        ensure!(first == "ready", "{first}");
        Ok(crowd)
    }

    async fn line(&mut self) -> Result<String> {
        let line = within("an answer", LIMIT, self.lines.next_line()).await??;
        line.context("a process of the crowd has ended")
    }

    /// Does it for so long, or nothing; how often it was done.
    async fn work(&mut self, order: Option<&str>, time: Duration) -> Result<u64> {
        let Some(order) = order else {
            sleep(time).await;
            return Ok(0);
        };
        let order = format!("{order} {}\n", time.as_millis());
        self.stdin.write_all(order.as_bytes()).await?;
        Ok(self.line().await?.parse()?)
    }

    async fn end(mut self) -> Result<()> {
        drop(self.stdin);
        let status = within("its end", LIMIT, self.child.wait()).await??;
        ensure!(status.success(), "a process of the crowd: {status}");
        Ok(())
    }
}

/// Scrapes on one connection, as Prometheus does.
struct Scraper {
    agent: ureq::Agent,
    url: String,
}

/// How often it looks while it waits.
const LOOK: Duration = Duration::from_millis(1);

impl Scraper {
    fn of(agent: &Agent) -> Self {
        let configuration = ureq::Agent::config_builder().timeout_global(Some(LIMIT));
        Self {
            agent: configuration.build().into(),
            url: format!("http://{}/metrics", agent.metrics_address()),
        }
    }

    fn scrape(&mut self) -> Result<String> {
        let mut answer = self.agent.get(&self.url).call()?;
        Ok(answer.body_mut().read_to_string()?)
    }

    /// Waits until so many replicas are watched.
    async fn until(&mut self, wanted: u64) -> Result<()> {
        let begun = Instant::now();
        loop {
            let found = replicas(&self.scrape()?);
            if found == wanted {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < LIMIT,
                "{found} of {wanted} pods are watched"
            );
            sleep(LOOK).await;
        }
    }
}

/// How many replicas a scrape says are watched.
fn replicas(scrape: &str) -> u64 {
    let lines = scrape
        .lines()
        .filter(|line| line.starts_with("pendguard_replicas{"));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The points for a terminal.
pub fn show(points: &[Point]) {
    let mut table = Table::new();
    table.set_header([
        "",
        "",
        "memory, MiB",
        "CPU, ms/s",
        "programs, ns each",
        "scrape, ms",
        "scrape, KiB",
        "until watched, ms",
    ]);
    for point in points {
        let optional = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.0}"));
        table.add_row([
            point.axis.name().to_owned(),
            format!("{:.0}", point.x),
            format!("{:.1}", point.of(Quantity::Resident)),
            format!("{:.2}", point.cpu_ms),
            optional(point.programs_ns),
            format!("{:.2}", point.scrape_ms.median),
            format!("{:.0}", point.scrape_bytes / 1024.0),
            optional(point.watched_ms.map(|spread| spread.median)),
        ]);
    }
    println!("{table}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_of_all_namespaces_and_modes_are_summed() {
        let scrape = "# HELP pendguard_replicas x\npendguard_replicas{namespace=\"a\",mode=\"audit\"} 3\n\
                      pendguard_replicas{namespace=\"b\",mode=\"off\"} 4\npendguard_replicas_other 9\n";
        assert_eq!(replicas(scrape), 7);
        assert_eq!(replicas(""), 0);
    }

    #[test]
    fn a_quick_run_has_both_ends() {
        for (_, places) in Axis::ALL {
            let quick = chosen(places, true);
            assert_eq!(quick.first(), places.first());
            assert_eq!(quick.last(), places.last());
            assert_eq!(quick.len(), 3);
        }
        assert!(count(true) < count(false));
    }

    #[test]
    fn a_line_is_fitted_to_the_points_of_its_axis_alone() {
        let point = |axis, x: f64, mib: f64| Point {
            axis,
            x,
            done: 0.0,
            resident: mib * f64::from(1 << 20),
            cpu_ms: 0.0,
            programs_ns: None,
            scrape_ms: Spread::of(vec![1.0]).unwrap(),
            scrape_bytes: 0.0,
            watched_ms: None,
        };
        let points = [
            point(Axis::Pods, 1.0, 10.5),
            point(Axis::Connections, 1.0, 99.0),
            point(Axis::Pods, 3.0, 11.5),
        ];
        let line = fit(&points, Axis::Pods, Quantity::Resident).unwrap();
        assert!((line.slope - 0.5).abs() < 1e-9 && (line.intercept - 10.0).abs() < 1e-9);
        assert_eq!(fit(&points, Axis::Calls, Quantity::Resident), None);
    }
}
