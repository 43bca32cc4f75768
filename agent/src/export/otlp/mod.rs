//! The same metrics to an OpenTelemetry collector, over OTLP/gRPC. Off unless `--otlp-endpoint` names one.
//!
//! No SDK: what the agent counts is kept in the kernel and in the inventory, so a request is made from a snapshot as a scrape
//! is, and nothing is held between two of them.
#![forbid(unsafe_code)]

mod connect;
mod exporter;
mod request;

use std::str::FromStr;
use std::time::Duration;

use tonic::transport::Uri;

pub use exporter::Exporter;
#[cfg(test)]
pub(super) use request::{name, unit};

/// Threads at most that look up the collector's name, if it has one.
pub const RESOLVERS: usize = 1;

/// Where metrics are sent, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The collector.
    pub endpoint: Endpoint,
    /// From one request to the next.
    pub interval: Duration,
}

/// A collector that speaks OTLP over gRPC, without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    uri: Uri,
    /// A name or an address, without brackets.
    host: String,
    port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.uri.authority() {
            Some(authority) => write!(f, "http://{authority}"),
            None => self.uri.fmt(f),
        }
    }
}

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is none at all.
    #[error("no URL such as http://127.0.0.1:4317")]
    Url,
    /// It would need TLS.
    #[error("the agent sends without TLS: http://HOST:PORT, such as a collector's on this node")]
    Https,
    /// Nothing says which port.
    #[error("it names no port; collectors listen on 4317 for OTLP over gRPC")]
    Port,
    /// The agent has no use for the rest of it.
    #[error("only http://HOST:PORT, without {0}")]
    More(&'static str),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let uri: Uri = text.parse().map_err(|_| EndpointError::Url)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(EndpointError::Https),
            _ => return Err(EndpointError::Url),
        }
        let authority = uri.authority().ok_or(EndpointError::Url)?;
        if authority.as_str().contains('@') {
            return Err(EndpointError::More("a user"));
        }
        if uri.path() != "/" {
            return Err(EndpointError::More("a path: that is for OTLP over HTTP"));
        }
        if uri.query().is_some() {
            return Err(EndpointError::More("a query"));
        }
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = bare.unwrap_or(host).to_owned();
        if host.is_empty() {
            return Err(EndpointError::Url);
        }
        let port = authority.port_u16().filter(|port| *port > 0);
        Ok(Self {
            port: port.ok_or(EndpointError::Port)?,
            host,
            uri,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, host, port) in [
            ("http://127.0.0.1:4317", "127.0.0.1", 4317),
            ("http://[::1]:4317/", "::1", 4317),
            (
                "HTTP://otel.observability.svc:80",
                "otel.observability.svc",
                80,
            ),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((&*endpoint.host, endpoint.port), (host, port), "{text}");
        }
        for (text, said) in [
            ("", "no URL"),
            ("collector", "no URL"),
            ("collector:4317", "no URL"),
            ("http://", "no URL"),
            ("ftp://a:1", "no URL"),
            ("grpc://a:1", "no URL"),
            ("http://:4317", "no URL"),
            ("http://a b:1", "no URL"),
            ("https://a:4317", "TLS"),
            ("http://a", "no port"),
            ("http://a:0", "no port"),
            ("http://a:4317/v1/metrics", "a path"),
            ("http://a:4317/?x=y", "a query"),
            ("http://me:secret@a:4317", "a user"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let shown: Endpoint = "http://[::1]:4317/".parse().unwrap();
        assert_eq!(shown.to_string(), "http://[::1]:4317");
    }
}
