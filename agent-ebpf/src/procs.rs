//! Births, programs and deaths of processes.
//!
//! A process that runs a new program is watched from its first instruction on, as a *candidate*: its calls are counted
//! apart until the agent has read its environment and decided. So a replica's first call is counted however long
//! the agent takes, and an agent that is stopped for a minute loses nothing.
//!
//! A pid that comes back inherits nothing: a new process that is not a watched one's child loses whatever was known
//! under its number.

use agent_common::abi::{ProcEvent, Target, event, verdict};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use aya_log_ebpf::warn;

use crate::maps::{EVENTS, FREE_SLOTS, TARGETS, closing, control, event_lost};
use crate::turns;

/// `clone(2)`: a thread, not a process.
const CLONE_THREAD: u64 = 0x10000;

/// `sched/sched_process_exec`.
#[tracepoint]
pub fn proc_exec(ctx: TracePointContext) -> u32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if !attended() {
        // Nobody would classify it, or drop it again. What the process was is over: nothing of it is rejected.
        if let Some(target) = TARGETS.get_ptr_mut(tgid) {
            // SAFETY: it is a map value, and the helper takes nothing and returns a number.
            unsafe {
                (*target).verdict = verdict::OFF;
                (*target).generation = bpf_ktime_get_boot_ns();
                (*target).epoch = (*target).generation;
            }
        }
        return 0;
    }
    watch(&ctx, tgid, event::EXEC, 0, verdict::CANDIDATE);
    0
}

/// `task/task_newtask`: `pid_t pid` at 8, `clone_flags` at 32 (the agent checks it against the kernel's `format` file).
#[tracepoint]
pub fn proc_newtask(ctx: TracePointContext) -> u32 {
    // SAFETY: the record is 44 bytes long; the verifier checks the accesses.
    let (child, flags) = unsafe {
        (
            ctx.as_ptr().cast::<u32>().add(2).read(),
            ctx.as_ptr().cast::<u64>().add(4).read(),
        )
    };
    if flags & CLONE_THREAD != 0 {
        return 0;
    }
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    match TARGETS.get_ptr(parent) {
        Some(target) if !closing() => {
            // SAFETY: it is a map value.
            let verdict = unsafe { (*target).verdict };
            watch(&ctx, child, event::FORK, parent, verdict);
        }
        _ => {
            if TARGETS.get_ptr(child).is_some() {
                let _ = TARGETS.remove(child);
            }
        }
    }
    0
}

/// `sched/sched_process_exit`, which every thread passes; the agent asks /proc whether the process is really gone.
#[tracepoint]
pub fn proc_exit(_ctx: TracePointContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    turns::end();
    if pid_tgid as u32 != tgid || TARGETS.get_ptr(tgid).is_none() {
        return 0;
    }
    let event = ProcEvent {
        kind: event::EXIT,
        tgid,
        parent: 0,
        slot: 0,
        generation: 0,
    };
    if EVENTS.output::<ProcEvent>(event, 0).is_err() {
        event_lost();
    }
    0
}

/// Whether an agent of this build is there, or was a moment ago: pinned programs go on without one.
#[inline(always)]
fn attended() -> bool {
    if closing() {
        return false;
    }
    // SAFETY: the helper takes nothing and returns a number; the word may be written by the agent meanwhile.
    control().is_some_and(|c| unsafe {
        let until = (&raw const c.attended).read_volatile();
        // 0: nothing is pinned, so this program ends with its agent.
        until == 0 || bpf_ktime_get_boot_ns() <= until
    })
}

/// Makes `tgid` a target with a slot of its own and tells the agent. Without room for the event nothing is done: the
/// agent, told of the loss by the counter, looks through /proc.
#[inline(always)]
fn watch(ctx: &TracePointContext, tgid: u32, kind: u32, parent: u32, verdict: u32) {
    let Some(mut entry) = EVENTS.reserve::<ProcEvent>(0) else {
        event_lost();
        return;
    };
    // Slot 0 where none is free: what is counted there is nobody's, and shown as lost.
    let slot = FREE_SLOTS.pop().ok().flatten().unwrap_or(0);
    // SAFETY: the helper takes nothing and returns a number.
    let generation = unsafe { bpf_ktime_get_boot_ns() };
    let target = Target {
        generation,
        epoch: generation,
        slot,
        verdict,
    };
    if TARGETS.insert(tgid, target, 0).is_err() {
        if slot != 0 {
            let _ = FREE_SLOTS.push(slot, 0);
        }
        entry.discard(0);
        event_lost();
        warn!(ctx, "no room for process {}", tgid);
        return;
    }
    entry.write(ProcEvent {
        kind,
        tgid,
        parent,
        slot,
        generation,
    });
    entry.submit(0);
}
