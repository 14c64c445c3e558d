//! `farside logs`: outputs as text, or the journal's records as JSON. Reads the journal's files alone, so it works
//! with a host, without one, and while one writes.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::records::{RecordText, record_json};
use super::{Exit, Output, UsageError, find_session};
use crate::journal::record::{Body, ExecutionNumber, Note};
use crate::journal::{ExecutionInfo, Filter, Item, Reader, Selector, View};
use crate::session::outputs::Ansi;
use crate::state_dir::{Session, SessionState};

/// What is read at once: large beside a record, small beside memory.
const BATCH_BYTES: usize = 1 << 20;
/// How often the files are looked at for more. A person sees no difference below this.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Print the outputs of a session's executions as text, also of a session that has ended.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  farside logs train            everything
  farside logs train 3 -f       execution 3, and what it prints from now on
  farside logs train --json     journal records, one a line")]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// Only this execution, as `farside history` numbers them
    #[arg(value_name = "N", value_parser = execution_number)]
    pub execution: Option<ExecutionNumber>,
    /// Go on until the execution (or the session) has ended
    #[arg(long, short)]
    pub follow: bool,
    /// Put the time before each line
    #[arg(long, short)]
    pub timestamps: bool,
    /// Print journal records instead, one JSON object a line
    #[arg(long, conflicts_with = "timestamps")]
    pub json: bool,
}

fn execution_number(text: &str) -> Result<ExecutionNumber, String> {
    let number = text.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| "give its number, as `farside history SESSION` shows them".to_owned())
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    let dir = session.dir.journal();
    let unreadable = || format!("cannot read the journal in {}", dir.display());
    let execution = match args.execution {
        Some(n) => Some(find_execution(&session, &dir, n)?),
        None => None,
    };
    let mut cursor =
        Cursor::open(&dir, execution.as_ref(), args.follow).with_context(unreadable)?;
    let mut printer = Printer::new(args, out);
    loop {
        // Asked before the look at the files: what a session wrote before it ended is then seen.
        let may_grow = args.follow && session.is_live();
        let items = cursor.next().with_context(unreadable)?;
        for item in &items {
            printer.item(item, out)?;
        }
        if cursor.finished || (items.is_empty() && !may_grow) {
            break;
        }
        if items.is_empty() {
            out.flush()?;
            std::thread::sleep(LOOK_EVERY);
        }
    }
    if !cursor.ended && !session.is_live() {
        // Nobody writes any more, so what is no whole record at the end never will be.
        if let Some(item) = cursor.damaged_tail().with_context(unreadable)? {
            printer.item(&item, out)?;
        }
    }
    printer.end(out)?;
    let facts = session.facts();
    if facts.state == SessionState::Lost && !cursor.ended {
        let why = facts.end_reason.unwrap_or_default();
        out.message(&format!(
            "[farside: here it ends, for the session is lost: {why}]"
        ));
    }
    Ok(Exit::Done)
}

fn find_execution(
    session: &Session,
    dir: &Path,
    n: ExecutionNumber,
) -> anyhow::Result<ExecutionInfo> {
    let view =
        View::open(dir).with_context(|| format!("cannot read the journal in {}", dir.display()))?;
    view.execution(&Selector::Number(n)).ok_or_else(|| {
        let known = view.executions(&Filter {
            limit: Some(1),
            ..Filter::default()
        });
        let known = known.first().map_or("it has none".to_owned(), |last| {
            format!("the last one is {}", last.n)
        });
        UsageError(format!(
            "session {} has no execution {n}; {known} (`farside history`)",
            session.json.name
        ))
        .into()
    })
}

/// Reads the journal, or an execution's part of it.
struct Cursor {
    reader: Reader,
    execution: Option<ExecutionNumber>,
    /// Seq of the execution's last record so far.
    until_seq: u64,
    follow: bool,
    /// A record has said that nothing more is to come.
    ended: bool,
    /// Nothing more is wanted.
    finished: bool,
}

impl Cursor {
    fn open(dir: &Path, execution: Option<&ExecutionInfo>, follow: bool) -> io::Result<Self> {
        let from = execution.and_then(|info| {
            info.places
                .request
                .or(info.places.start)
                .or(info.places.last)
        });
        let reader = match (from, execution) {
            (Some(position), Some(info)) => {
                Reader::open_near(dir, position, info.places.first_seq)?
            }
            (None, Some(info)) => Reader::open(dir, info.places.first_seq)?,
            (_, None) => Reader::open(dir, 1)?,
        };
        let until_seq = execution.map_or(u64::MAX, |info| info.places.last_seq);
        let execution = execution.map(|info| info.n);
        Ok(Self {
            reader,
            execution,
            until_seq,
            follow,
            ended: false,
            finished: false,
        })
    }

    /// The next items that are asked for; empty only where there is no more yet.
    fn next(&mut self) -> io::Result<Vec<Item>> {
        loop {
            let mut items = self.reader.next_batch(BATCH_BYTES)?;
            if items.is_empty() {
                return Ok(items);
            }
            items.iter().for_each(|item| self.look_for_the_end(item));
            items.retain(|item| self.is_wanted(item));
            if !items.is_empty() || self.finished {
                return Ok(items);
            }
        }
    }

    fn damaged_tail(&mut self) -> io::Result<Option<Item>> {
        while !self.reader.next_batch(BATCH_BYTES)?.is_empty() {}
        self.reader.damaged_tail()
    }

    /// An execution is over with its last record; a thread that it left behind may have printed after its end. One
    /// that is followed must have ended, too.
    fn look_for_the_end(&mut self, item: &Item) {
        let Item::Record(record, _) = item else {
            return;
        };
        self.ended |= match (&record.body, self.execution) {
            (Body::Note(Note::SessionEnded { .. }), _) => true,
            (Body::Note(Note::Execution { n, state, .. }), Some(wanted)) => {
                *n == wanted && state.is_final()
            }
            _ => false,
        };
        let seen = self.execution.is_some() && record.seq >= self.until_seq;
        self.finished = self.finished
            || if self.follow {
                self.ended && (seen || self.execution.is_none())
            } else {
                seen
            };
    }

    fn is_wanted(&self, item: &Item) -> bool {
        let Some(wanted) = self.execution else {
            return true;
        };
        match item {
            Item::Gap(gap) => gap.missing.start <= self.until_seq,
            Item::Record(record, _) => match &record.body {
                Body::Request { execution, .. }
                | Body::Reply { execution, .. }
                | Body::Iopub { execution, .. } => *execution == wanted,
                Body::Note(Note::Execution { n, .. }) => *n == wanted,
                Body::Note(Note::Gap { .. } | Note::EngineEnded { .. }) => {
                    record.seq <= self.until_seq
                }
                Body::Note(_) => false,
            },
        }
    }
}

/// Writes items as they were asked for.
enum Printer {
    Text(Box<RecordText>),
    Json,
}

impl Printer {
    fn new(args: &Args, out: &Output) -> Self {
        if args.json {
            return Self::Json;
        }
        let ansi = if out.style.colour {
            Ansi::Keep
        } else {
            Ansi::Strip
        };
        Self::Text(Box::new(RecordText::new(ansi, args.timestamps)))
    }

    fn item(&mut self, item: &Item, out: &mut Output) -> io::Result<()> {
        match self {
            Self::Json => {
                serde_json::to_writer(out.data(), &record_json(item))?;
                out.line("")
            }
            Self::Text(text) => {
                let text = text.item(item);
                out.data().write_all(text.as_bytes())
            }
        }
    }

    /// The prompt of a shell should not stand behind a last line without an end; a file keeps what was written.
    fn end(&self, out: &mut Output) -> io::Result<()> {
        match self {
            Self::Text(text) if text.is_line_open() && out.style.width.is_some() => out.line(""),
            Self::Text(_) | Self::Json => Ok(()),
        }
    }
}
