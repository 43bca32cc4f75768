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
        let mut paths: Array<_, [u8; size_of::<PathTable>()]> = Array::try_from(take("PATHS")?)?;
        paths.set(0, bytes(&*table(PATHS)), 0)?;
        let mut substitutes: Array<_, [u8; size_of::<Substitute>()]> =
            Array::try_from(take("SUBSTITUTES")?)?;
        ensure!(PATHS.len() <= MAX_PATHS);
        for (number, path) in (0..).zip(PATHS) {
            if let Some((_, substitute)) = substitute::choose(path, PATHS) {
                substitutes.set(number, bytes(&substitute), 0)?;
            }
        }
        let mut control: Array<_, [u8; size_of::<Control>()]> = Array::try_from(take("CONTROL")?)?;
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
