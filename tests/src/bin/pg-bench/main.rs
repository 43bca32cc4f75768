//! What the tap costs, by the kernel's own accounting (`kernel.bpf_stats_enabled`) and by the clock with and without it.
//!
//! Costs of programs are means over many system calls of one kind, made by a process of their own. The accounting itself reads the
//! clock twice a run, and that is in the figures: the kind `Refused` shows how much it is. Ratios compare rounds of one run, with and without
//! the agent in turn.

#![forbid(unsafe_code)]

mod kinds;
mod measure;
mod wire;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use comfy_table::Table;

use kinds::Kind;
use measure::{Ratio, Report};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The tap: ns per system call, and what these take with and without it
    Tap {
        /// Fewer system calls
        #[arg(long)]
        quick: bool,
        /// Print JSON and nothing else on standard output
        #[arg(long)]
        json: bool,
    },
    /// Makes the system calls that are measured, started by `tap`
    #[command(hide = true)]
    Make(Calls),
    /// The server that answers, started by `make`
    #[command(hide = true)]
    Serve(Calls),
}

#[derive(Args)]
struct Calls {
    kind: Kind,
    count: u32,
    /// How many answered calls are in one send; `count` is a multiple of it
    #[arg(long, default_value_t = 1)]
    together: u32,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().what {
        What::Make(calls) => kinds::make(calls.kind, calls.count, calls.together),
        What::Serve(calls) => kinds::serve(calls.kind, calls.count, calls.together),
        What::Tap { quick, json } => tap(quick, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tap(quick: bool, json: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(measure::all(if quick { 50_000 } else { 500_000 }))?;
    let text = serde_json::to_string_pretty(&report)?;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/bench");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("tap.json"), &text)?;
    if json {
        println!("{text}");
    } else {
        show(&report);
        println!("target/bench/tap.json has the same.");
    }
    Ok(())
}

fn process(watched: bool) -> &'static str {
    if watched { "watched" } else { "unwatched" }
}

fn show(report: &Report) {
    let mut table = Table::new();
    table.set_header(["system call", "process", "measured", "ns per system call"]);
    for cost in &report.costs {
        table.add_row([
            format!("{:?}", cost.kind),
            process(cost.watched).to_owned(),
            cost.calls.to_string(),
            format!("{:.0}", cost.ns_per_call),
        ]);
    }
    println!("Linux {}\n{table}", report.kernel);
    let mut table = Table::new();
    table.set_header([
        "system call",
        "process",
        "with the agent / without",
        "with --no-answers / without",
        "ns without",
    ]);
    let ratio = |ratio: &Ratio| {
        let Ratio {
            median,
            least,
            most,
        } = ratio;
        format!("{median:.2} ({least:.2} to {most:.2})")
    };
    for tax in &report.taxes {
        table.add_row([
            format!("{:?}", tax.kind),
            process(tax.watched).to_owned(),
            ratio(&tax.with),
            ratio(&tax.no_answers),
            format!("{:.0}", tax.ns_bare),
        ]);
    }
    println!(
        "{table}\nMedians of {} rounds, least and most.",
        measure::ROUNDS
    );
}
