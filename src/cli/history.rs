//! `farside history`: a session's executions.

use anyhow::Context as _;

use super::render::{Style, Tone, ago, execution_tone, field, first_line, plain, table, took};
use super::{Exit, Output, find_session};
use crate::journal::record::{ExecutionState, Micros};
use crate::journal::{ExecutionInfo, Filter, View};
use crate::state_dir::{Session, now};

/// Characters of an execution's first line in the table: enough to know it again.
const CODE_CHARS_MAX: usize = 60;

/// List a session's executions, also of one that has ended.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// Print a JSON list
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    let executions = executions(&session)?;
    if args.json {
        out.json(&executions)?;
    } else if executions.is_empty() {
        out.message(&format!("{} has executed nothing", session.json.name));
    } else {
        let text = render(&executions, now(), out.style);
        out.line(&text)?;
    }
    Ok(Exit::Done)
}

/// All executions of a session, in the order in which they were asked for. What was under way when everything died
/// has no last word in the journal: it is lost.
pub fn executions(session: &Session) -> anyhow::Result<Vec<ExecutionInfo>> {
    let dir = session.dir.journal();
    let is_live = session.is_live();
    let view = View::open(&dir)
        .with_context(|| format!("cannot read the journal in {}", dir.display()))?;
    let mut executions = view.executions(&Filter::default());
    executions.reverse();
    for info in executions
        .iter_mut()
        .filter(|info| !is_live && !info.state.is_final())
    {
        info.state = ExecutionState::Lost;
        info.reason
            .get_or_insert_with(|| "its session is over, and nothing says how it ended".to_owned());
    }
    Ok(executions)
}

/// PURE. The table.
fn render(executions: &[ExecutionInfo], now: Micros, style: Style) -> String {
    let rows = executions.iter().map(|info| {
        let started = info.started.map(|time| ago(time, now));
        let duration = info.started.map(|started| match info.ended {
            Some(ended) => took(started, ended),
            None if info.state.is_final() => "?".to_owned(),
            None => took(started, now),
        });
        vec![
            plain(info.n.to_string()),
            field(info.state.name(), execution_tone(info.state)),
            started.map_or_else(|| field("-", Tone::Dim), plain),
            duration.map_or_else(|| field("-", Tone::Dim), plain),
            plain(info.outputs.to_string()),
            plain(first_line(&info.code, CODE_CHARS_MAX)),
        ]
    });
    table(
        &[">N", "STATE", "STARTED", ">TOOK", ">OUTPUTS", "~CODE"],
        rows.collect(),
        style,
    )
}
