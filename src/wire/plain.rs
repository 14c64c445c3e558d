//! PURE. Reads headers that are one flat object of strings without escapes, as those of all known engines and
//! frontends are, in one pass. Refuses to judge: whatever is not so plain is left to serde, which reads every header.
//!
//! A header is looked at several times on a message's way (who does what with it is told by it), so in a flood this is
//! a good part of what a message costs.
//!
//! Invariant: what it gives is what serde gives (a property below).

use std::borrow::Cow;
use std::ops::Range;

use super::message::Header;

/// The header, or `None`: it is not so plain, or not right.
pub(super) fn header(json: &[u8]) -> Option<Header<'_>> {
    let (mut msg_id, mut msg_type, mut session_id, mut subshell_id) = (None, None, None, None);
    fields(json, |name, value| {
        let known = match name {
            b"msg_id" => &mut msg_id,
            b"msg_type" => &mut msg_type,
            b"session" => &mut session_id,
            b"subshell_id" => &mut subshell_id,
            _ => return Some(()),
        };
        // Twice is an error, and so is another type: serde has the words for it. (A null subshell_id it takes, too.)
        let Value::Text(range) = value else {
            return None;
        };
        let text = std::str::from_utf8(&json[range]).ok()?;
        known.replace(Cow::Borrowed(text)).is_none().then_some(())
    })?;
    Some(Header {
        msg_id: msg_id?,
        msg_type: msg_type?,
        session_id: session_id.unwrap_or_default(),
        subshell_id,
    })
}

/// Where the value of the one `session` field is, quotes and all; `None` also where there is none.
pub(super) fn session(json: &[u8]) -> Option<Range<usize>> {
    // serde looks at all of it.
    std::str::from_utf8(json).ok()?;
    let mut session = None;
    fields(json, |name, value| match (name, value) {
        (b"session", Value::Text(range)) => {
            let quoted = range.start - 1..range.end + 1;
            session.replace(quoted).is_none().then_some(())
        }
        (b"session", Value::Word) => None,
        _ => Some(()),
    })?;
    session
}

enum Value {
    /// A string: where its text is.
    Text(Range<usize>),
    /// null, true or false.
    Word,
}

/// Shows each field to `each`, until it gives `None`.
fn fields<'a>(json: &'a [u8], mut each: impl FnMut(&'a [u8], Value) -> Option<()>) -> Option<()> {
    let mut at = expect(json, 0, b'{')?;
    loop {
        let name = expect(json, at, b'"')?;
        let name = name..text_end(json, name)?;
        let name_text = &json[name.clone()];
        // serde looks whether names are UTF-8.
        if !name_text.is_ascii() {
            return None;
        }
        at = expect(json, name.end + 1, b':')?;
        at = skip_space(json, at);
        let value = match json.get(at)? {
            b'"' => {
                let range = at + 1..text_end(json, at + 1)?;
                at = range.end + 1;
                Value::Text(range)
            }
            _ => {
                let rest = &json[at..];
                let word = [&b"null"[..], b"true", b"false"]
                    .into_iter()
                    .find(|word| rest.starts_with(word))?;
                at += word.len();
                Value::Word
            }
        };
        each(name_text, value)?;
        at = skip_space(json, at);
        match json.get(at)? {
            b',' => at += 1,
            b'}' => return (skip_space(json, at + 1) == json.len()).then_some(()),
            _ => return None,
        }
    }
}

/// Behind `byte`, which comes next but for white space.
fn expect(json: &[u8], at: usize, byte: u8) -> Option<usize> {
    let at = skip_space(json, at);
    (*json.get(at)? == byte).then_some(at + 1)
}

fn skip_space(json: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\t' | b'\r') = json.get(at) {
        at += 1;
    }
    at
}

/// Where the quote is that ends the text from `at` on; `None` where something else is to be thought of before.
fn text_end(json: &[u8], mut at: usize) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    /// The high bit of each byte that is zero (and maybe of bytes above the lowest such one).
    const fn zeros(word: u64) -> u64 {
        word.wrapping_sub(ONES) & !word & (ONES << 7)
    }
    // Eight bytes at a time until there is a quote, a backslash or a control character.
    while let Some(chunk) = json.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let quote = zeros(word ^ (ONES * b'"' as u64));
        let backslash = zeros(word ^ (ONES * b'\\' as u64));
        let control = word.wrapping_sub(ONES * 0x20) & !word & (ONES << 7);
        let found = quote | backslash | control;
        if found != 0 {
            at += found.trailing_zeros() as usize / 8;
            return (json[at] == b'"').then_some(at);
        }
        at += 8;
    }
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => return Some(at),
            b'\\' | 0..0x20 => return None,
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IPYKERNELS: &str = r#"{"msg_id": "f9-db55_1_12", "msg_type": "stream", "username": "me", "session": "f9-db55", "date": "2026-11-22T08:31:49.486375Z", "version": "5.4"}"#;

    fn with_serde(json: &[u8]) -> Option<Header<'_>> {
        serde_json::from_slice(json).ok()
    }

    #[test]
    fn ipykernels_headers_are_plain() {
        let header = header(IPYKERNELS.as_bytes());
        assert!(header.is_some());
        assert_eq!(header, with_serde(IPYKERNELS.as_bytes()));
        let session = session(IPYKERNELS.as_bytes()).unwrap();
        assert_eq!(&IPYKERNELS[session], "\"f9-db55\"");
        let compact = IPYKERNELS.replace(": ", ":").replace(", ", ",");
        assert!(super::header(compact.as_bytes()).is_some());
    }

    #[test]
    fn what_is_not_plain_is_left_to_serde() {
        for json in [
            "",
            "{",
            "{}",
            "[]",
            "nul",
            r#"{"msg_id":"a"}"#,
            r#"{"msg_id":"a","msg_type":1}"#,
            r#"{"msg_id":"a","msg_type":"b","msg_id":"c"}"#,
            r#"{"msg_id":"a","msg_type":"b"} x"#,
            r#"{"msg_id":"a","msg_type":"b",}"#,
            r#"{"msg_id":"a\n","msg_type":"b"}"#,
            r#"{"msg_id":"a","msg_type":"b","x":1}"#,
            r#"{"msg_id":"a","msg_type":"b","subshell_id":null}"#,
            "{\"msg_id\":\"a\u{1}\",\"msg_type\":\"b\"}",
            r#"{"msg_id":"a","msg_type":"b","x":nulL}"#,
        ] {
            assert!(header(json.as_bytes()).is_none(), "{json}");
        }
        assert!(session(br#"{"session":"a","session":"a"}"#).is_none());
        assert!(session(br#"{"session":null}"#).is_none());
    }

    /// Headers and near misses: pieces of JSON in any order, mostly one that makes sense.
    fn json() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![
            "[a-z0-9_ -]{0,40}",
            ".{0,12}",
            Just("a\\\"b".to_owned()),
            Just("\\u0000".to_owned()),
            Just("\u{7f}ä\u{1}".to_owned())
        ];
        let name = prop_oneof![4 => Just("msg_id".to_owned()), 4 => Just("msg_type".to_owned()), 3 => Just("session".to_owned()), 1 => Just("subshell_id".to_owned()), 1 => Just("x".to_owned()), 1 => text.clone()];
        let value = prop_oneof![8 => text.prop_map(|text| format!("\"{text}\"")), 1 => Just("null".to_owned()), 1 => Just("true".to_owned()), 1 => Just("1.5e3".to_owned()), 1 => Just("[{}, \"a\"]".to_owned()), 1 => Just("nulll".to_owned())];
        let space = prop_oneof![6 => Just(""), 1 => Just(" "), 1 => Just("\n\t\r ")];
        let field = (name, value, space).prop_map(|(name, value, space)| {
            format!("{space}\"{name}\"{space}:{space}{value}{space}")
        });
        (
            proptest::collection::vec(field, 0..7),
            prop_oneof![8 => Just(""), 1 => Just(" "), 1 => Just(","), 1 => Just("\u{b}")],
        )
            .prop_map(|(fields, end)| format!("{{{}}}{end}", fields.join(",")).into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn it_reads_what_serde_reads(
            json in json(), at in any::<prop::sample::Index>(), with in proptest::option::of(any::<u8>()),
        ) {
            let mut json = json;
            if let Some(with) = with {
                let at = at.index(json.len());
                json[at] = with;
            }
            if let Some(plain) = header(&json) {
                prop_assert_eq!(Some(plain), with_serde(&json));
            }
            if let Some(range) = session(&json) {
                let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json).unwrap();
                let here: serde_json::Value = serde_json::from_slice(&json[range]).unwrap();
                prop_assert_eq!(&object["session"], &here);
            }
        }

        #[test]
        fn any_bytes_do_no_harm(json in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = (header(&json), session(&json));
        }
    }
}
