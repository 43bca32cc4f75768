//! The maps. Their layouts are `agent_common::abi`'s.

use core::arch::asm;

use agent_common::abi::answers::{
    Answers, BOUNDS_TABLE, CALL_BYTES, GoneKey, Histogram, HistogramKey, MAX_ANSWERS, MAX_GONE,
    MAX_HISTOGRAMS, Message,
};
use agent_common::abi::turns::{RECEIVES, SENDS};
use agent_common::abi::{
    ConnKey, Control, EVENT_BYTES, Failure, Gated, MAX_CONNECTIONS, MAX_EDITS, MAX_GATED,
    MAX_SLOTS, Quieted, Reason, Slot, Totals, Tracked, gates, walks,
};
use agent_common::h2::paths::{MAX_PATHS, PathTable};
use agent_common::h2::status::StatusTable;
use agent_common::h2::substitute::Substitute;
use agent_common::vol::{Vol, masked};
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, ProgramArray, Queue, RingBuf, Stack};

use crate::answers::Received;
use crate::rewrite::Edits;
use crate::source::Scratch;
pub use crate::targets::TARGETS;

/// `BPF_F_MMAPABLE` (5.5): the agent reads counters from memory. A look-up by system call would keep every tracepoint
/// program from running on that CPU meanwhile (`bpf_disable_instrumentation`), and what it missed would be lost.
pub const MMAPABLE: u32 = 1 << 10;

/// Tracked connections. Preallocated, as all hash maps here: allocation within a tracing program is unsafe before 6.1.
#[map]
pub static CONNECTIONS: HashMap<ConnKey, Tracked> = HashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// Counters by slot. Slot 0 takes what found no free slot.
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(MAX_SLOTS, MMAPABLE);

/// What there is of quiet calls, by slot.
#[map]
pub static QUIETED: Array<Quieted> = Array::with_max_entries(MAX_SLOTS, MMAPABLE);

/// Slots that no process has.
#[map]
pub static FREE_SLOTS: Queue<u32> = Queue::with_max_entries(MAX_SLOTS, 0);

/// Counters of the node.
#[map]
pub static TOTALS: Array<Totals> = Array::with_max_entries(1, MMAPABLE);

/// The watched paths.
#[map]
pub static PATHS: Array<PathTable> = Array::with_max_entries(1, 0);

/// What a walk needs beside its stack, by `Hook::place`. For each further [turn](crate::turns) as much again, as of [`RECEIVED`]: the agent
/// makes them larger.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(2 * SENDS, 0);

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

/// Answers of connections.
#[map]
pub static ANSWERS: HashMap<ConnKey, Answers> = HashMap::with_max_entries(MAX_ANSWERS, 0);

/// Answers of connections that were closed while calls were under way: the agent accounts for these.
#[map]
pub static GONE: HashMap<GoneKey, Answers> = HashMap::with_max_entries(MAX_GONE, 0);

/// What a walk of a receive needs beside its stack, by `Hook::receive_place`.
#[map]
pub static RECEIVED: PerCpuArray<Received> = PerCpuArray::with_max_entries(RECEIVES, 0);

/// gRPC's statuses.
#[map]
pub static STATUSES: Array<StatusTable> = Array::with_max_entries(1, 0);

/// Upper bounds of the histograms' buckets, in ns.
#[map]
pub static BOUNDS: Array<[u64; BOUNDS_TABLE]> = Array::with_max_entries(1, 0);

/// How long calls took.
#[map]
pub static HISTOGRAMS: Array<Histogram> = Array::with_max_entries(MAX_HISTOGRAMS, MMAPABLE);

/// Whose each of these is, by number; slot 0: nobody's.
#[map]
pub static HISTOGRAM_KEYS: Array<HistogramKey> = Array::with_max_entries(MAX_HISTOGRAMS, MMAPABLE);

/// Which of these is whose.
#[map]
pub static HISTOGRAM_OF: HashMap<HistogramKey, u32> = HashMap::with_max_entries(MAX_HISTOGRAMS, 0);

/// Those that are nobody's. A stack: the agent reads no more of them than were ever used at once.
#[map]
pub static FREE_HISTOGRAMS: Stack<u32> = Stack::with_max_entries(MAX_HISTOGRAMS, 0);

/// What the sources answered last, by slot.
#[map]
pub static MESSAGES: Array<Message> = Array::with_max_entries(MAX_SLOTS, MMAPABLE);

/// Calls, while somebody watches.
#[map]
pub static CALLS: RingBuf = RingBuf::with_byte_size(CALL_BYTES, 0);

/// What governs enforcement.
#[inline(always)]
pub fn control() -> Option<&'static Control> {
    // SAFETY: it is the map's value, of plain words that the agent writes one at a time.
    CONTROL.get_ptr(0).map(|control| unsafe { &*control })
}

/// Whether rejected calls of this method are to be answered quietly where they are a slot's process's.
#[inline(always)]
pub fn quiet_asked(slot: u32, method: u32) -> bool {
    // SAFETY: the word may be written by the agent meanwhile.
    QUIETED.get_ptr(slot).is_some_and(|quieted| unsafe {
        (&raw const (*quieted).asked).read_volatile() == method as u64 + 1
    })
}

/// Counts rejected calls of the method whose calls are to be answered quietly, by `agent_common::h2::quiet::code`.
#[inline(always)]
pub fn quieted(slot: u32, code: u32, n: u64) {
    if let Some(quieted) = QUIETED.get_ptr_mut(slot) {
        // SAFETY: the pointer leads into the map's value, of 16 words; a code is 1 at least, and the counters stand behind the first word.
        unsafe { add(quieted.cast::<u64>().add(masked(code, 15) as usize), n) };
    }
}

const _: () = assert!(size_of::<Quieted>() == 16 * 8);

/// Whether an agent has renewed the lease.
#[inline(always)]
pub fn leased() -> bool {
    // SAFETY: the helper takes nothing and returns a number; the word may be written by the agent meanwhile.
    control()
        .is_some_and(|c| unsafe { bpf_ktime_get_boot_ns() <= (&raw const c.lease).read_volatile() })
}

/// Whether another build's agent has taken over: [`Control::closing`].
#[inline(always)]
pub fn control_closing() -> u64 {
    // SAFETY: the word may be written by the agent meanwhile.
    control().map_or(0, |c| unsafe { (&raw const c.closing).read_volatile() })
}

/// Whether it has.
#[inline(always)]
pub fn closing() -> bool {
    control_closing() != 0
}

/// Whether no other method is watched than the one that is asked about.
#[inline(always)]
pub fn only_one() -> bool {
    // SAFETY: as above.
    control().is_some_and(|c| unsafe { (&raw const c.methods).read_volatile() } == 1)
}

/// Whether somebody watches calls.
#[inline(always)]
pub fn watched() -> bool {
    // SAFETY: the word may be written by the agent meanwhile.
    control().is_some_and(|c| unsafe { (&raw const c.watched).read_volatile() } != 0)
}

/// Whether answers are followed: [`Control::answers`].
#[inline(always)]
pub fn answers() -> u64 {
    // SAFETY: as above.
    control().map_or(0, |c| unsafe { (&raw const c.answers).read_volatile() })
}

/// Puts a word in the place of another one, with a full barrier. Returns that one.
#[inline(always)]
pub fn exchange(place: &Vol<u64>, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the operand is a word of a map value, 8 bytes aligned; the instruction (5.12) is an exchange.
    unsafe {
        asm!(
            "{0} = xchg_64({1} + 0, {0})",
            inout(reg) value,
            in(reg) core::ptr::from_ref(place)
        );
    }
    value
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

/// Adds `n` to the counter of the node that `counter` names.
#[inline(always)]
fn total(n: u64, counter: impl FnOnce(*mut Totals) -> *mut u64) {
    if let Some(totals) = TOTALS.get_ptr_mut(0) {
        // SAFETY: `counter` leads from the map's value into it.
        unsafe { add(counter(totals), n) };
    }
}

/// Counts something that could not be followed.
#[inline(always)]
pub fn unparsed(reason: Reason) {
    unparsed_times(reason, 1);
}

/// Counts it `n` times.
#[inline(always)]
pub fn unparsed_times(reason: Reason, n: u64) {
    // SAFETY: the pointer is the map's value, and `Reason::ALL` is shorter than the array.
    total(n, |totals| unsafe {
        &raw mut (*totals).unparsed[reason as usize & 15]
    });
}

/// Counts calls that should have been rejected and were admitted.
#[inline(always)]
pub fn failed(why: Failure, n: u64) {
    if let Some(totals) = TOTALS.get_ptr_mut(0) {
        let number = masked(why as u32, 31);
        // SAFETY: the pointer leads into the map's value; the array has 32 counters.
        unsafe {
            let counters = (&raw mut (*totals).failures).cast::<u64>();
            add(counters.add(number as usize), n);
        }
    }
}

/// Counts calls that nobody who watches is told of.
#[inline(always)]
pub fn calls_lost(n: u64) {
    // SAFETY: the pointer is the map's value.
    total(n, |totals| unsafe { &raw mut (*totals).calls_lost });
}

/// Counts a process event that the agent will not see.
#[inline(always)]
pub fn event_lost() {
    // SAFETY: the pointer is the map's value.
    total(1, |totals| unsafe { &raw mut (*totals).events_lost });
}
