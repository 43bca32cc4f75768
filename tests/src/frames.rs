//! Frames of HTTP/2 that are written by hand, for what no gRPC library does on demand.

/// The type DATA (RFC 9113 §6.1).
pub const DATA: u8 = 0;
/// The type HEADERS (RFC 9113 §6.2).
pub const HEADERS: u8 = 1;
/// The type SETTINGS (RFC 9113 §6.5).
pub const SETTINGS: u8 = 4;
/// The type PING (RFC 9113 §6.7).
pub const PING: u8 = 6;
/// The type GOAWAY (RFC 9113 §6.8).
pub const GOAWAY: u8 = 7;
/// The type CONTINUATION (RFC 9113 §6.10).
pub const CONTINUATION: u8 = 9;

/// The flag ACK of SETTINGS and PING.
pub const ACK: u8 = 1;
/// The flag END_STREAM of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// The flag END_HEADERS of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;
/// The flag PADDED of DATA and HEADERS.
pub const PADDED: u8 = 8;
/// The flag PRIORITY of HEADERS.
pub const PRIORITY: u8 = 0x20;

/// A frame (RFC 9113 §4.1) with less than 16 MiB of payload.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() < 1 << 24, "a length has three octets");
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_as_the_rfc_draws_it() {
        let expected = b"\x00\x00\x03\x00\x01\x00\x00\x00\x05abc";
        assert_eq!(frame(DATA, END_STREAM, 5, b"abc"), expected);
        let long = frame(HEADERS, END_HEADERS, 1, &[7; 0x01_02_03]);
        assert_eq!(long[..9], [1, 2, 3, 1, 4, 0, 0, 0, 1]);
    }
}
