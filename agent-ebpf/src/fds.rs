//! The end of a descriptor: its number may come back as anything, so what was known of it is forgotten.
//!
//! Tracepoints `syscalls/sys_enter_*`: at the exit the number could already belong to another thread's new connection.
//! Where one of them can't be attached, a number that comes back as another connection starts afresh with its
//! preface all the same; only what comes back as something else is misread until it fails to parse.

use agent_common::abi::{ConnKey, Target};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::maps::{CONNECTIONS, OBSTACLES, SLOTS, TARGETS, add};
use crate::tap::gauge;

/// Descriptors that `close_range` may close one by one; beyond, the process's connections are all forgotten.
const ONE_BY_ONE: u32 = 32;

#[tracepoint]
pub fn fd_close(ctx: TracePointContext) -> u32 {
    ended(&ctx, 0)
}

/// `dup2(old, new)` closes `new`.
#[tracepoint]
pub fn fd_dup2(ctx: TracePointContext) -> u32 {
    if argument(&ctx, 0) == argument(&ctx, 1) {
        return 0;
    }
    ended(&ctx, 1)
}

#[tracepoint]
pub fn fd_dup3(ctx: TracePointContext) -> u32 {
    ended(&ctx, 1)
}

/// `close_range(first, last, flags)`, 5.9.
#[tracepoint]
pub fn fd_close_range(ctx: TracePointContext) -> u32 {
    let Some((tgid, target)) = target() else {
        return 0;
    };
    let (first, last) = (argument(&ctx, 0), argument(&ctx, 1));
    if last < first {
        return 0;
    }
    if last - first < ONE_BY_ONE {
        for i in 0..ONE_BY_ONE {
            if first + i <= last {
                forget(tgid, target, first + i);
            }
        }
        return 0;
    }
    // SAFETY: `target` is a map value. Where the agent classifies the process at that very moment, it may put the old
    // epoch back; then a descriptor that is used again is misread until it fails to parse.
    unsafe {
        (*target).epoch = bpf_ktime_get_boot_ns();
        if let Some(slot) = SLOTS.get_ptr_mut((*target).slot) {
            (*slot).synced = 0;
            (*slot).unsynced = 0;
            (*slot).latched = 0;
            (*slot).gated = 0;
        }
    }
    0
}

/// An argument of a `sys_enter_*` tracepoint: a word each, from offset 16 on.
#[inline(always)]
fn argument(ctx: &TracePointContext, number: usize) -> u32 {
    // SAFETY: the record holds each of the call's arguments; the verifier checks the access.
    unsafe { ctx.as_ptr().cast::<u64>().add(2 + number).read() as u32 }
}

#[inline(always)]
fn target() -> Option<(u32, *mut Target)> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    TARGETS.get_ptr_mut(tgid).map(|target| (tgid, target))
}

#[inline(always)]
fn ended(ctx: &TracePointContext, number: usize) -> u32 {
    if let Some((tgid, target)) = target() {
        forget(tgid, target, argument(ctx, number));
    }
    0
}

#[inline(always)]
fn forget(tgid: u32, target: *mut Target, fd: u32) {
    let key = ConnKey { tgid, fd };
    let _ = OBSTACLES.remove(key);
    let Some(tracked) = CONNECTIONS.get_ptr(key) else {
        return;
    };
    // SAFETY: both are map values.
    unsafe {
        if (*tracked).epoch == (*target).epoch {
            gauge((*target).slot, (*tracked).conn.status.get(), u64::MAX);
            if let Some(slot) = SLOTS.get_ptr_mut((*target).slot) {
                if (*tracked).gated.get() != 0 {
                    add(&raw mut (*slot).gated, u64::MAX);
                }
                if (*tracked).latched.get() != 0 {
                    add(&raw mut (*slot).latched, u64::MAX);
                }
            }
        }
    }
    let _ = CONNECTIONS.remove(key);
}
