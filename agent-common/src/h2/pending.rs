//! The pending count that a source answers: `PendingResponse { Result result = 1 { int64 count = 1 } }` of `source.v1`, in one gRPC
//! message.

/// Octets of a gRPC message that are kept: more than any PendingResponse has, and for a program a mask.
pub const KEPT: usize = 32;
/// Octets before the message (gRPC's "Length-Prefixed-Message"): whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The count in the gRPC message that `octets` begin with, or `None` if there is none in it, or it can't be told: it is compressed,
/// longer than what was kept, or no message of that type. Unknown fields are passed over, and of a field that comes
/// twice the last one counts, as protocol buffers have it.
pub fn count(octets: &[u8]) -> Option<i64> {
    let (prefix, message) = octets.split_at_checked(PREFIX)?;
    let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    // A message that was compressed, or isn't here whole.
    if prefix[0] != 0 || len as usize != message.len() {
        return None;
    }
    let mut found = None;
    fields(message, |field| {
        if let Field::Octets(1, result) = field {
            // An empty Result is one whose count has the default value.
            let mut count = found.unwrap_or(0);
            fields(result, |field| {
                if let Field::Varint(1, value) = field {
                    count = value as i64;
                }
                Some(())
            })?;
            found = Some(count);
        }
        Some(())
    })?;
    found
}

/// A field of a message.
enum Field<'a> {
    Varint(u64, u64),
    Octets(u64, &'a [u8]),
    Other,
}

/// Calls `each` for the fields of a message; `None` if it is none.
fn fields(mut message: &[u8], mut each: impl FnMut(Field<'_>) -> Option<()>) -> Option<()> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let number = tag >> 3;
        if number == 0 {
            return None;
        }
        each(match tag & 7 {
            0 => Field::Varint(number, varint(&mut message)?),
            1 => skip(&mut message, 8)?,
            2 => {
                let len = usize::try_from(varint(&mut message)?).ok()?;
                let (octets, rest) = message.split_at_checked(len)?;
                message = rest;
                Field::Octets(number, octets)
            }
            5 => skip(&mut message, 4)?,
            _ => return None,
        })?;
    }
    Some(())
}

fn skip<'a>(message: &mut &[u8], n: usize) -> Option<Field<'a>> {
    *message = message.get(n..)?;
    Some(Field::Other)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for at in 0..10 {
        let (&octet, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(octet & 0x7f) << (7 * at);
        if octet & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_numaflow_answers() {
        for (octets, expected) in [
            (&b"\0\0\0\0\x04\x0a\x02\x08\x05"[..], Some(5)),
            (b"\0\0\0\0\x02\x0a\0", Some(0)),
            (
                b"\0\0\0\0\x0d\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                Some(-1),
            ),
            // No result; a ReadyResponse; its twin with an unknown field.
            (b"\0\0\0\0\0", None),
            (b"\0\0\0\0\x02\x08\x01", None),
            (b"\0\0\0\0\x02\x10\x01", None),
            // Compressed; cut; too long; not a message.
            (b"\x01\0\0\0\x04\x0a\x02\x08\x05", None),
            (b"\0\0\0\0\x05\x0a\x02\x08\x05", None),
            (b"\0\0\0\0\x03\x0a\x02\x08\x05", None),
            (b"\0\0\0\0\x03\x0a\x05\x08", None),
            (b"", None),
        ] {
            assert_eq!(count(octets), expected, "{octets:x?}");
        }
    }

    #[test]
    fn unknown_fields_and_repeated_ones() {
        // A string, a fixed32 and a fixed64 beside it, and the result twice.
        let message = b"\x12\x01x\x1d\0\0\0\0\x0a\x02\x08\x05\x0a\x02\x08\x07";
        let mut octets = std::vec![0, 0, 0, 0, message.len() as u8];
        octets.extend(message);
        assert_eq!(count(&octets), Some(7));
    }
}
