//! The wire decoders: ZMTP frames, multipart messages, signatures.
//!
//! Input: byte 0 how far the handshake has come, byte 1 how much is read at once, then what the peer sends.

use bytes::{BufMut, Bytes};
use farside::wire::frame::{decode, decode_once, decode_trusted, encode};
use farside::wire::zmtp::{Decoder, Event, LARGE_FRAME_BYTES, Limits, SocketType, greeting, ready};
use farside::wire::{Key, Message, ReplayGuard, WireError};
use sha2::{Digest, Sha256};

const LIMITS: Limits = Limits {
    frame_bytes_max: 1 << 20,
    message_parts_max: 40,
    message_bytes_max: 3 << 20,
};

const KEY: &[u8] = b"a key that no input knows";

pub fn check(bytes: &[u8]) {
    let [stage, chunk, sent @ ..] = bytes else {
        return;
    };
    let handshake = [&greeting()[..], &ready(SocketType::Dealer, b"x")].concat();
    let done = match stage % 3 {
        0 => 0,
        1 => greeting().len(),
        _ => handshake.len(),
    };
    let mut decoder = Decoder::new(LIMITS);
    let mut events = decoder
        .extend(&handshake[..done])
        .expect("our own handshake");
    let mut received = 0;
    for piece in sent.chunks(1 + usize::from(*chunk)) {
        received += piece.len();
        let result = read(&mut decoder, piece, &mut events);
        let held = decoder.memory_bytes();
        assert!(
            held <= memory_bound(received),
            "{held} bytes held after {received}"
        );
        if result.is_err() {
            break;
        }
    }
    let mut guard = ReplayGuard::default();
    for event in events {
        if let Event::Message(parts) = event {
            let total: usize = parts.iter().map(Bytes::len).sum();
            assert!(parts.len() <= LIMITS.message_parts_max && total <= LIMITS.message_bytes_max);
            check_message(&parts, &mut guard);
        }
    }
}

/// As a socket gives it: never more than there is room for.
fn read(decoder: &mut Decoder, mut bytes: &[u8], to: &mut Vec<Event>) -> Result<(), ()> {
    while !bytes.is_empty() {
        let mut space = decoder.space(8192);
        let n = bytes.len().min(space.remaining_mut());
        assert!(n > 0, "no room to read to");
        space.put_slice(&bytes[..n]);
        bytes = &bytes[n..];
        while let Some(event) = decoder.next().map_err(drop)? {
            to.push(event);
        }
    }
    Ok(())
}

/// A multiple of what has come, and some fixed buffers: nothing that depends on a length claimed.
fn memory_bound(received: usize) -> usize {
    4 * received + 2 * LARGE_FRAME_BYTES + 4 * 8192 + LIMITS.message_parts_max * 64
}

fn check_message(parts: &[Bytes], guard: &mut ReplayGuard) {
    let key = Key::new(KEY);
    // No forgery: what is accepted has the signature that somebody with the key made.
    let decoded = [
        decode(parts.to_vec(), &key),
        decode_trusted(parts.to_vec(), &key),
    ];
    for message in decoded.into_iter().flatten() {
        let signature = &parts[message.identities.len() + 1];
        assert_eq!(
            signature,
            hmac(&message).as_bytes(),
            "a forgery was accepted"
        );
    }
    // Of what is not signed, the content counts.
    let Ok(message) = decode(parts.to_vec(), &Key::none()) else {
        return;
    };
    let mut unsigned = parts.to_vec();
    unsigned[message.identities.len() + 1] = Bytes::new();
    assert_eq!(encode(&message, &Key::none()), unsigned);
    let signed = encode(&message, &key);
    assert_eq!(decode(signed.clone(), &key).expect("signed by us"), message);
    let first = decode_once(signed.clone(), &key, guard);
    assert!(matches!(first, Ok(_) | Err(WireError::Replayed)));
    let again = decode_once(signed.clone(), &key, guard);
    assert!(
        matches!(again, Err(WireError::Replayed)),
        "a replay was accepted"
    );
    check_changes(&message, signed, &key);
}

/// One changed byte, or another key, and it is refused.
fn check_changes(message: &Message, signed: Vec<Bytes>, key: &Key) {
    let signature = message.identities.len() + 1;
    assert!(decode(signed.clone(), &Key::new("another")).is_err());
    for part in signature..=signature + 4 {
        if signed[part].is_empty() {
            continue;
        }
        // A place that depends on the message, so that they all come up.
        let at = message.size_bytes() % signed[part].len();
        let mut changed = signed.clone();
        let mut bytes = signed[part].to_vec();
        bytes[at] ^= 1 << (at % 8);
        changed[part] = bytes.into();
        assert!(
            matches!(decode(changed, key), Err(WireError::BadSignature { .. })),
            "a changed part {part} was accepted"
        );
    }
}

/// RFC 2104, by hand: shares nothing with the code under test but the hash.
fn hmac(message: &Message) -> String {
    let pad = |with: u8| {
        let mut block = [with; 64];
        KEY.iter()
            .zip(&mut block)
            .for_each(|(key, pad)| *pad ^= key);
        block
    };
    let mut inner = Sha256::new_with_prefix(pad(0x36));
    for part in [
        &message.header,
        &message.parent_header,
        &message.metadata,
        &message.content,
    ] {
        inner.update(part);
    }
    let outer = Sha256::new_with_prefix(pad(0x5c)).chain_update(inner.finalize());
    outer
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
