//! PURE. The connection file: which sockets a kernel binds, and its key.
//!
//! Owns the file's shape and the addresses that follow from it. Reading and writing files is not its business.
//! Unknown fields are kept.
//!
//! Source: jupyter_client, "Making kernels", "Connection files"; `connect.py` for ipc addresses.

use std::fmt;

use serde_json::{Map, Value};

use super::Key;

/// The five sockets of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Socket {
    Shell,
    Iopub,
    Stdin,
    Control,
    Heartbeat,
}

impl Socket {
    /// All of them, in the order connection files have.
    pub const ALL: [Self; 5] = [
        Self::Shell,
        Self::Iopub,
        Self::Stdin,
        Self::Control,
        Self::Heartbeat,
    ];

    /// The field of a connection file that holds its port.
    pub fn field(self) -> &'static str {
        match self {
            Self::Shell => "shell_port",
            Self::Iopub => "iopub_port",
            Self::Stdin => "stdin_port",
            Self::Control => "control_port",
            Self::Heartbeat => "hb_port",
        }
    }
}

/// Where a socket is bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A TCP port.
    Tcp {
        /// Name or address; `*` is every IPv4 address.
        host: String,
        /// 0 is for tests that take any free port.
        port: u16,
    },
    /// A unix socket.
    Ipc {
        /// Its path.
        path: String,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ipc { path } => write!(f, "ipc://{path}"),
        }
    }
}

/// How the sockets are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Ipc,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Ipc => "ipc",
        }
    }
}

/// A connection file's contents. The key is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionFile {
    /// tcp or ipc.
    pub transport: Transport,
    /// Host name or address for tcp; the beginning of the paths for ipc.
    pub ip: String,
    /// In the order of [`Socket::ALL`]. TCP ports are 1 to 65535; for ipc they are any suffixes of the paths.
    pub ports: [u32; 5],
    /// The key's text; empty: messages are not signed.
    pub key_text: String,
    /// Name of the kernelspec, where given.
    pub kernel_name: Option<String>,
    /// Jupyter Server's name of the session: the notebook's path.
    pub jupyter_session: Option<String>,
    /// Fields that farside does not know.
    pub other: Map<String, Value>,
}

/// Why a text is no connection file.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionFileError {
    /// Not JSON.
    #[error("the connection file is not a JSON object: {0}")]
    NotJson(#[from] serde_json::Error),
    /// A field is not there.
    #[error("the connection file has no field {field:?}")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("the connection file's field {field:?} is {found}; it must be {expected}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
}

const SCHEME: &str = "hmac-sha256";

impl ConnectionFile {
    /// Reads the text of a connection file.
    pub fn parse(text: &str) -> Result<Self, ConnectionFileError> {
        let mut fields: Map<String, Value> = serde_json::from_str(text)?;
        let transport = match text_field(&mut fields, "transport")?.as_deref() {
            None | Some("tcp") => Transport::Tcp,
            Some("ipc") => Transport::Ipc,
            Some(other) => {
                return Err(invalid(
                    "transport",
                    &Value::from(other),
                    "\"tcp\" or \"ipc\"",
                ));
            }
        };
        let ip =
            text_field(&mut fields, "ip")?.ok_or(ConnectionFileError::Missing { field: "ip" })?;
        if ip.is_empty() {
            return Err(invalid(
                "ip",
                &Value::from(""),
                "an address, or for ipc a path",
            ));
        }
        let mut ports = [0; 5];
        for (port, socket) in ports.iter_mut().zip(Socket::ALL) {
            *port = port_field(&mut fields, socket.field(), transport)?;
        }
        let key_text =
            text_field(&mut fields, "key")?.ok_or(ConnectionFileError::Missing { field: "key" })?;
        let scheme = text_field(&mut fields, "signature_scheme")?;
        if let Some(scheme) = scheme
            && scheme != SCHEME
            && !key_text.is_empty()
        {
            return Err(invalid(
                "signature_scheme",
                &Value::from(scheme),
                "\"hmac-sha256\"",
            ));
        }
        Ok(Self {
            transport,
            ip,
            ports,
            key_text,
            kernel_name: text_field(&mut fields, "kernel_name")?,
            jupyter_session: text_field(&mut fields, "jupyter_session")?,
            other: fields,
        })
    }

    /// The text of a connection file, indented as Jupyter has it.
    pub fn to_text(&self) -> String {
        let mut fields = Map::new();
        for (port, socket) in self.ports.iter().zip(Socket::ALL) {
            fields.insert(socket.field().into(), (*port).into());
        }
        fields.insert("ip".into(), self.ip.clone().into());
        fields.insert("key".into(), self.key_text.clone().into());
        fields.insert("transport".into(), self.transport.name().into());
        fields.insert("signature_scheme".into(), SCHEME.into());
        for (name, value) in [
            ("kernel_name", &self.kernel_name),
            ("jupyter_session", &self.jupyter_session),
        ] {
            if let Some(value) = value {
                fields.insert(name.into(), value.clone().into());
            }
        }
        for (name, value) in &self.other {
            fields.insert(name.clone(), value.clone());
        }
        // Display of a Value cannot fail: its keys are strings.
        format!("{:#}\n", Value::Object(fields))
    }

    /// The key, ready to sign with.
    pub fn key(&self) -> Key {
        Key::new(&self.key_text)
    }

    /// Where a socket is to be bound or found.
    pub fn endpoint(&self, socket: Socket) -> Endpoint {
        let port = self.ports[socket as usize];
        match self.transport {
            Transport::Tcp => Endpoint::Tcp {
                host: self.ip.clone(),
                // `parse` took none above; of one set by hand the rest would be cut off.
                port: u16::try_from(port).unwrap_or(u16::MAX),
            },
            Transport::Ipc => Endpoint::Ipc {
                path: format!("{}-{port}", self.ip),
            },
        }
    }
}

impl fmt::Debug for ConnectionFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionFile")
            .field("transport", &self.transport)
            .field("ip", &self.ip)
            .field("ports", &self.ports)
            .field("key", &self.key())
            .field("kernel_name", &self.kernel_name)
            .field("jupyter_session", &self.jupyter_session)
            .finish_non_exhaustive()
    }
}

fn invalid(field: &'static str, found: &Value, expected: &'static str) -> ConnectionFileError {
    ConnectionFileError::Invalid {
        field,
        found: if field == "key" {
            "of another type".into()
        } else {
            found.to_string()
        },
        expected,
    }
}

/// Takes a text field out; `null` counts as absent.
fn text_field(
    fields: &mut Map<String, Value>,
    field: &'static str,
) -> Result<Option<String>, ConnectionFileError> {
    match fields.shift_remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(invalid(field, &other, "a string")),
    }
}

fn port_field(
    fields: &mut Map<String, Value>,
    field: &'static str,
    transport: Transport,
) -> Result<u32, ConnectionFileError> {
    let value = fields
        .shift_remove(field)
        .ok_or(ConnectionFileError::Missing { field })?;
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
    match (transport, number) {
        (Transport::Tcp, Some(port @ 1..=65535)) | (Transport::Ipc, Some(port)) => Ok(port),
        (Transport::Tcp, _) => Err(invalid(field, &value, "a port from 1 to 65535")),
        (Transport::Ipc, None) => Err(invalid(field, &value, "a number that is not negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = r#"{
      "shell_port": 9001, "iopub_port": 9002, "stdin_port": 9003, "control_port": 9004, "hb_port": 9005,
      "ip": "127.0.0.1", "key": "a-key", "transport": "tcp", "signature_scheme": "hmac-sha256",
      "kernel_name": "farside-python3", "jupyter_session": "/home/u/Bericht ä.ipynb", "new_field": [1, {"x": null}]
    }"#;

    fn parse(edit: impl FnOnce(&mut Map<String, Value>)) -> Result<ConnectionFile, String> {
        let mut fields: Map<String, Value> = serde_json::from_str(TCP).unwrap();
        edit(&mut fields);
        ConnectionFile::parse(&Value::Object(fields).to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_tcp_file_is_read_and_written() {
        let file = ConnectionFile::parse(TCP).unwrap();
        assert_eq!(
            file.endpoint(Socket::Shell).to_string(),
            "tcp://127.0.0.1:9001"
        );
        assert_eq!(
            file.endpoint(Socket::Heartbeat).to_string(),
            "tcp://127.0.0.1:9005"
        );
        assert_eq!(
            file.jupyter_session.as_deref(),
            Some("/home/u/Bericht ä.ipynb")
        );
        assert_eq!(file.other["new_field"], serde_json::json!([1, {"x": null}]));
        assert_eq!(ConnectionFile::parse(&file.to_text()).unwrap(), file);
    }

    #[test]
    fn ipc_paths_end_with_the_port() {
        let file = parse(|f| {
            f["transport"] = "ipc".into();
            f["ip"] = "/tmp/kernel-1-ipc".into();
            f["control_port"] = 4.into();
        });
        let endpoint = file.unwrap().endpoint(Socket::Control);
        assert_eq!(
            endpoint,
            Endpoint::Ipc {
                path: "/tmp/kernel-1-ipc-4".into()
            }
        );
    }

    #[test]
    fn errors_name_the_field() {
        for (field, value, says) in [
            (
                "shell_port",
                Value::from(0),
                "\"shell_port\" is 0; it must be a port from 1 to 65535",
            ),
            (
                "hb_port",
                Value::from(65536),
                "\"hb_port\" is 65536; it must be a port",
            ),
            (
                "stdin_port",
                Value::from("9003"),
                "\"stdin_port\" is \"9003\"; it must be a port",
            ),
            ("iopub_port", Value::from(-1), "\"iopub_port\" is -1"),
            (
                "transport",
                Value::from("udp"),
                "\"transport\" is \"udp\"; it must be \"tcp\" or \"ipc\"",
            ),
            (
                "signature_scheme",
                Value::from("hmac-md5"),
                "\"signature_scheme\" is \"hmac-md5\"",
            ),
            ("ip", Value::from(""), "\"ip\" is \"\""),
            (
                "kernel_name",
                Value::from(3),
                "\"kernel_name\" is 3; it must be a string",
            ),
        ] {
            let error = parse(|f| f[field] = value).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        for field in ["shell_port", "ip", "key"] {
            let error = parse(|f| drop(f.remove(field))).unwrap_err();
            assert!(error.contains(&format!("no field {field:?}")), "{error}");
        }
        assert!(
            ConnectionFile::parse("[1]")
                .unwrap_err()
                .to_string()
                .contains("not a JSON object")
        );
    }

    #[test]
    fn without_a_key_any_scheme_will_do() {
        let file = parse(|f| {
            f["key"] = "".into();
            f["signature_scheme"] = "hmac-md5".into();
        });
        assert!(!file.unwrap().key().signs());
    }

    #[test]
    fn the_key_is_not_printed() {
        assert!(!format!("{:?}", ConnectionFile::parse(TCP).unwrap()).contains("a-key"));
        let error = parse(|f| f["key"] = serde_json::json!(["hush"])).unwrap_err();
        assert!(
            error.contains("\"key\"") && !error.contains("hush"),
            "{error}"
        );
    }
}
