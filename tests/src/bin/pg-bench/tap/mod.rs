//! What system calls cost with the tap: the programs by the kernel's own accounting (`kernel.bpf_stats_enabled`), and the calls by the
//! clock, with the agent, without, and with programs that do nothing.
//!
//! Costs of programs are means over many system calls of one kind, made by a process of their own. The accounting itself reads the
//! clock twice a run, and that is in the figures: the kind `Refused` shows how much it is. Ratios compare rounds of one run.

pub mod kinds;
mod measure;

use anyhow::Result;
use comfy_table::Table;

pub use kinds::Kind;
pub use measure::{ROUNDS, Report, STEPS};

use crate::progress::Progress;
use crate::stats::Spread;

/// Measures all of it.
pub async fn run(quick: bool, bar: &Progress) -> Result<Report> {
    measure::all(if quick { 50_000 } else { 500_000 }, bar).await
}

/// A process as the tables call it.
pub fn process(watched: bool) -> &'static str {
    if watched { "watched" } else { "unwatched" }
}

/// The report for a terminal.
pub fn show(report: &Report) {
    let mut table = Table::new();
    table.set_header(["system call", "process", "measured", "ns in programs"]);
    for cost in &report.costs {
        table.add_row([
            format!("{:?}", cost.kind),
            process(cost.watched).to_owned(),
            cost.calls.to_string(),
            format!("{:.0}", cost.ns_per_call),
        ]);
    }
    println!("{table}");
    let mut table = Table::new();
    table.set_header([
        "system call",
        "process",
        "agent / bare",
        "--no-answers / bare",
        "empty programs / bare",
        "agent - empty, ns",
        "bare, ns",
    ]);
    let ratio = |spread: &Spread| {
        let (least, most) = spread.range;
        format!("{:.2} ({least:.2} to {most:.2})", spread.median)
    };
    for tax in &report.taxes {
        table.add_row([
            format!("{:?}", tax.kind),
            process(tax.watched).to_owned(),
            ratio(&tax.with),
            ratio(&tax.no_answers),
            ratio(&tax.empty),
            format!("{:.0}", tax.above_empty_ns.median),
            format!("{:.0}", tax.ns_bare),
        ]);
    }
    println!("{table}\nMedians of {ROUNDS} rounds, least and most.");
}
