//! Datagrams between keeper and host: a SOCK_SEQPACKET pair, one JSON object a datagram, nothing ever waits here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{Carries, Fds};
use crate::process::set_send_room;

/// The largest message. Only a `Spawn` comes near it, with an environment of thousands of variables; a larger
/// one is refused with an error on the sender's side.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// The most descriptors that travel with one message: two for each of an engine's streams, and some to spare.
pub const FDS_MAX: usize = 32;

/// A new pair, both non-blocking and close-on-exec, with room for the largest message.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let mut fds = [-1; 2];
    // SAFETY: `fds` has room for the two descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us these two, nobody else owns them.
    let pair = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    for fd in &pair {
        // A datagram must fit the sending buffer as a whole. (Where the system caps it, it is still above our limit.)
        set_send_room(fd, MESSAGE_BYTES_MAX as libc::c_int);
    }
    let [ours, theirs] = pair;
    Ok((ours, theirs))
}

/// Whether this is an end of such a pair.
pub fn is_seqpacket(fd: &impl AsFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut size = size_of_val(&kind) as libc::socklen_t;
    // SAFETY: `kind` is valid for writes of `size` bytes.
    let done = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &mut size,
        )
    };
    done == 0 && kind == libc::SOCK_SEQPACKET
}

/// A message as it travels.
#[derive(Clone, Debug, PartialEq)]
pub struct Datagram {
    bytes: Vec<u8>,
    fds: Fds,
}

/// A message's datagram.
///
/// # Errors
/// `InvalidInput` where it is over [`MESSAGE_BYTES_MAX`], or has more than [`FDS_MAX`] descriptors.
pub fn encode(message: &(impl Serialize + Carries)) -> io::Result<Datagram> {
    let bytes = serde_json::to_vec(message)?;
    let fds = message.fds();
    let too_large = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if bytes.len() > MESSAGE_BYTES_MAX {
        let size = bytes.len();
        return too_large(format!(
            "a message of {size} bytes between host and keeper is over the limit of \
             {MESSAGE_BYTES_MAX}: make the engine's environment smaller"
        ));
    }
    if fds.as_slice().len() > FDS_MAX {
        return too_large(format!(
            "a message between host and keeper has more than {FDS_MAX} descriptors"
        ));
    }
    Ok(Datagram { bytes, fds })
}

/// Room for the descriptors of one message, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// `CMSG_SPACE` of [`FDS_MAX`] descriptors, and a little more.
const CONTROL_BYTES: usize = 64 + FDS_MAX * size_of::<libc::c_int>();

/// Sends one datagram without waiting (`WouldBlock`).
pub fn send(socket: &impl AsFd, datagram: &Datagram) -> io::Result<()> {
    let mut part = libc::iovec {
        iov_base: datagram.bytes.as_ptr().cast_mut().cast(),
        iov_len: datagram.bytes.len(),
    };
    let mut control = Control([0; CONTROL_BYTES]);
    // SAFETY: a message header of zeros is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let fds: Vec<libc::c_int> = (datagram.fds.as_slice().iter())
        .map(AsRawFd::as_raw_fd)
        .collect();
    if !fds.is_empty() {
        let bytes = size_of_val(fds.as_slice());
        message.msg_control = (&raw mut control).cast();
        // SAFETY: `encode` has checked that they fit; the macros compute sizes and addresses within `control`.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes as u32) as _;
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(bytes as u32) as _;
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(head), bytes);
        }
    }
    // MSG_NOSIGNAL: the other end's death is an error here, not our own death by SIGPIPE.
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: all that the header points to lives until the call returns.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, flags) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// One received datagram.
#[derive(Debug)]
pub enum Received<M> {
    /// A message.
    Message(M),
    /// Something unreadable, with the reason; the next one may be good.
    Garbage(String),
    /// The other end is gone.
    Closed,
}

/// Receives one datagram without waiting (`WouldBlock`). `buffer` has [`MESSAGE_BYTES_MAX`] bytes.
pub fn receive<M: DeserializeOwned + Carries>(
    socket: &impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Received<M>> {
    let mut control = Control([0; CONTROL_BYTES]);
    let (length, fds) = loop {
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: a message header of zeros is an empty one.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = CONTROL_BYTES as _;
        // MSG_TRUNC: tells the full length of a datagram that does not fit.
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: all that the header points to is exclusively ours for the call.
        let got = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
        match usize::try_from(got) {
            Ok(length) => break (length, descriptors(&message)),
            Err(_) => match io::Error::last_os_error() {
                // Told once, before what is still in the queue: the other end went away without having read
                // everything. What it had sent can still be read.
                error if error.kind() == io::ErrorKind::ConnectionReset => continue,
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        }
    };
    Ok(match buffer.get(..length) {
        Some([]) => Received::Closed,
        Some(bytes) => match serde_json::from_slice::<M>(bytes) {
            Ok(mut message) => {
                message.set_fds(Fds::new(fds));
                Received::Message(message)
            }
            Err(error) => Received::Garbage(format!("a message that is not understood: {error}")),
        },
        None => Received::Garbage(format!("a message of {length} bytes, over the limit")),
    })
}

/// The descriptors that came with a message: ours from now on, whatever becomes of it.
fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the control buffer, which lives as long as `message`; the macros stay within the
    // length that it gave. Each descriptor is new, and nobody else's.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(message);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*head).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(head).cast::<libc::c_int>();
                for at in 0..bytes / size_of::<libc::c_int>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                }
            }
            head = libc::CMSG_NXTHDR(message, head);
        }
    }
    fds
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{FromKeeper, ToKeeper};
    use super::*;

    #[test]
    fn the_largest_message_passes_and_one_byte_more_is_refused() {
        let (left, right) = pair().unwrap();
        let of_text = |bytes: usize| FromKeeper::SpawnFailed {
            id: String::new(),
            error: "x".repeat(bytes),
        };
        let overhead = encode(&of_text(0)).unwrap().bytes.len();
        let largest = of_text(MESSAGE_BYTES_MAX - overhead);
        send(&left, &encode(&largest).unwrap()).unwrap();
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        match receive::<FromKeeper>(&right, &mut buffer).unwrap() {
            Received::Message(message) => assert!(message == largest),
            other => panic!("{other:?}"),
        }
        let error = encode(&of_text(MESSAGE_BYTES_MAX - overhead + 1)).unwrap_err();
        assert!(error.to_string().contains("over the limit"), "{error}");
    }

    #[test]
    fn what_was_sent_before_a_death_with_unread_messages_is_still_received() {
        let (left, right) = pair().unwrap();
        let mut buffer = vec![0; 64];
        send(&right, &encode(&ToKeeper::Bye).unwrap()).unwrap();
        send(&left, &encode(&ToKeeper::Bye).unwrap()).unwrap();
        drop(left);
        let mut next = || receive::<ToKeeper>(&right, &mut buffer).unwrap();
        assert!(matches!(next(), Received::Message(ToKeeper::Bye)));
        assert!(matches!(next(), Received::Closed));
    }

    #[test]
    fn garbage_does_not_hide_what_follows_and_the_end_is_seen() {
        let (left, right) = pair().unwrap();
        assert!(is_seqpacket(&left));
        let mut buffer = vec![0; 64];
        let raw = |bytes: &[u8]| Datagram {
            bytes: bytes.to_vec(),
            fds: Fds::default(),
        };
        send(&left, &raw(b"\xff{")).unwrap();
        send(&left, &raw(&[b' '; 65])).unwrap();
        send(&left, &encode(&ToKeeper::Bye).unwrap()).unwrap();
        drop(left);
        let mut next = || receive::<ToKeeper>(&right, &mut buffer).unwrap();
        assert!(matches!(next(), Received::Garbage(_)));
        assert!(matches!(next(), Received::Garbage(_)));
        assert!(matches!(next(), Received::Message(ToKeeper::Bye)));
        assert!(matches!(next(), Received::Closed));
    }

    #[test]
    fn descriptors_travel_with_their_message() {
        use std::io::{Read as _, Write as _};
        use std::os::unix::net::UnixStream;

        let (left, right) = pair().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let hold = |name: &str, fds: Vec<OwnedFd>| ToKeeper::Hold {
            stream: super::super::protocol::Stream {
                process: "engine-1".into(),
                name: name.into(),
            },
            fds: Fds::new(fds),
        };
        send(&left, &encode(&hold("iopub", vec![far.into()])).unwrap()).unwrap();
        send(&left, &encode(&ToKeeper::TakeHeld).unwrap()).unwrap();
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        let mut next = || receive::<ToKeeper>(&right, &mut buffer).unwrap();
        let Received::Message(ToKeeper::Hold { fds, .. }) = next() else {
            panic!("the stream first")
        };
        assert!(matches!(next(), Received::Message(ToKeeper::TakeHeld)));
        let [fd] = fds.as_slice() else {
            panic!("{fds:?}")
        };
        let mut came = UnixStream::from(fd.try_clone().unwrap());
        drop(fds);
        came.write_all(b"here").unwrap();
        drop(came);
        let mut text = String::new();
        near.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here", "the last descriptor was closed");
        let many = (0..=FDS_MAX).map(|_| near.try_clone().unwrap().into());
        assert!(encode(&hold("iopub", many.collect())).is_err());
    }
}
