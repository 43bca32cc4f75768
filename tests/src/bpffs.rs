//! A bpffs of a test's own, so that what an agent pins meets nobody else's pins.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

/// A mounted bpffs; it goes with everything in it when this is dropped.
pub struct BpfFs {
    directory: TempDir,
}

impl BpfFs {
    /// Mounts one.
    ///
    /// # Errors
    /// It takes root.
    pub fn mount() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        mount("bpf", directory.path(), "bpf", MountFlags::empty(), None)
            .context("mounting a bpffs (it takes root)")?;
        Ok(Self { directory })
    }

    /// Makes it read-only.
    ///
    /// # Errors
    /// It is busy.
    pub fn read_only(&self) -> Result<()> {
        mount_remount(self.directory.path(), MountFlags::RDONLY, "")
            .context("mounting the bpffs anew")
    }

    /// A pin directory in it.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.directory.path().join("pendguard")
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = unmount(self.directory.path(), UnmountFlags::DETACH);
    }
}
