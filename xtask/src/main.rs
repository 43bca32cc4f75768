//! `cargo xtask <verb>`: everything that a contributor or CI does with Pendguard.
//!
//! Each verb does the [`setup`] that it needs by itself.

#![forbid(unsafe_code)]

mod architecture;
mod at_once;
mod build;
mod demo;
mod elf;
mod fuzz;
mod image;
mod manifests;
mod process;
mod progress;
mod rustup;
mod setup;
mod test;
mod vm;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::setup::Setup;
use crate::workspace::Workspace;

/// What a contributor or CI does with Pendguard. Each verb installs what it needs by itself.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building needs; what is already there is left alone
    Setup {
        /// Also what the tests and the demo need: the peers in Go, Python and Node, Prometheus, what builds and runs the image, and the cargo tools
        #[arg(long)]
        tests: bool,
        /// Also what the benchmarks compare with: nginx, HAProxy and Envoy (no server is installed)
        #[arg(long)]
        bench: bool,
    },
    /// Build the BPF programs and the agent: target/release/pendguard
    Build {
        /// Also the tests' own programs: target/release/pg-*
        #[arg(long)]
        tests: bool,
    },
    /// Three replicas of a real Numaflow source, and Pendguard counting who asks them what is pending (needs root)
    Demo {
        /// Instead, draw the dashboard's panels for the docs, as PNG files in this directory; comes first
        #[arg(long, value_name = "DIR")]
        pictures: Option<PathBuf>,
        /// `--seconds N` (60), `--every MS` (1000; not with --pictures)
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "OPTION"
        )]
        arguments: Vec<String>,
    },
    /// Measure what the agent costs (needs root)
    Bench {
        /// `tap`, `calls`, `read`, `scale`, `peers`, `profile` or `all` (less than 45 minutes; `--no-peers`), or `report`, which measures nothing;
        /// `--quick`, `--json FILE`, `--report FILE` (Markdown), `--pictures DIR`, `--with FILE` (an earlier run's --json)
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "WHAT",
            required = true
        )]
        arguments: Vec<String>,
    },
    /// Run every check that CI runs (needs root)
    Test {
        /// Leave out the long ones: exactness over 10,000 calls, other kernels, and fuzzing
        #[arg(long, conflicts_with = "soak")]
        fast: bool,
        /// Only what takes long: enforcement over an agent that is killed every 20 seconds, and 10,000 joins of the gate
        #[arg(long)]
        soak: bool,
        /// How long the first takes
        #[arg(long, value_name = "N", default_value_t = 30, requires = "soak", value_parser = clap::value_parser!(u64).range(1..))]
        soak_minutes: u64,
    },
    /// Run the tests that cause faults, and print the table of what came of each (needs root)
    Faults {
        /// Write the table to a file, as Markdown
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// Run the privileged tests on other kernels, in virtual machines
    Vm(Box<vm::Options>),
    /// Build the agent's OCI image: target/image/pendguard.oci.tar
    Image,
    /// Write what of deploy/kustomize is made from other files, and render all of it
    Manifests {
        /// Write nothing, and fail where something differs
        #[arg(long)]
        check: bool,
    },
    /// Fuzz the HTTP/2 parser, and what the agent reads
    Fuzz {
        /// How long, over all targets
        #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// Write a table to a file, as Markdown
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match verb {
        Verb::Setup { tests, bench } => {
            let setup = Setup::new(&workspace);
            let toolchain = setup.for_build()?;
            if tests {
                setup.for_peers()?;
                setup.for_dashboards()?;
                setup.for_deployment()?;
                setup.for_checks(&toolchain)?;
                setup.for_fuzz()?;
            }
            if bench {
                setup.for_bench()?;
            }
        }
        Verb::Build { tests } => build::run(&workspace, tests)?,
        Verb::Demo {
            pictures: Some(directory),
            arguments,
        } => return demo::pictures(&workspace, &directory, &arguments),
        Verb::Demo { arguments, .. } => return demo::demo(&workspace, &arguments),
        Verb::Bench { arguments } => return demo::bench(&workspace, &arguments),
        Verb::Test {
            soak: true,
            soak_minutes,
            ..
        } => return test::soak(&workspace, soak_minutes),
        Verb::Test { fast, .. } => return test::run(&workspace, fast),
        Verb::Faults { report } => return test::faults::run(&workspace, report.as_deref()),
        Verb::Vm(options) => return vm::run(&workspace, &options),
        Verb::Image => image::run(&workspace)?,
        Verb::Manifests { check } => manifests::run(&workspace, check)?,
        Verb::Fuzz { seconds, report } => {
            fuzz::run(&workspace, Duration::from_secs(seconds), report.as_deref())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
