//! PURE. The session: what happens on each event, with time and ids passed in.
//!
//! [`core`] is the state machine, [`state`] what it remembers (a fold over the journal's records), [`view`] what one
//! client sees of the records, [`outputs`] what a replay shows, [`magic`] the commands of `%farside`.

mod adjusting;
mod adoption;
mod attach;
pub mod clock;
mod continuity;
pub mod core;
mod engine;
pub mod event;
pub mod ids;
pub mod lifetime;
pub mod magic;
mod notices;
pub mod outputs;
mod requests;
mod retirement;
pub mod state;
pub mod subshells;
mod telling;
mod text;
pub mod turn;
pub mod usage;
pub mod view;
mod waiting;

pub(crate) use engine::error_reply;
