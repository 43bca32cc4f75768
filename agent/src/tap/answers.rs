//! What the programs keep of answers: durations, messages, the calls under way, and calls as they happen.

use std::collections::{BTreeMap, BTreeSet, HashMap as StdHashMap};
use std::mem::{offset_of, size_of};
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent_common::abi::answers::{
    Answers, BOUNDS_NS, BOUNDS_TABLE, CallEvent, Code, GoneKey, Histogram, HistogramKey,
    MAX_HISTOGRAMS, Message, UNDER_WAY, UnderWay, layout,
};
use agent_common::abi::{self, ConnKey, Control, NO_PENDING};
use agent_common::h2::pending::{self, KEPT};
use agent_common::h2::quiet::PENDING;
use agent_common::h2::status::StatusTable;
use aya::maps::{Array, HashMap, MapData, RingBuf, Stack};

use super::TapError;
use super::counters::{LargeArray, MappedArray, Mapping};
use super::load::{Object, map_error};
use crate::durations::Durations;
use crate::model::Quieted;

/// Tries to read a message whole.
const TRIES: usize = 8;

/// How long calls took, by index of the method and how they ended.
pub type ByCode = BTreeMap<(usize, Code), Durations>;

/// The bytes of an [`Answers`].
type AnswerBytes = [u8; size_of::<Answers>()];

/// The maps of the answer side.
pub struct Answering {
    pub(super) histograms: LargeArray<Histogram>,
    /// Whose each is. Mapped, so that those of one process are found without a system call for each that there is.
    pub(super) histogram_keys: MappedArray<HistogramKey>,
    pub(super) messages: MappedArray<Message>,
    pub(super) histogram_of: HashMap<MapData, HistogramKey, u32>,
    pub(super) free: Stack<MapData, u32>,
    pub(super) connections: HashMap<MapData, ConnKey, AnswerBytes>,
    pub(super) gone: HashMap<MapData, GoneKey, AnswerBytes>,
    pub(super) calls: RingBuf<MapData>,
    pub(super) quieted: LargeArray<abi::Quieted>,
    /// The method whose rejected calls can be answered quietly, if it is watched.
    pub(super) quiet_method: Option<u64>,
    pub(super) on: bool,
}

/// Fills the tables that the programs look things up in.
pub(super) fn fill(object: &Object) -> Result<(), TapError> {
    let mut table = Box::new(StatusTable::EMPTY);
    table.fill();
    let mut statuses: Array<_, StatusTable> = object.typed("STATUSES")?;
    statuses
        .set(0, table.as_ref(), 0)
        .map_err(|e| map_error("STATUSES", &e))?;
    let mut bounds: Array<_, [u64; BOUNDS_TABLE]> = object.typed("BOUNDS")?;
    bounds
        .set(0, BOUNDS_NS, 0)
        .map_err(|e| map_error("BOUNDS", &e))?;
    let mut free: Stack<_, u32> = object.typed("FREE_HISTOGRAMS")?;
    for number in (1..MAX_HISTOGRAMS).rev() {
        free.push(number, 0)
            .map_err(|e| map_error("FREE_HISTOGRAMS", &e))?;
    }
    Ok(())
}

impl Answering {
    /// Which methods are watched.
    pub(super) fn watch(&mut self, methods: &[String]) {
        let number = methods.iter().position(|method| method == PENDING);
        self.quiet_method = number.map(|number| number as u64);
    }

    /// Answers are followed from now on.
    pub(super) fn follow(&mut self, control: &MappedArray<Control>, methods: &[String]) {
        self.on = true;
        let pending = methods.iter().position(|method| method == PENDING);
        let word = pending.map_or(NO_PENDING, |number| number as u64 + 1);
        for (at, value) in [
            (offset_of!(Control, methods), methods.len() as u64),
            (offset_of!(Control, answers), word),
        ] {
            if let Some(place) = control.atomic(0, at) {
                place.store(value, Ordering::Relaxed);
            }
        }
    }

    /// Whether answers are followed.
    pub fn on(&self) -> bool {
        self.on
    }

    /// What is in use: connections, and histograms.
    pub fn fill_levels(&self) -> (u64, u64) {
        (
            self.connections.keys().count() as u64,
            self.used().count() as u64,
        )
    }

    /// The histograms that are somebody's, by number.
    fn used(&self) -> impl Iterator<Item = (u32, HistogramKey)> + '_ {
        (1..MAX_HISTOGRAMS).filter_map(|number| {
            let key = self.histogram_keys.get(number)?;
            (key.slot != 0).then_some((number, key))
        })
    }

    /// How long calls took, by slot.
    pub fn durations(&self) -> StdHashMap<u32, ByCode> {
        let mut all: StdHashMap<u32, ByCode> = StdHashMap::new();
        let used: Vec<_> = self.used().collect();
        let ends = used.first().zip(used.last());
        let Some((first, last)) = ends.map(|(first, last)| (first.0, last.0)) else {
            return all;
        };
        // They are taken from a stack, so those in use lie close together.
        let Ok(histograms) = self.histograms.part(first, last) else {
            return all;
        };
        for (number, key) in used {
            if let Some(histogram) = histograms.get(number - first) {
                add(histogram, key, all.entry(key.slot).or_default());
            }
        }
        all
    }

    /// How long the calls of a slot's process took.
    pub fn durations_of(&self, slot: u32) -> ByCode {
        let mut durations = ByCode::new();
        for (number, key) in self.used().filter(|(_, key)| key.slot == slot) {
            let histogram = self.histograms.part(number, number);
            if let Some(histogram) = histogram.ok().and_then(|part| part.get(0)) {
                add(histogram, key, &mut durations);
            }
        }
        durations
    }

    /// The pending count that a slot's process was answered last, and when (ns since boot).
    pub fn pending(&self, slot: u32) -> Option<(u64, i64)> {
        if !self.on || slot == 0 {
            return None;
        }
        for _ in 0..TRIES {
            let before = self.messages.get(slot)?;
            if before.written == 0 {
                return None;
            }
            let after = self.messages.get(slot)?;
            let same = before.octets == after.octets && before.len == after.len;
            if before.lock == 0 && after.lock == 0 && before.written == after.written && same {
                let len = (before.len as u32 as usize).min(KEPT);
                return Some((before.at, pending::count(&before.octets[..len])?));
            }
        }
        None
    }

    /// Says whether rejected calls of a slot's process are to be answered quietly.
    pub fn ask_quiet(&self, slot: u32, asked: bool) -> std::io::Result<()> {
        let number = self.quiet_method.filter(|_| asked);
        let part = self.quieted.part(slot, slot)?;
        if let Some(word) = part.atomic(0, offset_of!(abi::Quieted, asked)) {
            word.store(number.map_or(0, |number| number + 1), Ordering::Relaxed);
        }
        Ok(())
    }

    /// What there is of the quiet calls of the processes of slots up to `last`, by slot.
    pub fn quieted(&self, last: u32) -> Option<Mapping<abi::Quieted>> {
        self.quieted.part(0, last).ok()
    }

    /// The same of one.
    pub fn quieted_of(&self, slot: u32) -> Quieted {
        let part = self.quieted.part(slot, slot).ok();
        let counts = part.and_then(|part| part.get(0));
        counts.as_ref().map(Quieted::new).unwrap_or_default()
    }

    /// Gives back what a slot has, which no process has any more.
    pub fn release(&mut self, slot: u32) -> Result<(), String> {
        self.messages.set(slot, Message::ZERO);
        let quieted = self.quieted.part(slot, slot);
        quieted
            .map_err(|e| e.to_string())?
            .set(0, abi::Quieted::ZERO);
        let all: Vec<_> = self.used().filter(|(_, key)| key.slot == slot).collect();
        for (number, key) in all {
            let _ = self.histogram_of.remove(&key);
            let histogram = self.histograms.part(number, number);
            histogram
                .map_err(|e| e.to_string())?
                .set(0, Histogram::ZERO);
            self.histogram_keys.set(number, HistogramKey::NONE);
            self.free.push(number, 0).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// The processes that have connections here.
    pub fn processes(&self) -> impl Iterator<Item = u32> + '_ {
        let keys = self.on.then(|| self.connections.keys());
        keys.into_iter().flatten().flatten().map(|key| key.tgid)
    }

    /// Forgets the connections of a process, but for those of the program that it runs now (`epoch`). Returns how long their calls under
    /// way have waited; each was lost with its connection.
    pub fn forget(&mut self, pid: u32, epoch: u64, now: u64) -> ByCode {
        let older = |tgid, of| tgid == pid && of != Some(epoch);
        self.lose(now, older).remove(&pid).unwrap_or_default()
    }

    /// The same of all connections of these processes, by process.
    pub fn forget_all(&mut self, pids: &BTreeSet<u32>, now: u64) -> BTreeMap<u32, ByCode> {
        self.lose(now, |tgid, _| pids.contains(&tgid))
    }

    /// Forgets the connections that `gone` says of, by process and epoch.
    fn lose(&mut self, now: u64, gone: impl Fn(u32, Option<u64>) -> bool) -> BTreeMap<u32, ByCode> {
        let mut lost = BTreeMap::new();
        if !self.on {
            return lost;
        }
        // `None` is no connection's epoch: whose process isn't meant is not looked up.
        let keys = self.connections.keys().flatten();
        let keys: Vec<_> = keys.filter(|key| gone(key.tgid, None)).collect();
        for key in keys {
            let Ok(answers) = self.connections.get(&key, 0) else {
                continue;
            };
            if !gone(key.tgid, word(&answers, layout::EPOCH)) {
                continue;
            }
            under_way(&answers, now, lost.entry(key.tgid).or_default());
            let _ = self.connections.remove(&key);
        }
        lost
    }

    /// Connections that were closed while calls were under way since the last time: of which process, and how long its calls had waited.
    pub fn gone(&mut self) -> Vec<(u32, ByCode)> {
        if !self.on {
            return Vec::new();
        }
        let keys: Vec<_> = self.gone.keys().flatten().collect();
        let mut all = Vec::new();
        for key in keys {
            let mut lost = ByCode::new();
            if let Ok(answers) = self.gone.get(&key, 0) {
                under_way(&answers, key.at, &mut lost);
            }
            let _ = self.gone.remove(&key);
            all.push((key.key.tgid, lost));
        }
        all
    }

    /// Takes up to `most` calls out of the ring buffer. Returns how many there were.
    pub fn calls(&mut self, most: usize, mut each: impl FnMut(CallEvent)) -> usize {
        for n in 0..most {
            let Some(item) = self.calls.next() else {
                return n;
            };
            if let Ok(bytes) = <&[u8; size_of::<CallEvent>()]>::try_from(&*item) {
                each(event(bytes));
            }
        }
        most
    }
}

/// Adds what a histogram has.
fn add(histogram: Histogram, key: HistogramKey, to: &mut ByCode) {
    let (method, code) = key.of();
    let durations = Durations::new(&histogram.buckets, histogram.sum);
    if let (Some(code), Some(durations)) = (Code::of(code), durations) {
        to.entry((method as usize, code))
            .or_default()
            .add(&durations);
    }
}

/// Adds how long the calls under way on a connection had waited when it was lost.
fn under_way(answers: &AnswerBytes, now: u64, lost: &mut ByCode) {
    for call in 0..UNDER_WAY {
        let at = layout::CALLS + call * size_of::<UnderWay>();
        let (Some(call @ 1..), Some(start)) = (word(answers, at), word(answers, at + 8)) else {
            continue;
        };
        let (_, method, _) = UnderWay::of(call);
        lost.entry((method as usize, Code::ConnectionLost))
            .or_default()
            .record(Duration::from_nanos(now.saturating_sub(start)));
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn event(bytes: &[u8; size_of::<CallEvent>()]) -> CallEvent {
    // SAFETY: it is `repr(C)`, made of integers only, without padding, so any bytes are a value; the read needs no alignment.
    unsafe { bytes.as_ptr().cast::<CallEvent>().read_unaligned() }
}
