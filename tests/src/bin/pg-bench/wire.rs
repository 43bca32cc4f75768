//! What goes over the measured connections: as in the captures of Numaflow 1.4.5 (tests/fixtures), where that matters.

use pendguard_tests::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, frame};

/// PendingFn as tonic sends it, when its other fields are in the dynamic table.
const BLOCK: &[u8] = &[
    0x83, 0x86, 0xc1, 0x04, 0x94, 0x61, 0x07, 0xb6, 0xc2, 0x15, 0x7e, 0xe1, 0x5f, 0x71, 0xed, 0xb0,
    0x85, 0x63, 0x59, 0x6a, 0x90, 0xd5, 0x4d, 0x86, 0xaf, 0xc0, 0xbf, 0xbe,
];
/// The first request's block inserts what later ones refer to.
const FIRST: &[u8] = &[
    0x83, 0x86, 0x04, 0x01, b'/', 0x40, 1, b'a', 1, b'b', 0x40, 1, b'c', 1, b'd', 0x40, 1, b'e', 1,
    b'f', 0x40, 1, b'g', 1, b'h',
];
/// `:status: 200`, and a `content-type` that goes into the table, as `grpc-status: 0` does behind it.
const FIRST_ANSWER: &[u8] = b"\x88\x5f\x10application/grpc";
const FIRST_TRAILERS: &[u8] = b"\x40\x0bgrpc-status\x010";
/// The same by their indices.
const ANSWER: &[u8] = &[0x88, 0xbf];
const TRAILERS: &[u8] = &[0xbe];
/// A message of gRPC: `PendingResponse` with a count of 42.
const COUNT: &[u8] = &[0, 0, 0, 0, 4, 0x0a, 2, 0x08, 42];

/// How a client begins.
pub fn client_begins() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(frame(HEADERS, END_HEADERS, 1, FIRST));
    bytes
}

/// How a server begins.
pub fn server_begins() -> Vec<u8> {
    let mut bytes = frame(SETTINGS, 0, 0, &[]);
    bytes.extend(frame(HEADERS, END_HEADERS, 1, FIRST_ANSWER));
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, FIRST_TRAILERS));
    bytes
}

/// The stream of a call by its number.
pub fn stream(call: u32) -> u32 {
    3 + 2 * call
}

/// A request of PendingFn, 60 bytes.
pub fn request(stream: u32) -> Vec<u8> {
    let mut call = frame(HEADERS, END_HEADERS, stream, BLOCK);
    call.extend(frame(DATA, 0, stream, &[0; 5]));
    call.extend(frame(DATA, END_STREAM, stream, &[]));
    call
}

/// Its answer: headers, the message, trailers.
pub fn answer(stream: u32) -> Vec<u8> {
    let mut answer = frame(HEADERS, END_HEADERS, stream, ANSWER);
    answer.extend(frame(DATA, 0, stream, COUNT));
    answer.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS));
    answer
}

/// A DATA frame of stream 1.
pub fn data(len: usize) -> Vec<u8> {
    frame(DATA, 0, 1, &vec![0; len])
}
