//! Where the time goes that an audit takes: Reading at saturation with and without an agent, sampled by `perf`, function by function.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::progress::Progress;
use crate::rounds::Mode;
use crate::rounds::world::World;

/// Rounds of one sampling each without and with an agent.
const ROUNDS: u64 = 5;
/// How long one sampling takes.
const SECONDS: u64 = 8;
/// Samples a second of each processor; no divisor of the clock's own.
const RATE: &str = "4999";
/// Reading before it is looked at.
const WARM_UP: Duration = Duration::from_millis(500);

/// The shares of functions, in percent of all samples in client and source, by name: `bpf:` is before those of programs.
pub type Shares = BTreeMap<String, f64>;

/// What was found: means of all rounds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub bare: Shares,
    pub audit: Shares,
}

/// How many samplings it takes.
pub const fn count(quick: bool) -> u64 {
    2 * rounds(quick)
}

const fn rounds(quick: bool) -> u64 {
    if quick { 1 } else { ROUNDS }
}

/// Takes them.
pub async fn run(quick: bool, bar: &Progress) -> Result<Report> {
    let mut report = Report::default();
    let rounds = rounds(quick);
    for round in 1..=rounds {
        for mode in [Mode::Control, Mode::Audit] {
            bar.begin(format!("profile, round {round}: {}", mode.name()));
            let sum = match mode {
                Mode::Audit => &mut report.audit,
                _ => &mut report.bare,
            };
            for (function, share) in sample(mode).await? {
                *sum.entry(function).or_default() += share / rounds as f64;
            }
            bar.done();
        }
    }
    Ok(report)
}

/// Reads at saturation, and looks where client and source are meanwhile.
async fn sample(mode: Mode) -> Result<Shares> {
    let mut world = World::start(mode).await?;
    let beside = world.enter(mode).await?;
    world.direct.read(0).await?;
    sleep(WARM_UP).await;
    let pids = [world.source.pid(), world.direct.pid()];
    let shares = tokio::task::spawn_blocking(move || perf(pids)).await??;
    world.direct.stop().await?;
    world.leave(beside).await?;
    world.end().await?;
    Ok(shares)
}

fn perf(pids: [u32; 2]) -> Result<Shares> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("perf.data");
    let [source, client] = pids;
    // The machine may have no counters in hardware.
    let mut record = Command::new("perf");
    record
        .args(["record", "-q", "-e", "cpu-clock", "-F", RATE])
        .args(["-p", &format!("{source},{client}"), "-o"])
        .arg(&data)
        .args(["sleep", &SECONDS.to_string()]);
    said(&mut record)?;
    let mut report = Command::new("perf");
    report
        .args([
            "report", "--stdio", "-q", "--sort", "symbol", "-t", ";", "-i",
        ])
        .arg(&data);
    shares(&said(&mut report)?)
}

fn said(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("perf (cargo xtask setup --bench installs it)")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Lines such as ` 3.34%  ;[k] bpf_prog_0123456789abcdef_tap_writev`.
fn shares(text: &str) -> Result<Shares> {
    let mut shares = Shares::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        // Behind the symbol may stand what it was inlined from.
        let mut fields = line.split(';');
        let (Some(share), Some(symbol)) = (fields.next(), fields.next()) else {
            bail!("perf says {line:?}");
        };
        let share = share.trim().trim_end_matches('%').parse::<f64>();
        let share = share.with_context(|| line.to_owned())?;
        *shares.entry(function(symbol)).or_default() += share;
    }
    ensure!(!shares.is_empty(), "perf found no samples");
    Ok(shares)
}

/// The function in `[k] function`.
fn function(symbol: &str) -> String {
    let symbol = symbol.trim();
    let name = symbol
        .split_once("] ")
        .map_or(symbol, |(_, name)| name.trim());
    let program = name.strip_prefix("bpf_prog_");
    match program.and_then(|rest| rest.split_once('_')) {
        Some((_, program)) => format!("bpf:{program}"),
        None => name.to_owned(),
    }
}

impl Report {
    /// Functions by how much more of the time they have with an agent, in percent of all samples: name, bare, audit.
    pub fn differences(&self) -> Vec<(&str, f64, f64)> {
        let names: BTreeSet<&String> = self.bare.keys().chain(self.audit.keys()).collect();
        let share = |of: &Shares, name| of.get(name).copied().unwrap_or_default();
        let mut all: Vec<_> = names
            .into_iter()
            .map(|name| {
                (
                    name.as_str(),
                    share(&self.bare, name),
                    share(&self.audit, name),
                )
            })
            .collect();
        all.sort_by(|a, b| (b.2 - b.1).total_cmp(&(a.2 - a.1)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perf_s_lines_are_read() {
        let text = "\n 3.50%  ;[k] bpf_prog_0123456789abcdef_tap_writev   ;-      -\n 1.25%  ;[.] a::b<c> d\n 0.25%  ;[k] bpf_prog_99_tap_writev\n";
        let shares = shares(text).unwrap();
        let expected = [("a::b<c> d", 1.25), ("bpf:tap_writev", 3.75)];
        assert_eq!(shares, expected.map(|(n, s)| (n.to_owned(), s)).into());
        assert!(super::shares("nothing\n").is_err() && super::shares("\n").is_err());
    }

    #[test]
    fn what_an_agent_adds_comes_first() {
        let of = |all: &[(&str, f64)]| all.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect();
        let report = Report {
            bare: of(&[("memmove", 10.0), ("write", 5.0)]),
            audit: of(&[("memmove", 9.0), ("bpf:tap", 2.0), ("write", 5.5)]),
        };
        let names: Vec<_> = report.differences().iter().map(|d| d.0).collect();
        assert_eq!(names, ["bpf:tap", "write", "memmove"]);
    }
}
