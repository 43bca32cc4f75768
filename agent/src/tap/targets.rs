//! The table of watched processes. Agent and programs both write it, and count the entries that they make (`agent-ebpf/src/targets.rs`).

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::Ordering::SeqCst;

use agent_common::abi::Target;
use aya::maps::{HashMap, Map, MapData, MapError};
use aya_obj::generated::bpf_cmd;

use super::TapError;
use super::counters::MappedArray;
use super::load::{io_error, map_error};
use super::sys::{bpf, nothing};

const NAME: &str = "TARGETS";

/// `BPF_NOEXIST`: an entry that the kernel has made meanwhile is newer.
pub const NEW_ONLY: u64 = 1;

/// Watched processes, by their numbers.
pub struct Targets {
    map: HashMap<MapData, u32, Target>,
    fd: OwnedFd,
    /// How many entries have been made.
    entered: MappedArray<u64>,
}

impl Targets {
    /// That of an object, or of a pin directory.
    pub fn new(map: Map, entered: MappedArray<u64>) -> Result<Self, TapError> {
        let fd = match &map {
            Map::HashMap(data) => data.fd().as_fd().try_clone_to_owned(),
            _ => Err(io::Error::other("not a hash map")),
        };
        Ok(Self {
            fd: fd.map_err(|e| io_error(NAME, &e))?,
            map: HashMap::try_from(map).map_err(|e| map_error(NAME, &e))?,
            entered,
        })
    }

    /// Makes an entry, or overwrites it.
    pub fn insert(&mut self, pid: u32, target: Target, flags: u64) -> Result<(), MapError> {
        self.map.insert(pid, target, flags)?;
        // Behind it: the programs take the process for one that isn't watched until then.
        if let Some(entered) = self.entered.atomic(0, 0) {
            entered.fetch_add(1, SeqCst);
        }
        Ok(())
    }

    /// Takes away the entry of a program that began then, in ns since boot. If the process runs a newer one, that one's stays: nobody would
    /// make it again.
    pub fn forget(&mut self, pid: u32, generation: u64) {
        if matches!(self.map.get(&pid, 0), Ok(target) if target.generation > generation) {
            return;
        }
        match self.take(pid) {
            // It began just now. Until the entry is back, some µs, nothing of it is counted; if it has gone on to yet another program, that
            // one's entry stands.
            Ok(newer) if newer.generation > generation => {
                let _ = self.insert(pid, newer, NEW_ONLY);
            }
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(_) => {
                let _ = self.map.remove(&pid);
            }
        }
    }

    /// Takes an entry away and says what it was, in one step (5.14).
    fn take(&self, pid: u32) -> io::Result<Target> {
        let mut taken = Target {
            generation: 0,
            epoch: 0,
            slot: 0,
            verdict: 0,
        };
        let mut attr = nothing();
        attr.__bindgen_anon_2.map_fd = self.fd.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = std::ptr::from_ref(&pid) as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_mut(&mut taken) as u64;
        // SAFETY: key and value are the map's, and outlive the call.
        unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) }?;
        Ok(taken)
    }
}

impl Deref for Targets {
    type Target = HashMap<MapData, u32, Target>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}
