//! Fresh message ids without asking the world: a nonce passed in, and a counter.

/// Makes the msg_ids of the messages farside itself sends.
#[derive(Debug)]
pub struct Ids {
    nonce: String,
    next: u64,
}

impl Ids {
    /// `nonce` must be unique to this host process: ids of a later host must differ.
    pub fn new(nonce: String) -> Self {
        Self { nonce, next: 0 }
    }

    /// An id that no other message has.
    pub fn fresh(&mut self) -> String {
        self.next += 1;
        format!("{}_{}", self.nonce, self.next)
    }
}
