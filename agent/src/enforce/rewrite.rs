//! `rewrite`, as far as user space has a part in it: it says which descriptors are sockets.
//!
//! The programs overwrite only what goes to a descriptor that the process has connected, as they saw it do (`fd_connect`). Of
//! connections that are older, /proc tells; a descriptor that is closed meanwhile, and used again, is seen by looking twice.

use std::collections::BTreeSet;
use std::time::Instant;

use agent_common::abi::{ConnKey, tracked};
use agent_common::h2::track::status;
use aya::maps::{HashMap, MapData};

use super::{Obstacles, View, epoch, peer, word32};

/// Sweeps between two looks for what is gone, and for connections that nobody told of.
const LOOK: u64 = 10;

/// `rewrite`, as user space sees it.
pub struct Rewrite {
    connected: HashMap<MapData, ConnKey, u64>,
    obstacles: Obstacles,
    waiting: BTreeSet<u32>,
    sweeps: u64,
}

impl Rewrite {
    /// Of these maps.
    pub fn new(connected: HashMap<MapData, ConnKey, u64>, obstacles: Obstacles) -> Self {
        Self {
            connected,
            obstacles,
            waiting: BTreeSet::new(),
            sweeps: 0,
        }
    }

    /// Calls of `pid` are to be rejected, or a connection of it has begun.
    pub fn want(&mut self, pid: u32) {
        self.waiting.insert(pid);
    }

    /// When something is due.
    pub fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(Instant::now)
    }

    /// Tells the programs which descriptors are sockets.
    pub fn work(&mut self, view: &View<'_>) {
        for pid in std::mem::take(&mut self.waiting) {
            let Ok(target) = view.targets.get(&pid, 0) else {
                continue;
            };
            let keys = view.connections.keys().flatten();
            for key in keys.filter(|key| key.tgid == pid) {
                let follows = view.connections.get(&key, 0).is_ok_and(|bytes| {
                    epoch(&bytes) == target.epoch
                        && word32(&bytes, tracked::STATUS) == status::SYNCED
                });
                let known = self
                    .connected
                    .get(&key, 0)
                    .is_ok_and(|of| of == target.epoch);
                if !follows || known || !peer::is_socket(key.tgid, key.fd) {
                    continue;
                }
                if let Err(error) = self.connected.insert(key, target.epoch, 0) {
                    tracing::warn!(pid, "its calls can't be rejected: {error}");
                } else if !peer::is_socket(key.tgid, key.fd) {
                    let _ = self.connected.remove(&key);
                }
            }
        }
    }

    /// Once a second: forgets what is gone.
    pub fn sweep(&mut self, view: &View<'_>) {
        self.sweeps = self.sweeps.wrapping_add(1);
        if !self.sweeps.is_multiple_of(LOOK) {
            return;
        }
        let keys: Vec<ConnKey> = self.connected.keys().flatten().collect();
        for key in keys {
            let lives = self
                .connected
                .get(&key, 0)
                .is_ok_and(|of| view.targets.get(&key.tgid, 0).is_ok_and(|t| t.epoch == of));
            if !lives {
                let _ = self.connected.remove(&key);
            }
        }
        let pids = view.connections.keys().flatten().map(|key| key.tgid);
        self.waiting.extend(pids);
        super::forget_gone(&mut self.obstacles, view);
    }
}
