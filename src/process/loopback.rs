//! Who is at the other end of a TCP connection within this machine.

use std::fs::File;
use std::io::BufReader;
use std::net::{IpAddr, SocketAddr};

/// The user whose socket `peer` is, of a connection over loopback that has `local` at our end: as the system's tables of
/// sockets have it (proc(5), /proc/net/tcp). `None`: over a network, or nobody can tell (another namespace of networks or users).
pub fn tcp_peer_uid(local: SocketAddr, peer: SocketAddr) -> Option<u32> {
    if !peer.ip().to_canonical().is_loopback() {
        return None;
    }
    // A socket for IPv6 can be at the other end of an address of IPv4.
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| {
            let mapped = table.ends_with('6');
            uid_of(
                BufReader::new(File::open(table).ok()?),
                &in_table(peer, mapped),
                &in_table(local, mapped),
            )
        })
        .filter(|&uid| uid != UNMAPPED || has_all_users())
}

/// Stands for every user that has no name in our user namespace (/proc/sys/kernel/overflowuid), beside its own one.
const UNMAPPED: u32 = 65534;

/// Whether our user namespace (user_namespaces(7)) names every user: a container's does not.
fn has_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// That of the line with these two addresses.
fn uid_of(table: impl std::io::BufRead, from: &str, to: &str) -> Option<u32> {
    table.lines().map_while(Result::ok).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let is_it = fields.next() == Some(from) && fields.next() == Some(to);
        is_it.then(|| fields.nth(4)?.parse().ok()).flatten()
    })
}

/// As the tables have it: words of four bytes, each as the number that it is on this machine.
fn in_table(address: SocketAddr, mapped: bool) -> String {
    let bytes = match (address.ip().to_canonical(), mapped) {
        (IpAddr::V4(ip), false) => ip.octets().to_vec(),
        (IpAddr::V4(ip), true) => ip.to_ipv6_mapped().octets().to_vec(),
        (IpAddr::V6(ip), _) => ip.octets().to_vec(),
    };
    let words = bytes.chunks_exact(4).map(|word| {
        let number = word.try_into().map_or(0, u32::from_ne_bytes);
        format!("{number:08X}")
    });
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::process::effective_uid;

    fn uid_at(listener: &TcpListener, to: SocketAddr) -> (Option<u32>, TcpStream) {
        let client = TcpStream::connect(to).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        (tcp_peer_uid(accepted.local_addr().unwrap(), peer), client)
    }

    #[test]
    fn the_other_end_of_a_connection_is_ours() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (uid, client) = uid_at(&listener, listener.local_addr().unwrap());
        assert_eq!(uid, Some(effective_uid()));
        let far = SocketAddr::from(([192, 0, 2, 1], 1));
        assert_eq!(tcp_peer_uid(client.local_addr().unwrap(), far), None);
        // Where there is IPv6.
        let Ok(listener) = TcpListener::bind("[::1]:0") else {
            return;
        };
        let (uid, _client) = uid_at(&listener, listener.local_addr().unwrap());
        assert_eq!(uid, Some(effective_uid()));
    }

    #[test]
    fn the_line_of_both_addresses_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     \x20 0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1\n\
                     \x20 1: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000 65534        0 2\n";
        let uid = |from, to| uid_of(table.as_bytes(), from, to);
        assert_eq!(uid("0100007F:D431", "0100007F:1F90"), Some(65534));
        assert_eq!(uid("0100007F:1F90", "0100007F:D431"), None);
        assert_eq!(uid_of("no table".as_bytes(), "a", "b"), None);
    }
}
