//! The durable record of a session: append-only segments of checksummed records, and beside them an index in
//! SQLite that can always be rebuilt. Knows nothing of sockets, the engine or the link. docs/journal.md has the
//! format.
//!
//! [`record`] and [`codec`] are pure. [`Writer`] is the one process that appends; any number of [`Reader`]s, in
//! any process, follow it. A torn tail is cut, a damaged record is skipped and shown as a [`Gap`]; neither is
//! ever an error that stops a session.

pub mod codec;
pub mod digest;
mod execution_rows;
pub mod index;
pub mod reader;
pub mod record;
pub mod recovery;
pub mod rewrite;
mod scan;
pub mod segments;
mod sql;
mod unkept;
pub mod writer;

pub use codec::Kind;
pub use execution_rows::{ExecutionInfo, Filter, Places, Selector, SessionRow};
pub use index::{Index, IndexError, View, remove as remove_index};
pub use reader::{Gap, Item, Outputs, Reader};
pub use rewrite::{Prepared, Rewrite};
pub use scan::{Scanned, SegmentScan as Segment, Step};
pub use segments::Position;
pub use writer::{Recovered, RecoveredRecord, Writer, WriterOptions};
