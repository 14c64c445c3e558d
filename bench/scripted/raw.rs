//! A client of the link that comes back with nothing seen, and so gets all that the session's journal has for
//! subscribers, uncompacted. Prints one line of JSON: seconds to the first message and to the last, messages, bytes.

use std::time::Instant;

use farside::journal::record::{Body, ClientId};
use farside::link::{Frame, Hello, LinkReader, LinkWriter, Resume, VERSION};
use serde_json::json;
use tokio::net::UnixStream;

use super::Result;

/// Reads what lies behind record `from`, until so many messages have come.
pub async fn run(socket: &str, from: u64, count: u64) -> Result<()> {
    let begun = Instant::now();
    let (reader, writer) = UnixStream::connect(socket).await?.into_split();
    let (mut reader, mut writer) = (LinkReader::new(reader), LinkWriter::new(writer));
    let resume = Resume {
        seq: from,
        part: u32::MAX,
        mirrors: Vec::new(),
    };
    let hello = Hello {
        version: VERSION,
        client: ClientId::new_v4(),
        kind: "bench".into(),
        pid: std::process::id(),
        parent_pid: None,
        claim: false,
        connection_file: None,
        replies: false,
        iopub: true,
        resume: Some(resume),
    };
    writer.send(&Frame::Hello(hello)).await?;
    let Some(Frame::Welcome(welcome)) = reader.next().await? else {
        return Err("no welcome".into());
    };
    let (mut first, mut records, mut bytes) = (None, 0, 0);
    while records < count {
        let Some(frame) = reader.next().await? else {
            return Err("the host closed the link".into());
        };
        if let Frame::Record { record, .. } = frame
            && let Body::Iopub { message, .. } = &record.body
        {
            first.get_or_insert_with(|| begun.elapsed().as_secs_f64());
            records += 1;
            bytes += message.size_bytes();
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let last = welcome.seq;
    println!(
        "{}",
        json!({ "first": first, "seconds": seconds, "records": records, "bytes": bytes, "last": last })
    );
    Ok(())
}
