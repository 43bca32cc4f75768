//! The parser as it was built for the kernel and the same parser as it was built for the host, on the same bytes: valid streams of every
//! habit, damaged ones, garbage, and streams that are joined in the middle, cut anywhere. Behind each send their states must be equal to
//! the last octet, and what they found; and behind each buffer of the gate's walk, what was overwritten.

#[path = "../../agent-common/tests/reference/mod.rs"]
#[allow(dead_code, reason = "the parser's own tests need more of it")]
mod reference;

mod kernel {
    //! The programs of `agent-ebpf/src/cases.rs`, in the kernel.

    use std::mem::{offset_of, zeroed};
    use std::path::PathBuf;

    use agent_common::abi::cases::{COOKIE, Case};
    use agent_common::abi::{Control, Gated, Target, gate, verdict};
    use agent_common::h2::paths::{MAX_PATHS, PathTable};
    use agent_common::h2::substitute::{self, Substitute};
    use agent_common::h2::track::status;
    use anyhow::{Context as _, Result, ensure};
    use aya::maps::{Array, HashMap, MapData, ProgramArray};
    use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
    use aya::{Ebpf, EbpfLoader};
    use pendguard_tests::peers::target_directory;

    use super::reference::{PATHS, table};

    const CASE: usize = size_of::<Case>();
    const GATED: usize = size_of::<Gated>();
    const GENERATION: u64 = 5;
    const TGID: u32 = 7;

    /// A plain value as the bytes of a map.
    fn bytes<T, const N: usize>(value: &T) -> [u8; N] {
        const { assert!(size_of::<T>() == N) };
        // SAFETY: the value is as long, and is made of integers without gaps.
        unsafe { std::ptr::from_ref(value).cast::<[u8; N]>().read() }
    }

    pub struct Kernel {
        case: Array<MapData, [u8; CASE]>,
        gated: HashMap<MapData, u64, [u8; GATED]>,
        object: Ebpf,
        /// The kernel empties it when nobody holds it.
        _walks: ProgramArray<MapData>,
    }

    impl Kernel {
        pub fn load() -> Result<Self> {
            let path = std::env::var_os("PENDGUARD_BPF_CASES")
                .map_or_else(|| target_directory().join("bpf/cases.bpf.o"), PathBuf::from);
            let mut object = EbpfLoader::new()
                .load_file(&path)
                .with_context(|| format!("{}: cargo xtask build makes it", path.display()))?;
            for name in ["case_send", "case_buffer", "case_buffer_walk"] {
                let program: &mut SchedClassifier = object
                    .program_mut(name)
                    .with_context(|| format!("no program {name}"))?
                    .try_into()?;
                program.load().with_context(|| name.to_owned())?;
            }
            let walk: &SchedClassifier = object
                .program("case_buffer_walk")
                .context("it was there")?
                .try_into()?;
            let walk = walk.fd()?.try_clone()?;
            let mut take = |name| {
                object
                    .take_map(name)
                    .with_context(|| format!("no map {name}"))
            };
            let mut walks = ProgramArray::try_from(take("CASE_WALKS")?)?;
            walks.set(0, &walk, 0)?;
            let mut paths: Array<_, [u8; size_of::<PathTable>()]> =
                Array::try_from(take("PATHS")?)?;
            paths.set(0, bytes(&*table(PATHS)), 0)?;
            let mut substitutes: Array<_, [u8; size_of::<Substitute>()]> =
                Array::try_from(take("SUBSTITUTES")?)?;
            ensure!(PATHS.len() <= MAX_PATHS);
            for (number, path) in (0..).zip(PATHS) {
                if let Some((_, substitute)) = substitute::choose(path, PATHS) {
                    substitutes.set(number, bytes(&substitute), 0)?;
                }
            }
            let mut control: Array<_, [u8; size_of::<Control>()]> =
                Array::try_from(take("CONTROL")?)?;
            let for_ever = Control {
                lease: u64::MAX,
                ..Control::ZERO
            };
            control.set(0, bytes(&for_ever), 0)?;
            let mut targets: HashMap<_, u32, [u8; size_of::<Target>()]> =
                HashMap::try_from(take("TARGETS")?)?;
            let target = Target {
                generation: GENERATION,
                epoch: GENERATION,
                slot: 1,
                verdict: verdict::REJECTED,
            };
            targets.insert(TGID, bytes(&target), 0)?;
            let case = Array::try_from(take("CASE")?)?;
            let gated = HashMap::try_from(take("GATED")?)?;
            // The programs hold what they use.
            Ok(Self {
                case,
                gated,
                object,
                _walks: walks,
            })
        }

        fn run(&self, name: &str, packet: &mut [u8]) -> Result<()> {
            let program: &SchedClassifier = self
                .object
                .program(name)
                .context(name.to_owned())?
                .try_into()?;
            let mut out = vec![0; packet.len()];
            let result = program.test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ..TestRunOptions::new()
            })?;
            ensure!(result.return_value == 0, "{name}: {}", result.return_value);
            packet.copy_from_slice(&out);
            Ok(())
        }

        /// Walks a send, which lies in this process's memory, on a connection's state.
        pub fn send(&mut self, case: &mut Case) -> Result<()> {
            self.case.set(0, bytes(case), 0)?;
            self.run("case_send", &mut [0; 64])?;
            let after = self.case.get(&0, 0)?;
            // SAFETY: they are a case's bytes, and any bytes are a case.
            *case = unsafe { after.as_ptr().cast::<Case>().read_unaligned() };
            Ok(())
        }

        /// A gate before a connection of which nothing has passed.
        pub fn gate(&mut self) -> Result<()> {
            // SAFETY: it is made of integers, for which all zero is a value.
            let mut gated: Gated = unsafe { zeroed() };
            gated.key.tgid = TGID;
            gated.generation = GENERATION;
            gated.state.set(gate::ACTIVE);
            gated.conn.status.set(status::SYNCED);
            self.gated.insert(COOKIE, bytes(&gated), 0)?;
            Ok(())
        }

        /// Walks a buffer behind the place that an Ethernet header takes. Returns whether the gate left the connection, and its state.
        pub fn buffer(&mut self, packet: &mut [u8]) -> Result<(bool, Vec<u8>)> {
            self.run("case_buffer", packet)?;
            let after = self.gated.get(&COOKIE, 0)?;
            let at = offset_of!(Gated, conn);
            let conn = after[at..at + size_of::<agent_common::h2::walk::Conn>()].to_vec();
            let at = offset_of!(Gated, state);
            Ok((after[at..at + 4] != gate::ACTIVE.to_ne_bytes(), conn))
        }
    }
}

mod host {
    //! The same on the host: what the programs do around the parser, written once more.

    use std::cell::{Cell, RefCell};
    use std::mem::zeroed;

    use agent_common::abi::Failure;
    use agent_common::abi::cases::{self, CALLS, Case, IN_FRONT};
    use agent_common::h2::edit::{self, Edit, Named, Placed, Segments};
    use agent_common::h2::paths::PathTable;
    use agent_common::h2::substitute::{self, Substitute};
    use agent_common::h2::track::{Begin, begin, end};
    use agent_common::h2::walk::{Conn, Fault, Outcome, Source, UNRESOLVED, WATCHED, step};

    use super::reference::PATHS;

    const WINDOW: u32 = 256;
    const STEPS: u32 = 64;
    const GATE_STEPS: u32 = 32;
    pub const RUNS: u32 = 33;
    const MORE: u32 = 0;
    const DONE: u32 = 1;
    const UNREADABLE: u32 = 2;
    const FAULT: u32 = 16;
    const RESET: u32 = 254;

    /// What has been read of the current piece, from which a walk that passes up to `RUN` fields at once goes on.
    struct Window<const RUN: u32> {
        /// Where the next octet lies in the piece.
        at: Cell<usize>,
        left: Cell<u32>,
        window_at: Cell<u32>,
        window_len: Cell<u32>,
        window: RefCell<[u8; WINDOW as usize]>,
    }

    impl<const RUN: u32> Window<RUN> {
        /// Before `left` octets, the first of them at `at`, of which nothing has been read.
        fn new(at: usize, left: u32) -> Self {
            Self {
                at: Cell::new(at),
                left: Cell::new(left),
                window_at: Cell::new(0),
                window_len: Cell::new(0),
                window: RefCell::new([0; WINDOW as usize]),
            }
        }

        /// Reads on in the piece.
        fn fill(&self, piece: &[u8]) -> bool {
            let len = self.left.get().min(WINDOW);
            let from = &piece[self.at.get()..][..len as usize];
            self.window.borrow_mut()[..from.len()].copy_from_slice(from);
            self.window_at.set(0);
            self.window_len.set(len);
            len != 0
        }
    }

    impl<const RUN: u32> Source for Window<RUN> {
        const RUN: u32 = RUN;
        fn left(&self) -> u32 {
            self.left.get()
        }
        fn ready(&self) -> u32 {
            self.window_len.get() - self.window_at.get()
        }
        fn peek(&self, at: u32) -> u8 {
            self.window.borrow()[((self.window_at.get() + at) & (WINDOW - 1)) as usize]
        }
        fn pass(&self, n: u32) {
            self.left.set(self.left.get() - n);
            self.at.set(self.at.get() + n as usize);
            let at = self.window_at.get() + n;
            self.window_at.set(at.min(self.window_len.get()));
        }
    }

    impl<const RUN: u32> Placed for Window<RUN> {
        fn place(&self) -> u64 {
            self.at.get() as u64
        }
    }

    /// A send in pieces.
    struct Sent<'a> {
        pieces: &'a [&'a [u8]],
        next: usize,
        behind: u32,
        /// As many fields as the tap's walk passes at once.
        window: Window<8>,
    }

    impl<'a> Sent<'a> {
        fn new(pieces: &'a [&'a [u8]]) -> Self {
            Self {
                pieces,
                next: 0,
                behind: pieces.iter().map(|p| p.len() as u32).sum(),
                window: Window::new(0, 0),
            }
        }

        fn next_buffer(&mut self) -> bool {
            let Some(piece) = self.pieces.get(self.next) else {
                return false;
            };
            self.next += 1;
            self.behind -= piece.len() as u32;
            self.window = Window::new(0, piece.len() as u32);
            true
        }

        fn fill(&self) -> bool {
            self.window.fill(self.pieces[self.next - 1])
        }

        fn first_buffer(&mut self) -> bool {
            (self.window.left() != 0 || self.next_buffer())
                && (self.window.left() != 0 || self.next_buffer())
                && (self.window.left() == 0 || self.window.ready() != 0 || self.fill())
        }
    }

    /// Walks a send.
    pub fn send(case: &Case, pieces: &[&[u8]], paths: &PathTable) {
        let mut s = Sent::new(pieces);
        let c = &case.conn;
        case.begun.set(0);
        case.kept.set(0);
        case.calls.set(0);
        if !s.first_buffer() {
            case.ended.set(UNREADABLE);
            return;
        }
        let begun = begin(c, &s.window, s.window.left() + s.behind);
        case.begun.set(cases::begun(begun));
        case.ended.set(DONE);
        if matches!(begun, Begin::Tls | Begin::Ignore) {
            return;
        }
        for found in &case.found {
            found.set(0);
        }
        let mut ended = MORE;
        for _ in 0..RUNS * STEPS {
            if let Some(end) = one(case, &mut s, paths, begun == Begin::Join) {
                ended = end;
                break;
            }
        }
        case.ended.set(ended);
        let fault = (ended >= FAULT).then(|| Fault::of(ended - FAULT));
        if ended == DONE || ended >= FAULT {
            case.kept.set(cases::kept(end(c, begun, fault)));
        }
    }

    fn one(case: &Case, s: &mut Sent<'_>, paths: &PathTable, joining: bool) -> Option<u32> {
        if s.window.left() == 0 {
            return if s.behind == 0 {
                Some(DONE)
            } else {
                (!s.next_buffer()).then_some(UNREADABLE)
            };
        }
        let c = &case.conn;
        let call = |class: u32| {
            let n = case.calls.get() as usize;
            if n < CALLS {
                case.call[n].set(u64::from(c.stream.get()) | u64::from(class) << 32);
                case.calls.set(n as u32 + 1);
            }
        };
        match step(c, &s.window, paths, joining) {
            Outcome::Continue | Outcome::Data | Outcome::Block => {}
            Outcome::Starved => return (!s.fill()).then_some(UNREADABLE),
            Outcome::Request => {
                let class = c.path.get();
                let found = &case.found[(class & 31) as usize];
                found.set(found.get() + 1);
                if class == UNRESOLVED {
                    if c.candidates().0 != 0 {
                        call(class);
                    }
                } else if class >= WATCHED {
                    call(class);
                }
            }
            Outcome::Reset => call(RESET),
            Outcome::Fault(fault) => return Some(FAULT + fault as u32),
        }
        None
    }

    /// A buffer before the gate, in which paths are overwritten.
    struct Buffer<'a>(RefCell<&'a mut [u8]>);

    impl Buffer<'_> {
        fn store(&self, place: u64, octets: &[u8]) -> Result<(), Failure> {
            let mut packet = self.0.borrow_mut();
            let to = usize::try_from(place)
                .ok()
                .and_then(|at| packet.get_mut(at..at + octets.len()))
                .filter(|to| !to.is_empty())
                .ok_or(Failure::Unwritable)?;
            to.copy_from_slice(octets);
            Ok(())
        }
    }

    impl Edit for Buffer<'_> {
        fn substitute(&self, number: u32) -> Option<&Substitute> {
            SUBSTITUTES.with(|all| Some(all[number as usize]))
        }
        fn reject(&self, _: u64, _: bool) -> bool {
            true
        }
        fn literal(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> Result<(), Failure> {
            self.store(place, &s.spelling.substitute[from as usize..end as usize])
        }
        fn undo(&self, place: u64, s: Named<'_>, from: u32, end: u32) {
            let _ = self.store(place, &s.spelling.watched[from as usize..end as usize]);
        }
        fn index(&self, place: u64, octet: u8) -> Result<(), Failure> {
            self.store(place, &[octet])
        }
    }

    thread_local! {
        static SUBSTITUTES: Vec<&'static Substitute> = PATHS
            .iter()
            .map(|path| match substitute::choose(path, PATHS) {
                Some((_, substitute)) => &*Box::leak(Box::new(substitute)),
                None => &*Box::leak(Box::new(Substitute::NONE)),
            })
            .collect();
    }

    /// Walks a buffer. Returns whether the connection was lost, or `None` where that takes more runs than the kernel allows.
    pub fn buffer(conn: &Conn, packet: &mut [u8], paths: &PathTable) -> Option<bool> {
        let len = (packet.len() - IN_FRONT) as u32;
        let window = Window::<1>::new(IN_FRONT, len);
        let b = Buffer(RefCell::new(packet));
        // SAFETY: it is made of cells of integers, for which all zero is a value.
        let segments: Segments = unsafe { zeroed() };
        segments.forget();
        for _ in 0..RUNS - 1 {
            if segments.found() {
                edit::apply(conn, &b, &segments);
            }
            for _ in 0..GATE_STEPS {
                if window.left() == 0 {
                    return Some(false);
                }
                match edit::step(conn, &window, &segments, paths, false) {
                    Outcome::Starved if !window.fill(&b.0.borrow()) => return Some(true),
                    Outcome::Fault(_) => return Some(true),
                    _ => {}
                }
                if segments.found() {
                    break;
                }
            }
        }
        None
    }
}

use std::mem::zeroed;
use std::ops::ControlFlow;

use agent_common::abi::cases::{self, Case, IN_FRONT};
use agent_common::h2::track::status;
use agent_common::h2::walk::Conn;
use anyhow::{Context as _, Result, ensure};
use pendguard_tests::scale::{Scale, scale};
use pendguard_tests::splitmix::SplitMix;

use crate::kernel::Kernel;
use crate::reference::build::{Builder, Habits};
use crate::reference::choices::Choices;
use crate::reference::drive::Cuts;
use crate::reference::{PATHS, parse, table};

/// Streams, of some hundred sends each.
fn cases() -> u64 {
    match scale() {
        Scale::Full => 20_000,
        Scale::Fast => 2_000,
        Scale::Vm => 200,
    }
}

/// A client's stream of some kind.
fn stream(random: &mut SplitMix) -> Vec<u8> {
    let len = random.within(20..=400) as usize;
    let mut choices = Vec::new();
    random.fill(&mut choices, len);
    let mut builder = Builder::new(Habits::WILD);
    builder.run(&mut Choices::new(&choices));
    let mut bytes = builder.bytes;
    match random.within(0..=3) {
        // What any client may send.
        0 => {}
        // One octet of it changed.
        1 => {
            let at = random.within(0..=bytes.len() as u64 - 1) as usize;
            bytes[at] = random.word() as u8;
        }
        // Garbage behind the preface.
        2 => {
            bytes.truncate(24);
            let len = random.within(0..=300) as usize;
            random.fill(&mut bytes, len);
        }
        // From the middle on.
        _ => {
            let frames = parse(&bytes).frames;
            if !frames.is_empty() {
                let frame = random.within(0..=frames.len() as u64 - 1) as usize;
                bytes.drain(..frames[frame]);
            }
        }
    }
    bytes
}

fn conn_bytes(conn: &Conn) -> &[u8] {
    // SAFETY: it is made of integers without gaps.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(conn).cast(), size_of::<Conn>()) }
}

/// What must be equal of two cases.
fn found(case: &Case) -> (u32, u32, u32, Vec<u32>, Vec<u64>, &[u8]) {
    let calls = case.calls.get() as usize;
    (
        case.begun.get(),
        case.ended.get(),
        case.kept.get(),
        case.found.iter().map(|found| found.get()).collect(),
        case.call[..calls].iter().map(|call| call.get()).collect(),
        conn_bytes(&case.conn),
    )
}

fn case() -> Case {
    // SAFETY: it is made of integers, for which all zero is a value.
    unsafe { zeroed() }
}

#[test]
fn the_tap_s_walk_is_the_same() -> Result<()> {
    let mut kernel = Kernel::load()?;
    let table = table(PATHS);
    let (mut random, mut sends, mut requests) = (SplitMix::new(1), 0u64, 0u64);
    for number in 0..cases() {
        let bytes = stream(&mut random);
        let mut choices = Vec::new();
        random.fill(&mut choices, 60);
        let cuts = Cuts::random(&mut Choices::new(&choices), bytes.len());
        let (mut here, mut there) = (case(), case());
        let mut result = Ok(());
        cuts.apply(&bytes, |pieces, _| {
            let vectors: Vec<[u64; 2]> = pieces
                .iter()
                .map(|piece| [piece.as_ptr() as u64, piece.len() as u64])
                .collect();
            let total = pieces.iter().map(|piece| piece.len()).sum::<usize>();
            if total == 0 {
                return ControlFlow::Continue(());
            }
            there.total = total as u32;
            if let [piece] = pieces {
                there.buffers = 0;
                there.address = piece.as_ptr() as u64;
            } else {
                there.buffers = pieces.len() as u32;
                there.address = vectors.as_ptr() as u64;
            }
            host::send(&here, pieces, &table);
            result = kernel.send(&mut there).and_then(|()| {
                ensure!(
                    found(&here) == found(&there),
                    "case {number}, send {sends}, {pieces:x?}: here {:?}, in the kernel {:?}",
                    found(&here),
                    found(&there)
                );
                Ok(())
            });
            sends += 1;
            requests += u64::from(here.calls.get());
            if result.is_err() {
                return ControlFlow::Break(());
            }
            // As the programs do.
            if here.kept.get() != cases::KEEP {
                (here, there) = (case(), case());
            }
            ControlFlow::Continue(())
        });
        result?;
    }
    ensure!(
        requests > cases() / 10,
        "{requests} calls: nothing was tested"
    );
    println!(
        "{} streams, {sends} sends, {requests} calls: no difference",
        cases()
    );
    Ok(())
}

#[test]
fn the_gate_s_walk_is_the_same() -> Result<()> {
    let mut kernel = Kernel::load()?;
    let table = table(PATHS);
    let (mut random, mut buffers, mut edited) = (SplitMix::new(2), 0u64, 0u64);
    for number in 0..cases() {
        let bytes = stream(&mut random);
        kernel.gate()?;
        let conn = Conn::new();
        conn.status.set(status::SYNCED);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let longest = (*[40, 300, 3000]
                .get(random.within(0..=2) as usize)
                .context("three")?)
            .min(rest.len() as u64);
            let (buffer, behind) = rest.split_at(random.within(1..=longest) as usize);
            rest = behind;
            let mut here = vec![0; IN_FRONT];
            here.extend(buffer);
            let mut there = here.clone();
            let Some(lost) = host::buffer(&conn, &mut here, &table) else {
                break;
            };
            let (lost_there, conn_there) = kernel.buffer(&mut there)?;
            ensure!(
                here == there && lost == lost_there && conn_bytes(&conn) == conn_there,
                "case {number}, {buffer:x?}: here {here:x?} {lost} {:?}, in the kernel {there:x?} {lost_there} {conn_there:?}",
                conn_bytes(&conn)
            );
            buffers += 1;
            edited += u64::from(here[IN_FRONT..] != *buffer);
            if lost {
                break;
            }
        }
    }
    ensure!(edited > cases() / 10, "{edited} edits: nothing was tested");
    println!(
        "{} streams, {buffers} buffers, {edited} of them edited: no difference",
        cases()
    );
    Ok(())
}
