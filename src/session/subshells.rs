//! Subshells (JEP 91) that frontends have created, and what becomes of those that nobody is there for any more.
//!
//! An engine keeps a subshell, which is a thread, until somebody deletes it, and a page that is closed or loaded anew
//! deletes nothing. So farside does: when all who use it have been gone for `subshell_timeout`, and nothing runs in it.
//!
//! Owns: which subshells there are and who uses them ([`Subshells`], a fold over the journal's records), who is there
//! (`Presence`: not in the journal, for launchers tell each host anew), and the core's part in it.
//!
//! Invariants: what runs or waits in a subshell goes on to its end. Who comes back to one that was deleted is served by
//! the main shell, and does not find it missing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::core::{Core, Engine};
use super::lifetime::micros;
use super::state::{Asked, RequestName};
use crate::journal::record::{ClientId, Micros, Note};
use crate::wire::message::for_main_shell;
use crate::wire::{Channel, Header, Message};

/// Subshells that are known. Of a frontend that creates more of them, the rest live as long as the engine.
const KNOWN_MAX: usize = 1024;

/// Deleted ones that are remembered, for those who come back to them. The oldest is forgotten: the engine says then
/// that there is no such subshell.
const DELETED_MAX: usize = 1024;

/// Users of one subshell that are remembered; of more, the one that came first is forgotten.
const USERS_MAX: usize = 64;

/// The subshells of the engine that lives, as the records tell of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Subshells {
    known: BTreeMap<String, Subshell>,
    /// By farside, or gone with the engine that had them; oldest first.
    deleted: VecDeque<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Subshell {
    /// Header of the request that created it, JSON text.
    created: String,
    /// From where it was created and used.
    users: VecDeque<Socket>,
    /// A frontend's request to delete it that has no answer yet.
    deleting: Option<RequestName>,
}

/// A frontend's socket: its client, and its identity there.
type Socket = (ClientId, Vec<u8>);

impl Subshells {
    /// The ids of those that there are.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.known.keys().map(String::as_str)
    }

    /// Whether farside has deleted it, or its engine is gone.
    pub fn is_deleted(&self, id: &str) -> bool {
        self.deleted.iter().any(|deleted| deleted == id)
    }

    /// A frontend's request, or what it says otherwise.
    pub(super) fn apply_request(&mut self, asked: &Asked, header: &Header<'_>, content: &[u8]) {
        self.apply_user(asked, header);
        if header.msg_type == "delete_subshell_request"
            && let Some(id) = subshell_id(content)
            && let Some(subshell) = self.known.get_mut(&id)
        {
            subshell.deleting = Some(RequestName::of(header));
        }
    }

    /// The reply to a request of a frontend's.
    pub(super) fn apply_reply(&mut self, asked: &Asked, request: &Header<'_>, content: &[u8]) {
        // (There are requests that nothing is kept of but the reply.)
        self.apply_user(asked, request);
        match request.msg_type.as_ref() {
            "create_subshell_request" if self.known.len() < KNOWN_MAX => {
                if let Some(id) = subshell_id(content) {
                    let subshell = Subshell {
                        created: asked.header.clone(),
                        users: VecDeque::from([socket(asked)]),
                        deleting: None,
                    };
                    self.known.insert(id, subshell);
                }
            }
            "delete_subshell_request" => {
                let name = Some(RequestName::of(request));
                let is_it = |subshell: &Subshell| subshell.deleting == name;
                if is_ok(content) {
                    self.known.retain(|_, subshell| !is_it(subshell));
                } else if let Some(subshell) = self.known.values_mut().find(|known| is_it(known)) {
                    subshell.deleting = None;
                }
            }
            _ => {}
        }
    }

    fn apply_user(&mut self, asked: &Asked, header: &Header<'_>) {
        if self.known.is_empty() {
            return;
        }
        let socket = socket(asked);
        for (id, subshell) in &mut self.known {
            if subshell.is_used_by(id, header) && !subshell.users.contains(&socket) {
                subshell.users.push_back(socket.clone());
                if subshell.users.len() > USERS_MAX {
                    subshell.users.pop_front();
                }
            }
        }
    }

    /// Farside has deleted it.
    pub(super) fn apply_deleted(&mut self, id: &str) {
        self.known.remove(id);
        self.deleted.push_back(id.to_owned());
        if self.deleted.len() > DELETED_MAX {
            self.deleted.pop_front();
        }
    }

    /// All of them are gone with the engine. Frontends may not have noticed, and go on to name them.
    pub(super) fn apply_engine_gone(&mut self) {
        for id in std::mem::take(&mut self.known).into_keys() {
            self.apply_deleted(&id);
        }
    }
}

impl Subshell {
    /// Whether the sender of a message with this header uses it: it names it, or has created it. (JupyterLab keeps its
    /// `header.session` over lost connections, and comes back with another socket after a server's restart.)
    fn is_used_by(&self, id: &str, header: &Header<'_>) -> bool {
        header.subshell_id.as_deref() == Some(id)
            || Header::read(self.created.as_bytes())
                .is_ok_and(|creator| creator.session_id == header.session_id)
    }
}

/// Who is there.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// The identities of the sockets that are connected to each client. Of one that has not said it (an older
    /// launcher, a command) all count as connected while it is attached.
    connected: BTreeMap<ClientId, BTreeSet<Vec<u8>>>,
    /// By subshell: since when nobody who uses it has been there, on the awake clock.
    gone: BTreeMap<String, Micros>,
    /// Subshells that the engine was asked to delete, by the request's msg_id.
    deletions: BTreeMap<String, String>,
}

impl Presence {
    fn is_deleting(&self, id: &str) -> bool {
        self.deletions.values().any(|deleting| deleting == id)
    }
}

impl Core {
    /// A launcher says whose sockets are connected to it.
    pub(super) fn on_frontends(&mut self, client: ClientId, identities: Vec<Vec<u8>>) {
        if self.state.clients.contains_key(&client) {
            let identities = identities.into_iter().collect();
            self.presence.connected.insert(client, identities);
            self.look_for_users();
        }
    }

    /// A client has left, with all that was connected to it.
    pub(super) fn frontends_left(&mut self, client: ClientId) {
        self.presence.connected.remove(&client);
        self.look_for_users();
    }

    /// Somebody has said something: a sign of life of whoever uses a subshell.
    pub(super) fn heard_from(&mut self, header: &[u8]) {
        if self.state.subshells.known.is_empty() {
            return;
        }
        let Ok(header) = Header::read(header) else {
            return;
        };
        let mut uses = false;
        for (id, subshell) in &self.state.subshells.known {
            if subshell.is_used_by(id, &header) {
                uses = true;
                // Its socket may be gone by now, or not be told of yet: then it counts from here.
                self.presence.gone.remove(id);
            }
        }
        if uses {
            self.look_for_users();
        }
    }

    /// Sees whose users are there.
    pub(super) fn look_for_users(&mut self) {
        let known = &self.state.subshells.known;
        let mut gone = std::mem::take(&mut self.presence.gone);
        gone.retain(|id, _| known.contains_key(id));
        for (id, subshell) in known {
            if subshell.users.iter().any(|socket| self.is_there(socket)) {
                gone.remove(id);
            } else {
                gone.entry(id.clone()).or_insert(self.clocks.awake);
            }
        }
        self.presence.gone = gone;
    }

    /// Whether this socket is connected, be it to another launcher than before.
    fn is_there(&self, (client, identity): &Socket) -> bool {
        let connected = &self.presence.connected;
        // A ROUTER makes up the identity of a socket that has none: it begins with a zero byte.
        let is_its_own = identity.first().is_some_and(|first| *first != 0);
        match connected.get(client) {
            Some(identities) if identities.contains(identity) => true,
            None if self.state.clients.contains_key(client) => true,
            Some(_) | None => {
                is_its_own
                    && connected
                        .values()
                        .any(|identities| identities.contains(identity))
            }
        }
    }

    /// When the next subshell is to be deleted, on the awake clock.
    pub(super) fn subshell_due(&self) -> Option<Micros> {
        self.subshells_due().map(|(_, due)| due).min()
    }

    /// Deletes those that nobody has been there for in long.
    pub(super) fn delete_subshells(&mut self) {
        let awake = self.clocks.awake;
        let due: Vec<String> = self
            .subshells_due()
            .filter(|(_, due)| *due <= awake)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let content = json!({ "subshell_id": id });
            let request =
                self.ask_for_nobody(Channel::Control, "delete_subshell_request", &content);
            self.presence.deletions.insert(request, id);
        }
    }

    /// The engine's reply to a question of farside's own.
    pub(super) fn on_subshell_deleted(&mut self, request: &str, reply: &Message) {
        let Some(id) = self.presence.deletions.remove(request) else {
            return;
        };
        if !is_ok(&reply.content) {
            tracing::info!(id, "a subshell that was to be deleted was not there");
        }
        let msg_id = reply.header().map(|header| header.msg_id.into_owned());
        self.note(Note::SubshellDeleted {
            subshell_id: id,
            msg_id: msg_id.unwrap_or_default(),
        });
        self.look_for_users();
    }

    /// The engine is gone, with its subshells.
    pub(super) fn subshells_ended(&mut self) {
        self.presence.deletions.clear();
        self.look_for_users();
    }

    /// Whether this request runs beside the main shell.
    pub(super) fn has_subshell(&self, asked: &Asked) -> bool {
        Header::read(asked.header.as_bytes())
            .is_ok_and(|header| header.subshell_id.is_some_and(|id| !self.is_deleted(&id)))
    }

    /// The message as it goes to the engine: the frontend socket's identities mean nothing there, and nor does a
    /// subshell that farside has deleted.
    pub(super) fn for_engine(&self, message: &Message) -> Message {
        let is_homeless = message.header().is_ok_and(|header| {
            header
                .subshell_id
                .is_some_and(|subshell| self.is_deleted(&subshell))
        });
        Message {
            identities: Vec::new(),
            header: if is_homeless {
                for_main_shell(&message.header)
            } else {
                message.header.clone()
            },
            ..message.clone()
        }
    }

    fn is_deleted(&self, id: &str) -> bool {
        self.presence.is_deleting(id) || self.state.subshells.is_deleted(id)
    }

    /// Those whose users are gone and that do nothing, each with when it is to be deleted.
    fn subshells_due(&self) -> impl Iterator<Item = (&String, Micros)> {
        let timeout = self
            .limits
            .subshell_timeout
            .filter(|_| self.engine == Engine::Connected && self.state.lifetime.ending.is_none())
            .map(micros);
        self.presence
            .gone
            .iter()
            .filter(|(id, _)| !self.presence.is_deleting(id) && !self.is_in_use(id))
            .filter_map(move |(id, since)| Some((id, since.saturating_add(timeout?))))
    }

    /// Whether something runs or waits in it.
    fn is_in_use(&self, id: &str) -> bool {
        let names_it = |header: &str| {
            Header::read(header.as_bytes())
                .is_ok_and(|header| header.subshell_id.as_deref() == Some(id))
        };
        let state = &self.state;
        let executions = state.live.values().map(|execution| &execution.asked.header);
        let requests = state.pending.values().flatten().map(|asked| &asked.header);
        let busy = state.busy.iter().map(|busy| &busy.parent);
        executions
            .chain(requests)
            .chain(busy)
            .any(|header| names_it(header))
    }
}

fn socket(asked: &Asked) -> Socket {
    let identity = asked.identities.first().cloned();
    (asked.client, identity.unwrap_or_default())
}

/// The one that a reply or a request is about.
fn subshell_id(content: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct About {
        subshell_id: String,
    }
    let about = serde_json::from_slice::<About>(content).ok()?;
    Some(about.subshell_id)
}

fn is_ok(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Reply<'a> {
        #[serde(borrow)]
        status: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<Reply<'_>>(content).is_ok_and(|reply| reply.status == "ok")
}
