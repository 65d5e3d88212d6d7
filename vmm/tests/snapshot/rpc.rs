//! The least of a gRPC client: one call per connection, over HTTP/2 by hand (RFC 9113, RFC 7541), so that tests of the VMM need
//! no runtime. A message is its protobuf bytes.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Opens an HTTP/2 connection and waits until the server has said that it speaks it, too.
pub(crate) fn open(socket: &mut BufReader<UnixStream>) {
    socket
        .get_mut()
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .unwrap();
    send(socket, SETTINGS, 0, 0, &[]);
    assert_eq!(receive(socket).0, SETTINGS);
}

/// Calls a method of the agent; `None` if it answered with an error.
pub(crate) fn call(socket: &mut BufReader<UnixStream>, method: &str, request: &[u8]) -> Option<Vec<u8>> {
    open(socket);
    let path = format!("/agent.v1.Agent/{method}");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", &path),
        (":authority", "guest"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let headers: Vec<u8> = fields
        .iter()
        .flat_map(|(name, value)| literal(name, value))
        .collect();
    send(socket, HEADERS, END_HEADERS, 1, &headers);
    let length = u32::try_from(request.len()).unwrap().to_be_bytes();
    let message = [&[0][..], &length, request].concat();
    send(socket, DATA, END_STREAM, 1, &message);
    let mut answer = Vec::new();
    loop {
        match receive(socket) {
            (DATA, _, payload) => answer.extend(payload),
            (HEADERS, flags, _) if flags & END_STREAM != 0 => break,
            _ => {}
        }
    }
    // Without trailers only, there is a message: its flag, its length, itself.
    (answer.len() >= 5).then(|| answer.split_off(5))
}

/// A header field that is not indexed, without Huffman's code; both parts are shorter than 127 bytes.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    let mut bytes = vec![0, length(name)];
    bytes.extend(name.bytes());
    bytes.push(length(value));
    bytes.extend(value.bytes());
    bytes
}

fn send(socket: &mut BufReader<UnixStream>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    socket.get_mut().write_all(&frame).unwrap();
}

/// Kind, flags, payload.
fn receive(socket: &mut BufReader<UnixStream>) -> (u8, u8, Vec<u8>) {
    let mut head = [0; 9];
    socket.read_exact(&mut head).unwrap();
    let [a, b, c, kind, flags, ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    socket.read_exact(&mut payload).unwrap();
    (kind, flags, payload)
}

/// A field of length-delimited bytes, as its sender writes it; number and length are below 16 and 128.
pub(crate) fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    field.extend(bytes);
    field
}

/// The text of a field in a message of numbers and short texts; empty if it is absent.
pub(crate) fn text_field(message: &[u8], number: u8) -> String {
    let mut rest = message.iter().copied();
    while rest.len() > 0 {
        let tag = varint(&mut rest);
        let value = varint(&mut rest);
        if tag & 7 == 2 {
            let text: Vec<u8> = rest.by_ref().take(value as usize).collect();
            if tag >> 3 == u64::from(number) {
                return String::from_utf8(text).unwrap();
            }
        }
    }
    String::new()
}

fn varint(bytes: &mut impl Iterator<Item = u8>) -> u64 {
    let (mut value, mut shift) = (0, 0);
    for byte in bytes {
        value |= u64::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}
