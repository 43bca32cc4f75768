//! What the kernel writes in `/proc` and `/sys`, read from text. Whatever the text is, nothing here fails but by saying so.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Where file systems of a type are mounted, from `/proc/self/mounts`: `device point type options 0 0`.
pub fn mount_points(mounts: &str, kind: &str) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, point, found) = (words.next()?, words.next()?, words.next()?);
            (found == kind).then(|| unescaped(point))
        })
        .collect()
}

/// A path as it is: of a blank, a tab, a line's end and a backslash, the kernel writes the octal number (`mangle_path`).
fn unescaped(word: &str) -> PathBuf {
    let mut path = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((&octet, after)) = rest.split_first() {
        let escaped = (octet == b'\\').then(|| octal(after.get(..3)?)).flatten();
        path.push(escaped.unwrap_or(octet));
        rest = if escaped.is_some() {
            &after[3..]
        } else {
            after
        };
    }
    OsString::from_vec(path).into()
}

/// `040` is a blank.
fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0u8, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

/// Effective capabilities, a bit each, from `/proc/self/status`.
pub fn capabilities(status: &str) -> Option<u64> {
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

/// The inode of a namespace, from its link: `pid:[4026531836]`.
pub fn namespace(link: &str) -> Option<u64> {
    link.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// The lockdown in force, from the file of that name: `none [integrity] confidentiality`.
pub fn lockdown(file: &str) -> Option<&str> {
    Some(file.split_once('[')?.1.split_once(']')?.0)
}

/// The process that holds a lock on a file, from `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 4711 00:1f:1234 0 EOF`.
pub fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let of = words.get(5)?.rsplit(':').next()?;
        let held = words.get(1) == Some(&"FLOCK") && of.parse() == Ok(inode);
        // Of another pid namespace, the process has no number here: 0, or -1 where it belongs to no process.
        held.then(|| words[4].parse().ok().filter(|pid| *pid != 0))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_type_as_they_are() {
        let mounts = "proc /proc proc rw 0 0\nbpf /a\\040b\\134\\0 bpf rw 0 0\nbpf /c bpf rw 0 0\nx\n\nbpf /d\n";
        assert_eq!(
            mount_points(mounts, "bpf"),
            [r"/a b\\0", "/c"].map(PathBuf::from)
        );
        assert_eq!(mount_points(mounts, "bpffs"), Vec::<PathBuf>::new());
        // More than an octet is no octet.
        assert_eq!(mount_points("x /\\777 y", "y"), [PathBuf::from("/\\777")]);
    }

    #[test]
    fn a_lock_has_a_holder() {
        let locks = "1: POSIX  ADVISORY  WRITE 17 00:1f:1234 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 00:1f:1234 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 0 00:1f:5 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 12 00:1f:9 0 EOF\n4: FLOCK\n";
        assert_eq!(holder(locks, 1234), Some(4711));
        assert_eq!(holder(locks, 5), None);
        assert_eq!(holder(locks, 9), None);
    }

    #[test]
    fn numbers_are_numbers() {
        assert_eq!(
            capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            Some(0x1ff_ffff_ffff)
        );
        assert_eq!(capabilities("CapEff:\tyes\n"), None);
        assert_eq!(namespace("pid:[4026531836]"), Some(4_026_531_836));
        assert_eq!(namespace("pid:4026531836"), None);
        assert_eq!(
            lockdown("none [integrity] confidentiality\n"),
            Some("integrity")
        );
        assert_eq!(lockdown("none integrity"), None);
    }
}
