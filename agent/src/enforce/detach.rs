//! `pendguard detach`: takes everything out of the kernel that can safely be taken.
//!
//! First nothing is rejected any more; then taps and hooks go: the programs that put a sender's bytes back when no send is under
//! way that was rewritten. The map of a gate with sockets in it has to stay: with
//! it the kernel would throw away what they have queued. It goes with a later `detach`, or with an agent that runs, once
//! the connections have closed.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_common::abi::answers::{QUIET, layout};
use aya::maps::{MapData, SockHash};

use super::old::Old;
use super::pins::{self, PinError};

/// What keeps a gate's sockets where they are: its map, and the program that it continues in.
const KEPT: [&str; 2] = ["map_GATE", "map_GATES"];

/// How long sends that were rewritten, and answers that are to be edited, may take to end.
const SENDS: Duration = Duration::from_secs(2);

/// What was done with one directory of pins.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Detached {
    /// The directory.
    pub directory: PathBuf,
    /// Whether it is gone.
    pub removed: bool,
    /// Connections that are still behind the gate. They pass it untouched.
    pub connections: usize,
    /// Why it isn't gone.
    pub reason: Option<String>,
}

/// Detaches everything below `root`. An agent that runs is an error.
pub fn all(root: &Path) -> Result<Vec<Detached>, PinError> {
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    pins::ensure_own(root)?;
    let _lock = pins::lock(root)?;
    let failed = |e: std::io::Error| PinError::Pin {
        path: root.to_owned(),
        reason: e.to_string(),
    };
    let done: Vec<_> = pins::generations(root)
        .map_err(failed)?
        .into_iter()
        .map(one)
        .collect();
    // Only where it is empty; anything else in it isn't ours.
    let _ = std::fs::remove_dir(root);
    Ok(done)
}

fn one(directory: PathBuf) -> Detached {
    let mut connections = 0;
    let mut under_way = UnderWay::default();
    let result = (|| {
        let old = Old::open(&directory)?;
        old.end();
        connections = old.sockets();
        drop(old);
        under_way = rewritten(&directory)?;
        if under_way.any() {
            return Ok(());
        }
        if connections == 0 {
            return pins::remove(&directory);
        }
        for prefix in ["link_", "prog_", "map_"] {
            pins::remove_files(&directory, |name| {
                name.starts_with(prefix) && !KEPT.contains(&name)
            })?;
        }
        Ok(())
    })();
    // What is left of an earlier `detach`, or was never whole, has no map that could be read but the gate's.
    let result =
        result.or_else(|e: std::io::Error| rest(&directory, &mut connections).map_err(|_| e));
    let reason = match &result {
        Err(e) => Some(e.to_string()),
        Ok(()) if under_way.sends > 0 => Some(format!(
            "{} sends that were rewritten are not over; their bytes are put back when they are; run this again then",
            under_way.sends
        )),
        Ok(()) if under_way.answers > 0 => Some(format!(
            "{} calls that were rejected quietly are not answered yet; their answers are edited when they are; run this again then",
            under_way.answers
        )),
        Ok(()) if connections > 0 => Some(format!(
            "{connections} connections are behind the gate; they pass it untouched, and taking it away would lose what they have \
             queued; run this again when they have closed"
        )),
        Ok(()) => None,
    };
    Detached {
        removed: !directory.exists(),
        directory,
        connections,
        reason,
    }
}

/// What the programs have begun and must end.
#[derive(Clone, Copy, Debug, Default)]
struct UnderWay {
    /// Sends whose bytes are to be put back.
    sends: usize,
    /// Calls whose answers are to be edited.
    answers: usize,
}

impl UnderWay {
    fn any(self) -> bool {
        self.sends > 0 || self.answers > 0
    }
}

/// Ends the rewriting of sends, and says what is still under way of that.
fn rewritten(directory: &Path) -> std::io::Result<UnderWay> {
    pins::remove_files(directory, |name| name.starts_with("link_edit_"))?;
    let path = directory.join(pins::map("EDITS"));
    if !path.exists() {
        return Ok(UnderWay::default());
    }
    let open = |path: PathBuf| MapData::from_pin(path).map_err(std::io::Error::other);
    let map = open(path)?;
    // Only where they are laid out as this build's.
    let answers = pins::has_this_layout(directory)
        .then(|| open(directory.join(pins::map("ANSWERS"))))
        .transpose()?;
    let begun = Instant::now();
    loop {
        // A thread that is gone has ended its send.
        let lives = |thread: &u64| {
            Path::new(&format!("/proc/{}/task/{}", thread >> 32, *thread as u32)).exists()
        };
        let left = UnderWay {
            sends: pins::keys(&map)?.iter().filter(|t| lives(t)).count(),
            answers: answers.as_ref().map_or(Ok(0), quiet_calls)?,
        };
        if !left.any() || begun.elapsed() > SENDS {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Calls whose answers are to be edited, of processes that live.
fn quiet_calls(answers: &MapData) -> std::io::Result<usize> {
    let mut calls = 0;
    for (key, value) in pins::entries(answers)? {
        // A `ConnKey` begins with the process.
        let lives = Path::new(&format!("/proc/{}", key as u32)).exists();
        let quiet = value.get(layout::QUIET..).unwrap_or_default();
        let streams = quiet.chunks_exact(4).take(QUIET);
        calls += streams.filter(|stream| lives && **stream != [0; 4]).count();
    }
    Ok(calls)
}

/// Removes a directory in which only a gate is left, if nothing is behind it.
fn rest(directory: &Path, connections: &mut usize) -> std::io::Result<()> {
    let gate = directory.join(KEPT[0]);
    if gate.exists() {
        let map = pins::open_map(directory, "GATE").map_err(std::io::Error::other)?;
        let sockets: SockHash<_, u64> = SockHash::try_from(map).map_err(std::io::Error::other)?;
        *connections = sockets.keys().flatten().count();
        if *connections > 0 {
            return Ok(());
        }
    }
    pins::remove(directory)
}
