//! farside: "tmux for Jupyter kernels".
//!
//! Three processes (docs/architecture.md has the picture):
//! launcher ([`launcher`]) <-- [`link`] --> host ([`host`]) <-- ZMTP --> engine, with the keeper
//! ([`keeper`]) above host and engine.
//!
//! The dependency rule: `cli -> launcher, host -> link, journal, session -> wire`, never the other way.
//! [`wire`], [`session`] and [`journal::record`] are pure: no runtime, no files, no clock.

pub mod cli;
pub mod config;
pub mod duration;
pub mod host;
pub mod journal;
pub mod keeper;
pub mod kernelspec;
pub mod launcher;
pub mod link;
pub mod logging;
pub mod process;
pub mod session;
pub mod settings;
pub mod spool;
pub mod state_dir;
pub mod transport;
pub mod unix_stream;
pub mod wire;
