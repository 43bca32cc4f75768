//! What an agent of another build left pinned: its programs serve the connections that they have until these close.
//!
//! Only layouts that are frozen are read ([`agent_common::abi`]): which processes, what of them is to be rejected, their
//! counters, the lease. The other build's tap goes on with what it follows, and takes up nothing new: with `rewrite` it is the enforcer, and
//! a gate that has missed something goes on from where its tap stands. Beside a gate it counts nothing but what that counts.
#![forbid(unsafe_code)]

use std::io;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use agent_common::abi::{ConnKey, Control, MAX_SLOTS, Slot, Target, closing};
use aya::maps::{HashMap, MapData, MapError, SockHash};

use super::pins::{self, Pins};
use crate::tap::counters::MappedArray;

/// One of them.
pub struct Old {
    directory: PathBuf,
    targets: HashMap<MapData, u32, Target>,
    slots: MappedArray<Slot>,
    /// Its lease.
    pub control: MappedArray<Control>,
    serves: Serves,
}

/// The connections that it serves.
enum Serves {
    Gate {
        sockets: SockHash<MapData, u64>,
        gated: MapData,
    },
    /// Those that its tap follows.
    Rewrite { connections: MapData },
}

/// All that there are. What can't be read is left alone, and said; what nothing is behind is removed.
pub fn all(pins: &Pins) -> Vec<Old> {
    let directories = match pins.others() {
        Ok(directories) => directories,
        Err(e) => {
            tracing::warn!("the pin directory can't be read: {e}");
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for directory in directories {
        match Old::open(&directory) {
            Ok(old) if old.serves() > 0 => found.push(old),
            Ok(old) => old.remove(),
            Err(e) => tracing::warn!(
                directory = %directory.display(),
                "left alone: another build's pins that can't be read: {e}"
            ),
        }
    }
    found
}

impl Old {
    /// Opens what is pinned there.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let map = |name| pins::open_map(directory, name).map_err(other);
        let data = |name| MapData::from_pin(directory.join(pins::map(name))).map_err(other);
        let serves = if directory.join(pins::map("GATE")).exists() {
            Serves::Gate {
                sockets: SockHash::try_from(map("GATE")?).map_err(other)?,
                gated: data("GATED")?,
            }
        } else {
            Serves::Rewrite {
                connections: data("CONNECTIONS")?,
            }
        };
        Ok(Self {
            targets: HashMap::try_from(map("TARGETS")?).map_err(other)?,
            slots: MappedArray::new(map("SLOTS")?, MAX_SLOTS)?,
            control: MappedArray::new(map("CONTROL")?, 1)?,
            serves,
            directory: directory.to_owned(),
        })
    }

    /// Where it is pinned.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Connections that it serves.
    pub fn serves(&self) -> usize {
        match &self.serves {
            Serves::Gate { sockets, .. } => sockets.keys().flatten().count(),
            Serves::Rewrite { .. } => self.connections().len(),
        }
    }

    /// Sockets that can't be taken out of its gate.
    pub fn sockets(&self) -> usize {
        match &self.serves {
            Serves::Gate { .. } => self.serves(),
            Serves::Rewrite { .. } => 0,
        }
    }

    /// Has its tap follow what it does and nothing new, now that there is another one.
    pub fn hand_over(&self) {
        if let Some(word) = self.control.atomic(0, offset_of!(Control, closing)) {
            let all = matches!(self.serves, Serves::Rewrite { .. });
            word.store(
                if all { closing::ALL } else { closing::GATED },
                Ordering::Relaxed,
            );
        }
    }

    /// Ends what it enforces.
    pub fn end(&self) {
        if let Some(lease) = self.control.atomic(0, offset_of!(Control, lease)) {
            lease.store(0, Ordering::Relaxed);
        }
    }

    /// The connections that it enforces.
    pub fn connections(&self) -> Vec<ConnKey> {
        let found = match &self.serves {
            Serves::Gate { gated, .. } => pins::entries(gated)
                .map(|all| all.iter().filter_map(|(_, value)| key(value)).collect()),
            Serves::Rewrite { connections } => pins::keys(connections).map(|all| {
                all.into_iter()
                    .filter_map(|bytes| key(&bytes.to_ne_bytes()))
                    // What it followed of a process that is gone is nothing.
                    .filter(|key| self.targets.get(&key.tgid, 0).is_ok())
                    .collect()
            }),
        };
        found.unwrap_or_else(|e| {
            tracing::warn!(directory = %self.directory.display(), "its connections can't be read: {e}");
            Vec::new()
        })
    }

    /// What it counted for a process.
    pub fn slot(&self, pid: u32) -> Option<Slot> {
        let target = self.targets.get(&pid, 0).ok()?;
        (target.slot != 0)
            .then(|| self.slots.get(target.slot))
            .flatten()
    }

    /// Sets what a process's calls count as.
    pub fn rule(&mut self, pid: u32, verdict: u32) {
        if let Ok(target) = self.targets.get(&pid, 0)
            && target.verdict != verdict
        {
            let _ = self.targets.insert(pid, Target { verdict, ..target }, 0);
        }
    }

    /// A process has ended.
    pub fn forget(&mut self, pid: u32) {
        let _ = self.targets.remove(&pid);
    }

    /// Removes its pins: it serves nothing any more.
    pub fn remove(&self) {
        match pins::remove(&self.directory) {
            Ok(()) => {
                tracing::info!(directory = %self.directory.display(), "another build's pins removed")
            }
            Err(e) => tracing::warn!(directory = %self.directory.display(), "not removed: {e}"),
        }
    }
}

/// The connection that a key or value of another build's is about: its first words, whatever follows.
fn key(value: &[u8]) -> Option<ConnKey> {
    let word = |at: usize| Some(u32::from_ne_bytes(value.get(at..at + 4)?.try_into().ok()?));
    Some(ConnKey {
        tgid: word(0)?,
        fd: word(4)?,
    })
}

fn other(error: MapError) -> io::Error {
    io::Error::other(crate::errors::chain(&error))
}
