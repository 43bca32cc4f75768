//! Messages that prove their own integrity, and that of the order they come in.
//!
//! A payload is, in network byte order:
//!
//! ```text
//! sequence: u64 | crc of the message before: u32 | bytes derived from the sequence | crc of all the bytes before: u32
//! ```
//!
//! How bytes are derived is each source's own affair: no reader derives them again. A changed byte breaks the message's own sum; a message lost, doubled or reordered breaks the sequence, and the
//! chain of sums. A reader can join at any message: the first one it sees is checked by itself, all later ones as a
//! chain. The sum is CRC-32 (IEEE), because Go, Python and Rust have it at memory speed, and Node in its newer
//! releases: the check must not be what limits a throughput measurement. An offset is the sequence and the sum, so
//! that the source can tell in the same way whether acknowledgements arrived unharmed.

use crate::splitmix::SplitMix;

/// Bytes of a payload that are not derived from the sequence; the shortest payload there is.
pub const MIN_PAYLOAD: usize = SEQUENCE + SUM + SUM;
/// Bytes of an offset.
pub const OFFSET_LEN: usize = SEQUENCE + SUM;

const SEQUENCE: usize = size_of::<u64>();
const SUM: usize = size_of::<u32>();

/// Why a message is not the one that had to come next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The payload can't hold the fields that every payload has.
    #[error("a payload of {0} bytes is too short")]
    Short(usize),
    /// The sum over the payload is wrong: at least one byte changed.
    #[error("message {sequence}: sum {found:08x}, expected {expected:08x}")]
    Sum {
        /// The sequence number that the payload claims.
        sequence: u64,
        /// The sum of the bytes that came.
        expected: u32,
        /// The sum that the payload carries.
        found: u32,
    },
    /// A message was lost, doubled or reordered.
    #[error("message {found} came, expected {expected}")]
    Sequence {
        /// The next in order.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The message does not follow the one before it.
    #[error("message {sequence}: follows {found:08x}, expected {expected:08x}")]
    Chain {
        /// The message.
        sequence: u64,
        /// The sum of the message before it.
        expected: u32,
        /// The sum that it claims to follow.
        found: u32,
    },
    /// The offset is not the one that belongs to the payload.
    #[error("message {sequence}: its offset is another message's")]
    Offset {
        /// The message.
        sequence: u64,
    },
}

/// A message's place in the chain: what its offset says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Counts messages from 0.
    pub sequence: u64,
    /// The sum over the message.
    pub sum: u32,
}

impl Link {
    /// The offset of the message.
    #[must_use]
    pub fn to_offset(self) -> [u8; OFFSET_LEN] {
        let mut offset = [0; OFFSET_LEN];
        offset[..SEQUENCE].copy_from_slice(&self.sequence.to_be_bytes());
        offset[SEQUENCE..].copy_from_slice(&self.sum.to_be_bytes());
        offset
    }

    /// Reads an offset; `None` if its length is wrong.
    #[must_use]
    pub fn from_offset(offset: &[u8]) -> Option<Self> {
        let offset: &[u8; OFFSET_LEN] = offset.try_into().ok()?;
        let (sequence, sum) = offset.split_first_chunk()?;
        Some(Self {
            sequence: u64::from_be_bytes(*sequence),
            sum: u32::from_be_bytes(sum.try_into().ok()?),
        })
    }
}

/// Makes the messages, one after the other.
#[derive(Debug)]
pub struct Chain {
    message_bytes: usize,
    next: u64,
    last_sum: u32,
}

impl Chain {
    /// A chain of messages of `message_bytes` each, or of [`MIN_PAYLOAD`] if that is more.
    #[must_use]
    pub fn new(message_bytes: usize) -> Self {
        Self {
            message_bytes: message_bytes.max(MIN_PAYLOAD),
            next: 0,
            last_sum: 0,
        }
    }

    /// How many messages were made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.next
    }

    /// The next payload, and its place in the chain.
    pub fn next_message(&mut self) -> (Link, Vec<u8>) {
        let sequence = self.next;
        let mut payload = Vec::with_capacity(self.message_bytes);
        payload.extend_from_slice(&sequence.to_be_bytes());
        payload.extend_from_slice(&self.last_sum.to_be_bytes());
        // No two messages look alike, so bytes that ended up in another message are noticed.
        SplitMix::new(sequence).fill(&mut payload, self.message_bytes - SUM);
        let sum = crc32fast::hash(&payload);
        payload.extend_from_slice(&sum.to_be_bytes());
        self.next += 1;
        self.last_sum = sum;
        (Link { sequence, sum }, payload)
    }
}

/// Checks messages as they come.
#[derive(Debug, Default)]
pub struct Verifier {
    last: Option<Link>,
}

impl Verifier {
    /// Checks one message. After a broken one the chain goes on from there, so that each fault is reported once.
    ///
    /// # Errors
    /// Says in what way the message isn't the one that had to come.
    pub fn check(&mut self, payload: &[u8], offset: &[u8]) -> Result<(), Broken> {
        let short = || Broken::Short(payload.len());
        let (body, sum) = payload.split_last_chunk::<SUM>().ok_or_else(short)?;
        let (sequence, rest) = body.split_first_chunk::<SEQUENCE>().ok_or_else(short)?;
        let (follows, _) = rest.split_first_chunk::<SUM>().ok_or_else(short)?;
        let sequence = u64::from_be_bytes(*sequence);
        let follows = u32::from_be_bytes(*follows);
        let link = Link {
            sequence,
            sum: u32::from_be_bytes(*sum),
        };
        let before = self.last.replace(link);

        let expected = crc32fast::hash(body);
        if link.sum != expected {
            return Err(Broken::Sum {
                sequence,
                expected,
                found: link.sum,
            });
        }
        if let Some(before) = before {
            let expected = before.sequence.wrapping_add(1);
            if sequence != expected {
                return Err(Broken::Sequence {
                    expected,
                    found: sequence,
                });
            }
        }
        // The very first message of all follows nothing.
        let before = before.map(|link| link.sum);
        if let Some(expected) = before.or((sequence == 0).then_some(0))
            && follows != expected
        {
            return Err(Broken::Chain {
                sequence,
                expected,
                found: follows,
            });
        }
        if Link::from_offset(offset) != Some(link) {
            return Err(Broken::Offset { sequence });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(count: usize) -> Vec<([u8; OFFSET_LEN], Vec<u8>)> {
        let mut chain = Chain::new(100);
        (0..count)
            .map(|_| chain.next_message())
            .map(|(link, payload)| (link.to_offset(), payload))
            .collect()
    }

    #[test]
    fn a_chain_is_accepted_from_any_message_on() {
        let messages = messages(20);
        for join in 0..messages.len() {
            let mut verifier = Verifier::default();
            for (offset, payload) in &messages[join..] {
                assert_eq!(payload.len(), 100);
                assert_eq!(verifier.check(payload, offset), Ok(()));
            }
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let messages = messages(2);
        let (offset, payload) = &messages[1];
        for at in 0..payload.len() {
            let mut verifier = Verifier::default();
            verifier.check(&messages[0].1, &messages[0].0).unwrap();
            let mut changed = payload.clone();
            changed[at] ^= 1;
            assert!(matches!(
                verifier.check(&changed, offset),
                Err(Broken::Sum { .. })
            ));
        }
    }

    #[test]
    fn lost_doubled_and_foreign_messages_are_noticed() {
        let messages = messages(3);
        let check = |verifier: &mut Verifier, at: usize| {
            let (offset, payload) = &messages[at];
            verifier.check(payload, offset)
        };
        let mut lost = Verifier::default();
        check(&mut lost, 0).unwrap();
        let expected = Broken::Sequence {
            expected: 1,
            found: 2,
        };
        assert_eq!(check(&mut lost, 2), Err(expected));

        let mut doubled = Verifier::default();
        check(&mut doubled, 0).unwrap();
        let expected = Broken::Sequence {
            expected: 1,
            found: 0,
        };
        assert_eq!(check(&mut doubled, 0), Err(expected));
        assert_eq!(check(&mut doubled, 1), Ok(()), "one fault, one report");

        let mut other = Chain::new(50);
        other.next_message();
        let (link, payload) = other.next_message();
        let mut foreign = Verifier::default();
        check(&mut foreign, 0).unwrap();
        assert!(matches!(
            foreign.check(&payload, &link.to_offset()),
            Err(Broken::Chain { .. })
        ));
    }

    #[test]
    fn a_wrong_offset_and_a_short_payload_are_noticed() {
        let messages = messages(2);
        let mut verifier = Verifier::default();
        assert_eq!(
            verifier.check(&messages[0].1, &messages[1].0),
            Err(Broken::Offset { sequence: 0 })
        );
        assert_eq!(verifier.check(&[0; 15], &[]), Err(Broken::Short(15)));
    }
}
