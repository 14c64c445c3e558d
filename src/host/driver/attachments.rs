//! Who is attached: clients come with a stream, leave, and come back where their link broke.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;

use super::{Driver, Input};
use crate::host::clients::{Admission, Opening, StreamId};
use crate::host::cursor::Cursor;
use crate::journal::record::ClientId;
use crate::link::{Frame, KERNEL_INFO_VERSION, Refusal, Welcome};
use crate::process::{self, PidFd};
use crate::session::event::Event;

/// How long a client whose link broke may take to come back before it counts as gone; its process lives.
const RETURN_TIMEOUT: Duration = Duration::from_secs(5);

/// How soon a process that could not be watched is looked for again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A client as the driver knows it.
pub(super) struct Attached {
    pub(super) pid: u32,
    /// Its stream for replies, while it has one.
    pub(super) main: Option<StreamId>,
    pub(super) claims: bool,
    /// Its main stream is to hear how kernel_info is answered.
    pub(super) wants_kernel_info: bool,
}

impl Driver {
    pub(super) fn on_open(&mut self, opening: Opening) {
        let Opening { hello, answer } = opening;
        let is_new = hello.claim && !self.clients.contains_key(&hello.client);
        let is_late = is_new && self.core.is_being_stopped();
        if self.over || self.core.state().ended.is_some() || is_late {
            let _ = answer.send(Err(Refusal::Ending));
            return;
        }
        if hello.claim && self.is_claimed_by_other(hello.client) {
            let _ = answer.send(Err(Refusal::Attached));
            return;
        }
        // The records up to here must be visible to the cursor's idea of "now".
        self.commit();
        self.next_stream += 1;
        let stream = self.next_stream;
        let (sender, side) = mpsc::unbounded_channel();
        self.streams.insert(stream, sender);
        let facts = &self.session.json;
        let session_id = facts.header_session();
        let tail = self.log.tail();
        let seq = tail.last_seq();
        let cursor = Cursor::new(&hello, &session_id, tail, self.digester.digests());
        let welcome = Welcome {
            version: hello.version,
            session: facts.id.clone(),
            name: facts.name.clone(),
            session_id,
            seq,
            farside: env!("CARGO_PKG_VERSION").to_owned(),
        };
        if hello.replies {
            let wants_kernel_info = hello.version >= KERNEL_INFO_VERSION;
            let known = self.clients.insert(
                hello.client,
                Attached {
                    pid: hello.pid,
                    main: Some(stream),
                    claims: hello.claim,
                    wants_kernel_info,
                },
            );
            if wants_kernel_info && let Some(content) = self.core.kernel_info() {
                let content = Some(content);
                self.tell(stream, Frame::KernelInfo { content });
            }
            if let Some(file) = hello.connection_file {
                self.connection_file = Some(file);
            }
            if known.is_none() {
                self.event(Event::ClientAttached {
                    client: hello.client,
                    kind: hello.kind,
                    pid: hello.pid,
                });
            }
            if let Some(parent) = hello.parent_pid {
                self.watch_parent(hello.client, parent);
            }
        }
        let admission = Admission {
            stream,
            welcome,
            cursor,
            side,
        };
        let _ = answer.send(Ok(admission));
    }

    /// All clients that can use it hear how kernel_info is answered from now on. Before the acknowledgement of what has
    /// changed it: who has that knows the rest.
    pub(super) fn tell_kernel_info(&mut self, content: &Option<Value>) {
        let streams: Vec<StreamId> = (self.clients.values())
            .filter(|attached| attached.wants_kernel_info)
            .filter_map(|attached| attached.main)
            .collect();
        for stream in streams {
            let content = content.clone();
            self.tell(stream, Frame::KernelInfo { content });
        }
    }

    /// Another launcher has the session, and lives.
    fn is_claimed_by_other(&mut self, client: ClientId) -> bool {
        let others: Vec<(ClientId, u32)> = self
            .clients
            .iter()
            .filter(|(other, attached)| **other != client && attached.claims)
            .map(|(other, attached)| (*other, attached.pid))
            .collect();
        for (other, pid) in others {
            if !process::is_gone(pid) {
                return true;
            }
            self.detach(other, "its process is gone");
        }
        false
    }

    fn watch_parent(&mut self, client: ClientId, parent: u32) {
        let inbox = self.inbox.clone();
        tokio::task::spawn_local(async move {
            // A look that fails (no descriptor is left) says nothing of the parent.
            while !process::is_gone(parent) {
                if let Ok(parent) = PidFd::open(parent)
                    && parent.wait().await.is_ok()
                {
                    break;
                }
                tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            }
            inbox.send_now(Input::Orphaned { client });
        });
    }

    pub(super) fn on_closed(&mut self, client: ClientId, stream: StreamId) {
        self.streams.remove(&stream);
        // Nobody waits for their answers.
        self.commands.retain(|_, (its, _)| *its != stream);
        let Some(attached) = self.clients.get_mut(&client) else {
            return;
        };
        if attached.main != Some(stream) {
            return;
        }
        attached.main = None;
        if attached.claims && !process::is_gone(attached.pid) {
            self.expect(client);
        } else {
            self.detach(client, "it left");
        }
    }

    pub(super) fn expect(&mut self, client: ClientId) {
        let inbox = self.inbox.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(RETURN_TIMEOUT).await;
            inbox.send_now(Input::Expected { client });
        });
    }

    pub(super) fn detach(&mut self, client: ClientId, why: &str) {
        self.clients.remove(&client);
        self.event(Event::ClientDetached {
            client,
            why: why.to_owned(),
        });
    }
}
