//! The durable record of a session: append-only segments of checksummed records, and beside them an index in
//! SQLite that can always be rebuilt. Knows nothing of sockets, the engine or the link. docs/journal.md has the
//! format.

pub mod record;
