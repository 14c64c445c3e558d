//! The launcher's main stream: requests to the host, replies from it, over any number of broken links.

use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::kernel_info::Underway;
use super::presence::Presence;
use super::reach::{self, ReachError, Stream};
use crate::journal::record::{Body, ClientId, Record};
use crate::link::{FRONTENDS_VERSION, Frame, Hello, LinkError, Resume};
use crate::state_dir::Session;
use crate::wire::{Channel, Message};

/// A request on its way to the host, with its share of the bound on what waits.
pub struct Outgoing {
    /// Where it came in.
    pub channel: Channel,
    /// The request, identities first.
    pub message: Message,
    /// Given back once the host has it in the journal.
    pub share: Share,
}

impl Outgoing {
    /// Whether a person wants something done.
    pub fn is_execution(&self) -> bool {
        (self.message.header()).is_ok_and(|header| header.msg_type == "execute_request")
    }
}

/// What a request holds while it is on its way.
pub struct Share {
    pub(super) _room: OwnedSemaphorePermit,
    pub(super) _underway: Option<Underway>,
}

/// What comes from the host.
pub enum Heard {
    /// To a frontend.
    Reply(Channel, Message),
    /// How it answers kernel_info; `None` also where the link is broken.
    KernelInfo(Option<serde_json::Value>),
}

/// Why the main stream ended for good.
pub enum LinkEnd {
    /// The session has ended.
    Ended {
        /// Why.
        reason: String,
        /// Requests that its host did not take.
        unsent: Vec<Outgoing>,
    },
    /// The host cannot be reached any more.
    Lost(ReachError),
}

/// See the module.
pub struct HostLink {
    session: Rc<Session>,
    hello: Hello,
    number: u64,
    unacknowledged: VecDeque<(u64, Record, Share)>,
    last: Resume,
}

impl HostLink {
    /// Goes on with the stream that the session was claimed with.
    pub fn new(session: Rc<Session>, hello: Hello, stream: &Stream) -> Self {
        let last = Resume {
            seq: stream.welcome.seq,
            part: u32::MAX,
            mirrors: Vec::new(),
        };
        Self {
            session,
            hello,
            number: 0,
            unacknowledged: VecDeque::new(),
            last,
        }
    }

    /// Runs until the session ends; `waiting` is asked first, `hear` gets what comes, the host hears of `presence`.
    pub async fn run(
        mut self,
        mut stream: Stream,
        waiting: Vec<Outgoing>,
        requests: &mut mpsc::UnboundedReceiver<Outgoing>,
        mut presence: Presence<'_>,
        mut hear: impl FnMut(Heard),
    ) -> LinkEnd {
        for request in waiting {
            self.push(request, &mut stream);
        }
        loop {
            let served = self.serve(&mut stream, requests, &mut presence, &mut hear);
            let end = served.await;
            hear(Heard::KernelInfo(None));
            match end {
                Ok(reason) => {
                    // Acknowledgements come before the last word: the others are in no journal.
                    let unsent = self.unacknowledged.into_iter().filter_map(unsent).collect();
                    return LinkEnd::Ended { reason, unsent };
                }
                Err(error) => {
                    tracing::warn!(%error, "the link to the host broke; connecting again")
                }
            }
            let hello = Hello {
                resume: Some(self.last.clone()),
                ..self.hello.clone()
            };
            stream = match reach::open(&self.session, &hello).await {
                Ok(stream) => stream,
                // What the host took with its last breath is not known, and nothing is to run twice.
                Err(ReachError::Ended { reason, .. }) => {
                    let unsent = Vec::new();
                    return LinkEnd::Ended { reason, unsent };
                }
                Err(error) => return LinkEnd::Lost(error),
            };
            for (_, record, _) in &self.unacknowledged {
                stream.writer.push_record(1, record);
            }
        }
    }

    /// One stream, to its end. `Ok`: the session's end.
    async fn serve(
        &mut self,
        stream: &mut Stream,
        requests: &mut mpsc::UnboundedReceiver<Outgoing>,
        presence: &mut Presence<'_>,
        hear: &mut impl FnMut(Heard),
    ) -> Result<String, LinkError> {
        let tells = stream.welcome.version >= FRONTENDS_VERSION;
        if tells {
            stream.writer.push(&presence.tell());
        }
        stream.writer.flush().await?;
        loop {
            tokio::select! {
                request = requests.recv() => {
                    let Some(request) = request else { return std::future::pending().await };
                    self.push(request, stream);
                    while let Ok(more) = requests.try_recv() {
                        self.push(more, stream);
                    }
                    stream.writer.flush().await?;
                }
                () = presence.has_changed(), if tells => {
                    stream.writer.send(&presence.tell()).await?;
                }
                frame = stream.reader.next() => match frame? {
                    Some(Frame::Record { part, record }) => self.on_record(part, record, hear),
                    Some(Frame::KernelInfo { content }) => hear(Heard::KernelInfo(content)),
                    Some(Frame::Ack { number }) => self.on_ack(number),
                    Some(Frame::Ended { reason }) => return Ok(reason),
                    Some(other) => tracing::warn!(?other, "the host said something unexpected; ignored"),
                    None => return Err(LinkError::Torn),
                },
            }
        }
    }

    fn push(&mut self, request: Outgoing, stream: &mut Stream) {
        let Outgoing {
            channel,
            message,
            share,
        } = request;
        self.number += 1;
        let client: ClientId = self.hello.client;
        let body = Body::Request {
            channel,
            client,
            execution: 0,
            message,
        };
        let record = Record {
            seq: self.number,
            time: 0,
            heard: 0,
            body,
        };
        stream.writer.push_record(0, &record);
        self.unacknowledged.push_back((self.number, record, share));
    }

    fn on_record(&mut self, part: u32, record: Record, hear: &mut impl FnMut(Heard)) {
        self.last.seq = record.seq;
        self.last.part = part;
        if let Body::Reply {
            channel, message, ..
        } = record.body
        {
            hear(Heard::Reply(channel, message));
        }
    }

    fn on_ack(&mut self, number: u64) {
        while self
            .unacknowledged
            .front()
            .is_some_and(|(first, ..)| *first <= number)
        {
            self.unacknowledged.pop_front();
        }
    }
}

fn unsent((_, record, share): (u64, Record, Share)) -> Option<Outgoing> {
    match record.body {
        Body::Request {
            channel, message, ..
        } => Some(Outgoing {
            channel,
            message,
            share,
        }),
        Body::Reply { .. } | Body::Iopub { .. } | Body::Note(_) => None,
    }
}
