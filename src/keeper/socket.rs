//! Datagrams between keeper and host: a SOCK_SEQPACKET pair, one JSON object a datagram, nothing ever waits here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message. Only a `Spawn` comes near it, with an environment of thousands of variables; a larger
/// one is refused with an error on the sender's side.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

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
        // A datagram must fit the sending buffer as a whole. The kernel doubles the number for its own needs,
        // and caps it at net.core.wmem_max (208 KiB unless set otherwise, so still above our limit).
        let bytes = MESSAGE_BYTES_MAX as libc::c_int;
        // SAFETY: the option's value is one int, which outlives the call. A failure leaves the default size.
        unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUF,
                (&raw const bytes).cast(),
                size_of_val(&bytes) as libc::socklen_t,
            )
        };
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

/// A message's datagram.
///
/// # Errors
/// `InvalidInput` where it is over [`MESSAGE_BYTES_MAX`].
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        let size = bytes.len();
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a message of {size} bytes between host and keeper is over the limit of \
                 {MESSAGE_BYTES_MAX}: make the engine's environment smaller"
            ),
        ));
    }
    Ok(bytes)
}

/// Sends one datagram without waiting (`WouldBlock`).
pub fn send(socket: &impl AsFd, datagram: &[u8]) -> io::Result<()> {
    // MSG_NOSIGNAL: the other end's death is an error here, not our own death by SIGPIPE.
    // SAFETY: pointer and length are those of one slice.
    let sent = unsafe {
        libc::send(
            socket.as_fd().as_raw_fd(),
            datagram.as_ptr().cast(),
            datagram.len(),
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
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
pub fn receive<M: DeserializeOwned>(
    socket: &impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Received<M>> {
    let length = loop {
        // MSG_TRUNC: tells the full length of a datagram that does not fit.
        // SAFETY: pointer and length are those of one slice, exclusively borrowed for the call.
        let got = unsafe {
            libc::recv(
                socket.as_fd().as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            )
        };
        match usize::try_from(got) {
            Ok(length) => break length,
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
        Some(bytes) => match serde_json::from_slice(bytes) {
            Ok(message) => Received::Message(message),
            Err(error) => Received::Garbage(format!("a message that is not understood: {error}")),
        },
        None => Received::Garbage(format!("a message of {length} bytes, over the limit")),
    })
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
        let overhead = encode(&of_text(0)).unwrap().len();
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
        send(&left, b"\xff{").unwrap();
        send(&left, &[b' '; 65]).unwrap();
        send(&left, &encode(&ToKeeper::Bye).unwrap()).unwrap();
        drop(left);
        let mut next = || receive::<ToKeeper>(&right, &mut buffer).unwrap();
        assert!(matches!(next(), Received::Garbage(_)));
        assert!(matches!(next(), Received::Garbage(_)));
        assert!(matches!(next(), Received::Message(ToKeeper::Bye)));
        assert!(matches!(next(), Received::Closed));
    }
}
