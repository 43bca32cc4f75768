//! The end of a descriptor: its number may come back as anything, so what was known of it is forgotten. And, while `rewrite`
//! enforces, what a process connects.
//!
//! Tracepoints `syscalls/sys_enter_*`, or entries of the functions behind these system calls: at the exit the number could already belong to another thread's new connection.
//! Where one of them can't be attached, a number that comes back as another connection starts afresh with its
//! preface all the same; only what comes back as something else is misread until it fails to parse.

use agent_common::abi::{ConnKey, Target};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;

use crate::answers;
use crate::hook::{Exit, Hook, programs_in_turns};
use crate::maps::{CONNECTIONS, OBSTACLES, SLOTS, SOCKETS, TARGETS, add};
use crate::tap::gauge;

/// Descriptors that `close_range` may close one by one; beyond, the process's connections are all forgotten.
const ONE_BY_ONE: u32 = 32;

/// `connect` goes on by itself; the descriptor is a socket all the same.
const EINPROGRESS: i64 = -115;

programs_in_turns! {
    fentry FEntryContext:
    fd_close fd_close_2 fd_close_3, fd_close_fentry fd_close_fentry_2 fd_close_fentry_3 Files |ctx| ended(ctx, 0);
    fd_close_range fd_close_range_2 fd_close_range_3, fd_close_range_fentry fd_close_range_fentry_2 fd_close_range_fentry_3 Files |ctx| close_range(ctx);
    fd_dup2 fd_dup2_2 fd_dup2_3, fd_dup2_fentry fd_dup2_fentry_2 fd_dup2_fentry_3 Files |ctx| dup2(ctx);
    fd_dup3 fd_dup3_2 fd_dup3_3, fd_dup3_fentry fd_dup3_fentry_2 fd_dup3_fentry_3 Files |ctx| ended(ctx, 1);
}

programs_in_turns! {
    fexit FExitContext:
    fd_connect fd_connect_2 fd_connect_3, fd_connect_fexit fd_connect_fexit_2 fd_connect_fexit_3 Sockets |ctx| connected(ctx);
}

/// `dup2(old, new)` closes `new`.
#[inline(always)]
fn dup2(ctx: &impl Hook) -> u32 {
    let [old, new, _] = ctx.arguments();
    if old as u32 == new as u32 {
        return 0;
    }
    ended(ctx, 1)
}

/// `close_range(first, last, flags)`, 5.9.
#[inline(always)]
fn close_range(ctx: &impl Hook) -> u32 {
    let Some((tgid, target)) = target() else {
        return 0;
    };
    let [first, last, _] = ctx.arguments().map(|argument| argument as u32);
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

/// The exit of `connect`: the descriptor is a socket.
#[inline(always)]
fn connected(ctx: &impl Exit) -> u32 {
    let Some((tgid, target)) = target() else {
        return 0;
    };
    let ret = ctx.returned();
    if ret != 0 && ret != EINPROGRESS {
        return 0;
    }
    let fd = ctx.arguments()[0] as u32;
    // SAFETY: it is a map value.
    let epoch = unsafe { (*target).epoch };
    // Where there is no room, nothing of the connection is rewritten.
    let _ = SOCKETS.insert(ConnKey { tgid, fd }, epoch, 0);
    0
}

#[inline(always)]
fn target() -> Option<(u32, *mut Target)> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    TARGETS.get_ptr_mut(tgid).map(|target| (tgid, target))
}

#[inline(always)]
fn ended(ctx: &impl Hook, number: usize) -> u32 {
    if let Some((tgid, target)) = target() {
        forget(tgid, target, ctx.arguments()[number] as u32);
    }
    0
}

#[inline(always)]
fn forget(tgid: u32, target: *mut Target, fd: u32) {
    let key = ConnKey { tgid, fd };
    let _ = OBSTACLES.remove(key);
    let _ = SOCKETS.remove(key);
    // SAFETY: it is a map value.
    answers::closed(key, unsafe { (*target).epoch });
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
