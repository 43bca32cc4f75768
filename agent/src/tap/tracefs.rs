//! Where tracepoints are named.
//!
//! A fresh machine may have no tracefs mounted. Rather than mount it for everybody, the thread that attaches moves into a mount
//! namespace of its own and mounts it there: when that thread ends the mount is gone, and nothing of the host has
//! changed. It takes CAP_SYS_ADMIN.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::host::text;

/// Where tracefs is looked for, in this order (`Documentation/trace/ftrace.rst`); the first is where it is mounted.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why there is no tracefs.
#[derive(Debug, thiserror::Error)]
pub enum TracefsError {
    /// It could be mounted privately neither.
    #[error(
        "tracefs is not mounted and can't be mounted privately ({0}): mount it (`mount -t tracefs tracefs /sys/kernel/tracing`) or grant CAP_SYS_ADMIN"
    )]
    Mount(#[source] std::io::Error),
    /// The kernel has none.
    #[error(
        "this kernel's lockdown is confidentiality: it has no tracefs, and programs can't read what is sent"
    )]
    Confidentiality,
}

impl From<Errno> for TracefsError {
    fn from(error: Errno) -> Self {
        Self::Mount(error.into())
    }
}

/// Tracefs where it is mounted and can be read.
pub fn mounted() -> Option<&'static Path> {
    PLACES
        .into_iter()
        .map(Path::new)
        .find(|place| place.join("events").is_dir())
}

/// Makes tracefs visible to the calling thread, which must be one that ends soon: its mount namespace may change.
/// Returns where it is, and whether it was mounted for this.
pub fn reach() -> Result<(PathBuf, bool), TracefsError> {
    if let Some(place) = mounted() {
        return Ok((place.to_owned(), false));
    }
    mount_privately().map(|place| (place, true))
}

fn mount_privately() -> Result<PathBuf, TracefsError> {
    // SAFETY: `unshare` is unsafe where it takes the file descriptor table away from code that relies on sharing it;
    // these two flags leave descriptors alone. The thread is ours and ends after attaching.
    unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS)? };
    // Without this the mount would propagate back to the host.
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?;
    if lockdown()?.as_deref() == Some(CONFIDENTIALITY) {
        return Err(TracefsError::Confidentiality);
    }
    mount("tracefs", PLACES[0], "tracefs", FLAGS, None)?;
    Ok(PLACES[0].into())
}

const FLAGS: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Where securityfs is mounted.
const SECURITYFS: &str = "/sys/kernel/security";
/// Where the kernel says how much of itself it keeps from root.
pub const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// A lockdown under which tracefs must not be mounted. Nothing in the kernel keeps the file system alive then, and Linux 6.12 oopses when its
/// last mount goes (`tracefs_destroy_inode`): this thread would stay in the kernel for ever, and so would the process.
const CONFIDENTIALITY: &str = "confidentiality";

/// The lockdown in force; `None` where the kernel has none. Mounts securityfs in this thread's mount namespace, if need be.
fn lockdown() -> Result<Option<String>, TracefsError> {
    let file = Path::new(LOCKDOWN);
    if !file.exists() {
        match mount("securityfs", SECURITYFS, "securityfs", FLAGS, None) {
            // It has none; or it is there, without such a file.
            Ok(()) | Err(Errno::NODEV | Errno::NOENT | Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text::lockdown(&text).map(str::to_owned)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TracefsError::Mount(error)),
    }
}

/// Whether a field of a tracepoint's record lies where the programs read it: `format` is the text of its `format` file.
///
/// A kernel whose record differs is not guessed at: the program isn't attached, and the message says why.
pub fn has_field(format: &str, name: &str, offset: u32, size: u32) -> bool {
    format.lines().any(|line| {
        let mut parts = line.trim().split(';').map(str::trim);
        let (Some(declaration), Some(at), Some(bytes)) = (parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        declaration.starts_with("field:")
            && declaration
                .rsplit(|c: char| c.is_whitespace() || c == '*')
                .next()
                == Some(name)
            && at == format!("offset:{offset}")
            && bytes == format!("size:{size}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWTASK: &str = "name: task_newtask\nID: 123\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;\n\
        \tfield:char comm[16];\toffset:12;\tsize:16;\tsigned:0;\n\
        \tfield:unsigned long clone_flags;\toffset:32;\tsize:8;\tsigned:0;\n\nprint fmt: \"pid=%d\"\n";

    #[test]
    fn fields_are_found_by_name_place_and_size() {
        assert!(has_field(NEWTASK, "pid", 8, 4));
        assert!(has_field(NEWTASK, "clone_flags", 32, 8));
        assert!(!has_field(NEWTASK, "clone_flags", 24, 8));
        assert!(!has_field(NEWTASK, "clone_flags", 32, 4));
        assert!(!has_field(NEWTASK, "flags", 32, 8));
        assert!(!has_field("", "pid", 8, 4));
    }
}
