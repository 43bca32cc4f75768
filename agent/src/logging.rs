//! The log: on standard error, `RUST_LOG` decides what of it.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::cli::LogFormat;

/// The variable that says what is logged.
const VARIABLE: &str = "RUST_LOG";

/// What is logged where nobody says otherwise. The client of the API server repeats at each try what the agent says once itself, and quotes
/// whole answers.
const DEFAULT: &str = "info,kube_client=off";

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The variable holds no filter.
    #[error("{VARIABLE}={value:?}: {source}")]
    Filter {
        /// What it holds.
        value: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The variable isn't UTF-8.
    #[error("{VARIABLE} isn't UTF-8")]
    NotUtf8,
    /// Logging was started before.
    #[error("logging was started twice")]
    Twice,
}

/// Starts logging.
pub fn init(format: LogFormat) -> Result<(), LoggingError> {
    let filter = filter(std::env::var_os(VARIABLE))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init(),
    }
    .map_err(|_| LoggingError::Twice)
}

fn filter(value: Option<std::ffi::OsString>) -> Result<EnvFilter, LoggingError> {
    let value = match value.map(std::ffi::OsString::into_string) {
        None => String::new(),
        Some(Ok(value)) => value,
        Some(Err(_)) => return Err(LoggingError::NotUtf8),
    };
    let text = if value.trim().is_empty() {
        DEFAULT
    } else {
        &value
    };
    EnvFilter::builder()
        .parse(text)
        .map_err(|source| LoggingError::Filter { value, source })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn info_unless_said_otherwise() {
        for value in [None, Some("".into())] {
            let text = filter(value).unwrap().to_string();
            let mut directives: Vec<_> = text.split(',').collect();
            directives.sort_unstable();
            assert_eq!(directives, ["info", "kube_client=off"]);
        }
        assert_eq!(filter(Some("debug".into())).unwrap().to_string(), "debug");
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = filter(Some("pendguard=loud".into())).unwrap_err();
        assert!(error.to_string().contains("RUST_LOG"), "{error}");
        assert!(filter(Some(OsString::from_vec(vec![0xff]))).is_err());
    }
}
