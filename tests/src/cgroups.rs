//! Cgroups that are called as the kubelet calls them, in whatever hierarchies this machine has.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::Mutex;

/// Hierarchies that are known, and how the kubelet names a pod's cgroup there: with the driver `systemd` or `cgroupfs`.
const HIERARCHIES: [(&str, Driver); 3] = [
    ("/sys/fs/cgroup", Driver::Systemd),
    ("/sys/fs/cgroup/unified", Driver::Systemd),
    ("/sys/fs/cgroup/freezer", Driver::Cgroupfs),
];

/// A container's id: any will do.
const CONTAINER: &str = "8e5c4d1a9f0b7c6e2d3a1b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f80";

/// How long processes that have been killed may take to end.
const EMPTY: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Driver {
    Systemd,
    Cgroupfs,
}

impl Driver {
    /// The path of a container's cgroup.
    fn path(self, uid: &str) -> String {
        match self {
            Self::Systemd => format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{CONTAINER}.scope",
                uid.replace('-', "_")
            ),
            Self::Cgroupfs => format!("kubepods/burstable/pod{uid}/{CONTAINER}"),
        }
    }
}

/// The cgroups of a pod's container; removed when they are dropped and nobody is in them.
pub struct PodCgroup {
    places: Vec<Place>,
}

/// One hierarchy.
struct Place {
    root: PathBuf,
    /// Where this process is in it.
    own: PathBuf,
    /// The container's cgroup.
    cgroup: PathBuf,
}

/// The whole process moves, so only one may at a time.
static TURN: Mutex<()> = Mutex::const_new(());

impl PodCgroup {
    /// Makes them.
    ///
    /// # Errors
    /// There is no hierarchy in which cgroups can be made.
    pub fn new(uid: &str) -> Result<Self> {
        let cgroups = std::fs::read_to_string("/proc/self/cgroup")?;
        let mut places = Vec::new();
        for (root, driver) in HIERARCHIES {
            let root = Path::new(root);
            if !root.join("cgroup.procs").exists() {
                continue;
            }
            let cgroup = root.join(driver.path(uid));
            std::fs::create_dir_all(&cgroup)
                .with_context(|| format!("making {}", cgroup.display()))?;
            places.push(Place {
                own: root.join(own(&cgroups, driver).trim_start_matches('/')),
                root: root.to_owned(),
                cgroup,
            });
        }
        ensure!(!places.is_empty(), "no cgroup hierarchy is mounted");
        Ok(Self { places })
    }

    /// Does something whose child processes are in the pod from their beginning.
    ///
    /// # Errors
    /// This process can't be moved, or it fails.
    pub async fn within<T>(&self, start: impl Future<Output = Result<T>>) -> Result<T> {
        let _turn = TURN.lock().await;
        for place in &self.places {
            move_to(&place.cgroup)?;
        }
        let started = start.await;
        for place in &self.places {
            move_to(&place.own)?;
        }
        started
    }
}

/// The path of this process's cgroup, of `/proc/self/cgroup`.
fn own(cgroups: &str, driver: Driver) -> &str {
    let of = match driver {
        Driver::Systemd => "",
        Driver::Cgroupfs => "freezer",
    };
    let mut paths = cgroups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|c| c == of).then_some(path)
    });
    paths.next().unwrap_or("/")
}

fn move_to(cgroup: &Path) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    std::fs::write(&procs, std::process::id().to_string())
        .with_context(|| format!("moving to {}", cgroup.display()))
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        for Place { root, cgroup, .. } in &self.places {
            // Those above it may be others' too: then they aren't empty, and stay.
            let mut at = Some(cgroup.as_path());
            // Who was in it may be about to end.
            let begun = Instant::now();
            while std::fs::remove_dir(cgroup).is_err() && begun.elapsed() < EMPTY {
                std::thread::sleep(Duration::from_millis(10));
            }
            while let Some(path) = at.filter(|path| path != root) {
                if path.exists() && std::fs::remove_dir(path).is_err() {
                    break;
                }
                at = path.parent();
            }
        }
    }
}
