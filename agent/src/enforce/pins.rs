//! What stays in the kernel when the agent goes: maps, programs and links, as files of a bpffs.
//!
//! `<pin-dir>/v<layout>-<build>/` holds everything of one build with one set of watched methods, one tap and one enforcer. An agent that finds its own takes
//! it over as it runs. Those of other builds serve the connections that they have until these close ([`super::old`]).

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use agent_common::abi;
use aya::maps::{Map, MapData, MapError};
use aya_obj::generated::{bpf_cmd, bpf_map_type};
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::mount::{MountFlags, mount};

use crate::tap::sys;

/// `BPF_FS_MAGIC`.
const BPFFS: i64 = 0xcafe_4a11;
/// Where bpffs belongs.
const HOME: &str = "/sys/fs/bpf";
/// The initial mount namespace, where the kernel gives it a fixed number (6.17); elsewhere it is that of process 1.
const INITIAL_MOUNT_NAMESPACE: &str = "mnt:[4026531832]";
/// Of a directory that is being filled: what is in it enforces nothing yet.
const UNFINISHED: &str = "new-";

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory isn't on a bpffs.
    #[error("{path} is not on a bpffs, where alone enforcement can outlive the agent: {reason}")]
    NoBpffs {
        /// The pin directory.
        path: PathBuf,
        /// Why it was not mounted, and what to do.
        reason: String,
    },
    /// Another agent.
    #[error("another agent, pid {pid}, uses {path}; stop it first")]
    Taken {
        /// The pin directory.
        path: PathBuf,
        /// Its pid, or a question mark.
        pid: String,
    },
    /// Somebody else's directory.
    #[error(
        "{path} {what}: whoever that is could change what is enforced; remove it, or name another directory (--pin-dir)"
    )]
    Foreign {
        /// The pin directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file.
    #[error("{path}: {reason}")]
    Pin {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
}

impl PinError {
    fn at(path: &Path, error: &io::Error) -> Self {
        Self::Pin {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }
}

/// The name of a map's file.
pub fn map(name: &str) -> String {
    format!("map_{name}")
}

/// The name of a program's file.
pub fn program(name: &str) -> String {
    format!("prog_{name}")
}

/// The name of a link's file.
pub fn link(name: &str) -> String {
    format!("link_{name}")
}

/// The pin directory, which no other agent uses as long as this lives.
pub struct Pins {
    root: PathBuf,
    current: PathBuf,
    _lock: File,
}

impl Pins {
    /// Takes the pin directory for the programs of this build, as they are used (with which methods, and how attached). A bpffs is
    /// mounted if it must be and may be.
    pub fn take(root: &Path, object: &[u8], usage: &impl Hash) -> Result<Self, PinError> {
        if !is_bpffs(root) {
            mount_bpffs(root)?;
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|e| PinError::at(root, &e))?;
        ensure_own(root)?;
        let lock = lock(root)?;
        let mut hasher = DefaultHasher::new();
        object.hash(&mut hasher);
        usage.hash(&mut hasher);
        let name = format!("{}{:016x}", layout(), hasher.finish());
        Ok(Self {
            root: root.to_owned(),
            current: root.join(name),
            _lock: lock,
        })
    }

    /// Where an agent of this build left what it pinned, if it did.
    pub fn found(&self) -> Option<&Path> {
        self.current.exists().then_some(&self.current)
    }

    /// What other builds left.
    pub fn others(&self) -> io::Result<Vec<PathBuf>> {
        let mut others = generations(&self.root)?;
        others.retain(|path| *path != self.current);
        Ok(others)
    }

    /// Pins by `pin`, which is given an empty directory: all of it or nothing.
    pub fn fill<T>(&self, pin: impl FnOnce(&Path) -> Result<T, PinError>) -> Result<T, PinError> {
        let name = self
            .current
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let unfinished = self.root.join(format!("{UNFINISHED}{name}"));
        // What an agent left that was killed at this point.
        remove(&unfinished).map_err(|e| PinError::at(&unfinished, &e))?;
        fs::create_dir(&unfinished).map_err(|e| PinError::at(&unfinished, &e))?;
        let result = pin(&unfinished);
        let result = result.and_then(|value| {
            fs::rename(&unfinished, &self.current)
                .map(|()| value)
                .map_err(|e| PinError::at(&self.current, &e))
        });
        if result.is_err() {
            let _ = remove(&unfinished);
        }
        result
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Only where it is empty.
        let _ = fs::remove_dir(&self.root);
    }
}

/// Makes sure that nobody else has made the pin directory, or can put anything into it: what is pinned there is run, and what isn't wanted is
/// removed.
pub fn ensure_own(root: &Path) -> Result<(), PinError> {
    let found = fs::symlink_metadata(root).map_err(|e| PinError::at(root, &e))?;
    let foreign = |what: String| PinError::Foreign {
        path: root.to_owned(),
        what,
    };
    if !found.is_dir() {
        return Err(foreign("is no directory".to_owned()));
    }
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        return Err(foreign(format!("belongs to user {}", found.uid())));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(foreign(format!("can be written by others (mode {mode:o})")));
    }
    Ok(())
}

/// Takes the lock of the pin directory; it ends with its process.
pub fn lock(root: &Path) -> Result<File, PinError> {
    let directory = File::open(root).map_err(|e| PinError::at(root, &e))?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(directory),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PinError::Taken {
            path: root.to_owned(),
            pid: holder(&directory).unwrap_or_else(|| "?".to_owned()),
        }),
        Err(e) => Err(PinError::at(root, &e.into())),
    }
}

/// The process that holds a lock.
fn holder(file: &File) -> Option<String> {
    let inode = file.metadata().ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    Some(crate::host::text::holder(&locks, inode)?.to_string())
}

/// The directories of all builds, finished or not.
pub fn generations(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_ours) && entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a directory is so named as [`Pins::take`] names them. Whatever else lies there is somebody else's, and is left alone.
fn is_ours(name: &str) -> bool {
    let name = name.strip_prefix(UNFINISHED).unwrap_or(name);
    let Some((layout, build)) = name.strip_prefix('v').and_then(|n| n.split_once('-')) else {
        return false;
    };
    layout.parse::<u32>().is_ok()
        && build.len() == 16
        && build.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Removes a directory of pins, links first; no error if there is none.
pub fn remove(directory: &Path) -> io::Result<()> {
    for prefix in ["link_", "prog_", ""] {
        remove_files(directory, |name| name.starts_with(prefix))?;
    }
    match fs::remove_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes the pins that are so named.
pub fn remove_files(directory: &Path, which: impl Fn(&str) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&which) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether `path`, or what of it exists, is on a bpffs.
pub fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find(|path| path.exists())
        .and_then(|path| statfs(path).ok())
        .is_some_and(|found| found.f_type == BPFFS)
}

/// Mounts a bpffs where it belongs, on a host. In a container it would be gone with it, so there it is an error.
fn mount_bpffs(root: &Path) -> Result<(), PinError> {
    let refused = |reason: String| PinError::NoBpffs {
        path: root.to_owned(),
        reason,
    };
    if let Some(why) = not_mountable(root) {
        return Err(refused(why));
    }
    mount(
        "bpf",
        HOME,
        "bpf",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        // As systemd does it: others have no business there.
        Some(c"mode=0700"),
    )
    .map_err(|e| refused(format!("mounting one on {HOME} failed: {e}")))?;
    tracing::info!("mounted a bpffs on {HOME}");
    Ok(())
}

/// Why the agent would not mount a bpffs for this pin directory; `None`: it would try.
pub fn not_mountable(root: &Path) -> Option<String> {
    if !root.starts_with(HOME) || !Path::new(HOME).is_dir() {
        return Some(format!("mount one there, or use a directory below {HOME}"));
    }
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mine = namespace("self");
    let initial = mine.as_deref() == Some(Path::new(INITIAL_MOUNT_NAMESPACE));
    if !initial && (mine.is_none() || mine != namespace("1")) {
        return Some(format!("mount the host's {HOME} into the container"));
    }
    None
}

/// Pins an object of the kernel's.
pub fn pin(object: &OwnedFd, path: &Path) -> Result<(), PinError> {
    let text = terminated(path);
    let mut attr = sys::nothing();
    attr.__bindgen_anon_4.pathname = text.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    // SAFETY: the path is terminated and outlives the call.
    unsafe { sys::bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map_err(|e| PinError::at(path, &e))?;
    Ok(())
}

/// Makes a map of sockets by numbers of 8 bytes (CAP_NET_ADMIN).
pub fn sock_hash(entries: u32) -> io::Result<OwnedFd> {
    let mut attr = sys::nothing();
    attr.__bindgen_anon_1.map_type = bpf_map_type::BPF_MAP_TYPE_SOCKHASH as u32;
    attr.__bindgen_anon_1.key_size = 8;
    attr.__bindgen_anon_1.value_size = 4;
    attr.__bindgen_anon_1.max_entries = entries;
    for (to, from) in (0..).zip(b"GATE") {
        // C's characters have a sign on some architectures only.
        let from = libc::c_char::from_ne_bytes([*from]);
        // SAFETY: the name has 16 octets, of which the last stay 0.
        unsafe { attr.__bindgen_anon_1.map_name[to] = from };
    }
    // SAFETY: it points to nothing.
    let fd = unsafe { sys::bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr) }?;
    // SAFETY: the call made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The keys, of 8 bytes, of a hash map, whatever its layout.
pub fn keys(map: &MapData) -> io::Result<Vec<u64>> {
    let mut found: Vec<u64> = Vec::new();
    loop {
        let mut next = 0u64;
        let mut attr = sys::nothing();
        attr.__bindgen_anon_2.map_fd = map.fd().as_fd().as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = found.last().map_or(0, |key| std::ptr::from_ref(key) as u64);
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = &raw mut next as u64;
        // SAFETY: both keys are as long as the map's, and outlive the call.
        match unsafe { sys::bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            result => result?,
        };
        // The map may be written meanwhile, and then a look through it may begin anew.
        if found.len() >= map.info().map_err(io::Error::other)?.max_entries() as usize {
            return Ok(found);
        }
        found.push(next);
    }
}

/// Whether the maps in a directory are laid out as this build's are.
pub fn has_this_layout(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(&layout()))
}

/// What the names of such directories begin with.
fn layout() -> String {
    format!("v{}-", abi::VERSION)
}

/// The keys and values of a hash map with keys of 8 bytes, whatever their layout.
pub fn entries(map: &MapData) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let size = map.info().map_err(io::Error::other)?.value_size() as usize;
    let mut found = Vec::new();
    for key in keys(map)? {
        // The kernel writes values in steps of 8 bytes.
        let mut value = vec![0u8; size.next_multiple_of(8)];
        let mut attr = sys::nothing();
        attr.__bindgen_anon_2.map_fd = map.fd().as_fd().as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = &raw const key as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
        // SAFETY: the key is as long as the map's, the value no shorter, and both outlive the call.
        if unsafe { sys::bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) }.is_ok() {
            found.push((key, value));
        }
    }
    Ok(found)
}

/// Opens a map of those pinned in `directory`.
pub fn open_map(directory: &Path, name: &str) -> Result<Map, MapError> {
    MapData::from_pin(directory.join(map(name))).and_then(Map::from_map_data)
}

/// Opens a pinned object.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let text = terminated(path);
    let mut attr = sys::nothing();
    attr.__bindgen_anon_4.pathname = text.as_ptr() as u64;
    // SAFETY: the path is terminated and outlives the call.
    let fd = unsafe { sys::bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the call made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn terminated(path: &Path) -> Vec<u8> {
    let mut text = path.as_os_str().as_bytes().to_vec();
    text.push(0);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not on a bpffs, which makes no difference to whose it is.
    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("own");
        fs::create_dir(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        ensure_own(&own).unwrap();
        let link = directory.path().join("link");
        symlink(&own, &link).unwrap();
        let refused = ensure_own(&link).unwrap_err().to_string();
        assert!(refused.contains("is no directory"), "{refused}");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o1777)).unwrap();
        let refused = ensure_own(&own).unwrap_err().to_string();
        assert!(refused.contains("mode 1777"), "{refused}");
        // Only root can give one away.
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(&own, Some(12_345), None).unwrap();
            let refused = ensure_own(&own).unwrap_err().to_string();
            assert!(refused.contains("belongs to user 12345"), "{refused}");
        }
    }

    #[test]
    fn only_what_an_agent_made_is_ours() {
        for ours in ["v2-0123456789abcdef", "new-v13-ffffffffffffffff"] {
            assert!(is_ours(ours), "{ours}");
        }
        for theirs in [
            "vault",
            "v2",
            "v2-",
            "v-0123456789abcdef",
            "v2-0123",
            "new-",
            "cilium",
        ] {
            assert!(!is_ours(theirs), "{theirs}");
        }
    }
}
