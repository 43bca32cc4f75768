//! Both ends of connections of which every byte is known (see `pendguard_tests::stress`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use clap::{Parser, Subcommand};
use pendguard_tests::stress::{reader, sender};

/// Sends or reads connections of which every byte is known.
#[derive(Debug, Parser)]
struct Arguments {
    /// The Unix socket
    #[arg(long)]
    socket: PathBuf,
    /// Nothing but calls, one after the other, read at once: to measure
    #[arg(long)]
    calls: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Accept and read until standard input ends
    Read,
    /// Make connections
    Send {
        /// How many at a time
        #[arg(long, default_value_t = 1)]
        together: u64,
        /// How many, one after the other, of each of those
        #[arg(long)]
        count: u64,
        /// The first one's number; no two connections with the same one
        #[arg(long)]
        first: u64,
        /// Sends on each connection [default: some more after its first call was rejected]
        #[arg(long)]
        items: Option<u64>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pg-stress: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<String> {
    let Arguments {
        socket,
        calls,
        verb,
    } = arguments;
    match verb {
        Verb::Read => {
            let stop = Arc::new(AtomicBool::new(false));
            let told = Arc::clone(&stop);
            thread::spawn(move || {
                // Nothing is ever said there.
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                told.store(true, Relaxed);
            });
            let pace = if calls {
                reader::Pace::Prompt
            } else {
                reader::Pace::Slow
            };
            let report = reader::serve(&socket, pace, || stop.load(Relaxed))?;
            Ok(serde_json::to_string(&report)?)
        }
        Verb::Send {
            together,
            count,
            first,
            items,
        } => {
            let load = if calls {
                sender::Load::Calls
            } else {
                sender::Load::Mixed
            };
            let threads: Vec<_> = (0..together)
                .map(|at| {
                    let socket = socket.clone();
                    thread::spawn(move || {
                        sender::run(&socket, load, items, first + at * count, count)
                    })
                })
                .collect();
            let mut sum = sender::Report::default();
            for thread in threads {
                let report = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
                sum.add(report.context("a connection")?);
            }
            Ok(serde_json::to_string(&sum)?)
        }
    }
}
