use std::io::IoSlice;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    frame_bytes_max: 1 << 20,
    message_parts_max: 40,
    message_bytes_max: 3 << 20,
};

/// A decoder past the handshake.
fn open() -> Decoder {
    let mut decoder = Decoder::new(LIMITS);
    let events = decoder.extend(&handshake(b"")).unwrap();
    assert!(matches!(
        events[..],
        [Event::Greeting { minor: 0 }, Event::Ready(_)]
    ));
    decoder
}

fn handshake(identity: &[u8]) -> Vec<u8> {
    [&greeting()[..], &ready(SocketType::Dealer, identity)].concat()
}

fn encoded(messages: &[Vec<Bytes>]) -> Outgoing {
    let mut out = Outgoing::default();
    for message in messages {
        out.push_message(message);
    }
    out
}

/// Everything that waits, in one piece.
fn all(out: &Outgoing) -> Vec<u8> {
    let mut slices = vec![IoSlice::new(&[]); 10_000];
    let filled = out.slices(&mut slices);
    let bytes = concat(&slices[..filled]);
    assert_eq!(bytes.len(), out.len());
    bytes
}

fn concat(slices: &[IoSlice<'_>]) -> Vec<u8> {
    let mut all = Vec::new();
    slices.iter().for_each(|s| all.extend_from_slice(s));
    all
}

fn one(part: &[u8]) -> Vec<u8> {
    all(&encoded(&[vec![Bytes::copy_from_slice(part)]]))
}

/// Reads `bytes` the way a socket gives them: at most `chunk` at once, never more than there is room for.
fn read(decoder: &mut Decoder, mut bytes: &[u8], chunk: usize) -> Result<Vec<Event>, ZmtpError> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let mut space = decoder.space(8192);
        let n = bytes.len().min(chunk).min(space.remaining_mut());
        assert!(n > 0, "no room to read to");
        space.put_slice(&bytes[..n]);
        bytes = &bytes[n..];
        while let Some(event) = decoder.next()? {
            events.push(event);
        }
    }
    Ok(events)
}

/// What a decoder may hold after `received` bytes in reads of 8 KiB: a multiple of them and some fixed buffers, and
/// nothing that depends on a length claimed.
fn memory_bound(received: usize) -> usize {
    4 * received + 2 * LARGE_FRAME_BYTES + 4 * 8192 + LIMITS.message_parts_max * 64
}

#[test]
fn the_greeting_is_that_of_the_rfc() {
    let mut expected = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0];
    expected.extend_from_slice(b"NULL");
    expected.resize(64, 0);
    assert_eq!(greeting()[..], expected);
}

#[test]
fn ready_is_that_of_the_rfc() {
    let expected =
        b"\x04\x2b\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER\x08Identity\x00\x00\x00\x02ab";
    assert_eq!(ready(SocketType::Router, b"ab"), &expected[..]);
}

#[test]
fn frames_are_those_of_the_rfc() {
    let message = vec![
        Bytes::from_static(b"a"),
        Bytes::new(),
        Bytes::from(vec![7; 256]),
    ];
    let mut expected = b"\x01\x01a\x01\x00\x02\0\0\0\0\0\0\x01\0".to_vec();
    expected.extend_from_slice(&[7; 256]);
    assert_eq!(all(&encoded(&[message])), expected);
}

#[test]
fn ready_gives_type_and_identity() {
    let mut decoder = Decoder::new(LIMITS);
    let events = decoder.extend(&handshake(b"client-1")).unwrap();
    let expected = Ready {
        socket_type: SocketType::Dealer,
        identity: Some(Bytes::from_static(b"client-1")),
    };
    assert_eq!(events[1], Event::Ready(expected));
    assert!(decoder.at_boundary());
}

#[test]
fn strangers_are_refused() {
    let greeting_with = |at: usize, bytes: &[u8]| {
        let mut b = greeting();
        b[at..at + bytes.len()].copy_from_slice(bytes);
        b.to_vec()
    };
    let after_greeting = |bytes: &[u8]| [&greeting()[..], bytes].concat();
    let cases = [
        (b"G".to_vec(), ZmtpError::NotZmtp),
        (greeting_with(9, b"\x00")[..10].to_vec(), ZmtpError::NotZmtp),
        (
            greeting_with(10, b"\x01")[..11].to_vec(),
            ZmtpError::OldVersion(1),
        ),
        (
            greeting_with(12, b"CURVE"),
            ZmtpError::Mechanism("CURVE".into()),
        ),
        (after_greeting(&one(b"too early")), ZmtpError::NotReady),
        (after_greeting(b"\x04\x05\x04PING"), ZmtpError::NotReady),
        (after_greeting(b"\x08\x00"), ZmtpError::Flags(8)),
        (after_greeting(b"\x05\x00"), ZmtpError::Flags(5)),
        (
            after_greeting(b"\x04\x00"),
            ZmtpError::MalformedCommand("unnamed"),
        ),
        (
            after_greeting(b"\x04\x02\x05R"),
            ZmtpError::MalformedCommand("unnamed"),
        ),
        (
            after_greeting(b"\x04\x07\x05READY\x09"),
            ZmtpError::MalformedCommand("READY"),
        ),
        (
            after_greeting(b"\x04\x06\x05READY"),
            ZmtpError::SocketType(String::new()),
        ),
        (
            after_greeting(b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH"),
            ZmtpError::SocketType("PUSH".into()),
        ),
        (
            after_greeting(&error("go away")),
            ZmtpError::Refused("go away".into()),
        ),
        (
            after_greeting(b"\x06\0\0\0\0\0\x01\0\x01"),
            ZmtpError::CommandTooLong { bytes: 0x1_0001 },
        ),
    ];
    for (bytes, expected) in cases {
        for chunk in [1, 1000] {
            assert_eq!(
                read(&mut Decoder::new(LIMITS), &bytes, chunk),
                Err(expected.clone())
            );
        }
    }
}

#[test]
fn commands_may_come_between_frames() {
    let mut decoder = open();
    let mut bytes = b"\x01\x01a".to_vec();
    bytes.extend_from_slice(b"\x04\x0a\x04PING\x00\x10ctx");
    bytes.extend_from_slice(b"\x04\x08\x07UNKNOWN");
    bytes.extend_from_slice(b"\x00\x01b");
    bytes.extend_from_slice(b"\x04\x0c\x09SUBSCRIBEio\x04\x09\x06CANCELio\x04\x05\x04PONG");
    let expected = [
        Event::Ping {
            context: "ctx".into(),
        },
        Event::Message(vec!["a".into(), "b".into()]),
        Event::Subscribe("io".into()),
        Event::Cancel("io".into()),
        Event::Pong,
    ];
    assert_eq!(read(&mut decoder, &bytes, 1).unwrap(), expected);
    assert!(decoder.at_boundary());
}

#[test]
fn a_claimed_length_costs_nothing() {
    // Past the limit: refused at once.
    let claim = |bytes: u64| [&[2][..], &bytes.to_be_bytes()].concat();
    for bytes in [1 << 60, u64::MAX, (1 << 20) + 1] {
        let error = read(&mut open(), &claim(bytes), 1).unwrap_err();
        assert_eq!(
            error,
            ZmtpError::FrameTooLong {
                bytes,
                max: 1 << 20
            }
        );
    }
    // Within: memory follows what comes.
    let mut decoder = Decoder::new(Limits::default());
    decoder.extend(&handshake(b"")).unwrap();
    read(&mut decoder, &claim(2 << 30), 100).unwrap();
    for received in [0, 10, 100, 1000, 10_000, 100_000, 1_000_000] {
        read(&mut decoder, &vec![0; received], 5000).unwrap();
        let memory = decoder.memory_bytes();
        assert!(
            memory <= memory_bound(2 * received),
            "{memory} bytes after {received}"
        );
    }
}

#[test]
fn limits_on_messages_hold() {
    let too_many = vec![Bytes::new(); 41];
    let error = read(&mut open(), &all(&encoded(&[too_many])), 100).unwrap_err();
    assert_eq!(error, ZmtpError::TooManyParts { max: 40 });
    let too_long = vec![Bytes::from(vec![0; (1 << 20) - 1]); 4];
    let error = read(&mut open(), &all(&encoded(&[too_long])), 100_000).unwrap_err();
    assert_eq!(error, ZmtpError::MessageTooLong { max: 3 << 20 });
    // They count from zero for each message.
    let just_so = vec![vec![Bytes::from_static(b"x"); 40]; 3];
    assert_eq!(
        read(&mut open(), &all(&encoded(&just_so)), 7)
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn a_large_frame_is_read_into_its_place() {
    let mut decoder = open();
    let payload: Vec<u8> = (0..900_000u32).map(|i| i as u8).collect();
    let bytes = one(&payload);
    read(&mut decoder, &bytes[..899_000], 8192).unwrap();
    let (rest_at, rest) = {
        let mut space = decoder.space(8192);
        assert_eq!(
            space.remaining_mut(),
            bytes.len() - 899_000,
            "not a byte past the frame"
        );
        (space.chunk_mut().as_mut_ptr() as usize, &bytes[899_000..])
    };
    let events = read(&mut decoder, rest, usize::MAX).unwrap();
    let [Event::Message(parts)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(parts[0], payload);
    let frame_at = parts[0].as_ptr() as usize;
    assert_eq!(
        rest_at,
        frame_at + parts[0].len() - rest.len(),
        "the frame was moved"
    );
}

#[test]
fn small_parts_do_not_pin_the_read_buffer_and_large_ones_are_slices_of_it() {
    let mut decoder = open();
    let message = vec![
        Bytes::from(vec![1; 500]),
        Bytes::from(vec![2; LARGE_FRAME_BYTES]),
    ];
    let bytes = all(&encoded(&[message]));
    let mut space = decoder.space(256 * 1024);
    let buffer = space.chunk_mut().as_mut_ptr() as usize;
    space.put_slice(&bytes);
    let Some(Event::Message(parts)) = decoder.next().unwrap() else {
        panic!("a message was due")
    };
    let in_buffer =
        |part: &Bytes| (buffer..buffer + 256 * 1024).contains(&(part.as_ptr() as usize));
    assert!(
        !in_buffer(&parts[0]),
        "a small part keeps the whole read buffer alive"
    );
    assert!(in_buffer(&parts[1]), "a large part was copied");
}

#[test]
fn a_big_buffer_is_given_back() {
    let mut decoder = open();
    decoder.space(256 * 1024);
    assert!(decoder.memory_bytes() >= 256 * 1024);
    decoder.space(8 * 1024);
    assert!(decoder.memory_bytes() <= 16 * 1024);
}

#[test]
fn large_payloads_go_out_as_they_are_and_small_ones_together() {
    let large = Bytes::from(vec![7; 100_000]);
    let small = Bytes::from_static(b"small");
    let messages = [
        vec![small.clone(), small.clone()],
        vec![small.clone(), large.clone(), small.clone()],
        vec![small.clone()],
    ];
    let out = encoded(&messages);
    let mut slices = [IoSlice::new(&[]); 64];
    assert_eq!(
        out.slices(&mut slices),
        3,
        "heads and small parts, the payload, the rest"
    );
    assert_eq!(slices[1].as_ptr(), large.as_ptr());
    let long_message = vec![Bytes::from(vec![0; 8000]); 1000];
    let out = encoded(&[long_message]);
    let mut slices = vec![IoSlice::new(&[]); 1000];
    let filled = out.slices(&mut slices);
    assert!(
        slices[..filled]
            .iter()
            .all(|s| s.len() < 3 * LARGE_FRAME_BYTES),
        "grown without bound"
    );
}

#[test]
fn socket_types_match_as_in_libzmq() {
    use SocketType::*;
    let all = [Req, Rep, Dealer, Router, Pub, Sub, Xpub, Xsub];
    let pairs: Vec<_> = all
        .iter()
        .flat_map(|a| all.iter().map(move |b| (*a, *b)))
        .filter(|(a, b)| a.accepts(*b))
        .collect();
    for (a, b) in &pairs {
        assert!(b.accepts(*a), "{a:?} takes {b:?}, but not the other way");
        assert_eq!(SocketType::from_name(a.name().as_bytes()), Some(*a));
    }
    assert_eq!(pairs.len(), 2 + 2 + 3 + 3 + 8, "{pairs:?}");
    assert!(
        Router.accepts(Dealer) && Xpub.accepts(Sub) && Rep.accepts(Req) && !Router.accepts(Sub)
    );
}

/// Bytes that no shift or swap leaves as they are.
fn pattern(seed: u8) -> Vec<u8> {
    let mut block: Vec<u8> = (0..251).map(|i| i ^ seed).collect();
    block.extend_from_slice(&[seed; 3]);
    block.repeat(800)
}

/// Sizes around every threshold of the decoder and encoder.
fn part() -> impl Strategy<Value = Bytes> {
    let around = |n: usize| n.saturating_sub(2)..n + 3;
    let size = prop_oneof![
        6 => 0usize..300,
        2 => around(255),
        1 => around(8 * 1024),
        1 => around(LARGE_FRAME_BYTES),
        1 => 60_000usize..200_000,
    ];
    (size, any::<u8>()).prop_map(|(n, seed)| pattern(seed)[..n].to_vec().into())
}

fn messages() -> impl Strategy<Value = Vec<Vec<Bytes>>> {
    prop::collection::vec(prop::collection::vec(part(), 1..9), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_encoded_is_decoded(
        messages in messages(),
        reads in prop::collection::vec(prop_oneof![1usize..20, 1usize..9000, 1usize..300_000], 1..20),
        room in prop_oneof![1usize..100, 1usize..20_000, Just(256 * 1024)],
    ) {
        let bytes = all(&encoded(&messages));
        let mut decoder = open();
        let mut events = Vec::new();
        let mut rest = &bytes[..];
        let mut reads = reads.iter().cycle();
        while !rest.is_empty() {
            let mut space = decoder.space(room);
            let n = rest.len().min(*reads.next().unwrap()).min(space.remaining_mut());
            prop_assert!(n > 0);
            space.put_slice(&rest[..n]);
            rest = &rest[n..];
            while let Some(event) = decoder.next().unwrap() {
                events.push(event);
            }
        }
        let expected: Vec<Event> = messages.into_iter().map(Event::Message).collect();
        prop_assert!(events == expected);
        prop_assert!(decoder.at_boundary());
    }

    #[test]
    fn partial_writes_lose_nothing(messages in messages(), writes in prop::collection::vec(1usize..100_000, 1..20)) {
        let mut out = encoded(&messages);
        let expected = all(&out);
        let mut written = Vec::new();
        let mut writes = writes.iter().cycle();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let filled = out.slices(&mut slices);
            let mut here = concat(&slices[..filled]);
            here.truncate(*writes.next().unwrap());
            prop_assert!(!here.is_empty());
            out.advance(here.len());
            written.extend_from_slice(&here);
        }
        prop_assert!(written == expected);
    }

    #[test]
    fn any_bytes_are_events_or_an_error_within_bounds(
        stage in 0usize..3,
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3000),
            // Mostly frames: flags, lengths that fit or lie, and something behind.
            prop::collection::vec((0u8..8, prop_oneof![0u64..5000, any::<u64>()], 0usize..5000), 0..50)
                .prop_map(|frames| {
                    let mut b = BytesMut::new();
                    for (flags, claimed, real) in frames {
                        b.put_u8(flags);
                        if flags & 2 == 0 { b.put_u8(claimed as u8) } else { b.put_u64(claimed) }
                        b.put_bytes(5, real);
                    }
                    b.to_vec()
                }),
        ],
        chunk in 1usize..10_000,
    ) {
        let mut decoder = Decoder::new(LIMITS);
        let prefix = handshake(b"x");
        decoder.extend(&prefix[..[0, GREETING_BYTES, prefix.len()][stage]]).unwrap();
        for received in bytes.chunks(chunk) {
            if read(&mut decoder, received, usize::MAX).is_err() {
                break;
            }
            prop_assert!(decoder.memory_bytes() <= memory_bound(bytes.len()));
        }
        prop_assert!(decoder.memory_bytes() <= memory_bound(bytes.len()));
    }
}
