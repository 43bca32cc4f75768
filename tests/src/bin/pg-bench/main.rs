//! What Pendguard costs, side by side with what else could do its work.
//!
//! | module | has |
//! |---|---|
//! | [`tap`] | system calls: the programs by the kernel's accounting, and the calls by the clock |
//! | [`load`] | a tonic source and client, and the one who drives them |
//! | [`proxies`] | what else can stand between the two |
//! | [`rounds`] | modes side by side, in rounds |
//! | [`scale`] | the agent on a node that grows |
//! | [`profile`] | where the time goes that an audit takes |
//! | [`report`] | JSON, Markdown and pictures |
//!
//! docs/performance.md has the method and a run's figures.

#![forbid(unsafe_code)]

mod cpu;
mod load;
mod profile;
mod progress;
mod proxies;
mod report;
mod rounds;
mod scale;
mod stats;
mod tap;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use pendguard_tests::peers::target_directory;

use progress::Progress;
use report::{Machine, Report};
use rounds::{Mode, What};
use tap::Kind;

/// What the agent costs. It takes root, and a machine that does nothing else.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// System calls: ns in the programs, and what the calls take with and without them
    Tap(Options),
    /// Calls of PendingFn, admitted and rejected: bare, audit, gate
    Calls(Options),
    /// Reading at saturation and paced, with the CPU time of all concerned: bare, audit, gate
    Read(Options),
    /// The agent as the node grows: pods, connections, watched calls, other processes' system calls
    Scale(Options),
    /// Calls and reading through a byte relay, a hyper proxy, Envoy, nginx and HAProxy
    Peers(Options),
    /// Where the time goes that an audit takes while Read is at saturation, function by function: by `perf`
    Profile(Options),
    /// All of it, in less than 45 minutes
    All(Options),
    /// Reading with and without the agent, where `cargo xtask vm --count-instructions` runs it: its nanoseconds are instructions
    Instructions(Options),
    /// Nothing: tables and pictures of what --with has
    Report(Options),
    #[command(flatten)]
    Part(Part),
}

#[derive(Args)]
struct Options {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// With `all`: leave out what Pendguard is compared with
    #[arg(long)]
    no_peers: bool,
    /// Write all figures to a file (always in target/bench, too)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables to a file, as Markdown; into its places marked `<!-- bench:NAME -->` where it exists. May be repeated
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// Draw the charts to PNG files in this directory
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,
    /// Take over what an earlier run has written with --json, for what is not measured now
    #[arg(long, value_name = "FILE")]
    with: Option<PathBuf>,
}

/// Processes that this program starts of itself.
#[derive(Subcommand)]
enum Part {
    /// Makes system calls
    #[command(hide = true)]
    Make(SystemCalls),
    /// Answers them
    #[command(hide = true)]
    Serve(SystemCalls),
    /// The source of the load
    #[command(hide = true)]
    Source {
        socket: PathBuf,
        /// Keep the connections, to put them before an empty program
        #[arg(long)]
        keep: bool,
    },
    /// Its client
    #[command(hide = true)]
    Client { socket: PathBuf },
    /// Copies bytes
    #[command(hide = true)]
    Relay { listen: PathBuf, upstream: PathBuf },
    /// Hands HTTP/2 on
    #[command(hide = true)]
    Forward { listen: PathBuf, upstream: PathBuf },
    /// A process with many connections
    #[command(hide = true)]
    Crowd { connections: u64 },
}

#[derive(Args)]
struct SystemCalls {
    kind: Kind,
    count: u32,
    /// How many answered calls are in one send; `count` is a multiple of it
    #[arg(long, default_value_t = 1)]
    together: u32,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Part(part) => as_part(part),
        Verb::Tap(options) => run("tap", &options),
        Verb::Calls(options) => run("calls", &options),
        Verb::Read(options) => run("read", &options),
        Verb::Scale(options) => run("scale", &options),
        Verb::Peers(options) => run("peers", &options),
        Verb::Profile(options) => run("profile", &options),
        Verb::All(options) => run("all", &options),
        Verb::Instructions(options) => run("instructions", &options),
        Verb::Report(options) => run("report", &options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread: who takes part in a measurement has no more, so that the scheduler has little to choose from.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

fn as_part(part: Part) -> Result<()> {
    match part {
        Part::Make(calls) => tap::kinds::make(calls.kind, calls.count, calls.together),
        Part::Serve(calls) => tap::kinds::serve(calls.kind, calls.count, calls.together),
        Part::Source { socket, keep } => block_on(load::source::run(&socket, keep)),
        Part::Client { socket } => block_on(load::client::run(&socket)),
        Part::Relay { listen, upstream } => block_on(proxies::relay::run(&listen, &upstream)),
        Part::Forward { listen, upstream } => block_on(proxies::forward::run(&listen, &upstream)),
        Part::Crowd { connections } => scale::crowd::run(connections),
    }
}

fn run(what: &str, options: &Options) -> Result<()> {
    let mut report = match &options.with {
        Some(path) => Report::read(path)?,
        None => Report::default(),
    };
    let directory = target_directory().join("bench");
    std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let mut measured = Report::default();
    if let Err(error) = block_on(measure(what, options, &mut measured)) {
        let part = directory.join(format!("{what}-part.json"));
        measured.write(&part)?;
        return Err(error.context(format!(
            "{} has what was measured until then (--with takes it over)",
            shown(&part)
        )));
    }
    report.update(measured);
    let kept = directory.join(format!("{what}.json"));
    report.write(&kept)?;
    report.show();
    if let Some(path) = &options.json {
        report.write(path)?;
    }
    for path in &options.report {
        report.write_markdown(path)?;
    }
    if let Some(directory) = &options.pictures {
        report::draw(&report, directory)?;
    }
    println!("{} has all figures.", shown(&kept));
    Ok(())
}

/// A path as a person in the repository would write it.
fn shown(path: &Path) -> std::path::Display<'_> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.and_then(|root| path.strip_prefix(root).ok())
        .unwrap_or(path)
        .display()
}

async fn measure(what: &str, options: &Options, report: &mut Report) -> Result<()> {
    let quick = options.quick;
    let (modes, of_rounds) = match what {
        "calls" => (Mode::OURS.to_vec(), What::Calls),
        "read" => (Mode::OURS.to_vec(), What::Reading),
        "peers" => {
            let proxies = Mode::all().into_iter();
            let modes = proxies.filter(|mode| matches!(mode, Mode::Proxy(_) | Mode::Control));
            (modes.collect(), What::Both)
        }
        "all" if options.no_peers => (Mode::OURS.to_vec(), What::Both),
        "all" => (Mode::all(), What::Both),
        "instructions" => (Mode::COUNTED.to_vec(), What::Instructions),
        _ => (Vec::new(), What::Both),
    };
    let with_tap = ["tap", "all"].contains(&what);
    let with_scale = ["scale", "all"].contains(&what);
    let with_profile = ["profile", "all"].contains(&what);
    if modes.is_empty() && !with_tap && !with_scale && !with_profile {
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "measuring takes root: the agent's programs, and the kernel's accounting of them"
    );
    let steps = rounds::count(&modes, of_rounds, quick)
        + if with_tap { tap::STEPS } else { 0 }
        + if with_scale { scale::count(quick) } else { 0 }
        + if with_profile {
            profile::count(quick)
        } else {
            0
        };
    let bar = Progress::new(steps)?;
    report.machine = Some(Machine::this(quick)?);
    rounds::run(&modes, of_rounds, quick, &bar, &mut report.samples).await?;
    if with_tap {
        report.tap = Some(tap::run(quick, &bar).await?);
    }
    if with_scale {
        report.scale = scale::run(quick, &bar).await?;
    }
    if with_profile {
        report.profile = Some(profile::run(quick, &bar).await?);
    }
    bar.end();
    Ok(())
}
