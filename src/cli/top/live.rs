//! The loop of `farside top`: looks, draws, and puts the terminal back as it was, whatever ends it.

use std::io;
use std::mem::ManuallyDrop;
use std::time::Duration;

use anyhow::Context as _;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::{cursor, execute};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::super::client::block_on;
use super::super::readings::Reading;
use super::model::{History, Order};
use super::view::{Screen, draw};
use crate::state_dir::{Sessions, now};

/// A person sees a change within this time.
const REFRESH: Duration = Duration::from_secs(1);

/// Shows the sessions until a key or a signal says to leave.
pub fn run(sessions: &Sessions, colour: bool) -> anyhow::Result<()> {
    block_on(async {
        // Before the terminal is touched, so that no signal finds it changed and us without an answer.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let _restored = Restored;
        // It also restores the terminal in a panic, before the panic's message.
        let terminal = ratatui::try_init()
            .context("this terminal cannot be drawn on; use --once, or `farside ls`")?;
        // Its own drop complains on stderr, and where the terminal has gone, so has that: a panic in a drop.
        let mut terminal = ManuallyDrop::new(terminal);
        let mut events = read_events()?;
        let mut look = tokio::time::interval(REFRESH);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut history = History::default();
        let mut screen = Screen {
            colour,
            ..Screen::default()
        };
        loop {
            tokio::select! {
                _ = look.tick() => {
                    screen.now = now();
                    screen.samples = history.samples(&Reading::all(sessions)?, screen.now);
                    // Oldest first, as they are listed; what they are sorted by keeps the rest of that order.
                    screen.order.sort(&mut screen.samples);
                }
                event = events.recv() => match asked(event) {
                    Asked::Quit => return Ok(()),
                    Asked::Sort(order) => {
                        screen.order = order;
                        screen.samples = history.samples(&Reading::all(sessions)?, now());
                        order.sort(&mut screen.samples);
                    }
                    Asked::Draw => {}
                },
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
            }
            terminal.draw(|frame| draw(frame, &screen))?;
        }
    })
}

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Quit,
    Sort(Order),
    /// Nothing else than to be drawn: the window has another size.
    Draw,
}

/// `None`: the terminal has gone.
fn asked(event: Option<Event>) -> Asked {
    match event {
        None => Asked::Quit,
        Some(Event::Key(key)) if key.kind != KeyEventKind::Release => asked_by_key(key),
        Some(_) => Asked::Draw,
    }
}

fn asked_by_key(key: KeyEvent) -> Asked {
    match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Asked::Quit,
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => Asked::Quit,
        KeyCode::Char('c') => Asked::Sort(Order::Cpu),
        KeyCode::Char('m') => Asked::Sort(Order::Memory),
        KeyCode::Char('o') => Asked::Sort(Order::Output),
        KeyCode::Char('t') => Asked::Sort(Order::Left),
        KeyCode::Char('a') => Asked::Sort(Order::Age),
        _ => Asked::Draw,
    }
}

/// Keys and new sizes, read in a thread of its own: it waits in a read that nothing but a key ends, and goes with the
/// process.
fn read_events() -> io::Result<mpsc::UnboundedReceiver<Event>> {
    let (sender, events) = mpsc::unbounded_channel();
    let read = move || {
        while let Ok(event) = event::read() {
            if sender.send(event).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(read)?;
    Ok(events)
}

/// The terminal is as it was when this is dropped.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        // A terminal that has gone cannot be restored, and need not be.
        let _ = ratatui::try_restore();
        let _ = execute!(io::stdout(), cursor::Show);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_the_last_line_says() {
        let key = |code, modifiers| asked(Some(Event::Key(KeyEvent::new(code, modifiers))));
        let plain = |c| key(KeyCode::Char(c), KeyModifiers::NONE);
        assert_eq!(plain('q'), Asked::Quit);
        assert_eq!(key(KeyCode::Esc, KeyModifiers::NONE), Asked::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Asked::Quit);
        assert_eq!(plain('c'), Asked::Sort(Order::Cpu));
        assert_eq!(plain('m'), Asked::Sort(Order::Memory));
        assert_eq!(plain('o'), Asked::Sort(Order::Output));
        assert_eq!(plain('t'), Asked::Sort(Order::Left));
        assert_eq!(plain('a'), Asked::Sort(Order::Age));
        assert_eq!(plain('x'), Asked::Draw);
        assert_eq!(asked(Some(Event::Resize(80, 24))), Asked::Draw);
        assert_eq!(asked(None), Asked::Quit);
    }
}
