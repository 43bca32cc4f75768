//! The tap: follows what watched processes send, and counts the requests in it. It changes nothing.
//!
//! `tap_write`, `tap_writev`, `tap_sendto`, `tap_sendmsg`: tracepoints `syscalls/sys_exit_*`. They find out who sends,
//! what and where, and go on in `tap_walk` by tail call; another kind of hook is another thin entry before the
//! same body. Minimum kernel 5.15 (see [`crate::regs`]). Privileges: CAP_BPF and CAP_PERFMON, and CAP_SYS_ADMIN where
//! `perf_event_paranoid` is above 2.

use agent_common::abi::{ConnKey, Reason, Slot, Target, Tracked, verdict};
use agent_common::h2::paths::MAX_PATHS;
use agent_common::h2::track::{self, Begin, End, status};
use agent_common::h2::walk::{self, Fault, Outcome};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::maps::{CONNECTIONS, PATHS, SCRATCH, SLOTS, TARGETS, WALK, add, unparsed};
use crate::regs;
use crate::source::Scratch;

/// Tokens that one run of `tap_walk` passes. With the 33 tail calls that the kernel allows in a row, a send may hold
/// some 4,000: a thousand small frames. It also bounds what the verifier walks (6.18: see ARCHITECTURE.md).
const STEPS: u32 = 120;

/// How a system call hands over its bytes.
#[derive(Clone, Copy)]
enum Shape {
    /// `(fd, buffer, length)`
    Buffer,
    /// `(fd, iovecs, count)`
    Vector,
    /// `(fd, msghdr, flags)`
    Message,
}

#[tracepoint]
pub fn tap_write(ctx: TracePointContext) -> u32 {
    sent(&ctx, Shape::Buffer)
}

#[tracepoint]
pub fn tap_writev(ctx: TracePointContext) -> u32 {
    sent(&ctx, Shape::Vector)
}

#[tracepoint]
pub fn tap_sendto(ctx: TracePointContext) -> u32 {
    sent(&ctx, Shape::Buffer)
}

#[tracepoint]
pub fn tap_sendmsg(ctx: TracePointContext) -> u32 {
    sent(&ctx, Shape::Message)
}

/// The exit of a send: `long ret` lies at 16 in the tracepoint's record, on every architecture (the agent checks
/// it against the kernel's `format` file before it attaches).
#[inline(always)]
fn sent(ctx: &TracePointContext, shape: Shape) -> u32 {
    // SAFETY: the record of a `sys_exit_*` tracepoint is 24 bytes long; the verifier checks the access.
    let ret = unsafe { ctx.as_ptr().cast::<i64>().add(2).read() };
    // EAGAIN, EPIPE, EINTR and the like: nothing was sent.
    if ret <= 0 {
        return 0;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr(tgid) else {
        return 0;
    };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    let [fd, address, count] = regs::arguments();
    // SAFETY: both point to map values. The scratch is this CPU's, and nothing preempts a tracepoint program.
    unsafe {
        (*scratch).key = ConnKey {
            tgid,
            fd: fd as u32,
        };
        (*scratch).tracked.generation = (*target).generation;
        (*scratch).slot.set((*target).slot);
        (*scratch).verdict.set((*target).verdict);
    }
    // SAFETY: as above; from here on the scratch is only read and written through its cells.
    let s = unsafe { &*scratch };
    let sent = ret as u32;
    match shape {
        Shape::Buffer => s.buffer(address, sent),
        Shape::Vector => s.buffers(address, count as u32, sent),
        Shape::Message => {
            // `struct msghdr`: msg_iov at 16, msg_iovlen at 24.
            let mut iov = [0u64; 2];
            // SAFETY: the destination is 16 bytes on the stack; the helper checks the source itself.
            let failed = unsafe {
                bpf_probe_read_user(iov.as_mut_ptr().cast(), 16, (address + 16) as *const _)
            };
            if failed != 0 {
                unparsed(Reason::Unreadable);
                return 0;
            }
            s.buffers(iov[0], iov[1] as u32, sent);
        }
    }
    s.begun.set(NOT_BEGUN);
    // SAFETY: the program at 0 is of the same type and reads the same context.
    unsafe { WALK.tail_call(ctx, 0) };
    0
}

const NOT_BEGUN: u32 = 0;
const FOLLOW: u32 = 1;
const FRESH: u32 = 2;
const JOIN: u32 = 3;

/// How a walk ended.
const MORE: u32 = 0;
const DONE: u32 = 1;
const UNREADABLE: u32 = 2;
const FAULT: u32 = 16;

/// Walks a send, by tail call from an entry or from itself.
#[tracepoint]
pub fn tap_walk(ctx: TracePointContext) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    if unsafe_scratch(scratch).begun.get() == NOT_BEGUN && !begin(scratch) {
        return 0;
    }
    let s = unsafe_scratch(scratch);
    let ended = walk(s);
    if ended == MORE {
        // SAFETY: as in `sent`. It returns only when 33 calls were made.
        unsafe { WALK.tail_call(&ctx, 0) };
    }
    end(s, ended);
    0
}

#[inline(always)]
fn unsafe_scratch<'a>(scratch: *mut Scratch) -> &'a Scratch {
    // SAFETY: it is this CPU's map value, and nothing preempts a tracepoint program.
    unsafe { &*scratch }
}

/// Brings the connection's state in and decides how to walk. `false`: not at all.
#[inline(always)]
fn begin(scratch: *mut Scratch) -> bool {
    let s = unsafe_scratch(scratch);
    let generation = s.tracked.generation;
    let tracked = match CONNECTIONS.get_ptr(s.key) {
        // SAFETY: it is a map value; one connection's sends don't overlap (a client that wrote to one HTTP/2
        // connection from two threads at once would break it).
        Some(tracked) if unsafe { (*tracked).generation } == generation => Some(tracked),
        _ => None,
    };
    match tracked {
        Some(tracked) => {
            // SAFETY: both are map values of one type, and don't overlap.
            unsafe {
                if (*tracked).conn.status.get() == status::TLS {
                    return false;
                }
                core::ptr::copy_nonoverlapping(tracked, &raw mut (*scratch).tracked, 1);
            }
            s.known.set(1);
        }
        None => {
            // SAFETY: all zero is a `Tracked` of which nothing was seen.
            unsafe {
                core::ptr::write_bytes(&raw mut (*scratch).tracked.conn, 0, 1);
            }
            s.known.set(0);
        }
    }
    // SAFETY: counters are plain words.
    unsafe { core::ptr::write_bytes((*scratch).found.as_ptr().cast_mut(), 0, 16) };
    s.before.set(s.tracked.conn.status.get());
    if s.left.get() == 0 && s.next_buffer().is_err() {
        return lost(s);
    }
    // Empty buffers in front are rare; the walk passes them, but `begin` wants the first bytes.
    if s.left.get() == 0 && s.next_buffer().is_err() {
        return lost(s);
    }
    if s.left.get() != 0 && s.fill().is_err() {
        return lost(s);
    }
    let begun = track::begin(&s.tracked.conn, s, s.left.get() + s.behind.get());
    s.begun.set(match begun {
        Begin::Follow => FOLLOW,
        Begin::Fresh => FRESH,
        Begin::Join => JOIN,
        Begin::Tls => {
            unparsed(Reason::Tls);
            keep(s);
            return false;
        }
        Begin::Ignore => return false,
    });
    true
}

/// The bytes can't be read: the place in a connection that was followed is lost.
#[inline(always)]
fn lost(s: &Scratch) -> bool {
    if s.before.get() == status::SYNCED {
        unparsed(Reason::Unreadable);
        s.tracked.conn.status.set(status::UNSYNCED);
        keep(s);
    }
    false
}

#[inline(always)]
fn walk(s: &Scratch) -> u32 {
    let Some(paths) = PATHS.get_ptr(0) else {
        return UNREADABLE;
    };
    // SAFETY: it is a map value that the agent wrote before it attached anything.
    let paths = unsafe { &*paths };
    for _ in 0..STEPS {
        if s.left.get() == 0 {
            if s.behind.get() == 0 {
                return DONE;
            }
            if s.next_buffer().is_err() {
                return UNREADABLE;
            }
            continue;
        }
        match walk::step(&s.tracked.conn, s, paths, s.begun.get() == JOIN) {
            Outcome::Continue => {}
            Outcome::Starved => {
                if s.fill().is_err() {
                    return UNREADABLE;
                }
            }
            Outcome::Request => {
                // UNRESOLVED is 255: the mask makes it 15.
                let found = &s.found[(s.tracked.conn.path.get() & 15) as usize];
                found.set(found.get() + 1);
            }
            Outcome::Fault(fault) => return FAULT + fault as u32,
        }
    }
    MORE
}

/// Keeps what the send left behind.
#[inline(always)]
fn end(s: &Scratch, ended: u32) {
    let conn = &s.tracked.conn;
    let (begun, was_join) = match s.begun.get() {
        FOLLOW => (Begin::Follow, false),
        FRESH => (Begin::Fresh, false),
        _ => (Begin::Join, true),
    };
    if ended == MORE || ended == UNREADABLE {
        if was_join {
            return;
        }
        unparsed(if ended == MORE {
            Reason::TooLong
        } else {
            Reason::Unreadable
        });
        conn.status.set(status::UNSYNCED);
        count(s);
        keep(s);
        return;
    }
    let fault = if ended == DONE {
        None
    } else {
        Some(fault(ended - FAULT))
    };
    match track::end(conn, begun, fault) {
        End::Keep => {}
        End::Lost(fault) => unparsed(fault.into()),
        End::Drop => {
            if conn.status.get() == status::NEW && s.known.get() != 0 {
                settle(s, status::NEW);
                let _ = CONNECTIONS.remove(s.key);
            }
            return;
        }
    }
    if conn.gap.get() != 0 {
        unparsed(Reason::StreamGap);
        conn.gap.set(0);
    }
    count(s);
    keep(s);
}

#[inline(always)]
fn fault(number: u32) -> Fault {
    match number {
        1 => Fault::Preface,
        3 => Fault::Continuation,
        4 => Fault::Padding,
        5 => Fault::Integer,
        6 => Fault::Truncated,
        7 => Fault::BlockSize,
        _ => Fault::Frame,
    }
}

/// Adds the requests found to the process's counters.
#[inline(always)]
fn count(s: &Scratch) {
    let Some(slot) = SLOTS.get_ptr_mut(s.slot.get()) else {
        return;
    };
    let verdict = s.verdict.get() as usize & (verdict::COUNT - 1);
    for path in 0..MAX_PATHS {
        let n = s.found[walk::WATCHED as usize + path].get();
        if n != 0 {
            // SAFETY: the pointer leads into the slot, which is a map value.
            unsafe { add(&raw mut (*slot).calls[path][verdict], n as u64) };
        }
    }
    let n = s.found[(walk::UNRESOLVED & 15) as usize].get();
    if n != 0 {
        // SAFETY: as above.
        unsafe { add(&raw mut (*slot).unresolved, n as u64) };
    }
}

/// Writes the connection's state back.
#[inline(always)]
fn keep(s: &Scratch) {
    settle(s, s.tracked.conn.status.get());
    if s.known.get() != 0 {
        if let Some(tracked) = CONNECTIONS.get_ptr_mut(s.key) {
            // SAFETY: both are map values of one type, and don't overlap.
            unsafe { core::ptr::copy_nonoverlapping(&raw const s.tracked, tracked, 1) };
        }
        return;
    }
    if CONNECTIONS.insert(s.key, &s.tracked, 0).is_err() {
        settle_from(s, s.tracked.conn.status.get(), status::NEW);
        unparsed(Reason::TableFull);
    }
}

/// Moves the connection from the gauge of what it was to the gauge of what it is now.
#[inline(always)]
fn settle(s: &Scratch, now: u32) {
    settle_from(s, s.before.get(), now);
}

#[inline(always)]
fn settle_from(s: &Scratch, before: u32, now: u32) {
    if before != now {
        gauge(s.slot.get(), before, u64::MAX);
        gauge(s.slot.get(), now, 1);
    }
}

/// Adds `n` (`u64::MAX` takes one away) to the gauge of connections in that state.
#[inline(always)]
pub fn gauge(slot: u32, state: u32, n: u64) {
    let Some(slot) = SLOTS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: the pointers lead into the slot, which is a map value.
    unsafe {
        if state == status::SYNCED {
            add(&raw mut (*slot).synced, n);
        } else if state == status::UNSYNCED {
            add(&raw mut (*slot).unsynced, n);
        }
    }
}

const _: () = {
    assert!(
        walk::WATCHED as usize + MAX_PATHS <= 15,
        "classes and UNRESOLVED fit in `found`"
    );
    assert!(verdict::COUNT.is_power_of_two());
    assert!(
        size_of::<Target>() % 8 == 0 && size_of::<Slot>() % 8 == 0 && size_of::<Tracked>() % 8 == 0
    );
};
