//! What the kernel tells of itself in `/proc` and `/sys`.
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use super::text;
use crate::enforce::{kernels, peer, pins};
use crate::tap::hooks::{HOLDS, HOOKS, Hook, Kind};
use crate::tap::tracefs::LOCKDOWN;

/// Something that was read, or why it could not be.
pub type Known<T> = Result<T, String>;

/// A tracepoint that one of the tap's programs belongs on and that this kernel doesn't have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its place, `category/name`.
    pub place: String,
    /// What isn't seen without it.
    pub without: &'static str,
    /// The tap can't do its work without it.
    pub required: bool,
}

/// Where tracefs belongs. The directory is there if the kernel can trace at all, mounted or not.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// Everything that is looked at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The architecture that this binary is built for.
    pub architecture: &'static str,
    /// `uname -r`.
    pub release: Known<String>,
    /// `uname -v`.
    pub version: Known<String>,
    /// Effective capabilities, a bit each.
    pub capabilities: Known<u64>,
    /// Inode of our pid namespace.
    pub pid_namespace: Known<u64>,
    /// Inode of our user namespace.
    pub user_namespace: Known<u64>,
    /// Whether the kernel shows its types.
    pub btf: Known<bool>,
    /// Whether the kernel can trace at all.
    pub tracing: bool,
    /// Where tracefs is mounted.
    pub tracefs: Known<Option<PathBuf>>,
    /// Which of the tap's tracepoints are missing; an error where tracefs isn't mounted or can't be read.
    pub missing_tracepoints: Known<Vec<Missing>>,
    /// The same of those that the gate needs to join connections.
    pub missing_holds: Known<Vec<Missing>>,
    /// Whether programs of system calls' tracepoints are preempted.
    pub preempted: Known<bool>,
    /// The directory in which enforcement would be pinned.
    pub pin_dir: PinDir,
    /// Whether descriptors of other processes can be duplicated at all (`pidfd_getfd`), or why not.
    pub pidfd_getfd: Known<()>,
    /// The lockdown in force (`none`, `integrity`, `confidentiality`); `None` if the kernel has no lockdown.
    pub lockdown: Known<Option<String>>,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Known<i64>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Known<i64>,
    /// `net.core.bpf_jit_enable`.
    pub bpf_jit_enable: Known<i64>,
    /// Where bpffs is mounted.
    pub bpffs: Known<Option<PathBuf>>,
    /// Which cgroup hierarchies are mounted.
    pub cgroup: Known<Cgroup>,
    /// Locked memory that we may have at most, in octets; `None` is without limit.
    pub memlock: Option<u64>,
}

/// A directory to pin in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is on a bpffs.
    pub bpffs: bool,
    /// Why the agent would not mount one for it; `None`: it would, where it may.
    pub not_mountable: Option<String>,
}

impl PinDir {
    fn look(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            bpffs: pins::is_bpffs(path),
            not_mountable: pins::not_mountable(path),
        }
    }
}

/// Inode of our pid namespace.
pub fn pid_namespace() -> Known<u64> {
    Tree(Path::new("/")).namespace("pid")
}

/// Mounted cgroup hierarchies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// The unified one only.
    V2,
    /// The old ones only.
    V1,
    /// The old ones, and the unified one beside them.
    Hybrid,
    /// None.
    None,
}

impl Facts {
    /// Of this node, where enforcement would be pinned in `pin_dir`.
    pub fn gather(pin_dir: &Path) -> Self {
        let memlock = rustix::process::getrlimit(rustix::process::Resource::Memlock);
        Self {
            pidfd_getfd: pidfd_getfd(),
            ..Self::below(Path::new("/"), memlock.current, PinDir::look(pin_dir))
        }
    }

    /// Of a node whose file tree begins at `root`.
    fn below(root: &Path, memlock: Option<u64>, pin_dir: PinDir) -> Self {
        let tree = Tree(root);
        let mounts = tree.text("/proc/self/mounts");
        let mounted = |kind: &str| {
            mounts
                .clone()
                .map(|mounts| text::mount_points(&mounts, kind))
        };
        let tracefs = mounted("tracefs").map(|points| {
            let usual = points.iter().find(|point| *point == Path::new(TRACEFS));
            usual.or(points.first()).cloned()
        });
        Self {
            architecture: std::env::consts::ARCH,
            release: tree.text("/proc/sys/kernel/osrelease").map(trimmed),
            version: tree.text("/proc/sys/kernel/version").map(trimmed),
            capabilities: tree.capabilities(),
            pid_namespace: tree.namespace("pid"),
            user_namespace: tree.namespace("user"),
            btf: tree.exists("/sys/kernel/btf/vmlinux", "/sys/kernel"),
            tracing: tree.path(TRACEFS).is_dir(),
            missing_tracepoints: tree.missing(HOOKS, &tracefs),
            missing_holds: tree.missing(&HOLDS, &tracefs),
            preempted: kernels::preempts(&tree.path(kernels::SYMBOLS)),
            pin_dir,
            pidfd_getfd: Err("not tried".to_owned()),
            tracefs,
            lockdown: tree.lockdown(&mounted("securityfs")),
            perf_event_paranoid: tree.number("/proc/sys/kernel/perf_event_paranoid"),
            unprivileged_bpf_disabled: tree.number("/proc/sys/kernel/unprivileged_bpf_disabled"),
            bpf_jit_enable: tree.number("/proc/sys/net/core/bpf_jit_enable"),
            bpffs: mounted("bpf").map(|points| points.first().cloned()),
            cgroup: cgroup(mounted("cgroup"), mounted("cgroup2")),
            memlock,
        }
    }
}

/// The file tree, wherever it begins.
struct Tree<'a>(&'a Path);

impl Tree<'_> {
    fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let path = absolute.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn text(&self, path: &str) -> Known<String> {
        fs::read_to_string(self.path(path)).map_err(|error| format!("{path}: {error}"))
    }

    fn number(&self, path: &str) -> Known<i64> {
        let text = trimmed(self.text(path)?);
        text.parse()
            .map_err(|_| format!("{path}: {text:?} is no number"))
    }

    /// Whether a file is there; unknown where not even what it belongs to is.
    fn exists(&self, path: &str, belongs_to: &str) -> Known<bool> {
        match self.path(path).try_exists() {
            Ok(true) => Ok(true),
            Ok(false) if self.path(belongs_to).is_dir() => Ok(false),
            Ok(false) => Err(format!("{belongs_to} is not there")),
            Err(error) => Err(format!("{path}: {error}")),
        }
    }

    fn capabilities(&self) -> Known<u64> {
        let path = "/proc/self/status";
        let text = self.text(path)?;
        text::capabilities(&text).ok_or_else(|| format!("{path}: no CapEff"))
    }

    fn namespace(&self, kind: &str) -> Known<u64> {
        let path = format!("/proc/self/ns/{kind}");
        let link = fs::read_link(self.path(&path)).map_err(|error| format!("{path}: {error}"))?;
        link.to_str()
            .and_then(text::namespace)
            .ok_or_else(|| format!("{path}: {} names no namespace", link.display()))
    }

    fn missing(&self, hooks: &[Hook], tracefs: &Known<Option<PathBuf>>) -> Known<Vec<Missing>> {
        let Some(tracefs) = tracefs.clone()? else {
            return Err("tracefs is not mounted".to_owned());
        };
        let events = self.path(tracefs).join("events");
        // Below a directory that may not be entered, nothing exists: that would say the wrong thing.
        fs::read_dir(&events).map_err(|error| format!("{}: {error}", events.display()))?;
        let absent = |place: &String| {
            let found = fs::metadata(events.join(place));
            found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        let missing = hooks.iter().filter_map(|hook| {
            Some(hook.place(Kind::Tracepoint))
                .filter(absent)
                .map(|place| Missing {
                    place,
                    without: hook.without,
                    required: hook.required,
                })
        });
        Ok(missing.collect())
    }

    fn lockdown(&self, securityfs: &Known<Vec<PathBuf>>) -> Known<Option<String>> {
        let path = LOCKDOWN;
        match fs::read_to_string(self.path(path)) {
            Ok(text) => text::lockdown(&text)
                .map(|mode| Some(mode.to_owned()))
                .ok_or_else(|| format!("{path}: {:?} names no mode", text.trim())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if securityfs.clone()?.is_empty() {
                    return Err("securityfs is not mounted".to_owned());
                }
                Ok(None)
            }
            Err(error) => Err(format!("{path}: {error}")),
        }
    }
}

/// Duplicates a descriptor of this process: what other processes' take besides is CAP_SYS_PTRACE.
fn pidfd_getfd() -> Known<()> {
    let file = fs::File::open("/proc/self/status").map_err(|e| e.to_string())?;
    let fd = u32::try_from(file.as_raw_fd()).map_err(|e| e.to_string())?;
    peer::Process::open(std::process::id())
        .and_then(|this| this.descriptor(fd))
        .map(drop)
        .map_err(|e| e.to_string())
}

fn trimmed(text: String) -> String {
    text.trim().to_owned()
}

fn cgroup(old: Known<Vec<PathBuf>>, unified: Known<Vec<PathBuf>>) -> Known<Cgroup> {
    Ok(match (old?.is_empty(), unified?.is_empty()) {
        (true, true) => Cgroup::None,
        (true, false) => Cgroup::V2,
        (false, true) => Cgroup::V1,
        (false, false) => Cgroup::Hybrid,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = Tree(root).path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn below(root: &Path, memlock: Option<u64>) -> Facts {
        let pin_dir = PinDir {
            path: PathBuf::from("/sys/fs/bpf/x"),
            bpffs: true,
            not_mountable: None,
        };
        Facts::below(root, memlock, pin_dir)
    }

    /// A node that has everything.
    fn node() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(
            root,
            "/proc/self/mounts",
            "proc /proc proc rw 0 0\n\
             tracefs /elsewhere tracefs rw 0 0\n\
             tracefs /sys/kernel/tracing tracefs rw 0 0\n\
             securityfs /sys/kernel/security securityfs rw 0 0\n\
             bpf /sys/fs/bpf bpf rw 0 0\n\
             cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
        );
        write(root, "/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n");
        write(
            root,
            "/proc/self/status",
            "Name:\tx\nCapEff:\t000001ffffffffff\n",
        );
        fs::create_dir_all(root.join("proc/self/ns")).unwrap();
        symlink("pid:[4026531836]", root.join("proc/self/ns/pid")).unwrap();
        symlink("user:[4026531837]", root.join("proc/self/ns/user")).unwrap();
        write(root, "/sys/kernel/btf/vmlinux", "");
        for hook in HOOKS.iter().chain(&HOLDS) {
            write(
                root,
                &format!("{TRACEFS}/events/{}/id", hook.place(Kind::Tracepoint)),
                "1\n",
            );
        }
        write(
            root,
            "/sys/kernel/security/lockdown",
            "none [integrity] confidentiality\n",
        );
        write(root, "/proc/sys/kernel/perf_event_paranoid", "2\n");
        write(root, "/proc/sys/kernel/unprivileged_bpf_disabled", "1\n");
        write(root, "/proc/sys/net/core/bpf_jit_enable", "1\n");
        directory
    }

    #[test]
    fn a_node_that_has_everything() {
        let node = node();
        let facts = below(node.path(), None);
        assert_eq!(facts.release.as_deref(), Ok("6.1.0-18-cloud-amd64"));
        assert_eq!(facts.capabilities, Ok(0x1ff_ffff_ffff));
        assert_eq!(facts.pid_namespace, Ok(4_026_531_836));
        assert_eq!(facts.user_namespace, Ok(4_026_531_837));
        assert_eq!(facts.btf, Ok(true));
        assert!(facts.tracing);
        assert_eq!(facts.tracefs, Ok(Some(PathBuf::from(TRACEFS))));
        assert_eq!(facts.missing_tracepoints, Ok(vec![]));
        assert_eq!(facts.missing_holds, Ok(vec![]));
        assert_eq!(facts.lockdown, Ok(Some("integrity".to_owned())));
        assert_eq!(facts.perf_event_paranoid, Ok(2));
        assert_eq!(facts.bpffs, Ok(Some(PathBuf::from("/sys/fs/bpf"))));
        assert_eq!(facts.cgroup, Ok(Cgroup::V2));
    }

    #[test]
    fn a_node_that_has_nothing() {
        let node = tempfile::tempdir().unwrap();
        let facts = below(node.path(), Some(65536));
        assert!(
            facts
                .release
                .unwrap_err()
                .starts_with("/proc/sys/kernel/osrelease: ")
        );
        assert!(facts.capabilities.is_err() && facts.pid_namespace.is_err());
        assert_eq!(facts.btf, Err("/sys/kernel is not there".to_owned()));
        assert!(!facts.tracing);
        assert!(facts.tracefs.is_err() && facts.missing_tracepoints.is_err());
        assert!(facts.lockdown.is_err() && facts.cgroup.is_err());
    }

    #[test]
    fn what_is_missing_is_missing_and_not_unknown() {
        let node = node();
        let root = node.path();
        fs::remove_file(root.join("sys/kernel/btf/vmlinux")).unwrap();
        fs::remove_file(root.join("sys/kernel/security/lockdown")).unwrap();
        let writev = "syscalls/sys_exit_writev";
        fs::remove_dir_all(root.join("sys/kernel/tracing/events").join(writev)).unwrap();
        let facts = below(root, None);
        assert_eq!(facts.btf, Ok(false));
        assert_eq!(facts.lockdown, Ok(None));
        let missing = facts.missing_tracepoints.unwrap();
        assert_eq!(missing.len(), 1);
        assert_eq!((&*missing[0].place, missing[0].required), (writev, true));
    }

    #[test]
    fn what_is_not_mounted_is_unknown() {
        let node = node();
        write(
            node.path(),
            "/proc/self/mounts",
            "cgroup /c cgroup rw 0 0\ncgroup2 /u cgroup2 rw 0 0\n",
        );
        fs::remove_file(node.path().join("sys/kernel/security/lockdown")).unwrap();
        let facts = below(node.path(), None);
        assert_eq!(facts.tracefs, Ok(None));
        assert_eq!(
            facts.missing_tracepoints,
            Err("tracefs is not mounted".to_owned())
        );
        assert_eq!(facts.lockdown, Err("securityfs is not mounted".to_owned()));
        assert_eq!((facts.bpffs, facts.cgroup), (Ok(None), Ok(Cgroup::Hybrid)));
    }

    #[test]
    fn oddities_are_unknown() {
        let node = node();
        write(node.path(), "/proc/self/status", "CapEff:\tzz\n");
        write(node.path(), "/proc/sys/net/core/bpf_jit_enable", "yes\n");
        write(node.path(), "/sys/kernel/security/lockdown", "none\n");
        let facts = below(node.path(), None);
        assert!(facts.capabilities.is_err());
        assert!(facts.bpf_jit_enable.is_err());
        assert!(facts.lockdown.is_err());
    }

    #[test]
    fn this_node_can_be_looked_at() {
        let facts = Facts::gather(Path::new("/nowhere"));
        assert!(facts.release.is_ok());
        assert!(!facts.pin_dir.bpffs && facts.pin_dir.not_mountable.is_some());
        assert_eq!(facts.pidfd_getfd, Ok(()));
        assert!(facts.capabilities.is_ok());
    }
}
