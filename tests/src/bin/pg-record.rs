//! Records what real gRPC clients send, as fixtures for the agent's parser (see tests/fixtures/README.md).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use pendguard_tests::peers::ClientKind;
use pendguard_tests::record::capture::capture;
use pendguard_tests::record::convert::convert;
use pendguard_tests::record::fixture::Fixture;
use pendguard_tests::record::relay::Relay;

/// Records what real gRPC clients send.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Record sessions of the peers with a source, one fixture for each
    Capture {
        /// Only these clients
        #[arg(long = "client")]
        clients: Vec<Kind>,
        /// The directory of the fixtures
        #[arg(long, default_value_os_t = fixtures())]
        out: PathBuf,
    },
    /// Record one connection of any client
    Relay {
        /// The Unix socket for the client
        #[arg(long)]
        listen: PathBuf,
        /// The source's Unix socket
        #[arg(long)]
        upstream: PathBuf,
        /// The client's gRPC implementation and its version
        #[arg(long)]
        encoder: String,
        /// The fixture
        #[arg(long)]
        out: PathBuf,
    },
    /// Turn a trace of a client's sends (JSON lines with `iov` and `ret`) into a fixture
    Convert {
        /// The trace
        trace: PathBuf,
        /// The client's gRPC implementation and its version
        #[arg(long)]
        encoder: String,
        /// The fixture
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Debug, Clone, Copy)]
struct Kind(ClientKind);

impl ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        const KINDS: [Kind; ClientKind::ALL.len()] = {
            let mut kinds = [Kind(ClientKind::Tonic); ClientKind::ALL.len()];
            let mut at = 0;
            while at < kinds.len() {
                kinds[at] = Kind(ClientKind::ALL[at]);
                at += 1;
            }
            kinds
        };
        &KINDS
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.name()))
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/captures")
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().action {
        Action::Capture { clients, out } => {
            let clients = match clients[..] {
                [] => Kind::value_variants(),
                ref chosen => chosen,
            };
            for Kind(kind) in clients {
                let fixture = capture(*kind).await?;
                write(&fixture, &out.join(format!("{kind}.json")))?;
            }
        }
        Action::Relay {
            listen,
            upstream,
            encoder,
            out,
        } => {
            let relay = Relay::listen(&listen).with_context(|| listen.display().to_string())?;
            let chunks = relay.run(&upstream).await?;
            write(&Fixture::of_client(encoder, &chunks)?, &out)?;
        }
        Action::Convert {
            trace,
            encoder,
            out,
        } => {
            let text =
                std::fs::read_to_string(&trace).with_context(|| trace.display().to_string())?;
            write(&convert(&text, encoder)?, &out)?;
        }
    }
    Ok(())
}

fn write(fixture: &Fixture, path: &Path) -> Result<()> {
    fixture.write(path)?;
    println!(
        "{}: {}, {} pieces, {} requests",
        path.display(),
        fixture.encoder,
        fixture.chunks.len(),
        fixture.requests.len()
    );
    Ok(())
}
