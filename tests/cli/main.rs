//! The command line as a person uses it: the real binary, in an environment of its own.

mod install;
mod kernelspecs;
mod link;
mod listing;
mod logs;
mod over;
mod real;
mod sandbox;
mod usage;
