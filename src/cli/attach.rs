//! `farside attach`: replay an execution, follow it, answer its input(). Of a session that is over it reads the
//! journal's files alone.

use anyhow::Context as _;
use serde_json::json;

use super::client::{Conversation, block_on};
use super::follow::{End, Printer, follow};
use super::{Exit, Output, find_session};
use crate::journal::record::{Body, ExecutionState};
use crate::journal::{ExecutionInfo, Item, Outputs, Selector, View};
use crate::session::outputs::{Compactor, Limits};
use crate::state_dir::{Session, SessionState};
use crate::wire::{Channel, Message};

/// Show what the running (or else the last) execution has printed, go on watching it, answer its input().
///
/// Ctrl-C leaves; it never interrupts the code (`farside interrupt` does). Of a session that has ended the last
/// execution is shown.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0: the code ran (or you left it to run); 1: it raised an error.\n\nSee also: `farside \
                        logs SESSION N` for any execution's whole output, `farside history SESSION` for the list."
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    let (name, state) = (session.json.name.clone(), session.facts().state);
    let dir = session.dir.journal();
    let view = View::open(&dir)
        .with_context(|| format!("cannot read the journal in {}", dir.display()))?;
    let Some(last) = view.execution(&Selector::Latest) else {
        out.message(&format!("{name} has executed nothing"));
        return Ok(Exit::Done);
    };
    if !state.is_live() {
        return show_past(&session, state, &last, out);
    }
    block_on(async {
        let mut conversation = Conversation::open(&session, "attach", true).await?;
        let content = json!({
            "code": "%farside attach", "silent": false, "store_history": false, "user_expressions": {},
            "allow_stdin": true, "stop_on_error": false,
        });
        let request = conversation.message("execute_request", &Message::default(), &content);
        conversation.send(Channel::Shell, request.clone()).await;
        let mut printer = Printer::new(out);
        let end = follow(&mut conversation, &request, &mut printer, out).await?;
        Ok(end.tell(&name, &mut printer, out))
    })
}

/// The last execution of a session in which nothing runs any more.
fn show_past(
    session: &Session,
    state: SessionState,
    info: &ExecutionInfo,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let name = &session.json.name;
    let mut printer = Printer::new(out);
    replay(session, info, &mut printer, out)
        .with_context(|| format!("cannot read the journal of session {name}"))?;
    let end = match info.state {
        ExecutionState::Ok => End::Ok,
        ExecutionState::Aborted if info.started.is_none() => End::Aborted,
        _ => End::Raised {
            ename: String::new(),
        },
    };
    let exit = end.tell(name, &mut printer, out);
    let reason = session.facts().end_reason.unwrap_or_default();
    if !info.state.is_final() {
        out.message(&format!(
            "execution {} is lost: its session ended before it",
            info.n
        ));
    }
    out.message(&format!("session {name} is {}: {reason}", state.name()));
    Ok(exit)
}

/// The outputs as a cell would show them, from the files.
fn replay(
    session: &Session,
    info: &ExecutionInfo,
    printer: &mut Printer,
    out: &mut Output,
) -> std::io::Result<()> {
    let (dir, places) = (session.dir.journal(), &info.places);
    let hint = format!(
        "`farside logs {} {}` shows them all",
        session.json.id, info.n
    );
    let mut compactor = Compactor::new(Limits::default(), &hint);
    let outputs = match places.start.or(places.request) {
        Some(from) => Outputs::open_near(&dir, info.n, from, places.first_seq, places.last_seq)?,
        None => Outputs::from_seq(&dir, info.n, places.first_seq, places.last_seq)?,
    };
    for item in outputs {
        match item? {
            Item::Record(record, _) => {
                if let Body::Iopub { message, .. } = &record.body {
                    compactor.push(message);
                }
            }
            Item::Gap(_) => out.message("[a part of the journal is damaged and left out here]"),
        }
    }
    for shown in compactor.replay() {
        printer.message(&shown.msg_type, &shown.content, out)?;
    }
    Ok(())
}
