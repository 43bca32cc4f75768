//! The other way to reject a call: its request becomes one of IsReady, which every source answers from memory, and in the answer one octet
//! changes. No byte count does.
//!
//! * The request: `:path` of PendingFn becomes that of IsReady, which is two octets shorter in either spelling. Its length says so, and
//!   the two octets become two indexed fields `accept-charset` without a value (`FILLER`). That is a correct request only where no other
//!   pseudo-header field stands behind the path (RFC 9113 §8.3). Where the length can't be overwritten any more, the two octets are a part
//!   of the path, which in the Huffman code is a legal one that no source serves (`IsReadybV`): UNIMPLEMENTED.
//! * The answer: the message `08 01` (`ReadyResponse {bool ready = 1}`) becomes `10 01`: to a PendingResponse that is an unknown field
//!   and no result, which Rust's data plane takes for "unavailable", and says nothing.
//!
//! Go's data plane would crash at an answer without a result, so who the client is must be known ([`obstacle`]). To Rust's, an answer that
//! passes as it is would be a message that can't be decoded: an error as any other.

use super::huffman;
use super::paths::MAX_LEN;
use super::substitute::{SPELLINGS, Spelling};
use super::walk::{Conn, Source, agent};
use crate::abi::Manner;

/// The method whose calls can be answered so.
pub const PENDING: &str = "/source.v1.Source/PendingFn";
/// The one that they become.
const READY: &[u8] = b"/source.v1.Source/IsReady";
/// What fills up the path: `accept-charset` in the static table (RFC 7541 appendix A), as an indexed field (§6.1).
const FILLER: u8 = 0x8f;
/// Octets by which the path becomes shorter.
const SHORTER: usize = 2;

/// Where in [`Substitute::spellings`](super::substitute::Substitute::spellings) those of quiet calls begin.
pub const CODING: usize = 2;

/// The field of a header block that the path must be: the three other pseudo-header fields of a request stand before it.
const LAST_PSEUDO: u32 = 4;

const _: () = assert!(CODING + 2 == SPELLINGS && SPELLINGS.is_power_of_two());

/// What makes a quiet call of one of `path`, plain and Huffman coded; nothing where it is another method's.
pub(super) fn spellings(path: &[u8]) -> [Spelling; 2] {
    if path != PENDING.as_bytes() {
        return [Spelling::NONE; 2];
    }
    let huffman = |text: &[u8]| {
        let mut code = [0; MAX_LEN];
        let n = huffman::encode(text, &mut code)?;
        Some((code, n))
    };
    let coded = || {
        let ((watched, n), (ready, m)) = (huffman(path)?, huffman(READY)?);
        spelling(&watched[..n], &ready[..m])
    };
    [
        spelling(path, READY).unwrap_or(Spelling::NONE),
        coded().unwrap_or(Spelling::NONE),
    ]
}

fn spelling(watched: &[u8], ready: &[u8]) -> Option<Spelling> {
    if ready.len() + SHORTER != watched.len() {
        return None;
    }
    let mut filled = [FILLER; MAX_LEN];
    filled[..ready.len()].copy_from_slice(ready);
    Spelling::of(watched, filled.get(..watched.len())?)
}

/// The octet that says how long a string is (RFC 7541 §5.2), one of fewer than 127 octets.
#[inline(always)]
pub(super) fn length(len: u32, huffman: bool) -> u8 {
    len as u8 | (huffman as u8) << 7
}

/// That of the path of a quiet call, where this was the path's.
#[inline(always)]
pub(super) fn shorter(length: u8) -> u8 {
    length.wrapping_sub(SHORTER as u8)
}

/// A [`Manner`] as a number that isn't 0.
#[inline(always)]
pub const fn code(manner: Manner) -> u32 {
    manner as u32 + 1
}

/// Why the call whose path has just been passed as a literal must not become a quiet one, if there is such a reason in the request or in
/// what is known of its connection. `whole`: the path lies in one send, its length right before it.
#[inline(always)]
pub fn obstacle(c: &Conn, whole: bool) -> Option<Manner> {
    match c.agent() {
        agent::TONIC => {}
        agent::UNKNOWN => return Some(Manner::UnknownClient),
        _ => return Some(Manner::Client),
    }
    if c.is_inserted() {
        // The server's entry would be another method's from then on, which calls of that method may refer to.
        return Some(Manner::Indexed);
    }
    if c.fields() != LAST_PSEUDO {
        return Some(Manner::Order);
    }
    if !whole {
        return Some(Manner::Split);
    }
    None
}

/// Octets of the answer that is edited, and of no other: `ready` in a gRPC message that isn't compressed.
pub const ANSWER: u32 = 7;
/// Where in it the field's tag stands, which is what is overwritten.
const TAG: u32 = 5;
/// The tag that is written: of field 2, an integer, which no PendingResponse has.
pub const EDITED: u8 = 0x10;

/// What an octet of an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// As it should be.
    Same,
    /// The tag, and what follows is as it should be: the octet to overwrite.
    Tag,
    /// The tag, and the octet behind it can't be seen yet. Where this receive ends here, the tag is overwritten all the same: it is in the
    /// client's hands before that octet comes. Of a message of this length with this tag, no other value makes a PendingResponse either.
    Starved,
    /// Another one: this isn't the answer that was expected.
    Other,
}

/// Looks at the answer's octet number `at`, of which [`Source::ready`] is above 0. Nothing is passed.
#[inline(always)]
pub fn look<S: Source>(at: u32, s: &S) -> Look {
    let octet = s.peek(0);
    let expected = match at {
        4 => 2,
        TAG => 8,
        6 => 1,
        _ => 0,
    };
    if octet != expected {
        return Look::Other;
    }
    if at != TAG {
        return Look::Same;
    }
    if s.ready() < 2 {
        return Look::Starved;
    }
    if s.peek(1) == 1 {
        Look::Tag
    } else {
        Look::Other
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::track::Slice;
    use super::*;

    /// What was tried on the real data plane.
    #[test]
    fn pending_becomes_ready() {
        let [plain, huffman] = spellings(PENDING.as_bytes());
        let filled = |s: Spelling| s.substitute[..s.len as usize].to_vec();
        assert_eq!(
            filled(plain),
            [&b"/source.v1.Source/IsReady"[..], &[0x8f, 0x8f]].concat()
        );
        let hex: Vec<u8> =
            b"\x61\x07\xb6\xc2\x15\x7e\xe1\x5f\x71\xed\xb0\x85\x63\x22\x36\x94\x72\x7a\x8f\x8f"
                .to_vec();
        assert_eq!(filled(huffman), hex);
        let mut whole = [0; MAX_LEN];
        let len = super::huffman::encode(b"/source.v1.Source/IsReadybV", &mut whole);
        assert_eq!(len, Some(hex.len()));
        assert_eq!(filled(huffman), whole[..hex.len()]);
        assert_eq!((length(20, true), length(27, false)), (0x94, 0x1b));
        assert_eq!((shorter(0x94), shorter(0x1b)), (0x92, 0x19));
        assert_eq!(spellings(b"/source.v1.Source/AckFn"), [Spelling::NONE; 2]);
    }

    fn looks(message: &[u8]) -> Vec<Look> {
        let looks = (0..).zip(0..message.len());
        looks
            .map(|(at, from)| look(at, &Slice::new(&message[from..])))
            .collect()
    }

    #[test]
    fn the_answer_s_tag() {
        use Look::{Other, Same, Starved, Tag};
        assert_eq!(
            looks(b"\0\0\0\0\x02\x08\x01"),
            [Same, Same, Same, Same, Same, Tag, Same]
        );
        assert_eq!(looks(b"\0\0\0\0\x02\x08")[5], Starved);
        // Compressed; another length; not ready; another field.
        assert_eq!(looks(b"\x01\0\0\0\x02\x08\x01")[0], Other);
        assert_eq!(looks(b"\0\0\0\0\x00\x08\x01")[4], Other);
        assert_eq!(looks(b"\0\0\0\0\x02\x08\x00")[5], Other);
        assert_eq!(looks(b"\0\0\0\0\x02\x10\x01")[5], Other);
        assert_eq!(looks(b"\0\0\0\0\x04\x0a\x02\x08\x05")[4], Other);
    }
}
