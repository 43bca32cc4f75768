//! `rewrite`: overwrites the path of a call that is to be rejected in the sender's own buffer, before the kernel copies it, and
//! puts it back when the system call is over.
//!
//! `edit_write`, `edit_writev`, `edit_sendto`, `edit_sendmsg` at the entries of the send system calls go on in `edit_walk`, which walks
//! the send on a copy of the connection's state. At the exit the tap goes on in `mend`, which puts the bytes back, and where
//! there were any, in `replay`: what was really sent is walked again, on the state itself.
//!
//! They write to the memory of processes (`bpf_probe_write_user`): CAP_SYS_ADMIN, and no lockdown. Only what goes to a descriptor that
//! the process has connected is overwritten, never what goes to a file.

use agent_common::abi::{ConnKey, FOREIGN, Failure, Manner, Target, Tracked, verdict, walks};
use agent_common::h2::edit::{self, Edit, Named, Placed};
use agent_common::h2::journal::{Journal, Original, PIECES, spelling_of};
use agent_common::h2::paths::PathTable;
use agent_common::h2::quiet;
use agent_common::h2::substitute::Substitute;
use agent_common::h2::track::{self, Begin, status};
use agent_common::h2::walk::{Outcome, Source};
use agent_common::vol::{Vol, masked, positive};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_probe_read_user, bpf_probe_write_user};

use crate::answers;
use crate::global::global;
use crate::hook::{Exit, Hook, programs, programs_in_turns};
use crate::maps::{
    CONNECTIONS, EDITS, NO_EDITS, OBSTACLES, PATHS, SCRATCH, SOCKETS, SUBSTITUTES, TARGETS,
    closing, failed, leased, quiet_asked, quieted,
};
use crate::source::{RESET, Scratch};
use crate::tap::{
    self, DONE, FAULT, FOLLOW, JOIN, MORE, NEXT, NOT_BEGUN, NOT_GATED, Shape, UNREADABLE,
};

/// Steps that one run of a walk makes; a watched path that something is done for ends it too. (What is done for it stands before the
/// steps, not in them: the verifier would walk it once a step.)
const STEPS: u32 = 20;

/// A step passed the end of a request.
const REQUEST: u32 = NEXT + 1;
/// A step passed a RST_STREAM frame.
const GIVEN_UP: u32 = NEXT + 2;
/// More than one system call sends (`MAX_RW_COUNT`).
const ALL: u32 = 0x7fff_ffff;

/// What was overwritten in a send.
#[repr(C)]
pub struct Edits {
    /// The target's generation: another program's memory is another.
    generation: u64,
    /// Not 0: the exit of that send was skipped, and this is another one.
    stale: Vol<u64>,
    journal: Journal,
}

programs_in_turns! {
    fentry FEntryContext:
    edit_write edit_write_2 edit_write_3, edit_write_fentry edit_write_fentry_2 edit_write_fentry_3 Files |ctx| entered(ctx, Shape::Buffer, 0);
    edit_writev edit_writev_2 edit_writev_3, edit_writev_fentry edit_writev_fentry_2 edit_writev_fentry_3 Files |ctx| entered(ctx, Shape::Vector, 0);
    edit_sendto edit_sendto_2 edit_sendto_3, edit_sendto_fentry edit_sendto_fentry_2 edit_sendto_fentry_3 Sockets |ctx| entered(ctx, Shape::Buffer, ctx.fourth());
    edit_sendmsg edit_sendmsg_2 edit_sendmsg_3, edit_sendmsg_fentry edit_sendmsg_fentry_2 edit_sendmsg_fentry_3 Sockets |ctx| entered(ctx, Shape::Message, ctx.arguments()[2]);
}

programs! {
    fentry FEntryContext:
    edit_walk, edit_walk_fentry Files, edit_walk_fentry_net Sockets |ctx| edits(ctx);
}

programs! {
    fexit FExitContext:
    mend, mend_fexit Files, mend_fexit_net Sockets |ctx| mended(ctx);
    replay, replay_fexit Files, replay_fexit_net Sockets |ctx| replayed(ctx);
}

/// `MSG_ZEROCOPY`: the kernel reads the sender's memory when it transmits, and again when it must transmit anew, long after the call. What
/// is put back at the call's end would be sent then, so nothing of such a send is overwritten.
const ZEROCOPY: u64 = 0x400_0000;

/// How often the sender's memory is written that must be as it was: at the exit, where a function does it that the verifier walks once, and
/// at the entry (what is left then, the exit does).
const TRIES: u32 = 256;
const TRIES_AT_ENTRY: u32 = 4;

/// The entry of a send.
#[inline(always)]
fn entered(ctx: &impl Hook, shape: Shape, flags: u64) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let tgid = (thread >> 32) as u32;
    let Some(target) = TARGETS.get_ptr(tgid) else {
        return 0;
    };
    // SAFETY: it is a map value.
    let target: &Target = unsafe { &*target };
    if let Some(edits) = EDITS.get_ptr(thread) {
        // SAFETY: it is a map value. The exit of this send will put those bytes back, if they are still there.
        unsafe { (*edits).stale.set(1) };
        return 0;
    }
    if flags & ZEROCOPY != 0 {
        return 0;
    }
    let [fd, address, count] = ctx.arguments();
    let key = ConnKey {
        tgid,
        fd: fd as u32,
    };
    // SAFETY: it is a map value.
    let tracked = CONNECTIONS.get_ptr(key).map(|t| unsafe { &*t });
    let tracked =
        tracked.filter(|t| t.epoch == target.epoch && t.conn.status.get() == status::SYNCED);
    let begun = tracked.is_some_and(|t| t.conn.is_substituted());
    if !begun && (target.verdict != verdict::REJECTED || !leased()) {
        return 0;
    }
    // SAFETY: it is a map value.
    if SOCKETS.get_ptr(key).is_none_or(|epoch| unsafe { *epoch } != target.epoch)
        // SAFETY: as above.
        || OBSTACLES.get_ptr(key).is_some_and(|note| unsafe { *note } == FOREIGN)
    {
        return 0;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(ctx.place()) else {
        return 0;
    };
    // SAFETY: it is a map value that nobody else has meanwhile.
    unsafe {
        (*scratch).key = key;
        (*scratch).tracked.epoch = target.epoch;
    }
    // SAFETY: as above; from here on the scratch is only read and written through its cells.
    let s = unsafe { &*scratch };
    s.verdict.set(target.verdict);
    s.slot.set(target.slot);
    s.may_be_away();
    match shape {
        Shape::Buffer => s.buffer(
            address,
            if count > ALL as u64 {
                ALL
            } else {
                count as u32
            },
        ),
        _ => {
            let Ok((iovecs, count)) = shape.vector(s, address, count) else {
                return 0;
            };
            s.buffers(iovecs, count, ALL);
        }
    }
    match tracked {
        Some(tracked) => {
            s.tracked.conn.copy_from(&tracked.conn);
            s.begun.set(FOLLOW);
        }
        None if closing() => return 0,
        None => s.begun.set(NOT_BEGUN),
    }
    s.running.set(0);
    s.segments.forget();
    ctx.go_on(walks::EDIT);
    0
}

/// Walks what is about to be sent, and overwrites what is to be rejected.
#[inline(always)]
fn edits(ctx: &impl Hook) -> u32 {
    let Some(s) = tap::scratch(ctx) else {
        return 0;
    };
    let c = &s.tracked.conn;
    if s.running.get() == 0 {
        s.running.set(1);
        if !begin(s) {
            return 0;
        }
    }
    if s.segments.found() {
        let Some(journal) = journal(s) else {
            return 0;
        };
        edit::apply(c, &Editing { s, journal }, &s.segments);
        if let Some(why) = s.segments.failure() {
            journal.fail(why);
        }
    }
    let ended = steps(s, |_| s.segments.found());
    if ended == MORE {
        ctx.go_on(walks::EDIT);
    }
    if ended == DONE && !c.is_substituted() {
        return 0;
    }
    let Some(journal) = journal(s) else {
        return 0;
    };
    match ended {
        DONE => edit::finish(c, &Editing { s, journal }, &s.segments),
        MORE => journal.fail(Failure::TooMany),
        UNREADABLE => journal.fail(Failure::Unwritable),
        _ => journal.fail(Failure::Lost),
    }
    0
}

/// Stands before the send. `false`: nothing of it can be rejected.
#[inline(always)]
fn begin(s: &Scratch) -> bool {
    let c = &s.tracked.conn;
    let follows = s.begun.get() == FOLLOW;
    if !follows {
        c.status.set(status::NEW);
        c.restart();
    }
    if s.first_buffer().is_err() {
        return false;
    }
    match track::begin(c, s, s.left.get() + s.behind.get()) {
        Begin::Fresh => true,
        Begin::Follow => follows,
        _ => false,
    }
}

/// This send's journal, made if need be.
#[inline(always)]
fn journal(s: &Scratch) -> Option<&Journal> {
    let thread = bpf_get_current_pid_tgid();
    if EDITS.get_ptr(thread).is_none() {
        let target = TARGETS.get_ptr(s.key.tgid)?;
        if EDITS.insert(thread, NO_EDITS.get(0)?, 0).is_err() {
            // The exit, where this call is counted, has nothing else to tell it.
            let _ = OBSTACLES.insert(s.key, Failure::Full as u32, 0);
            return None;
        }
        let edits = EDITS.get_ptr_mut(thread)?;
        // SAFETY: both are map values, and only this thread uses this one.
        unsafe { (*edits).generation = (*target).generation };
    }
    // SAFETY: as above; from here on it is written through cells.
    EDITS
        .get_ptr(thread)
        .map(|edits| unsafe { &(*edits).journal })
}

/// Passes up to [`STEPS`] tokens, or fewer where `after` one ([`NEXT`], [`REQUEST`], [`GIVEN_UP`]) says so.
#[inline(always)]
fn steps(s: &Scratch, after: impl Fn(u32) -> bool) -> u32 {
    let Some(paths) = PATHS.get_ptr(0) else {
        return UNREADABLE;
    };
    for _ in 0..STEPS {
        let ended = sent_step(s, paths);
        if ended != NEXT && ended != REQUEST && ended != GIVEN_UP {
            return ended;
        }
        if after(ended) {
            return MORE;
        }
    }
    MORE
}

/// One step of it: [`NEXT`], [`REQUEST`], [`GIVEN_UP`], or how the walk ended. A function that the verifier walks once for all (see
/// [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sent_step(s: *const Scratch, paths: *const PathTable) -> u32 {
    let (Some(s), Some(paths)) = (global(s), global(paths)) else {
        return UNREADABLE;
    };
    if s.left.get() == 0 {
        if s.buffers.get() == 0 || s.behind.get() == 0 {
            return DONE;
        }
        if s.next_buffer().is_err() {
            return UNREADABLE;
        }
        return NEXT;
    }
    match edit::step(&s.tracked.conn, &Sent(s), &s.segments, paths, false) {
        Outcome::Continue | Outcome::Data | Outcome::Block => NEXT,
        Outcome::Request => REQUEST,
        Outcome::Reset => GIVEN_UP,
        Outcome::Starved => {
            if s.fill().is_err() {
                UNREADABLE
            } else {
                NEXT
            }
        }
        Outcome::Fault(fault) => FAULT + fault as u32,
    }
}

/// The exit of a send: puts back what was overwritten.
#[inline(always)]
fn mended(ctx: &impl Exit) -> u32 {
    let Some(s) = tap::scratch(ctx) else {
        return 0;
    };
    let thread = bpf_get_current_pid_tgid();
    let Some(edits) = EDITS.get_ptr(thread) else {
        return tap::go(ctx, s, walks::FOLLOW);
    };
    // SAFETY: it is a map value that only this thread uses, and written through cells.
    let edits = unsafe { &*edits };
    if !is_of(edits, s) {
        // What another program of this process left.
        let _ = EDITS.remove(thread);
        return tap::go(ctx, s, walks::FOLLOW);
    }
    restore(s, edits);
    if let Some(why) = edits.journal.failure() {
        s.failure.set(why);
    }
    if s.total.get() as i64 <= 0 || edits.stale.get() != 0 {
        let _ = EDITS.remove(thread);
        return tap::go(ctx, s, walks::FOLLOW);
    }
    s.segments.forget();
    tap::go(ctx, s, walks::REPLAY)
}

/// Whether these are of the program that runs.
#[inline(always)]
fn is_of(edits: &Edits, s: &Scratch) -> bool {
    // SAFETY: it is a map value.
    TARGETS
        .get_ptr(s.key.tgid)
        .is_some_and(|target| unsafe { (*target).generation } == edits.generation)
}

/// Puts the sender's bytes back, where they are still what was written.
#[inline(always)]
fn restore(s: &Scratch, edits: &Edits) {
    let mut i = 0;
    while i < PIECES as u32 {
        // Masked, so that the two limits stay two: the smaller one alone says nothing to 6.1's verifier.
        if masked(i, 2 * PIECES as u32 - 1) >= edits.journal.written() {
            break;
        }
        if restore_piece(s, edits, i) == 0 {
            failed(Failure::NotRestored, 1);
        }
        i += 1;
    }
}

/// Puts back a piece. 1: it was. A function that the verifier walks once for all (see [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn restore_piece(s: *const Scratch, edits: *const Edits, i: u32) -> u32 {
    match (global(s), global(edits)) {
        (Some(s), Some(edits)) => put_back(s, &edits.journal, i).is_ok() as u32,
        _ => 0,
    }
}

#[inline(always)]
fn put_back(s: &Scratch, journal: &Journal, i: u32) -> Result<(), ()> {
    let (place, original) = journal.original(i);
    match original {
        Original::Octet { was, is } => {
            s.bring_in(place, 1)?;
            if s.octet(0) == was {
                return Ok(());
            }
            if s.octet(0) != is {
                return Err(());
            }
            write_back(place, [was].as_ptr(), 1, TRIES)
        }
        Original::Spelling { id, from, end } => {
            let (number, coding) = spelling_of(id);
            let substitute = substitute_of(number).ok_or(())?;
            let spelling = &substitute.spellings[coding];
            let from = masked(from, 127);
            let len = positive(end.wrapping_sub(from), 127);
            s.bring_in(place, len)?;
            let (mut neither, mut as_it_was) = (0, 0);
            let mut at = 0;
            while at < 128 {
                if masked(at, 255) >= len {
                    break;
                }
                let octet = s.octet(at);
                let place = (from + at) as usize;
                // SAFETY: behind the spelling lies the substitute's slack, so the places are within the map value.
                let (substitute, watched) = unsafe {
                    (
                        *spelling.substitute.as_ptr().add(place),
                        *spelling.watched.as_ptr().add(place),
                    )
                };
                // Not 0 where it is neither. (It may have been written in part.)
                neither |= (octet ^ substitute) as u32 * (octet ^ watched) as u32;
                as_it_was |= octet ^ watched;
                at += 1;
            }
            if as_it_was == 0 {
                // It could not be written, and that could not be noted as undone.
                return Ok(());
            }
            if neither != 0 {
                return Err(());
            }
            // SAFETY: as above.
            let watched = unsafe { spelling.watched.as_ptr().add(from as usize) };
            write_back(place, watched, len, TRIES)
        }
    }
}

/// Writes what was there. Where that fails, the kernel is moving the memory.
#[inline(always)]
fn write_back(place: u64, from: *const u8, len: u32, tries: u32) -> Result<(), ()> {
    for _ in 0..tries {
        if write(place, from, len).is_ok() {
            return Ok(());
        }
    }
    Err(())
}

/// Walks what was sent of a send in which something was rejected.
#[inline(always)]
fn replayed(ctx: &impl Exit) -> u32 {
    let Some(s) = tap::scratch(ctx) else {
        return 0;
    };
    let thread = bpf_get_current_pid_tgid();
    let Some(edits) = EDITS.get_ptr(thread) else {
        return 0;
    };
    // SAFETY: as in `mended`.
    let journal = unsafe { &(*edits).journal };
    let c = &s.tracked.conn;
    if s.begun.get() == NOT_BEGUN && !resume(s) {
        let _ = EDITS.remove(thread);
        return tap::open(ctx);
    }
    if s.segments.found() {
        let manner = journal.replay(c, &s.segments);
        if manner != 0 {
            quieted(s.slot.get(), manner, 1);
            s.quieted.set(s.quieted.get() + 1);
        }
    }
    if s.pending.get() != 0 {
        s.pending.set(0);
        tap::request(s, c);
    }
    let ended = steps(s, |outcome| {
        let stops = s.segments.found() && journal.expects();
        if outcome == REQUEST {
            if stops {
                s.pending.set(1);
            } else {
                tap::request(s, c);
            }
        }
        if outcome == GIVEN_UP {
            s.call(c.stream.get(), RESET);
        }
        stops
    });
    if ended == MORE {
        tap::go_on(ctx, s, walks::REPLAY);
    }
    if ended == DONE
        && let Some(number) = journal.cut_path(c, &s.segments)
    {
        journal.cut(c, &s.segments, substitute_of(number));
    }
    let _ = EDITS.remove(thread);
    if s.begun.get() != FOLLOW {
        tap::end(s, ended);
        tap::calls_begun(ctx, s);
        return 0;
    }
    // SAFETY: it is a map value.
    let Some(tracked) = CONNECTIONS.get_ptr(s.key).map(|t| unsafe { &*t }) else {
        return 0;
    };
    tracked.conn.copy_from(c);
    s.gated.set(NOT_GATED);
    tap::flush(s);
    tap::latched(s, tracked, c);
    tap::followed(s, tracked, ended);
    tap::calls_begun(ctx, s);
    0
}

/// Begins a replay where the entry began. `false`: it is none of a connection that is followed.
#[inline(always)]
fn resume(s: &Scratch) -> bool {
    // SAFETY: it is a map value.
    let tracked: Option<&Tracked> = CONNECTIONS.get_ptr(s.key).map(|t| unsafe { &*t });
    if let Some(tracked) = tracked
        && tracked.epoch == s.tracked.epoch
        && tracked.conn.status.get() == status::SYNCED
    {
        s.tracked.conn.copy_from(&tracked.conn);
        if !s.tracked.conn.at_border() || s.first_buffer().is_ok() && !s.may_be_preface() {
            s.begun.set(FOLLOW);
            return true;
        }
    }
    tap::begin(s) && s.begun.get() != JOIN
}

#[inline(always)]
fn substitute_of<'a>(number: u32) -> Option<&'a Substitute> {
    // SAFETY: it is a map value that the agent wrote before it attached anything.
    SUBSTITUTES.get_ptr(number).map(|s| unsafe { &*s })
}

/// Reads `len` octets, 1 to 128, of the process's memory.
#[inline(always)]
fn read(place: u64, to: *mut u8, len: u32) -> Result<(), ()> {
    // SAFETY: `to` leads to at least 128 octets; the helper checks the source itself.
    let failed = unsafe { bpf_probe_read_user(to.cast(), len, place as *const _) };
    if failed == 0 { Ok(()) } else { Err(()) }
}

/// Writes `len` octets, 1 to 128, to the process's memory.
#[inline(always)]
fn write(place: u64, from: *const u8, len: u32) -> Result<(), ()> {
    // SAFETY: `from` leads to at least `len` octets; the helper checks the destination itself.
    let failed = unsafe { bpf_probe_write_user(place as *mut _, from.cast(), len) };
    if failed == 0 { Ok(()) } else { Err(()) }
}

/// A send as the enforcer walks it.
struct Sent<'a>(&'a Scratch);

impl Source for Sent<'_> {
    const RUN: u32 = 1;

    #[inline(always)]
    fn left(&self) -> u32 {
        Source::left(self.0)
    }

    #[inline(always)]
    fn ready(&self) -> u32 {
        self.0.ready()
    }

    #[inline(always)]
    fn peek(&self, at: u32) -> u8 {
        self.0.peek(at)
    }

    #[inline(always)]
    fn pass(&self, n: u32) {
        self.0.pass(n);
    }
}

impl Placed for Sent<'_> {
    #[inline(always)]
    fn place(&self) -> u64 {
        self.0.at.get()
    }
}

/// Overwrites what is about to be sent, and writes it down.
struct Editing<'a> {
    s: &'a Scratch,
    journal: &'a Journal,
}

impl Editing<'_> {
    /// Overwrites an octet that was noted.
    #[inline(always)]
    fn octet(&self, place: u64, octet: u8) -> Result<(), Failure> {
        write(place, [octet].as_ptr(), 1).map_err(|()| {
            self.journal.unwritten();
            Failure::Unwritable
        })
    }
}

impl Edit for Editing<'_> {
    #[inline(always)]
    fn substitute(&self, number: u32) -> Option<&Substitute> {
        substitute_of(number)
    }

    /// What was begun must be ended, whatever the policy says by now.
    #[inline(always)]
    fn reject(&self, _: u64, begun: bool) -> bool {
        if !begun && (self.s.verdict.get() != verdict::REJECTED || !leased()) {
            return false;
        }
        match self.journal.begin() {
            Ok(()) => true,
            Err(why) => {
                self.journal.fail(why);
                false
            }
        }
    }

    #[inline(always)]
    fn literal(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> Result<(), Failure> {
        self.journal.piece(place, s.id, from, end)?;
        let from = masked(from, 127);
        let len = positive(end.wrapping_sub(from), 127);
        // SAFETY: behind the spelling lies the substitute's slack, so the place is within the map value.
        let bytes = unsafe { s.spelling.substitute.as_ptr().add(from as usize) };
        write(place, bytes, len).map_err(|()| {
            // Of more than one octet some may have been written.
            if len == 1 {
                self.journal.unwritten();
            }
            Failure::Unwritable
        })
    }

    #[inline(always)]
    fn undo(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> bool {
        let from = masked(from, 127);
        let len = positive(end.wrapping_sub(from), 127);
        // SAFETY: as above.
        let bytes = unsafe { s.spelling.watched.as_ptr().add(from as usize) };
        write_back(place, bytes, len, TRIES_AT_ENTRY).is_ok()
    }

    #[inline(always)]
    fn undone(&self) {
        self.journal.undone();
    }

    #[inline(always)]
    fn index(&self, place: u64, octet: u8) -> Result<(), Failure> {
        let mut original = [0u8];
        read(place, original.as_mut_ptr(), 1).map_err(|()| Failure::Unwritable)?;
        self.journal.index(place, original[0])?;
        self.octet(place, octet)
    }

    #[inline(always)]
    fn asked(&self, number: u32) -> bool {
        quiet_asked(self.s.slot.get(), number)
    }

    #[inline(always)]
    fn answerable(&self, stream: u32) -> u32 {
        answers::answerable(&self.s.key, self.s.tracked.epoch, stream)
    }

    #[inline(always)]
    fn length(&self, place: u64, was: u8, octet: u8) -> Result<(), Failure> {
        self.journal.length(place, was)?;
        self.octet(place, octet)
    }

    #[inline(always)]
    fn rejected(&self, place: u64, id: u32, manner: u32) {
        self.journal.rejected(place, id, manner);
        if manner != 0 {
            let stream = self.s.tracked.conn.stream.get();
            let quiet = manner == quiet::code(Manner::Quiet);
            answers::set_quiet(&self.s.key, stream, quiet);
        }
    }
}
