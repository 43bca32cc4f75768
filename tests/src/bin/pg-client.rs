//! A tonic client that behaves like Numaflow's Rust data plane, driven by lines on standard input (see
//! tests/peers/README.md).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser};
use pendguard_tests::client::connect::{Target, connect};
use pendguard_tests::client::session::Session;
use pendguard_tests::lines;
use pendguard_tests::protocol::{self, Command, Event, Ready};

/// A client of a Numaflow source that behaves like Numaflow's Rust data plane.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    target: TargetArguments,
    /// Unary calls in flight
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Give each call of PendingFn up after so many milliseconds
    #[arg(long, value_name = "MS")]
    give_up: Option<u64>,
    /// Records of a read request
    #[arg(long, default_value_t = 500)]
    batch: u64,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct TargetArguments {
    /// The source's Unix socket
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The source's TCP address
    #[arg(long, value_name = "HOST:PORT")]
    tcp: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    protocol::exit("pg-client", run(Arguments::parse()).await)
}

async fn run(arguments: Arguments) -> Result<()> {
    let target = match (arguments.target.socket, arguments.target.tcp) {
        (Some(path), _) => Target::Unix(path),
        (None, Some(address)) => Target::Tcp(address),
        (None, None) => unreachable!("clap requires one of them"),
    };
    let (channel, attempts) = connect(&target).await?;
    Event::Ready(Ready {
        client: "tonic".to_owned(),
        version: env!("TONIC_VERSION").to_owned(),
        pid: std::process::id(),
        attempts,
    })
    .print()?;

    let mut session = Session::new(
        channel,
        arguments.concurrency.max(1),
        arguments.batch.max(1),
        arguments.give_up.map(Duration::from_millis),
    );
    let mut lines = lines::stdin();
    while let Some(line) = lines.recv().await {
        let command: Command = line.parse()?;
        match session.run(command).await? {
            Some(answer) => answer.print()?,
            None => break,
        }
    }
    Ok(())
}
