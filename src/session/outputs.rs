//! Output compaction: the messages a replay sends for one execution.
