//! What a container of a cluster has of its service account.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use tempfile::TempDir;

/// Where it is mounted in every container.
pub const MOUNTED: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The namespace of the agent's pods.
const NAMESPACE: &str = "pendguard";

/// A volume with a token, as the kubelet keeps it: `token` is a link to `..data/token`, and `..data` one to a directory, so that all files change at once.
pub struct ServiceAccount {
    directory: TempDir,
    server: SocketAddr,
    generation: AtomicU32,
}

impl ServiceAccount {
    /// A token for the API server at that address, and the certificate of whom to believe that it is the one.
    ///
    /// # Errors
    /// They can't be written.
    pub fn new(server: SocketAddr, token: &str, authority: &str) -> Result<Self> {
        let account = Self {
            directory: tempfile::tempdir()?,
            server,
            generation: AtomicU32::new(0),
        };
        account.replace(token, authority)?;
        for name in ["token", "ca.crt", "namespace"] {
            symlink(Path::new("..data").join(name), account.path().join(name))?;
        }
        Ok(account)
    }

    /// Others in their place, whoever has it mounted.
    ///
    /// # Errors
    /// They can't be written.
    pub fn replace(&self, token: &str, authority: &str) -> Result<()> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let name = format!("..{generation}");
        let directory = self.path().join(&name);
        fs::create_dir(&directory)?;
        fs::write(directory.join("token"), token)?;
        fs::write(directory.join("ca.crt"), authority)?;
        fs::write(directory.join("namespace"), NAMESPACE)?;
        let new = self.path().join("..data_tmp");
        symlink(&name, &new)?;
        fs::rename(&new, self.path().join("..data"))?;
        Ok(())
    }

    /// The volume.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What tells a container where the API server is.
    pub(super) fn environment(&self) -> [String; 2] {
        [
            format!("KUBERNETES_SERVICE_HOST={}", self.server.ip()),
            format!("KUBERNETES_SERVICE_PORT={}", self.server.port()),
        ]
    }
}
