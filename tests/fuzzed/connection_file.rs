//! Connection files. Input: a file.

use farside::wire::{ConnectionFile, Endpoint, Socket};
use serde_json::Value;

const SECRET: &str = "no word that is ever printed";

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(file) = ConnectionFile::parse(text) {
        let again = ConnectionFile::parse(&file.to_text()).expect("we wrote it");
        // A floating-point number may change in its last digit when it is written again.
        if !file.other.values().any(has_floats) {
            assert_eq!(again, file);
        }
        for socket in Socket::ALL {
            match file.endpoint(socket) {
                Endpoint::Tcp { host, port } => assert!(port > 0 && host == file.ip),
                Endpoint::Ipc { path } => assert!(path.starts_with(&file.ip)),
            }
        }
    }
    check_secret(text);
}

/// Whatever else stands in the file, its key is in no error and in no debug output.
fn check_secret(text: &str) {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(text) else {
        return;
    };
    for key in [Value::from(SECRET), serde_json::json!([SECRET])] {
        fields.insert("key".into(), key);
        let said = match ConnectionFile::parse(&Value::Object(fields.clone()).to_string()) {
            Ok(file) => {
                assert_eq!(file.key_text, SECRET);
                format!("{file:?}")
            }
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!said.contains(SECRET), "{said}");
    }
}

fn has_floats(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_floats),
        Value::Object(fields) => fields.values().any(has_floats),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}
