//! The maps. Their layouts are `agent_common::abi`'s.

use core::arch::asm;

use agent_common::abi::{
    ConnKey, Control, EVENT_BYTES, Failure, Gated, MAX_CONNECTIONS, MAX_EDITS, MAX_GATED,
    MAX_SLOTS, MAX_TARGETS, Reason, Slot, Target, Totals, Tracked, gates, walks,
};
use agent_common::h2::paths::{MAX_PATHS, PathTable};
use agent_common::h2::substitute::Substitute;
use agent_common::vol::masked;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, ProgramArray, Queue, RingBuf};

use crate::hook::PLACES;
use crate::rewrite::Edits;
use crate::source::Scratch;

/// `BPF_F_MMAPABLE` (5.5): the agent reads counters from memory. A look-up by system call would keep every tracepoint
/// program from running on that CPU meanwhile (`bpf_disable_instrumentation`), and what it missed would be lost.
const MMAPABLE: u32 = 1 << 10;

/// Watched processes, by thread group id. Preallocated, as all hash maps here: allocation within a tracing
/// program is unsafe before 6.1.
#[map]
pub static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Tracked connections.
#[map]
pub static CONNECTIONS: HashMap<ConnKey, Tracked> = HashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// Counters by slot. Slot 0 takes what found no free slot.
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(MAX_SLOTS, MMAPABLE);

/// Slots that no process has.
#[map]
pub static FREE_SLOTS: Queue<u32> = Queue::with_max_entries(MAX_SLOTS, 0);

/// Counters of the node.
#[map]
pub static TOTALS: Array<Totals> = Array::with_max_entries(1, MMAPABLE);

/// The watched paths.
#[map]
pub static PATHS: Array<PathTable> = Array::with_max_entries(1, 0);

/// What a walk needs beside its stack, by `Hook::place`.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(PLACES, 0);

/// The programs that `abi::walks` numbers, for tracepoints.
#[map]
pub static WALKS: ProgramArray = ProgramArray::with_max_entries(walks::COUNT, 0);

/// The same for exits of functions (`hook::Files`).
#[map]
pub static WALKS_FEXIT: ProgramArray = ProgramArray::with_max_entries(walks::COUNT, 0);

/// The same (`hook::Sockets`).
#[map]
pub static WALKS_FEXIT_NET: ProgramArray = ProgramArray::with_max_entries(walks::COUNT, 0);

/// The same for entries of functions (`hook::Files`).
#[map]
pub static WALKS_FENTRY: ProgramArray = ProgramArray::with_max_entries(walks::COUNT, 0);

/// The same (`hook::Sockets`).
#[map]
pub static WALKS_FENTRY_NET: ProgramArray = ProgramArray::with_max_entries(walks::COUNT, 0);

/// Descriptors that a process has connected, with its epoch: what is written to them goes to a socket, never to a file.
#[map]
pub static SOCKETS: HashMap<ConnKey, u64> = HashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// What was overwritten in the send that a thread (`bpf_get_current_pid_tgid`) is in.
#[map]
pub static EDITS: HashMap<u64, Edits> = HashMap::with_max_entries(MAX_EDITS, 0);

/// An entry of nothing, too large for a program's stack.
#[map]
pub static NO_EDITS: Array<Edits> = Array::with_max_entries(1, 0);

/// Process events for the agent.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);

/// What the watched paths are overwritten with.
#[map]
pub static SUBSTITUTES: Array<Substitute> = Array::with_max_entries(MAX_PATHS as u32, 0);

/// What governs enforcement.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);

/// Why a connection of a process whose calls are to be rejected has no gate before it ([`Failure`]): the agent's notes.
#[map]
pub static OBSTACLES: HashMap<ConnKey, u32> = HashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// The connections that the gate stands before, by the cookie of the client's end. (The map of the sources' ends is the
/// agent's to make: it takes CAP_NET_ADMIN, which an audit doesn't, and no program uses it.)
#[map]
pub static GATED: HashMap<u64, Gated> = HashMap::with_max_entries(MAX_GATED, 0);

/// The programs that `abi::gates` numbers.
#[map]
pub static GATES: ProgramArray = ProgramArray::with_max_entries(gates::COUNT, 0);

/// What governs enforcement.
#[inline(always)]
pub fn control() -> Option<&'static Control> {
    // SAFETY: it is the map's value, of plain words that the agent writes one at a time.
    CONTROL.get_ptr(0).map(|control| unsafe { &*control })
}

/// Whether an agent has renewed the lease.
#[inline(always)]
pub fn leased() -> bool {
    // SAFETY: the helper takes nothing and returns a number; the word may be written by the agent meanwhile.
    control()
        .is_some_and(|c| unsafe { bpf_ktime_get_boot_ns() <= (&raw const c.lease).read_volatile() })
}

/// Whether another build's agent has taken over.
#[inline(always)]
pub fn closing() -> bool {
    // SAFETY: the word may be written by the agent meanwhile.
    control().is_some_and(|c| unsafe { (&raw const c.closing).read_volatile() } != 0)
}

/// Adds `n` to a counter that other CPUs add to as well.
///
/// # Safety
/// `counter` points into the value of a map.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, n: u64) {
    // `AtomicU64::fetch_add` doesn't exist for a target without compare-and-swap, which BPF was before 5.12; this is the
    // instruction it would be.
    // SAFETY: map values are 8-byte aligned and live as long as the program; every other access to a counter is
    // atomic too, or a read by the agent.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) n) };
}

/// Adds 1 to the counter of the node that `counter` names.
#[inline(always)]
fn total(counter: impl FnOnce(*mut Totals) -> *mut u64) {
    if let Some(totals) = TOTALS.get_ptr_mut(0) {
        // SAFETY: `counter` leads from the map's value into it.
        unsafe { add(counter(totals), 1) };
    }
}

/// Counts something that could not be followed.
#[inline(always)]
pub fn unparsed(reason: Reason) {
    // SAFETY: the pointer is the map's value, and `Reason::ALL` is shorter than the array.
    total(|totals| unsafe { &raw mut (*totals).unparsed[reason as usize & 15] });
}

/// Counts calls that should have been rejected and were admitted.
#[inline(always)]
pub fn failed(why: Failure, n: u64) {
    if let Some(totals) = TOTALS.get_ptr_mut(0) {
        let number = masked(why as u32, 15);
        // SAFETY: the pointer leads into the map's value; the array has 16 counters.
        unsafe {
            let counters = (&raw mut (*totals).failures).cast::<u64>();
            add(counters.add(number as usize), n);
        }
    }
}

/// Counts a process event that the agent will not see.
#[inline(always)]
pub fn event_lost() {
    // SAFETY: the pointer is the map's value.
    total(|totals| unsafe { &raw mut (*totals).events_lost });
}
