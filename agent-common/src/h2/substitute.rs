//! What a watched path is overwritten with: a path of the same length, plain and in the Huffman code, that no source serves.
//!
//! No byte count changes, so framing, flow control and HPACK stay in step (RFC 9113 §4.1, RFC 7541 §5.2), and the source's
//! own gRPC server answers UNIMPLEMENTED.

use super::huffman;
use super::paths::MAX_LEN;
use super::quiet;

/// `:path: /` in the static table (RFC 7541 appendix A), as an indexed field (§6.1): what an index of one octet is
/// overwritten with. Every gRPC server answers it with UNIMPLEMENTED, and it latches nothing.
pub const INDEX: u8 = 0x84;

/// One spelling of a watched path and of its substitute.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spelling {
    /// As the client writes it.
    pub watched: [u8; MAX_LEN],
    /// As the server reads it.
    pub substitute: [u8; MAX_LEN],
    /// Octets of either; 0: there is no substitute.
    pub len: u32,
    /// The first octet in which they differ.
    pub first: u32,
    /// One behind the last octet in which they differ.
    pub end: u32,
    /// Fills the struct to a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Spelling>().is_multiple_of(8));

impl Spelling {
    /// None.
    pub const NONE: Self = Self {
        watched: [0; MAX_LEN],
        substitute: [0; MAX_LEN],
        len: 0,
        first: 0,
        end: 0,
        reserved: 0,
    };

    pub(super) fn of(watched: &[u8], substitute: &[u8]) -> Option<Self> {
        if watched.len() != substitute.len() || watched.len() > MAX_LEN {
            return None;
        }
        let differs = |(a, b): (&u8, &u8)| a != b;
        let first = watched.iter().zip(substitute).position(differs)?;
        let last = watched.iter().zip(substitute).rposition(differs)?;
        let mut spelling = Self::NONE;
        spelling.watched[..watched.len()].copy_from_slice(watched);
        spelling.substitute[..watched.len()].copy_from_slice(substitute);
        spelling.len = watched.len() as u32;
        spelling.first = first as u32;
        spelling.end = last as u32 + 1;
        Some(spelling)
    }
}

/// What one watched path is overwritten with. A value of a BPF array map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Substitute {
    /// The plain spelling and the Huffman coded one, and the same of what makes a quiet call of it ([`quiet`]), where there is such.
    pub spellings: [Spelling; SPELLINGS],
    /// Room behind the last octet, so that a verifier who knows only how large positions and lengths can be is content.
    pub slack: [u8; 256],
}

/// Spellings of one path.
pub const SPELLINGS: usize = 4;

impl Substitute {
    /// None.
    pub const NONE: Self = Self {
        spellings: [Spelling::NONE; SPELLINGS],
        slack: [0; 256],
    };

    /// Whether the substitute is one octet away, plain and Huffman coded.
    fn differs_in_one(&self) -> bool {
        let mut spellings = self.spellings[..quiet::CODING].iter();
        spellings.all(|spelling| spelling.end == spelling.first + 1)
    }
}

/// What a character of a method's name becomes, with codes of 6, 7 and 8 bits as most letters have (RFC 7541 appendix B). No protobuf
/// service has a method of such a name, and none can be watched; in a path they are legal (RFC 3986 §3.3).
const FOREIGN: [u8; 5] = *b"=-:*;";

/// A path that stands in for `path` and is none of `watched`: as long, in both spellings.
///
/// Where there is such a one it differs in a single octet of either spelling, the last that can be: what is overwritten can't be left
/// half done, and a path that is sent in parts can be rejected until that octet is sent. `PendingFn` becomes `PendingF=`, where that is
/// the path's very last octet. Else the method's name becomes another one of the same letters, which has the same length in any code:
/// written backwards, or rotated where that is no change. `None` where no such name exists (a method of one letter, and the like).
pub fn choose<'a>(
    path: &str,
    watched: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<([u8; MAX_LEN], Substitute)> {
    let octets = path.as_bytes();
    if octets.len() > MAX_LEN {
        return None;
    }
    let method = octets.iter().rposition(|&b| b == b'/')? + 1;
    let len = octets.len();
    let mut out = [0u8; MAX_LEN];
    out[..len].copy_from_slice(octets);
    let free = |out: &[u8; MAX_LEN]| {
        let out = &out[..len];
        out != octets
            && huffman::encoded_len(out) == huffman::encoded_len(octets)
            && !watched.clone().into_iter().any(|w| w.as_bytes() == out)
    };
    for at in (method..len).rev() {
        for foreign in FOREIGN {
            out[at] = foreign;
            if free(&out)
                && let Some(substitute) = spell(octets, &out[..len])
                && substitute.differs_in_one()
            {
                return Some((out, substitute));
            }
        }
        out[at] = octets[at];
    }
    out[method..len].reverse();
    for _ in method..len {
        if free(&out) {
            return spell(octets, &out[..len]).map(|substitute| (out, substitute));
        }
        out[method..len].rotate_left(1);
    }
    None
}

fn spell(watched: &[u8], substitute: &[u8]) -> Option<Substitute> {
    let (mut a, mut b) = ([0u8; MAX_LEN], [0u8; MAX_LEN]);
    let n = huffman::encode(watched, &mut a)?;
    let m = huffman::encode(substitute, &mut b)?;
    let [plain, huffman] = quiet::spellings(watched);
    Some(Substitute {
        spellings: [
            Spelling::of(watched, substitute)?,
            Spelling::of(&a[..n], &b[..m])?,
            plain,
            huffman,
        ],
        ..Substitute::NONE
    })
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use super::*;

    fn name(path: &str, watched: &[&str]) -> Option<String> {
        let (octets, substitute) = choose(path, watched.iter().copied())?;
        let text = String::from_utf8(octets[..path.len()].to_vec()).unwrap();
        for (spelling, same) in substitute.spellings.iter().zip([
            (path.as_bytes().to_vec(), text.as_bytes().to_vec()),
            (coded(path), coded(&text)),
        ]) {
            let len = spelling.len as usize;
            assert_eq!(spelling.watched[..len], same.0);
            assert_eq!(spelling.substitute[..len], same.1);
            let (first, end) = (spelling.first as usize, spelling.end as usize);
            assert_eq!(same.0[..first], same.1[..first]);
            assert_eq!(same.0[end..], same.1[end..]);
            assert_ne!(same.0[first], same.1[first]);
            assert_ne!(same.0[end - 1], same.1[end - 1]);
        }
        Some(text)
    }

    fn coded(text: &str) -> Vec<u8> {
        let mut out = [0; MAX_LEN];
        let n = huffman::encode(text.as_bytes(), &mut out).unwrap();
        out[..n].to_vec()
    }

    #[test]
    fn pending_changes_in_its_last_octet() {
        let path = "/source.v1.Source/PendingFn";
        assert_eq!(
            name(path, &[path]).as_deref(),
            Some("/source.v1.Source/PendingF=")
        );
        let (_, substitute) = choose(path, [path]).unwrap();
        for spelling in &substitute.spellings[..quiet::CODING] {
            assert_eq!(spelling.first + 1, spelling.end);
            assert_eq!(spelling.end, spelling.len);
        }
    }

    #[test]
    fn other_methods_change_in_one_octet() {
        for (method, other) in [
            ("ReadFn", "ReadF-"),
            ("AckFn", "AckF="),
            ("IsReady", "IsRead="),
            ("PartitionsFn", "PartitionsF="),
        ] {
            let path = std::format!("/source.v1.Source/{method}");
            let other = std::format!("/source.v1.Source/{other}");
            assert_eq!(name(&path, &[&path]), Some(other));
        }
    }

    #[test]
    fn never_a_watched_one() {
        let watched = ["/source.v1.Source/PendingFn", "/source.v1.Source/PendingF="];
        assert_eq!(
            name(watched[0], &watched).as_deref(),
            Some("/source.v1.Source/PendingF:")
        );
    }

    /// Their codes are of 5 bits, and end with an octet: no other character fits in.
    #[test]
    fn names_whose_letters_change_places() {
        assert_eq!(name("/a.B/ao", &["/a.B/ao", "/a.B/oa"]), None);
        assert_eq!(name("/X.B/aoa", &[]).as_deref(), Some("/X.B/oaa"));
        assert_eq!(
            name("/X.B/aoe", &["/X.B/aoe", "/X.B/eoa"]).as_deref(),
            Some("/X.B/oae")
        );
    }

    #[test]
    fn names_that_have_no_other() {
        for path in ["/aa.B/c", "/a.B/aa", "no slash"] {
            assert_eq!(name(path, &[path]), None, "{path}");
        }
    }
}
