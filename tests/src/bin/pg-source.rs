//! A Numaflow source on the real SDK, driven by lines on standard input (see tests/peers/README.md).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use pendguard_tests::lines;
use pendguard_tests::protocol::{self, Event, Listening};
use pendguard_tests::source::generator::{Faults, Generator, Options, Shared};
use pendguard_tests::source::{sdk, tcp};
use tokio::signal::unix::{SignalKind, signal};

/// A Numaflow source that counts its calls and whose messages prove their integrity.
#[derive(Debug, Parser)]
struct Arguments {
    /// The Unix socket to listen on
    #[arg(long)]
    socket: PathBuf,
    /// Where the SDK announces itself [default: the socket's path with .server-info behind it]
    #[arg(long)]
    server_info: Option<PathBuf>,
    /// Serve the same source on TCP too; port 0 lets the kernel choose
    #[arg(long, value_name = "ADDR")]
    also_tcp: Option<SocketAddr>,
    /// Bytes of each message's payload
    #[arg(long, default_value_t = 1024)]
    message_bytes: usize,
    /// What PendingFn answers; negative: not available [default: what is left of --total]
    #[arg(long, allow_negative_numbers = true)]
    pending_value: Option<i64>,
    /// How long PendingFn's handler takes, in milliseconds: from MIN to MAX, evenly
    #[arg(long, value_name = "MIN-MAX")]
    pending_delay: Option<Range>,
    /// Messages there are: a number, or unbounded
    #[arg(long, default_value = "unbounded")]
    total: Total,
    /// Change a byte of message N, to prove that clients notice
    #[arg(long, value_name = "N")]
    corrupt: Option<u64>,
    /// Leave message N out, to prove that clients notice
    #[arg(long, value_name = "N")]
    lose: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Range(Duration, Duration);

impl FromStr for Range {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        let (least, most) = word.split_once('-').context("no - in it")?;
        let millis = |number: &str| Ok::<_, Self::Err>(Duration::from_millis(number.parse()?));
        Ok(Self(millis(least)?, millis(most)?))
    }
}

#[derive(Debug, Clone, Copy)]
struct Total(Option<u64>);

impl FromStr for Total {
    type Err = std::num::ParseIntError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Ok(Self(match word {
            "unbounded" => None,
            number => Some(number.parse()?),
        }))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    protocol::exit("pg-source", run(Arguments::parse()).await)
}

async fn run(arguments: Arguments) -> Result<()> {
    let generator = Arc::new(Generator::new(Options {
        message_bytes: arguments.message_bytes,
        total: arguments.total.0,
        pending: arguments.pending_value,
        pending_delay: arguments
            .pending_delay
            .map(|Range(least, most)| (least, most)),
        faults: Faults {
            corrupt: arguments.corrupt,
            lose: arguments.lose,
        },
    }));
    let handler = Shared(Arc::clone(&generator));
    let info = arguments
        .server_info
        .unwrap_or_else(|| sdk::default_info_path(&arguments.socket));
    // Before anyone can know the process: a signal that comes early must still be answered by the statistics.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut server = sdk::Server::start(handler.clone(), &arguments.socket, &info).await?;
    let tcp = match arguments.also_tcp {
        Some(address) => Some(tcp::Server::start(handler, address).await?),
        None => None,
    };
    Event::Listening(Listening {
        socket: arguments.socket.display().to_string(),
        tcp: tcp.as_ref().map(|server| server.address.to_string()),
        pid: std::process::id(),
        sdk: format!("numaflow {}", server.version),
    })
    .print()?;

    let mut lines = lines::stdin();
    loop {
        tokio::select! {
            line = lines.recv() => match line.as_deref().map(str::trim) {
                Some("stats") => Event::Stats(generator.stats()).print()?,
                Some("quit") | None => break,
                Some(line) => bail!("unknown command: {line:?}"),
            },
            _ = terminate.recv() => break,
            ended = server.ended() => {
                ended?;
                // The SDK stops on SIGTERM by itself, and may be first.
                return Ok(Event::Stats(generator.stats()).print()?);
            }
        }
    }
    if let Some(tcp) = tcp {
        tcp.stop().await?;
    }
    server.stop().await?;
    Event::Stats(generator.stats()).print()?;
    Ok(())
}
