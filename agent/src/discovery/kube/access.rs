//! How the API server is reached.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::failure::{Failure, Reason};
use crate::errors;

/// Where the token is mounted in a pod.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Set in every container of a cluster.
const HOST: &str = "KUBERNETES_SERVICE_HOST";
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How the API server is reached.
#[derive(Clone, Debug)]
pub enum Access {
    /// As the pod's service account.
    ServiceAccount,
    /// As a kubeconfig says.
    Kubeconfig(PathBuf),
    /// Like this.
    Config(Box<Config>),
}

/// Whether this is a container of a cluster, with a service account.
pub fn in_cluster() -> bool {
    std::env::var_os(HOST).is_some_and(|host| !host.is_empty()) && Path::new(TOKEN).exists()
}

impl Access {
    /// A client. What it is made from is read anew each time, and its token once a minute besides: both are rotated.
    pub async fn client(&self) -> Result<Client, Failure> {
        let unusable =
            |error: &dyn std::error::Error| Failure::new(Reason::Config, &errors::chain(error));
        let mut config = match self {
            Self::ServiceAccount => Config::incluster().map_err(|e| unusable(&e))?,
            Self::Kubeconfig(path) => {
                let file = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(|e| unusable(&e))?
            }
            Self::Config(config) => (**config).clone(),
        };
        config.connect_timeout = Some(CONNECT);
        // Every failure is counted and shown, and waited for here.
        config.default_retry = false;
        Client::try_from(config).map_err(|e| unusable(&e))
    }
}
