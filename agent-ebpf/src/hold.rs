//! Holds the sends of a connection for the moment in which the gate joins it.
//!
//! The gate can only be put before a socket whose receive queue is empty, and nothing may arrive between the look at the queue
//! and the insertion (a buffer that is half read then would be delivered twice). The agent marks the connection in
//! [`Slot::hold`]; a send that begins meanwhile waits here, at the entry of its system call, until the mark is gone: some
//! microseconds, never more than [`ROUNDS`] looks at it, and never beyond the moment that the mark names. A send that had begun before is seen by
//! [`Tracked::sending`].
//!
//! `hold_write`, `hold_writev`, `hold_sendto`, `hold_sendmsg`: tracepoints `syscalls/sys_enter_*`, attached only while
//! the gate enforces.

use agent_common::abi::{self, ConnKey, Slot, Tracked, verdict};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::maps::{CONNECTIONS, SLOTS, TARGETS, exchange};

/// Looks at the mark, with [`abi::HOLD_READS`] looks at the clock between two, for the time they take: up to some ms in all. The agent
/// gives up after an eighth of that; the rest is for an agent that loses its CPU between its last look at the clock and
/// what it does then.
const ROUNDS: u32 = abi::HOLD_ROUNDS;
/// Of which [`hold_looks`] makes as many.
const LOOKS: u32 = 64;
const _: () = assert!(ROUNDS.is_multiple_of(LOOKS));

#[tracepoint]
pub fn hold_write(ctx: TracePointContext) -> u32 {
    entered(&ctx)
}

#[tracepoint]
pub fn hold_writev(ctx: TracePointContext) -> u32 {
    entered(&ctx)
}

#[tracepoint]
pub fn hold_sendto(ctx: TracePointContext) -> u32 {
    entered(&ctx)
}

#[tracepoint]
pub fn hold_sendmsg(ctx: TracePointContext) -> u32 {
    entered(&ctx)
}

/// The entry of a send: the descriptor is the first word behind the call's number, at 16 in the record (checked against the
/// kernel's `format` file).
#[inline(always)]
fn entered(ctx: &TracePointContext) -> u32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr(tgid) else {
        return 0;
    };
    // SAFETY: it is a map value.
    let (ruling, slot) = unsafe { ((*target).verdict, (*target).slot) };
    if ruling != verdict::REJECTED {
        return 0;
    }
    // SAFETY: the record holds the call's arguments; the verifier checks the access.
    let fd = unsafe { ctx.as_ptr().cast::<u64>().add(2).read() as u32 };
    let Some(tracked) = CONNECTIONS.get_ptr(ConnKey { tgid, fd }) else {
        return 0;
    };
    // SAFETY: it is a map value.
    let tracked: &Tracked = unsafe { &*tracked };
    if tracked.gated.get() != 0 {
        return 0;
    }
    let Some(slot) = SLOTS.get_ptr_mut(slot) else {
        return 0;
    };
    begin(tracked);
    for _ in 0..ROUNDS / LOOKS {
        match hold_looks(slot) {
            HELD => {}
            FREE => return 0,
            _ => break,
        }
    }
    broken(slot);
    0
}

/// The mark stands.
const HELD: u32 = 0;
/// There is no mark (any more).
const FREE: u32 = 1;
/// It stands, and its moment has passed.
const OVERDUE: u32 = 2;

/// Looks at a slot's mark [`LOOKS`] times, if need be. A function that the verifier walks once for all (see [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold_looks(slot: *const Slot) -> u32 {
    if slot.is_null() {
        return FREE;
    }
    // SAFETY: the pointer leads into the slot, which is a map value.
    let hold = unsafe { &raw const (*slot).hold };
    for _ in 0..LOOKS {
        // SAFETY: as above; the agent may write it meanwhile.
        let until = unsafe { hold.read_volatile() };
        // No hold is one until 0.
        if now() > until {
            return if until == 0 { FREE } else { OVERDUE };
        }
        for _ in 0..abi::HOLD_READS {
            // For the time that it takes.
            now();
        }
    }
    HELD
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Marks the send as begun, with a full barrier before the mark of the hold is read: the agent sets that mark, and then reads
/// this one.
#[inline(always)]
fn begin(tracked: &Tracked) {
    exchange(&tracked.sending, 1);
}

/// The agent took longer than a send may be held.
#[inline(always)]
fn broken(slot: *mut Slot) {
    // SAFETY: the pointer leads into the slot, which is a map value.
    unsafe { (&raw mut (*slot).broken).write_volatile(1) };
}
