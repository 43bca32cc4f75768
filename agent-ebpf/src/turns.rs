//! Turns: what hangs on a system call is there several times, where the kernel preempts such programs (see [`crate::hook`]).
//!
//! The kernel skips a program while another task is preempted in it on the same CPU. So there are up to [`PROGRAMS`] that do the
//! same, each with its own place of the scratch, and the kernel runs them one after another. The first that isn't skipped does the
//! work; those behind it see that in [`TURNS`], and leave. A call is lost only if all were skipped. The programs that they continue in are
//! there once: the kernel counts only what it has called itself.
//!
//! [`TURNS`] says which program a thread has run last. One that finds there a program before itself was run in the same system call; one
//! that finds itself, or one behind it, is the first of another call. That errs where the last ones are skipped in one call, and the first ones in
//! the next: then that call is lost as well.

use agent_common::abi::turns::PROGRAMS;
use agent_common::vol::Vol;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;

use crate::maps::TARGETS;

/// How many of each program are attached: the agent writes it before it loads them, and the verifier knows it.
#[unsafe(no_mangle)]
static INSTANCES: u32 = 1;

/// The number of the program, from 1 on, that a thread (`bpf_get_current_pid_tgid`) of a watched process has run last. The agent gives it
/// room where there are turns.
#[map]
static TURNS: HashMap<u64, Vol<u64>> = HashMap::with_max_entries(1, 0);

#[inline(always)]
fn alone() -> bool {
    // SAFETY: it is a word of the object.
    unsafe { (&raw const INSTANCES).read_volatile() <= 1 }
}

/// Does the work of a program, if it is this one's turn. `number` counts from 0 on, in the order in which the kernel runs them.
#[inline(always)]
pub fn take(number: u64, work: impl FnOnce() -> u32) -> u32 {
    if alone() || is_first(number) {
        return work();
    }
    0
}

#[inline(always)]
fn is_first(number: u64) -> bool {
    let thread = bpf_get_current_pid_tgid();
    if TARGETS.get_ptr((thread >> 32) as u32).is_none() {
        return false;
    }
    let Some(turn) = of(thread) else {
        // No other thread has this key. Where there is no room, there is one turn.
        return TURNS.insert(thread, Vol::new(number + 1), 0).is_ok() || number == 0;
    };
    let last = turn.get();
    turn.set(number + 1);
    last > number
}

#[inline(always)]
fn of<'a>(thread: u64) -> Option<&'a Vol<u64>> {
    // SAFETY: it is a map value that only this thread uses.
    TURNS.get_ptr(thread).map(|turn| unsafe { &*turn })
}

/// The number, from 0 on, of the program whose work the current thread is in.
#[inline(always)]
pub fn whose() -> u32 {
    if alone() {
        return 0;
    }
    let turn = of(bpf_get_current_pid_tgid()).map_or(1, Vol::get);
    (turn as u32).wrapping_sub(1) % PROGRAMS.next_power_of_two()
}

/// The current thread ends.
#[inline(always)]
pub fn end() {
    if !alone() {
        let _ = TURNS.remove(bpf_get_current_pid_tgid());
    }
}
