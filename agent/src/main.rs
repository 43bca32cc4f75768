//! `pendguard`: the agent of a node, and its command line.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::process::ExitCode;

use pendguard::cli::{self, Command, EXIT_USAGE, RunArgs};
use pendguard::settings::Settings;
use pendguard::{commands, errors, logging, memory, run, tap, version};
use tracing::{error, info, warn};

fn main() -> ExitCode {
    memory::one_heap();
    let cli = match cli::parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(stop) => return stop.report().into(),
    };
    match cli.command {
        Command::Run(arguments) => agent(&arguments),
        Command::Status(arguments) => commands::status::run(&arguments).into(),
        Command::Top(arguments) => commands::top::run(&arguments).into(),
        Command::Watch(arguments) => commands::watch::run(&arguments).into(),
        Command::Mode(arguments) => commands::mode::run(&arguments).into(),
        Command::Detach(arguments) => commands::detach::run(&arguments).into(),
        Command::Seccomp(arguments) => commands::seccomp::run(&arguments).into(),
        Command::Doctor(arguments) => {
            commands::doctor::run(&arguments, Some(tap::probe::all)).into()
        }
    }
}

fn agent(arguments: &RunArgs) -> ExitCode {
    let settings = match Settings::resolve(arguments) {
        Ok(settings) => settings,
        Err(error) => return usage(&error),
    };
    if let Err(error) = logging::init(arguments.log_format) {
        return usage(&error);
    }
    banner(&settings);
    match run::run(&settings) {
        Ok(()) => {
            info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!("{}", errors::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// What was asked for can't be followed.
fn usage(error: &dyn Display) -> ExitCode {
    for line in error.to_string().lines() {
        eprintln!("pendguard: {line}");
    }
    EXIT_USAGE.into()
}

fn banner(settings: &Settings) {
    info!(
        version = version::VERSION,
        revision = version::REVISION,
        mode = settings.policy.default.name(),
        rules = settings.policy.rules.len(),
        methods = settings.methods.join(","),
        allowed_replicas = ?settings.policy.allowed,
        config = settings.config.as_deref().map(|path| path.display().to_string()),
        discovery = settings.discovery.name(),
        api = %settings.api_socket.display(),
        "pendguard starts"
    );
    for name in cli::unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
        warn!("the environment variable {name} is none that pendguard knows");
    }
}
