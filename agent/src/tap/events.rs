//! The ring buffer of process events, as asynchronous code reads it.

use std::os::fd::{AsRawFd, RawFd};

use agent_common::abi::ProcEvent;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Events that are handed over before anything else has its turn.
const AT_ONCE: usize = 256;

/// The ring buffer of process events.
pub struct Events(AsyncFd<Ring>);

struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Events {
    /// Waits on `ring` from within a tokio runtime.
    pub fn new(ring: RingBuf<MapData>) -> std::io::Result<Self> {
        // SAFETY: the ring owns its descriptor, which stays open and the same until the ring is dropped, and the `AsyncFd`
        // owns the ring.
        let ring = unsafe { AsyncFd::register_with_interest(Ring(ring), Interest::READABLE) };
        Ok(Self(ring.map_err(std::io::Error::from)?))
    }

    /// Waits until there are events and hands over those that are there, [`AT_ONCE`] at most: a process that makes them without end
    /// keeps the agent from nothing else. Safe to drop while it waits.
    pub async fn next(&mut self, mut event: impl FnMut(ProcEvent)) -> std::io::Result<()> {
        let mut guard = self.0.readable_mut().await?;
        for _ in 0..AT_ONCE {
            let Some(item) = guard.get_inner_mut().0.next() else {
                guard.clear_ready();
                break;
            };
            if let Some(parsed) = parse(&item) {
                event(parsed);
            }
        }
        Ok(())
    }
}

/// Reads an event; `None` if it isn't one (another layout would be another version of the programs).
fn parse(bytes: &[u8]) -> Option<ProcEvent> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some(ProcEvent {
        kind: word(0)?,
        tgid: word(4)?,
        parent: word(8)?,
        slot: word(12)?,
        generation: u64::from_ne_bytes(bytes.get(16..24)?.try_into().ok()?),
    })
}
