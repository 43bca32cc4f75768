//! The tap: follows what watched processes send, and counts the requests in it. It changes nothing.
//!
//! `tap_write`, `tap_writev`, `tap_sendto`, `tap_sendmsg`: tracepoints `syscalls/sys_exit_*`, or, with `_fexit` behind the name, exits
//! of the functions behind these system calls. They find out who sends, what and where, and go on by tail call in `tap_follow`
//! (a connection in sync) or `tap_open` (one that begins or may be joined). Minimum kernel 5.15 (see [`crate::regs`]).
//! Privileges: CAP_BPF and CAP_PERFMON, and for tracepoints CAP_SYS_ADMIN where `perf_event_paranoid` is above 2.

use agent_common::abi::{
    ConnKey, FOREIGN, Failure, Manner, ProcEvent, Reason, Slot, Target, Tracked, closing, event,
    verdict, walks,
};
use agent_common::h2::paths::{MAX_PATHS, PathTable};
use agent_common::h2::quiet;
use agent_common::h2::track::{self, Begin, End, status};
use agent_common::h2::walk::{self, Conn, Fault, Outcome};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;

use crate::answers::now;
use crate::global::global;
use crate::hook::{Exit, Hook, programs, programs_in_turns};
use crate::maps::{
    ANSWERS, CONNECTIONS, EVENTS, OBSTACLES, PATHS, SCRATCH, SLOTS, TARGETS, add, answers,
    closing as is_closing, control_closing, event_lost, failed, leased, quiet_asked, quieted,
    unparsed,
};
use crate::source::{BEGUN, Bytes, RESET, Scratch};

/// Steps that one run of a walk makes. With the 33 tail calls that the kernel allows in a row, a send may take some
/// 2,000: about 300 calls in one system call.
const STEPS: u32 = 64;

/// How a system call hands over its bytes.
#[derive(Clone, Copy)]
pub enum Shape {
    /// `(fd, buffer, length)`
    Buffer,
    /// `(fd, iovecs, count)`
    Vector,
    /// `(fd, msghdr, flags)`
    Message,
}

impl Shape {
    /// Where the `struct iovec`s lie, and how many they are; of [`Shape::Buffer`] it means nothing.
    #[inline(always)]
    pub fn vector(self, bytes: &Bytes, address: u64, count: u64) -> Result<(u64, u32), ()> {
        match self {
            Self::Message => {
                // `struct msghdr`: msg_iov at 16, msg_iovlen at 24.
                let [iovecs, count] = bytes.two_words(address + 16)?;
                Ok((iovecs, count as u32))
            }
            _ => Ok((address, count as u32)),
        }
    }
}

programs_in_turns! {
    fexit FExitContext:
    tap_write tap_write_2 tap_write_3, tap_write_fexit tap_write_fexit_2 tap_write_fexit_3 Files |ctx| sent(ctx, Shape::Buffer);
    tap_writev tap_writev_2 tap_writev_3, tap_writev_fexit tap_writev_fexit_2 tap_writev_fexit_3 Files |ctx| sent(ctx, Shape::Vector);
    tap_sendto tap_sendto_2 tap_sendto_3, tap_sendto_fexit tap_sendto_fexit_2 tap_sendto_fexit_3 Sockets |ctx| sent(ctx, Shape::Buffer);
    tap_sendmsg tap_sendmsg_2 tap_sendmsg_3, tap_sendmsg_fexit tap_sendmsg_fexit_2 tap_sendmsg_fexit_3 Sockets |ctx| sent(ctx, Shape::Message);
}

programs! {
    fexit FExitContext:
    tap_follow, tap_follow_fexit Files, tap_follow_fexit_net Sockets |ctx| follow(ctx);
    tap_open, tap_open_fexit Files, tap_open_fexit_net Sockets |ctx| opened(ctx);
}

/// The exit of a send.
#[inline(always)]
fn sent(ctx: &impl Exit, shape: Shape) -> u32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr(tgid) else {
        return 0;
    };
    let ret = ctx.returned();
    let [fd, address, count] = ctx.arguments();
    let Some(scratch) = SCRATCH.get_ptr_mut(ctx.place()) else {
        return 0;
    };
    // SAFETY: both point to map values, and nobody else has this place meanwhile.
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
    s.failure.clear();
    s.forget_calls();
    s.more.set(0);
    s.quieted.set(0);
    s.begun.set(NOT_BEGUN);
    s.total.set(ret as u64);
    s.is_there();
    if ret > 0 {
        let sent = ret as u32;
        match shape {
            Shape::Buffer => s.buffer(address, sent),
            _ => {
                let Ok((iovecs, count)) = shape.vector(s, address, count) else {
                    unparsed(Reason::Unreadable);
                    return 0;
                };
                s.buffers(iovecs, count, sent);
            }
        }
    }
    // Only while `rewrite` enforces there is such a program: it puts the sender's bytes back.
    ctx.go_on(walks::MEND);
    go(ctx, s, walks::FOLLOW)
}

/// Walks what was sent, if anything was.
#[inline(always)]
pub fn go(ctx: &impl Exit, s: &Scratch, walk: u32) -> u32 {
    if s.total.get() as i64 > 0 {
        ctx.go_on(walk);
    } else if let Some(tracked) = CONNECTIONS.get_ptr(s.key) {
        // EAGAIN, EPIPE, EINTR and the like: nothing was sent.
        // SAFETY: it is a map value.
        unsafe { (*tracked).sending.set(0) };
    }
    0
}

/// Values of `Scratch::gated`.
pub const NOT_GATED: u32 = 0;
const GATED: u32 = 1;
const MISSED: u32 = 2;
/// The same, and the server's table has a substitute in it: a client that indexes its path refers to that.
const MISSED_LATCHED: u32 = 3;

/// Values of `Scratch::begun`.
pub const NOT_BEGUN: u32 = 0;
pub const FOLLOW: u32 = 1;
pub const FRESH: u32 = 2;
pub const JOIN: u32 = 3;

/// How a walk ended.
pub const MORE: u32 = 0;
pub const DONE: u32 = 1;
pub const UNREADABLE: u32 = 2;
/// And with it the number of a [`Fault`].
pub const FAULT: u32 = 16;
/// How a step ended behind which the walk goes on.
pub const NEXT: u32 = 3;

/// The scratch of the hook that this program continues.
#[inline(always)]
pub fn scratch<'a>(ctx: &impl Hook) -> Option<&'a Scratch> {
    // SAFETY: it is a map value that nobody else has meanwhile, and it is written through cells.
    SCRATCH
        .get_ptr(ctx.place())
        .map(|scratch| unsafe { &*scratch })
}

/// Walks a send of a connection that is in sync: the common case, in place, with one look-up.
#[inline(always)]
fn follow(ctx: &impl Exit) -> u32 {
    let Some(s) = scratch(ctx) else {
        return 0;
    };
    let tracked = match CONNECTIONS.get_ptr(s.key) {
        // SAFETY: it is a map value; one connection's sends don't overlap (a client that wrote to one HTTP/2
        // connection from two threads at once would break it).
        Some(tracked) => unsafe { &*tracked },
        None => return open(ctx),
    };
    let c = &tracked.conn;
    if tracked.epoch != s.tracked.epoch || c.status.get() != status::SYNCED {
        return open(ctx);
    }
    if s.begun.get() == NOT_BEGUN {
        s.begun.set(FOLLOW);
        if c.at_border() {
            // One look for a buffer is enough: a border is passed as well.
            if s.left.get() == 0 && s.next_buffer().is_err()
                || s.left.get() != 0 && s.fill().is_err()
            {
                follow_lost(s, c, UNREADABLE);
                return 0;
            }
            // A frame of 5 MB, or a connection that begins anew.
            if s.may_be_preface() {
                s.begun.set(NOT_BEGUN);
                return open(ctx);
            }
        }
    }
    // The gate has seen this send by now, unless the source was faster.
    let missed = tracked.passed.get() < tracked.sent.get() + s.total.get();
    s.gated.set(if tracked.gated.get() == 0 {
        NOT_GATED
    } else if missed && tracked.latched.get() != 0 {
        MISSED_LATCHED
    } else if missed {
        MISSED
    } else {
        GATED
    });
    let ended = walk(s, c, true);
    flush(s);
    if ended == MORE {
        go_on(ctx, s, walks::FOLLOW);
    }
    followed(s, tracked, ended);
    calls_begun(ctx, s);
    0
}

/// Goes on with a walk; by way of the calls that were noted, if there may be no room for those to come.
#[inline(always)]
pub fn go_on(ctx: &impl Hook, s: &Scratch, walk: u32) {
    if s.calls() > BEGUN / 2 {
        s.more.set(walk + 1);
        ctx.go_on(walks::BEGUN);
        // Answers aren't followed.
        s.more.set(0);
        s.forget_calls();
    }
    ctx.go_on(walk);
}

/// Behind the last step of a send: its calls are timed from here on.
#[inline(always)]
pub fn calls_begun(ctx: &impl Hook, s: &Scratch) {
    if s.calls() != 0 {
        ctx.go_on(walks::BEGUN);
    }
}

/// A send of which no more can be walked: the kernel allows no further tail call.
#[inline(always)]
pub fn too_long(s: &Scratch, walk: u32) {
    if walk == walks::FOLLOW || s.begun.get() == FOLLOW {
        // SAFETY: it is a map value.
        if let Some(tracked) = CONNECTIONS.get_ptr(s.key).map(|t| unsafe { &*t }) {
            followed(s, tracked, MORE);
        }
    } else {
        end(s, MORE);
    }
}

/// Ends a send of a connection that was in sync.
#[inline(always)]
pub fn followed(s: &Scratch, tracked: &Tracked, ended: u32) {
    let c = &tracked.conn;
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
}

#[inline(always)]
pub fn open(ctx: &impl Exit) -> u32 {
    ctx.go_on(walks::OPEN);
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
#[inline(always)]
fn opened(ctx: &impl Exit) -> u32 {
    let Some(s) = scratch(ctx) else {
        return 0;
    };
    if s.begun.get() == NOT_BEGUN && !begin(s) {
        return 0;
    }
    let ended = walk(s, &s.tracked.conn, false);
    if ended == MORE {
        if s.begun.get() == JOIN {
            ctx.go_on(walks::OPEN);
        } else {
            go_on(ctx, s, walks::OPEN);
        }
    }
    end(s, ended);
    calls_begun(ctx, s);
    0
}

/// Decides how to walk. `false`: not at all.
#[inline(always)]
pub fn begin(s: &Scratch) -> bool {
    let c = &s.tracked.conn;
    match CONNECTIONS.get_ptr(s.key) {
        // SAFETY: it is a map value.
        Some(tracked) if unsafe { (*tracked).epoch } == s.tracked.epoch => {
            // SAFETY: as above. All else of the state is set anew when a connection begins or is joined.
            c.status.set(unsafe { (*tracked).conn.status.get() });
            s.known.set(1);
        }
        _ => {
            if is_closing() {
                return false;
            }
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
    // No other connection that this descriptor had can have had that one (it comes back after 18 minutes).
    c.set_generation((now() >> 8) as u32);
    if s.first_buffer().is_err() {
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

/// Passes up to [`STEPS`] tokens and notes the requests among them: [`flush`] counts them.
#[inline(always)]
pub fn walk(s: &Scratch, c: &Conn, in_sync: bool) -> u32 {
    let Some(paths) = PATHS.get_ptr(0) else {
        return UNREADABLE;
    };
    let joining = !in_sync && s.begun.get() == JOIN;
    for _ in 0..STEPS {
        let ended = tap_step(s, c, paths, joining as u32);
        if ended != NEXT {
            return ended;
        }
    }
    MORE
}

/// One step of it: [`NEXT`], or how the walk ended. A function that the verifier walks once for all (see [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tap_step(
    s: *const Scratch,
    c: *const Conn,
    paths: *const PathTable,
    joining: u32,
) -> u32 {
    let (Some(s), Some(c), Some(paths)) = (global(s), global(c), global(paths)) else {
        return UNREADABLE;
    };
    if s.left.get() == 0 {
        if s.behind.get() == 0 {
            return DONE;
        }
        if s.next_buffer().is_err() {
            return UNREADABLE;
        }
        return NEXT;
    }
    match walk::step(c, s, paths, joining != 0) {
        Outcome::Continue => {}
        Outcome::Starved => {
            if s.fill().is_err() {
                return UNREADABLE;
            }
        }
        Outcome::Request => request(s, c),
        Outcome::Reset => s.call(c.stream.get(), RESET),
        Outcome::Data | Outcome::Block => {}
        Outcome::Fault(fault) => return FAULT + fault as u32,
    }
    NEXT
}

/// Notes a request, and whether it is a call that is to be timed.
#[inline(always)]
pub fn request(s: &Scratch, c: &Conn) {
    let class = c.path.get();
    s.note(class);
    if class == walk::UNRESOLVED {
        if c.candidates().0 != 0 {
            s.ask(c);
        }
    } else if class >= walk::WATCHED {
        s.call(c.stream.get(), class);
    }
}

/// Keeps what a send that was walked in the scratch left behind.
#[inline(always)]
pub fn end(s: &Scratch, ended: u32) {
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
pub fn unfind(s: &Scratch) {
    for class in walk::WATCHED..walk::LATCHED + MAX_PATHS as u32 {
        s.take(class);
    }
    s.take(walk::UNRESOLVED);
    s.noted.set(0);
    s.forget_calls();
}

/// Counts the requests that were noted.
#[inline(always)]
pub fn flush(s: &Scratch) {
    if s.noted.get() == 0 {
        return;
    }
    s.noted.set(0);
    for class in walk::WATCHED..walk::LATCHED + MAX_PATHS as u32 {
        flush_one(s, class);
    }
    flush_one(s, walk::UNRESOLVED);
}

#[inline(always)]
fn flush_one(s: &Scratch, class: u32) {
    let n = s.take(class);
    if n != 0 {
        count(s, class, n);
    }
}

/// Adds `n` requests of a class to the process's counters, unless the gate counts them.
#[inline(always)]
fn count(s: &Scratch, class: u32, n: u32) {
    if class < walk::WATCHED || !counts(s) {
        return;
    }
    let Some(slot) = SLOTS.get_ptr_mut(s.slot.get()) else {
        return;
    };
    let note = note_on(s);
    if note == FOREIGN {
        return;
    }
    if class == walk::UNRESOLVED {
        // SAFETY: the pointer leads into the slot, which is a map value.
        unsafe { add(&raw mut (*slot).unresolved, n as u64) };
        return;
    }
    let (number, column) = method_and_verdict(s, class);
    if column == verdict::ADMITTED && s.verdict.get() == verdict::REJECTED {
        failed(why(s, note), n as u64);
    }
    if column == verdict::REJECTED {
        loud(s, number, n);
    }
    let path = number as usize & (MAX_PATHS - 1);
    let column = column as usize & (verdict::COUNT - 1);
    // SAFETY: as above, and both indices are masked.
    unsafe { add(&raw mut (*slot).calls[path][column], n as u64) };
}

/// Of `n` rejected calls that were to be answered quietly, those that nobody has counted yet were not: they refer to what the server's table
/// has, or met a gate.
#[inline(always)]
fn loud(s: &Scratch, method: u32, n: u32) {
    let slot = s.slot.get();
    let counted = s.quieted.get();
    if n > counted && quiet_asked(slot, method) {
        let why = if s.gated.get() == NOT_GATED {
            Manner::Indexed
        } else {
            Manner::Enforcer
        };
        quieted(slot, quiet::code(why), (n - counted) as u64);
    }
}

/// Whether the tap counts calls of this send.
#[inline(always)]
fn counts(s: &Scratch) -> bool {
    s.gated.get() != GATED
        && s.verdict.get() != verdict::OFF
        && (s.gated.get() != NOT_GATED || control_closing() != closing::GATED)
}

/// There is none; no [`Failure`]'s number, and not [`FOREIGN`].
const NO_NOTE: u32 = u32::MAX;

/// The agent's note on the connection, or [`NO_NOTE`]. (No `Option`: of its `None`, LLVM keeps a number that was never set, which a verifier
/// refuses to have moved.)
#[inline(always)]
fn note_on(s: &Scratch) -> u32 {
    match OBSTACLES.get_ptr(s.key) {
        // SAFETY: it is a map value.
        Some(note) => unsafe { *note },
        None => NO_NOTE,
    }
}

/// The number of a watched class's method, and what became of its call.
#[inline(always)]
fn method_and_verdict(s: &Scratch, class: u32) -> (u32, u32) {
    let ruling = s.verdict.get();
    if class >= walk::LATCHED {
        // It was rewritten, or refers to what was.
        (class - walk::LATCHED, verdict::REJECTED)
    } else if s.gated.get() == MISSED_LATCHED {
        (class - walk::WATCHED, verdict::REJECTED)
    } else if ruling == verdict::REJECTED {
        (class - walk::WATCHED, verdict::ADMITTED)
    } else {
        (class - walk::WATCHED, ruling)
    }
}

/// The same, with [`verdict::OFF`] where the call isn't counted by programs of this build. Of one that the gate counts, the gate has said what
/// became of it. (No `Option`, as in [`note_on`].)
#[inline(always)]
pub fn sorted(s: &Scratch, class: u32, gate: impl FnOnce() -> u32) -> (u32, u32) {
    let (method, verdict) = method_and_verdict(s, class);
    let verdict = if s.verdict.get() == verdict::OFF || note_on(s) == FOREIGN {
        verdict::OFF
    } else if s.gated.get() == GATED {
        gate()
    } else {
        verdict
    };
    (method, verdict)
}

/// Why a call went through that should have been rejected.
#[inline(always)]
fn why(s: &Scratch, note: u32) -> Failure {
    if let Some(why) = s.failure.get() {
        return why;
    }
    if s.gated.get() == MISSED {
        return Failure::Lost;
    }
    if note == NO_NOTE && !leased() {
        return Failure::Lease;
    }
    // Without one, no gate stands before it yet, or it was not yet in sync when this send began.
    Failure::of(note).unwrap_or(Failure::Joining)
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
    latched(s, tracked, &tracked.conn);
    if CONNECTIONS.insert(s.key, tracked, 0).is_err() {
        settle_from(s, now, status::NEW);
        unparsed(Reason::TableFull);
        return;
    }
    if now == status::SYNCED {
        if s.begun.get() == FRESH {
            expect_answers(s);
        }
        announce(s);
    }
}

/// A connection begins, and with it what its server answers. If that was heard before (by another thread of the process), it is
/// known already.
#[inline(always)]
fn expect_answers(s: &Scratch) {
    if answers() == 0 {
        return;
    }
    // SAFETY: it is a map value.
    if let Some(known) = ANSWERS.get_ptr(s.key).map(|a| unsafe { &*a })
        && known.epoch == s.tracked.epoch
        && known.unclaimed.get() != 0
    {
        known.unclaimed.set(0);
        return;
    }
    let new = &s.answers;
    new.conn.restart();
    new.conn.status.set(status::SYNCED);
    // SAFETY: nobody else has this place meanwhile, and `epoch` is the only field that is no cell.
    unsafe {
        (&raw const new.epoch)
            .cast_mut()
            .write_volatile(s.tracked.epoch)
    };
    // Where there is no room, the connection's calls are counted and not timed.
    let _ = ANSWERS.insert(s.key, new, 0);
}

/// Notes once that the server's dynamic table has a substitute in it.
#[inline(always)]
pub fn latched(s: &Scratch, tracked: &Tracked, c: &Conn) {
    if c.latches()
        && tracked.latched.get() == 0
        && let Some(slot) = SLOTS.get_ptr_mut(s.slot.get())
    {
        tracked.latched.set(1);
        // SAFETY: the pointer leads into the slot, which is a map value.
        unsafe { add(&raw mut (*slot).latched, 1) };
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
        "classes and UNRESOLVED fit in `Scratch::found`"
    );
    assert!(verdict::COUNT.is_power_of_two());
    assert!(
        size_of::<Target>().is_multiple_of(8)
            && size_of::<Slot>().is_multiple_of(8)
            && size_of::<Tracked>().is_multiple_of(8)
    );
};
