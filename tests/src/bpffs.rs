//! A bpffs of a test's own, so that what an agent pins meets nobody else's pins, and none of it outlives the test, however that ends.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

/// From now on this thread, and what it starts, has mounts that nobody else sees.
///
/// # Errors
/// It takes root.
pub fn private_mounts() -> Result<()> {
    #[expect(unsafe_code, reason = "there is no safe name for it")]
    // SAFETY: of what a thread can stop sharing, the table of descriptors alone would surprise other code; it stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .context("a mount namespace of its own (it takes root)")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("mounts that others don't see")
}

/// A mounted bpffs.
pub struct BpfFs {
    directory: TempDir,
}

impl BpfFs {
    /// Mounts one, in a mount namespace of this thread's own: only what the thread starts from now on sees it, and the kernel takes it
    /// away, with everything in it, when the last of these has gone, even where all were killed.
    ///
    /// # Errors
    /// It takes root.
    pub fn mount() -> Result<Self> {
        private_mounts()?;
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
