//! The tap: follows what watched processes send, and counts the requests in it. It changes nothing.
//!
//! `tap_write`, `tap_writev`, `tap_sendto`, `tap_sendmsg`: tracepoints `syscalls/sys_exit_*`. They find out who sends,
//! what and where, and go on by tail call in `tap_follow` (a connection in sync) or `tap_open` (one that begins or may be
//! joined); another kind of hook is another thin entry before the same bodies. Minimum kernel 5.15 (see [`crate::regs`]).
//! Privileges: CAP_BPF and CAP_PERFMON, and CAP_SYS_ADMIN where `perf_event_paranoid` is above 2.

use agent_common::abi::{
    ConnKey, FOREIGN, Failure, ProcEvent, Reason, Slot, Target, Tracked, event, verdict, walks,
};
use agent_common::h2::frame::PREFACE;
use agent_common::h2::paths::MAX_PATHS;
use agent_common::h2::track::{self, Begin, End, status};
use agent_common::h2::walk::{self, Conn, Fault, Outcome, Source};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::maps::{
    CONNECTIONS, EVENTS, OBSTACLES, PATHS, SCRATCH, SLOTS, TARGETS, WALKS, add, event_lost, failed,
    unparsed,
};
use crate::regs;
use crate::source::{Scratch, two_words};

/// Steps that one run of a walk makes. With the 33 tail calls that the kernel allows in a row, a send may take some
/// 2,000: about 300 calls in one system call. It also bounds what the verifier walks (ARCHITECTURE.md has the numbers).
const STEPS: u32 = 64;

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
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr(tgid) else {
        return 0;
    };
    let [fd, address, count] = regs::arguments();
    // EAGAIN, EPIPE, EINTR and the like: nothing was sent.
    if ret <= 0 {
        let fd = fd as u32;
        if let Some(tracked) = CONNECTIONS.get_ptr(ConnKey { tgid, fd }) {
            // SAFETY: it is a map value.
            unsafe { (*tracked).sending.set(0) };
        }
        return 0;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: both point to map values. The scratch is this CPU's, and nothing preempts a tracepoint program.
    unsafe {
        (*scratch).key = ConnKey {
            tgid,
            fd: fd as u32,
        };
        (*scratch).tracked.epoch = (*target).epoch;
        (*scratch).slot.set((*target).slot);
        (*scratch).verdict.set((*target).verdict);
    }
    // SAFETY: as above; from here on the scratch is only read and written through its cells.
    let s = unsafe { &*scratch };
    let sent = ret as u32;
    s.total.set(sent as u64);
    match shape {
        Shape::Buffer => s.buffer(address, sent),
        Shape::Vector => s.buffers(address, count as u32, sent),
        Shape::Message => {
            // `struct msghdr`: msg_iov at 16, msg_iovlen at 24.
            let Ok([iovecs, count]) = two_words(address + 16) else {
                unparsed(Reason::Unreadable);
                return 0;
            };
            s.buffers(iovecs, count as u32, sent);
        }
    }
    s.begun.set(NOT_BEGUN);
    // SAFETY: the program there is of the same type and reads the same context.
    unsafe { WALKS.tail_call(ctx, walks::FOLLOW) };
    0
}

/// Values of `Scratch::gated`.
const NOT_GATED: u32 = 0;
const GATED: u32 = 1;
const MISSED: u32 = 2;

/// Values of `Scratch::begun`.
const NOT_BEGUN: u32 = 0;
const FOLLOW: u32 = 1;
const FRESH: u32 = 2;
const JOIN: u32 = 3;

/// How a walk ended.
const MORE: u32 = 0;
const DONE: u32 = 1;
const UNREADABLE: u32 = 2;
const FAULT: u32 = 16;

#[inline(always)]
fn scratch<'a>() -> Option<&'a Scratch> {
    // SAFETY: it is this CPU's map value, nothing preempts a tracepoint program, and it is written through cells.
    SCRATCH.get_ptr(0).map(|scratch| unsafe { &*scratch })
}

/// Walks a send of a connection that is in sync: the common case, in place, with one look-up.
#[tracepoint]
pub fn tap_follow(ctx: TracePointContext) -> u32 {
    let Some(s) = scratch() else {
        return 0;
    };
    let tracked = match CONNECTIONS.get_ptr(s.key) {
        // SAFETY: it is a map value; one connection's sends don't overlap (a client that wrote to one HTTP/2
        // connection from two threads at once would break it).
        Some(tracked) => unsafe { &*tracked },
        None => return open(&ctx),
    };
    let c = &tracked.conn;
    if tracked.epoch != s.tracked.epoch || c.status.get() != status::SYNCED {
        return open(&ctx);
    }
    if s.begun.get() == NOT_BEGUN {
        s.begun.set(FOLLOW);
        if c.at_border() {
            if s.left.get() == 0 && s.next_buffer().is_err()
                || s.left.get() != 0 && s.fill().is_err()
            {
                follow_lost(s, c, UNREADABLE);
                return 0;
            }
            // A frame of 5 MB, or a connection that begins anew.
            if s.ready() != 0 && s.peek(0) == PREFACE[0] {
                s.begun.set(NOT_BEGUN);
                return open(&ctx);
            }
        }
    }
    // The gate has seen this send by now, unless the source was faster.
    let missed = tracked.passed.get() < tracked.sent.get() + s.total.get();
    s.gated.set(if tracked.gated.get() == 0 {
        NOT_GATED
    } else if missed {
        MISSED
    } else {
        GATED
    });
    let ended = walk(s, c, true);
    flush(s);
    if ended == MORE {
        // SAFETY: as in `sent`. It returns only when 33 calls were made.
        unsafe { WALKS.tail_call(&ctx, walks::FOLLOW) };
    }
    if ended != DONE {
        follow_lost(s, c, ended);
    }
    if c.gap.get() != 0 {
        unparsed(Reason::StreamGap);
        c.gap.set(0);
    }
    // In this order: who sees that no send is under way sees all that was sent.
    tracked.sent.set(tracked.sent.get() + s.total.get());
    tracked.sending.set(0);
    0
}

#[inline(always)]
fn open(ctx: &TracePointContext) -> u32 {
    // SAFETY: as in `sent`.
    unsafe { WALKS.tail_call(ctx, walks::OPEN) };
    0
}

/// A connection in sync lost its place.
#[inline(always)]
fn follow_lost(s: &Scratch, c: &Conn, ended: u32) {
    gauge(s.slot.get(), status::SYNCED, u64::MAX);
    if ended >= FAULT && track::end(c, Begin::Follow, Some(Fault::of(ended - FAULT))) == End::Drop {
        // Something else that began with a `P`.
        let _ = CONNECTIONS.remove(s.key);
        return;
    }
    c.status.set(status::UNSYNCED);
    gauge(s.slot.get(), status::UNSYNCED, 1);
    unparsed(reason(ended));
}

#[inline(always)]
fn reason(ended: u32) -> Reason {
    match ended {
        MORE => Reason::TooLong,
        UNREADABLE => Reason::Unreadable,
        _ => Fault::of(ended - FAULT).into(),
    }
}

/// Walks a send of a connection that begins, or that may be joined, in the scratch: only what turns out to be
/// HTTP/2 gets a place in the map.
#[tracepoint]
pub fn tap_open(ctx: TracePointContext) -> u32 {
    let Some(s) = scratch() else {
        return 0;
    };
    if s.begun.get() == NOT_BEGUN && !begin(s) {
        return 0;
    }
    let ended = walk(s, &s.tracked.conn, false);
    if ended == MORE {
        // SAFETY: as in `sent`.
        unsafe { WALKS.tail_call(&ctx, walks::OPEN) };
    }
    end(s, ended);
    0
}

/// Decides how to walk. `false`: not at all.
#[inline(always)]
fn begin(s: &Scratch) -> bool {
    let c = &s.tracked.conn;
    match CONNECTIONS.get_ptr(s.key) {
        // SAFETY: it is a map value.
        Some(tracked) if unsafe { (*tracked).epoch } == s.tracked.epoch => {
            // SAFETY: as above. All else of the state is set anew when a connection begins or is joined.
            c.status.set(unsafe { (*tracked).conn.status.get() });
            s.known.set(1);
        }
        _ => {
            c.status.set(status::NEW);
            s.known.set(0);
        }
    }
    let before = c.status.get();
    s.before.set(before);
    if before == status::TLS {
        return false;
    }
    // What another connection left in the scratch; `track::begin` goes by where the stream stands.
    c.restart();
    // Empty buffers in front are rare; the walk passes them, but `begin` wants the first bytes.
    if s.left.get() == 0 && s.next_buffer().is_err()
        || s.left.get() == 0 && s.next_buffer().is_err()
        || s.left.get() != 0 && s.window_is_empty() && s.fill().is_err()
    {
        return false;
    }
    s.begun
        .set(match track::begin(c, s, s.left.get() + s.behind.get()) {
            Begin::Fresh => FRESH,
            Begin::Join => JOIN,
            // At a border, `Follow` is what begins with a `P` and is no preface: a frame of 5 MB.
            Begin::Follow => FRESH,
            Begin::Tls => {
                unparsed(Reason::Tls);
                keep(s);
                return false;
            }
            Begin::Ignore => return false,
        });
    unfind(s);
    s.gated.set(NOT_GATED);
    true
}

/// Passes up to [`STEPS`] tokens and notes the requests among them: [`flush`] counts them. (Counting them in the loop, the verifier
/// would walk that once a step.)
#[inline(always)]
fn walk(s: &Scratch, c: &Conn, in_sync: bool) -> u32 {
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
        match walk::step(c, s, paths, !in_sync && s.begun.get() == JOIN) {
            Outcome::Continue => {}
            Outcome::Starved => {
                if s.fill().is_err() {
                    return UNREADABLE;
                }
            }
            Outcome::Request => {
                let found = &s.found[class_index(c.path.get())];
                found.set(found.get() + 1);
            }
            Outcome::Fault(fault) => return FAULT + fault as u32,
        }
    }
    MORE
}

/// The place of a class in `Scratch::found`: UNRESOLVED, 255, is 31.
#[inline(always)]
fn class_index(class: u32) -> usize {
    (class & 31) as usize
}

/// Keeps what a send that was walked in the scratch left behind.
#[inline(always)]
fn end(s: &Scratch, ended: u32) {
    let c = &s.tracked.conn;
    let begun = if s.begun.get() == JOIN {
        Begin::Join
    } else {
        Begin::Fresh
    };
    if ended == MORE || ended == UNREADABLE {
        if begun == Begin::Join {
            unfind(s);
            return;
        }
        unparsed(reason(ended));
        c.status.set(status::UNSYNCED);
    } else {
        let fault = if ended == DONE {
            None
        } else {
            Some(Fault::of(ended - FAULT))
        };
        match track::end(c, begun, fault) {
            End::Keep => {}
            End::Lost(fault) => unparsed(fault.into()),
            End::Drop => {
                if begun == Begin::Fresh && s.known.get() != 0 {
                    settle(s, status::NEW);
                    let _ = CONNECTIONS.remove(s.key);
                }
                unfind(s);
                return;
            }
        }
    }
    flush(s);
    keep(s);
}

/// Forgets the requests that were noted: they were none.
#[inline(always)]
fn unfind(s: &Scratch) {
    for found in &s.found {
        found.set(0);
    }
}

/// Counts the requests that were noted.
#[inline(always)]
fn flush(s: &Scratch) {
    for path in 0..MAX_PATHS as u32 {
        flush_one(s, walk::WATCHED + path);
    }
    flush_one(s, walk::UNRESOLVED);
}

#[inline(always)]
fn flush_one(s: &Scratch, class: u32) {
    let found = &s.found[class_index(class)];
    let n = found.get();
    if n != 0 {
        found.set(0);
        count(s, class, n);
    }
}

/// Adds `n` requests of a class to the process's counters, unless the gate counts them.
#[inline(always)]
fn count(s: &Scratch, class: u32, n: u32) {
    let ruling = s.verdict.get();
    if class < walk::WATCHED || s.gated.get() == GATED || ruling == verdict::OFF {
        return;
    }
    let Some(slot) = SLOTS.get_ptr_mut(s.slot.get()) else {
        return;
    };
    let note = match OBSTACLES.get_ptr(s.key) {
        _ if s.gated.get() == MISSED => Failure::Lost as u32,
        // SAFETY: it is a map value.
        Some(note) => unsafe { *note },
        // No gate stands before it yet.
        None => Failure::Joining as u32,
    };
    if note == FOREIGN {
        return;
    }
    if class == walk::UNRESOLVED {
        // SAFETY: the pointer leads into the slot, which is a map value.
        unsafe { add(&raw mut (*slot).unresolved, n as u64) };
        return;
    }
    let mut column = ruling;
    if ruling == verdict::REJECTED {
        // No gate stands before the connection, so it went through.
        column = verdict::ADMITTED;
        failed(Failure::of(note).unwrap_or(Failure::Joining), n as u64);
    }
    let path = (class - walk::WATCHED) as usize & (MAX_PATHS - 1);
    let column = column as usize & (verdict::COUNT - 1);
    // SAFETY: as above, and both indices are masked.
    unsafe { add(&raw mut (*slot).calls[path][column], n as u64) };
}

/// Puts the connection into the map.
#[inline(always)]
fn keep(s: &Scratch) {
    let now = s.tracked.conn.status.get();
    settle(s, now);
    let tracked = &s.tracked;
    tracked.sent.set(s.total.get());
    tracked.passed.set(0);
    tracked.sending.set(0);
    tracked.gated.set(0);
    tracked.latched.set(0);
    if CONNECTIONS.insert(s.key, tracked, 0).is_err() {
        settle_from(s, now, status::NEW);
        unparsed(Reason::TableFull);
        return;
    }
    if now == status::SYNCED {
        announce(s);
    }
}

/// Tells the agent of a connection, before which a gate may have to stand: whatever the verdict was when this send began, it may be
/// another by now.
#[inline(always)]
fn announce(s: &Scratch) {
    let event = ProcEvent {
        kind: event::CONNECT,
        tgid: s.key.tgid,
        parent: 0,
        slot: s.key.fd,
        generation: s.tracked.epoch,
    };
    if EVENTS.output::<ProcEvent>(event, 0).is_err() {
        event_lost();
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
        walk::LATCHED as usize + MAX_PATHS <= 31,
        "classes and UNRESOLVED fit in `found`"
    );
    assert!(verdict::COUNT.is_power_of_two());
    assert!(
        size_of::<Target>().is_multiple_of(8)
            && size_of::<Slot>().is_multiple_of(8)
            && size_of::<Tracked>().is_multiple_of(8)
    );
};
