use std::io::Write as _;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;

impl Spool {
    /// All that is not consumed, of a spool that is [`Spool::recoverable`].
    fn unconsumed(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut position = self.consumed();
        while position < self.written() {
            let bytes = self.bytes(position);
            all.extend_from_slice(bytes);
            position += bytes.len() as u64;
        }
        all
    }
}

fn pair() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    (near, far)
}

fn receive_all(spool: &mut Spool, socket: &UnixStream) -> Received {
    loop {
        match spool.receive(socket.as_fd()) {
            Ok(Received::Bytes(_)) => {}
            Ok(other) => return other,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::Bytes(0),
            Err(error) => panic!("{error}"),
        }
    }
}

/// What another process would have of it.
fn reopened(spool: &Spool) -> Spool {
    Spool::open(spool.fd().try_clone_to_owned().unwrap()).unwrap()
}

#[test]
fn what_was_read_and_not_consumed_is_there_for_the_next_process() {
    let (near, mut far) = pair();
    let mut spool = Spool::create(1000, 4096).unwrap();
    far.write_all(b"one two three").unwrap();
    assert_eq!(receive_all(&mut spool, &near), Received::Bytes(0));
    assert_eq!((spool.consumed(), spool.written()), (1000, 1013));
    spool.mark().consume(1004);
    let mut next = reopened(&spool);
    drop(spool);
    assert!(next.recoverable());
    assert_eq!(next.unconsumed(), b"two three");
    far.write_all(b" four").unwrap();
    drop(far);
    assert_eq!(receive_all(&mut next, &near), Received::Ended);
    assert_eq!(next.unconsumed(), b"two three four");
}

#[test]
fn a_full_ring_reads_on_when_something_was_consumed() {
    let (near, mut far) = pair();
    let mut spool = Spool::create(0, 100).unwrap();
    far.write_all(&[1; 60]).unwrap();
    far.write_all(&[2; 60]).unwrap();
    assert_eq!(receive_all(&mut spool, &near), Received::Full);
    assert_eq!(spool.written(), 100);
    spool.mark().consume(60);
    assert_eq!(receive_all(&mut spool, &near), Received::Bytes(0));
    assert_eq!(spool.unconsumed(), [2; 60]);
    assert_eq!(reopened(&spool).unconsumed(), [2; 60]);
}

#[test]
fn nothing_is_recoverable_while_something_large_passes_by() {
    let (near, mut far) = pair();
    let mut spool = Spool::create(0, 100).unwrap();
    far.write_all(&[1; 60]).unwrap();
    receive_all(&mut spool, &near);
    spool.bypass();
    spool.passed_by(1000);
    assert!(!reopened(&spool).recoverable());
    spool.end_bypass();
    assert!(
        !reopened(&spool).recoverable(),
        "what passed by is not consumed"
    );
    far.write_all(&[2; 80]).unwrap();
    assert_eq!(receive_all(&mut spool, &near), Received::Bytes(0));
    spool.mark().consume(1060);
    assert!(reopened(&spool).recoverable());
    assert_eq!(reopened(&spool).unconsumed(), [2; 80]);
}

/// A reader that was killed in the middle of a read has said how much it is about to read, and maybe not that it did.
#[test]
fn a_read_that_was_done_and_not_noted_counts() {
    for done in [true, false] {
        let mut spool = Spool::create(0, 4096).unwrap();
        let (near, mut far) = pair();
        far.write_all(b"first ").unwrap();
        receive_all(&mut spool, &near);
        let (at, length) = (spool.memory.at(6), 30);
        spool.copy_canary(spool.memory.byte(at + length - CANARY_BYTES), CANARY_BYTES);
        spool
            .header()
            .intent
            .store(length as u64, Ordering::Release);
        if done {
            let bytes = [b'x'; 30];
            // SAFETY: within the ring.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), spool.memory.byte(at), 30) };
        }
        let next = reopened(&spool);
        let expected = if done { 36 } else { 6 };
        assert_eq!(next.unconsumed().len(), expected);
        assert_eq!(reopened(&next).unconsumed().len(), expected, "counted once");
    }
}

#[test]
fn an_empty_ring_begins_anew_and_gives_memory_back() {
    let (near, mut far) = pair();
    let mut spool = Spool::create(0, RING_BYTES).unwrap();
    let chunk = vec![7; 64 << 10];
    for round in 0..64 {
        far.write_all(&chunk).unwrap();
        receive_all(&mut spool, &near);
        if round % 2 == 1 {
            spool.mark().consume(spool.written());
        }
    }
    let resident = |spool: &Spool| {
        use std::os::unix::fs::MetadataExt as _;
        let file = std::fs::File::from(spool.fd().try_clone_to_owned().unwrap());
        file.metadata().unwrap().blocks() * 512
    };
    assert!(resident(&spool) < 1 << 20, "{}", resident(&spool));
    // All at once: it takes what it must, and gives it back when there is nothing to do.
    for _ in 0..64 {
        far.write_all(&chunk).unwrap();
        receive_all(&mut spool, &near);
    }
    assert!(resident(&spool) >= 4 << 20);
    spool.mark().consume(spool.written());
    spool.released = Instant::now() - RELEASE_EVERY;
    receive_all(&mut spool, &near);
    assert!(resident(&spool) <= KEEP_BYTES as u64 + HEADER_BYTES as u64);
    far.write_all(b"more").unwrap();
    receive_all(&mut spool, &near);
    assert_eq!(spool.unconsumed(), b"more");
}

proptest! {
    /// Any split into writes, reads, consumption and changes of the process gives the bytes in order.
    #[test]
    fn the_stream_is_whole(steps in prop::collection::vec((1..400_usize, 0..100_u64, any::<bool>()), 1..60)) {
        let (near, mut far) = pair();
        let mut spool = Spool::create(5, 1000).unwrap();
        let byte = |position: u64| (position % 251) as u8;
        let mut sent = 5_u64;
        for (length, consume_percent, reopen) in steps {
            let bytes: Vec<u8> = (sent..sent + length as u64).map(byte).collect();
            far.write_all(&bytes).unwrap();
            sent += length as u64;
            let received = receive_all(&mut spool, &near);
            prop_assert!(spool.recoverable());
            let unconsumed = spool.unconsumed();
            let from = spool.consumed();
            let expected: Vec<u8> = (from..spool.written()).map(byte).collect();
            prop_assert_eq!(&unconsumed, &expected);
            prop_assert!(spool.written() == sent || received == Received::Full);
            let part = unconsumed.len() as u64 * consume_percent / 99;
            spool.mark().consume(from + part.min(unconsumed.len() as u64));
            if reopen {
                spool = reopened(&spool);
            }
        }
    }

    /// Whatever lies in the memory.
    #[test]
    fn any_header_is_a_spool_or_is_none(words in prop::collection::vec(any::<u64>(), 10), valid_magic: bool, capacity_bits in 0..13_u32) {
        let capacity = 1_usize << capacity_bits;
        let spool = Spool::create(0, capacity).unwrap();
        {
            let header = spool.header();
            let fields = [&header.base, &header.consumed, &header.written, &header.intent, &header.bypassing];
            for (field, word) in fields.into_iter().zip(&words) {
                // Small ones too.
                field.store(if word % 2 == 0 { word % 10_000 } else { *word }, Ordering::Relaxed);
            }
            if !valid_magic {
                header.magic.store(words[9], Ordering::Relaxed);
            }
        }
        if let Ok(next) = Spool::open(spool.fd().try_clone_to_owned().unwrap()) && next.recoverable() {
            prop_assert!(next.unconsumed().len() <= capacity);
        }
    }
}
