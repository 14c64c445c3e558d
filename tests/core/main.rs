//! The session core, driven by scripted frontends and engines: by scenario, and by a seeded simulation.

mod attaching;
mod bench;
mod deaths;
mod requests;
mod retirement;
mod retirement_policy;
mod simulation;
mod subshells;
mod takeover;
