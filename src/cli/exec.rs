//! `farside exec`: run code in a session.

use std::io::{IsTerminal as _, Read as _};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::client::{Conversation, Heard, block_on, require_live};
use super::follow::{Printer, follow};
use super::{Exit, Output, UsageError, find_session};
use crate::journal::{Selector, View};
use crate::session::event::SUBMIT_KIND;
use crate::session::state::header_id;
use crate::state_dir::Session;
use crate::wire::{Channel, Message};

/// Run code in a session and show its outputs. Ctrl-C leaves; the code runs on.
///
/// What the code prints goes to stdout; its stderr and a traceback go to stderr. A busy session runs it when it has
/// done what it was asked before. input() is answered in the terminal.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0: the code ran (or you left it to run); 1: it raised an error.\n\nExamples:\n  \
                        farside exec train 'print(loss)'\n  farside exec train --detach - < train.py"
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// Do not wait: print the execution's number and leave
    #[arg(long)]
    pub detach: bool,
    /// The code, or `-` to read it from stdin
    #[arg(allow_hyphen_values = true)]
    pub code: String,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    require_live(&session)?;
    let code = code(args)?;
    block_on(async {
        let kind = if args.detach { SUBMIT_KIND } else { "exec" };
        let mut conversation = Conversation::open(&session, kind, !args.detach).await?;
        // Code that nobody watches may wait: whoever attaches answers.
        let allow_stdin = args.detach || std::io::stdin().is_terminal();
        let content = json!({
            "code": code, "silent": false, "store_history": true, "user_expressions": {},
            "allow_stdin": allow_stdin, "stop_on_error": true,
        });
        let request = conversation.message("execute_request", &Message::default(), &content);
        let number = conversation.send(Channel::Shell, request.clone()).await;
        if args.detach {
            acknowledged(&mut conversation, number).await?;
            out.line(&execution_number(&session, &request)?.to_string())?;
            return Ok(Exit::Done);
        }
        let mut printer = Printer::new(out);
        let end = follow(&mut conversation, &request, &mut printer, out).await?;
        Ok(end.tell(&session.json.name, &mut printer, out))
    })
}

fn code(args: &Args) -> anyhow::Result<String> {
    if args.code != "-" {
        return Ok(args.code.clone());
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .context("cannot read the code from stdin")?;
    let not_text = || UsageError("what is on stdin is no UTF-8 text, so it cannot be code".into());
    String::from_utf8(bytes).map_err(|_| not_text().into())
}

async fn acknowledged(conversation: &mut Conversation, wanted: u64) -> anyhow::Result<()> {
    loop {
        match conversation.next().await? {
            Heard::Acknowledged(number) if number >= wanted => return Ok(()),
            Heard::Ended(reason) => bail!("the session has ended: {reason}"),
            Heard::Acknowledged(_) | Heard::Iopub(_) | Heard::Reply(..) => {}
        }
    }
}

/// The number that the host gave the execution: an acknowledged request is in the journal.
fn execution_number(session: &Session, request: &Message) -> anyhow::Result<u64> {
    let msg_id = header_id(&String::from_utf8_lossy(&request.header));
    let dir = session.dir.journal();
    let view = View::open(&dir)
        .with_context(|| format!("cannot read the journal in {}", dir.display()))?;
    match view.execution(&Selector::ById(msg_id)) {
        Some(info) => Ok(info.n),
        None => bail!(
            "the host has the code, but the journal does not show it as an execution: a %farside command has no \
             number, and a journal that cannot be written keeps none (see {})",
            session.dir.host_log().display()
        ),
    }
}
