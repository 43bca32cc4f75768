//! What can go wrong between the agent and the API server, and what an operator can do about it.
#![forbid(unsafe_code)]

use std::time::Duration;

use kube::core::Status;

use super::Resource;
use crate::errors;

/// Why a list or a watch failed: the label of `pendguard_kube_watch_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The service account or the kubeconfig can't be used.
    Config,
    /// No connection.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 410: what was known is too old to go on from.
    Gone,
    /// 429.
    Throttled,
    /// Any other status.
    Server,
    /// A watch broke.
    Disconnected,
    /// An answer that can't be read.
    Malformed,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Config,
        Self::Unreachable,
        Self::Timeout,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Gone,
        Self::Throttled,
        Self::Server,
        Self::Disconnected,
        Self::Malformed,
    ];

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Gone => "gone",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Disconnected => "disconnected",
            Self::Malformed => "malformed",
        }
    }

    /// What it means.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Config => "the service account's files, or the kubeconfig, can't be used",
            Self::Unreachable => "no connection to the API server, or it broke within an answer",
            Self::Timeout => "the API server did not answer in time",
            Self::Unauthorized => "401: it doesn't take the service account's token",
            Self::Forbidden => "403: the service account lacks a rule (RBAC)",
            Self::Gone => {
                "410: what the agent knows is too old to go on from, so everything is listed again; no fault"
            }
            Self::Throttled => "429: the API server asks for patience",
            Self::Server => "another error of the API server",
            Self::Disconnected => "a watch ended at once or broke; it is taken up where it was",
            Self::Malformed => "an answer, or an object in it, that can't be read",
        }
    }
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which kind.
    pub reason: Reason,
    /// What exactly.
    pub message: String,
    /// How long the API server asks to wait.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Octets of a message at most: a proxy may answer with a page.
    const LONGEST: usize = 300;

    /// A failure of this kind.
    pub fn new(reason: Reason, message: &str) -> Self {
        Self {
            reason,
            message: message.chars().take(Self::LONGEST).collect(),
            retry_after: None,
        }
    }

    /// What the client says.
    pub fn of(error: &kube::Error) -> Self {
        use kube::Error;
        let reason = match error {
            Error::Api(status) => return Self::of_status(status),
            Error::SerdeError(_) | Error::FromUtf8(_) | Error::LinesCodecMaxLineLengthExceeded => {
                Reason::Malformed
            }
            Error::ReadEvents(_) => Reason::Disconnected,
            Error::HyperError(_) | Error::Service(_) => Reason::Unreachable,
            _ => Reason::Config,
        };
        Self::new(reason, &errors::chain(error))
    }

    /// What the API server says.
    pub fn of_status(status: &Status) -> Self {
        let reason = match status.code {
            401 => Reason::Unauthorized,
            403 => Reason::Forbidden,
            410 => Reason::Gone,
            429 => Reason::Throttled,
            _ => Reason::Server,
        };
        let seconds = status.details.as_ref().map(|d| d.retry_after_seconds);
        Self {
            retry_after: seconds
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Duration::from_secs(seconds.into())),
            ..Self::new(reason, &format!("{} {}", status.code, status.message))
        }
    }

    /// What an operator can do, if anything.
    pub fn advice(&self, resource: Resource) -> Option<String> {
        let resource = resource.name();
        match self.reason {
            Reason::Forbidden => Some(format!(
                "its service account needs a ClusterRole with verbs get, list, watch on {resource} (apiGroups [\"\"]), and a \
                 ClusterRoleBinding"
            )),
            Reason::Unauthorized => Some(
                "its service account may have been deleted, or its token may not be mounted".to_owned(),
            ),
            Reason::Config => Some(
                "automountServiceAccountToken must be on for the agent's pod".to_owned(),
            ),
            Reason::Unreachable | Reason::Timeout => Some(
                "a NetworkPolicy or the network of the node may keep the agent from KUBERNETES_SERVICE_HOST".to_owned(),
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_says() {
        for (code, reason) in [
            (401, Reason::Unauthorized),
            (403, Reason::Forbidden),
            (410, Reason::Gone),
            (429, Reason::Throttled),
            (500, Reason::Server),
            (404, Reason::Server),
        ] {
            let status = Status::failure("no", "why").with_code(code);
            let failure = Failure::of(&kube::Error::Api(status.boxed()));
            assert_eq!(failure.reason, reason);
            assert_eq!(failure.message, format!("{code} no"));
            assert_eq!(failure.retry_after, None);
        }
    }

    #[test]
    fn what_it_asks_for() {
        let json = r#"{"code": 429, "message": "later", "details": {"retryAfterSeconds": 7}}"#;
        let status: Status = serde_json::from_str(json).unwrap();
        let failure = Failure::of_status(&status);
        assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn the_missing_rule_is_named() {
        let failure = Failure::new(Reason::Forbidden, "403 no");
        let advice = failure.advice(Resource::Namespaces).unwrap();
        for word in ["ClusterRole", "get, list, watch", "namespaces"] {
            assert!(advice.contains(word), "{advice}");
        }
    }

    #[test]
    fn a_page_is_cut() {
        let failure = Failure::new(Reason::Server, &"x".repeat(100_000));
        assert_eq!(failure.message.len(), Failure::LONGEST);
    }

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::name).into();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
