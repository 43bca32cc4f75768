//! Where the kernel keeps what no interface tells, from its own description of its types (BTF).

use std::io;

/// The description of the running kernel.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Octets of a type, and of a member of one.
const TYPE: usize = 12;
const STRUCT: u32 = 4;

/// Where in a `struct sk_buff` of a Unix stream socket the kernel notes how much of it has been read
/// (`UNIXCB(skb).consumed`).
pub fn consumed_at() -> io::Result<u64> {
    let btf =
        std::fs::read(VMLINUX).map_err(|e| io::Error::new(e.kind(), format!("{VMLINUX}: {e}")))?;
    let find = |structure, member| {
        offset(&btf, structure, member).ok_or_else(|| {
            io::Error::other(format!(
                "{VMLINUX} has no member {member} of struct {structure}"
            ))
        })
    };
    Ok(u64::from(
        find("sk_buff", "cb")? + find("unix_skb_parms", "consumed")?,
    ))
}

/// Where a member of a structure lies.
fn offset(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    let word = |at: usize| {
        let word = btf.get(at..at + 4)?;
        Some(u32::from_ne_bytes(word.try_into().ok()?))
    };
    let header = word(4)? as usize;
    let types = header + word(8)? as usize;
    let end = types + word(12)? as usize;
    let strings = header + word(16)? as usize;
    let named = |name: u32, wanted: &str| {
        let text = btf.get(strings + name as usize..)?;
        Some(text.strip_prefix(wanted.as_bytes())?.first() == Some(&0)).filter(|same| *same)
    };
    let mut at = types;
    while at < end {
        let info = word(at + 4)?;
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let behind = at + TYPE;
        if kind == STRUCT && named(word(at)?, structure).is_some() {
            for at in (0..members).map(|n| behind + n * TYPE) {
                if named(word(at)?, member).is_some() {
                    // With the flag the upper octet is the size of a bit field.
                    let bits = word(at + 8)?;
                    let bits = if info >> 31 == 1 {
                        bits & 0xff_ffff
                    } else {
                        bits
                    };
                    return Some(bits / 8);
                }
            }
        }
        at = behind
            + match kind {
                // Integers, variables, declaration tags.
                1 | 14 | 17 => 4,
                // An array.
                3 => 12,
                // Structures, unions, sections, 64-bit enumerations.
                4 | 5 | 15 | 19 => members * 12,
                // Enumerations, prototypes.
                6 | 13 => members * 8,
                _ => 0,
            };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_is_understood() {
        // Of all kernels that can enforce: 40 is where `cb` lies, and before `consumed` are 24 octets or 28.
        assert!(matches!(consumed_at().unwrap(), 64 | 68));
        let btf = std::fs::read(VMLINUX).unwrap();
        assert_eq!(offset(&btf, "sk_buff", "no_such_member"), None);
        assert_eq!(offset(&btf, "sk_buf", "cb"), None);
    }
}
