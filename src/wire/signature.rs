//! PURE. Message signatures, and the history that recognises a message sent twice.
//!
//! Source: Jupyter messaging protocol, "The wire protocol": the signature is the lower-case hex HMAC of header,
//! parent_header, metadata and content; an empty key means that nothing is signed.

use std::collections::{HashSet, VecDeque};
use std::fmt;

use bytes::Bytes;
use hmac::digest::array::Array;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Signatures remembered by a [`ReplayGuard`], as many as jupyter_client's `digest_history_size`.
pub const REPLAY_HISTORY_MAX: usize = 1 << 16;

const DIGEST_BYTES: usize = 32;
const HEX_BYTES: usize = 2 * DIGEST_BYTES;

/// The key of a connection file, for hmac-sha256. Its text is never printed.
#[derive(Clone)]
pub struct Key(Option<Hmac<Sha256>>);

impl Key {
    /// The key with this text. An empty one signs nothing and accepts everything.
    pub fn new(text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        // HMAC takes keys of any length, so this is `None` for the empty key only.
        let mac = (!text.is_empty())
            .then(|| Hmac::new_from_slice(text).ok())
            .flatten();
        Self(mac)
    }

    /// The key that signs nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether messages are signed.
    pub fn signs(&self) -> bool {
        self.0.is_some()
    }

    /// The signature of header, parent_header, metadata and content; empty for an empty key.
    pub fn sign(&self, dicts: [&[u8]; 4]) -> Bytes {
        let mut signing = self.signing();
        for dict in dicts {
            signing.update(dict);
        }
        signing.finish()
    }

    /// A signature to be made piece by piece.
    pub fn signing(&self) -> Signing {
        Signing(self.0.clone())
    }

    /// Whether `signature` is that of these dictionaries; takes the same time wherever it differs. Only lower-case
    /// hex is a signature, as in jupyter_client: one message has one signature, or replays would go unnoticed.
    pub fn verify(&self, dicts: [&[u8]; 4], signature: &[u8]) -> bool {
        let Some(mac) = &self.0 else { return true };
        let Some(claimed) = parse_hex(signature) else {
            return false;
        };
        digest(mac, dicts).verify(&Array::from(claimed)).is_ok()
    }
}

/// A signature in the making: of the dictionaries' bytes one after the other, however they are cut.
pub struct Signing(Option<Hmac<Sha256>>);

impl Signing {
    /// What comes next.
    pub fn update(&mut self, bytes: &[u8]) {
        if let Some(mac) = &mut self.0 {
            mac.update(bytes);
        }
    }

    /// The signature, as [`Key::sign`] gives it.
    pub fn finish(self) -> Bytes {
        let Some(mac) = self.0 else {
            return Bytes::new();
        };
        let mut hex = [0; HEX_BYTES];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(mac.finalize().into_bytes()) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        Bytes::copy_from_slice(&hex)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.signs() {
            "Key(hmac-sha256)"
        } else {
            "Key(none)"
        })
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn digest(mac: &Hmac<Sha256>, dicts: [&[u8]; 4]) -> Hmac<Sha256> {
    // The clone holds the state after the key, so the key itself is hashed once a connection.
    let mut mac = mac.clone();
    for dict in dicts {
        mac.update(dict);
    }
    mac
}

fn parse_hex(hex: &[u8]) -> Option<[u8; DIGEST_BYTES]> {
    if hex.len() != HEX_BYTES {
        return None;
    }
    let nibble = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; DIGEST_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

/// Remembers the last [`REPLAY_HISTORY_MAX`] signatures. At the limit the oldest is forgotten (jupyter_client
/// forgets a random tenth).
#[derive(Debug, Default)]
pub struct ReplayGuard {
    /// The first half of each digest: 16 bytes that nobody without the key can choose.
    seen: HashSet<u128>,
    order: VecDeque<u128>,
}

impl ReplayGuard {
    /// Remembers a signature that was found good; `false`: it was seen before, the message is a replay. What is
    /// no signature (an empty one, without a key) is never a replay.
    pub fn is_first(&mut self, signature: &[u8]) -> bool {
        let Some(half) = parse_hex(signature).and_then(|d| d.first_chunk().copied()) else {
            return true;
        };
        let half = u128::from_ne_bytes(half);
        if !self.seen.insert(half) {
            return false;
        }
        self.order.push_back(half);
        if self.order.len() > REPLAY_HISTORY_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DICTS: [&[u8]; 4] = [b"{\"msg_id\":\"1\"}", b"{}", b"{}", b"{\"code\":\"1\"}"];

    #[test]
    fn signs_as_jupyter_client_does() {
        // `Session(key=b"secret").sign([b'{"a": 1}', b"{}", b"{}", b'{"b": 2}'])`
        let signature = Key::new("secret").sign([b"{\"a\": 1}", b"{}", b"{}", b"{\"b\": 2}"]);
        assert_eq!(signature, EXPECTED.as_bytes());
    }

    const EXPECTED: &str = "13bbe54fe145e2ef14192a49db1850ffefdd8e7580d210e9cf32e65acb8c2c95";

    #[test]
    fn refuses_what_is_no_signature() {
        let key = Key::new("secret");
        let good = key.sign(DICTS);
        assert!(key.verify(DICTS, &good));
        let upper = good.to_ascii_uppercase();
        for bad in [
            &b""[..],
            &good[..63],
            &good[..62],
            &upper,
            &[b'g'; 64],
            &[0xff; 64],
        ] {
            assert!(!key.verify(DICTS, bad), "{bad:?}");
        }
        let long = [&good[..], b"0"].concat();
        assert!(!key.verify(DICTS, &long));
        assert!(!Key::new("other").verify(DICTS, &good));
    }

    #[test]
    fn an_empty_key_signs_nothing_and_accepts_everything() {
        let key = Key::new("");
        assert!(key.sign(DICTS).is_empty());
        assert!(key.verify(DICTS, b"") && key.verify(DICTS, b"whatever"));
    }

    #[test]
    fn the_key_is_not_printed() {
        assert_eq!(format!("{:?}", Key::new("hush")), "Key(hmac-sha256)");
    }

    #[test]
    fn a_replay_is_noticed_until_it_is_too_old() {
        let key = Key::new("k");
        let signature = |n: usize| key.sign([n.to_string().as_bytes(), b"", b"", b""]);
        let mut guard = ReplayGuard::default();
        assert!(
            guard.is_first(b"") && guard.is_first(b""),
            "no signature, no replay"
        );
        for n in 0..REPLAY_HISTORY_MAX {
            assert!(guard.is_first(&signature(n)));
        }
        assert!(!guard.is_first(&signature(0)), "still remembered");
        assert!(guard.is_first(&signature(REPLAY_HISTORY_MAX)));
        assert!(guard.is_first(&signature(0)), "the oldest made room");
        assert!(!guard.is_first(&signature(2)));
        assert_eq!(guard.seen.len(), REPLAY_HISTORY_MAX);
        assert_eq!(guard.order.len(), REPLAY_HISTORY_MAX);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_refused(part in 0usize..5, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let key = Key::new("secret");
            let mut parts: Vec<Vec<u8>> = DICTS.iter().map(|d| d.to_vec()).collect();
            parts.push(key.sign(DICTS).to_vec());
            let at = at.index(parts[part].len());
            parts[part][at] ^= 1 << bit;
            let dicts = [&parts[0][..], &parts[1], &parts[2], &parts[3]];
            prop_assert!(!key.verify(dicts, &parts[4]));
        }
    }
}
