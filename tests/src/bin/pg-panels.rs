//! The pictures of the docs: two workloads under audit and then under enforcement, scraped by a real Prometheus, and the panels of the
//! dashboard as it answers them.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use pendguard_tests::agent::binary;
use pendguard_tests::dashboard::{Kind, Panel, fill_in, panels};
use pendguard_tests::pictures::{Picture, Series, draw_terminal, legend, register_fonts, slug};
use pendguard_tests::prometheus::{Prometheus, rules};
use pendguard_tests::scene::{Scene, Workload};
use pendguard_tests::terminal::Terminal;
use pendguard_tests::wait::wait_for;
use tokio::process::Command;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

/// Asked more often than Numaflow asks, so that a minute has as much to show as an hour.
const WORKLOADS: [Workload; 2] = [
    Workload {
        name: "orders",
        replicas: 3,
        every: Duration::from_millis(200),
    },
    Workload {
        name: "invoices",
        replicas: 2,
        every: Duration::from_millis(500),
    },
];
/// What rates are taken over, in rules too: the shipped ones are made for hours.
const WINDOW: &str = "10s";
const SHIPPED_WINDOW: &str = "[5m]";
/// How long it may take until every replica is seen and scraped: more than a window.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Seconds between two points, and between two cells.
const STEP: f64 = 1.0;
const CELL: f64 = 2.0;

/// Draws the panels of the dashboard as PNG files.
#[derive(Parser)]
struct Arguments {
    /// Where they go
    directory: PathBuf,
    /// How long it audits, and then how long it enforces
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(20..))]
    seconds: u64,
}

// One thread: its mount namespace holds the bpffs.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = tokio::select! {
        result = run(&arguments) => result,
        result = stopped() => result,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("panels: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for Ctrl-C or SIGTERM: the run is dropped then, and puts back what it has changed of the machine.
async fn stopped() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let by = tokio::select! {
        result = ctrl_c() => {
            result?;
            "Ctrl-C"
        }
        _ = terminate.recv() => "SIGTERM",
    };
    bail!("stopped by {by}")
}

async fn run(arguments: &Arguments) -> Result<()> {
    register_fonts()?;
    std::fs::create_dir_all(&arguments.directory)
        .with_context(|| arguments.directory.display().to_string())?;
    let directory = tempfile::tempdir()?;
    let quick = directory.path().join("rules.yaml");
    let shipped = std::fs::read_to_string(rules()).context("the rules")?;
    std::fs::write(
        &quick,
        shipped.replace(SHIPPED_WINDOW, &format!("[{WINDOW}]")),
    )?;

    println!("Starting the agent, the replicas and Prometheus …");
    let scene = Scene::start(&WORKLOADS, &quick).await?;
    let length = Duration::from_secs(arguments.seconds);
    // Until rates are taken over a full window they are too low.
    until_old(&scene.prometheus).await?;
    let top = top(&scene)?;
    let start = now()?;
    println!("Auditing for {} s …", arguments.seconds);
    tokio::time::sleep(length).await;
    draw_top(&top, "top-audit", &arguments.directory)?;
    let switch = now()?;
    println!("Enforcing for {} s …", arguments.seconds);
    scene.enforce().await?;
    let switched = now()?;
    tokio::time::sleep(length).await;
    draw_top(&top, "top-enforce", &arguments.directory)?;
    let mut story = Story {
        range: (start, now()?),
        switch: (switch, switched),
        skipped: Vec::new(),
    };
    for panel in panels().filter(|panel| panel.kind.over_time()) {
        story
            .draw(&scene.prometheus, panel, &arguments.directory)
            .await?;
    }
    for line in &story.skipped {
        println!("skipped: {line}");
    }
    scene.end().await
}

/// `pendguard top`, in a terminal of the size that every terminal has.
fn top(scene: &Scene) -> Result<Terminal> {
    let mut command = Command::new(binary()?);
    command.args(["top", "--api-socket"]);
    command.arg(scene.agent.socket());
    Terminal::run(command, 24, 80)
}

fn draw_top(top: &Terminal, name: &str, into: &Path) -> Result<()> {
    let path = into.join(name).with_extension("png");
    draw_terminal(&top.screen(), &path)?;
    println!("{}", path.display());
    Ok(())
}

/// What happened, as it is drawn.
struct Story {
    range: (f64, f64),
    /// From when to when the mode was changed: the agent loads programs, and answers no scrape.
    switch: (f64, f64),
    skipped: Vec<String>,
}

impl Story {
    async fn draw(&mut self, prometheus: &Prometheus, panel: &Panel, into: &Path) -> Result<()> {
        let step = match panel.kind {
            Kind::Cells | Kind::HeatMap => CELL,
            _ => STEP,
        };
        let mut series = Vec::new();
        for query in panel.queries {
            // Others may be at work on this machine.
            let names = WORKLOADS.map(|workload| workload.name).join("|");
            let expression = query.expression().replace("$workload", &names);
            let found = prometheus
                .range(&fill_in(&expression, WINDOW), self.range, step)
                .await?;
            series.extend(found.into_iter().map(|found| Series {
                name: legend(query.legend, &found.metric),
                points: found.values,
            }));
        }
        let title = panel.title;
        if series.is_empty() {
            self.skipped.push(format!("{title}: no data"));
            return Ok(());
        }
        let picture = Picture {
            title: title.to_owned(),
            kind: panel.kind,
            unit: panel.unit,
            range: self.range,
            changing: self.switch,
            change: "switching to enforce".to_owned(),
            series,
        };
        if !picture.shows_something() {
            self.skipped.push(format!("{title}: nothing happened"));
            return Ok(());
        }
        let path = into.join(slug(title)).with_extension("png");
        picture.draw(&path)?;
        println!("{}", path.display());
        Ok(())
    }
}

/// Waits until every series of calls is older than the window of rates.
async fn until_old(prometheus: &Prometheus) -> Result<()> {
    let replicas: u32 = WORKLOADS.iter().map(|workload| workload.replicas).sum();
    let names = WORKLOADS.map(|workload| workload.name).join("|");
    let old = format!(
        r#"count(pendguard_calls_total{{workload=~"{names}",method!=""}} offset {WINDOW})"#
    );
    wait_for("rates over a full window", START_LIMIT, async || {
        let found = prometheus.query(&old).await?;
        let there = found
            .first()
            .is_some_and(|series| series.values[0].1 >= f64::from(replicas));
        Ok(there.then_some(()))
    })
    .await
}

/// Seconds since 1970.
fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}
