//! The table of watched processes, behind a look that is cheaper than one into it: nearly every system call of a node is by a process that
//! isn't in it.
//!
//! [`ABSENT`] remembers of some processes that they were not in the table, and how many entries had ever been made then ([`ENTERED`]).
//! While no more have been made they aren't in it either. Whoever makes an entry counts it *after* it is there: programs in [`Targets::insert`], the
//! agent in `tap::targets`. Until it is counted, the process may still be taken for one that isn't watched, as before it was made. Where a program
//! makes the entry that can't be seen: it runs in the process's own `exec`, or before the new process does.

use core::arch::asm;

use agent_common::abi::{ABSENT_PLACES, MAX_TARGETS, Target};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};

use crate::maps::{MMAPABLE, add};

/// Watched processes, by thread group id.
#[map(name = "TARGETS")]
static TABLE: HashMap<u32, Target> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// How many entries have been made.
#[map]
static ENTERED: Array<u64> = Array::with_max_entries(1, MMAPABLE);

/// By the last bits of the process's number: [`absence`].
#[map]
static ABSENT: Array<u64> = Array::with_max_entries(ABSENT_PLACES, 0);

/// Bits of a process's number (`PID_MAX_LIMIT`).
const PID_BITS: u32 = 22;

/// What is remembered of a process that is not in the table, in one word, so that CPUs that remember different ones at once leave one of
/// the two. (No process has the number 0, which is what the map has at first.)
#[inline(always)]
fn absence(tgid: u32, entered: u64) -> u64 {
    entered << PID_BITS | u64::from(tgid)
}

/// Zero, which can be known only when `word` has been read: what depends on it is not read before.
#[inline(always)]
fn after(word: u64) -> u32 {
    let mut zero = word;
    // SAFETY: it changes its operand and nothing else.
    unsafe { asm!("{0} ^= {0}", inout(reg) zero) };
    zero as u32
}

/// See [`TABLE`].
pub struct Targets;

/// See [`TABLE`].
pub static TARGETS: Targets = Targets;

impl Targets {
    /// A process's entry.
    #[inline(always)]
    pub fn get_ptr(&self, tgid: u32) -> Option<*const Target> {
        self.get_ptr_mut(tgid).map(<*mut Target>::cast_const)
    }

    /// The same, to change it.
    #[inline(always)]
    pub fn get_ptr_mut(&self, tgid: u32) -> Option<*mut Target> {
        let (Some(entered), Some(place)) = (
            ENTERED.get_ptr(0),
            ABSENT.get_ptr_mut(tgid & (ABSENT_PLACES - 1)),
        ) else {
            return TABLE.get_ptr_mut(tgid);
        };
        // SAFETY: both are words of maps, 8 bytes aligned; others may write them meanwhile.
        let (entered, remembered) = unsafe { (entered.read_volatile(), place.read_volatile()) };
        let absence = absence(tgid, entered);
        if remembered == absence {
            return None;
        }
        let found = TABLE.get_ptr_mut(tgid | after(entered));
        if found.is_none() {
            // SAFETY: as above.
            unsafe { place.write_volatile(absence) };
        }
        found
    }

    /// Makes an entry, or overwrites it.
    #[inline(always)]
    pub fn insert(&self, tgid: u32, target: Target, flags: u64) -> Result<(), i32> {
        TABLE.insert(tgid, target, flags)?;
        if let Some(entered) = ENTERED.get_ptr_mut(0) {
            // SAFETY: it is a word of a map.
            unsafe { add(entered, 1) };
        }
        Ok(())
    }

    /// Takes an entry away.
    #[inline(always)]
    pub fn remove(&self, tgid: u32) -> Result<(), i32> {
        TABLE.remove(tgid)
    }
}
