//! PURE. What a session is, apart from processes, sockets and files: time and ids are arguments, effects are
//! return values.

pub mod outputs;
