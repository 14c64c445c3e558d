//! A heartbeat that is served, stopped, and never there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::transport::Listener;

const PATIENCE: Duration = Duration::from_secs(20);

const PACE: Pace = Pace {
    every: Duration::from_millis(20),
    doublings_max: 1,
    missed_max: 3,
};

#[test]
fn three_pings_in_a_row_must_be_missed() {
    let mut pulse = Pulse::new(3, false);
    assert_eq!(pulse.next(), (1, None));
    assert_eq!(pulse.answered(1), None);
    for number in 2..=4 {
        assert_eq!(pulse.next(), (number, None));
    }
    assert_eq!(pulse.next(), (5, Some(false)));
    assert_eq!(pulse.next(), (6, None), "it is said once");
    // A late answer is an answer.
    assert_eq!(pulse.answered(2), Some(true));
    assert_eq!(pulse.answered(3), None);
    assert_eq!(pulse.next(), (7, None));
    assert_eq!(pulse.next(), (8, None));
    assert_eq!(pulse.answered(8), None);
    for number in 9..=11 {
        assert_eq!(pulse.next(), (number, None));
    }
    assert_eq!(pulse.next(), (12, Some(false)));
}

#[test]
fn of_an_engine_that_never_answered_nothing_is_said() {
    for adopted in [false, true] {
        let mut pulse = Pulse::new(3, adopted);
        assert!((0..100).all(|_| pulse.next().1.is_none()));
    }
}

#[test]
fn an_adopted_engine_may_have_been_called_unresponsive() {
    let mut pulse = Pulse::new(3, true);
    pulse.next();
    assert_eq!(pulse.answered(1), Some(true));
    let mut pulse = Pulse::new(3, true);
    pulse.is_there();
    assert!((0..3).all(|_| pulse.next().1.is_none()));
    assert_eq!(pulse.next().1, Some(false));
    assert_eq!(pulse.answered(1), Some(true));
}

/// Echoes as a REP or a ROUTER does while `answers`; swallows otherwise.
async fn serve(path: &Path, socket_type: SocketType, answers: Arc<AtomicBool>) {
    let endpoint = Endpoint::Ipc {
        path: path.display().to_string(),
    };
    let listener = Listener::bind(&endpoint).await.unwrap();
    loop {
        let stream = listener.accept().await.unwrap();
        let answers = answers.clone();
        tokio::task::spawn_local(async move {
            let shaken =
                transport::handshake(stream, socket_type, &[], Limits::default(), PATIENCE).await;
            let Ok((mut reader, mut writer, _)) = shaken else {
                return;
            };
            while let Ok(Some(incoming)) = reader.recv().await {
                let Incoming::Message(parts) = incoming else {
                    continue;
                };
                // What a REP needs.
                assert!(parts[0].is_empty() && parts.len() == 2);
                if answers.load(Ordering::Relaxed) && writer.send(&parts).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn watched(adopted: bool, path: &Path) -> mpsc::UnboundedReceiver<bool> {
    let endpoint = Endpoint::Ipc {
        path: path.display().to_string(),
    };
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        let (_idle, active) = watch::channel(false);
        let report = |responsive| {
            let _ = sender.send(responsive);
        };
        super::watch(endpoint, PACE, adopted, active, report).await;
    });
    receiver
}

async fn next(reports: &mut mpsc::UnboundedReceiver<bool>) -> bool {
    tokio::time::timeout(PATIENCE, reports.recv())
        .await
        .unwrap()
        .unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = (tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build())
    .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_heartbeat_that_stops_and_comes_back_is_told_of() {
    for socket_type in [SocketType::Rep, SocketType::Router] {
        run(async move {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("hb");
            let answers = Arc::new(AtomicBool::new(true));
            // The first look is before there is a socket.
            let mut reports = watched(true, &path);
            tokio::task::yield_now().await;
            let (flag, at) = (answers.clone(), path.clone());
            tokio::task::spawn_local(async move { serve(&at, socket_type, flag).await });
            assert!(next(&mut reports).await, "an adopted one's first answer");
            for _ in 0..2 {
                answers.store(false, Ordering::Relaxed);
                assert!(!next(&mut reports).await);
                answers.store(true, Ordering::Relaxed);
                assert!(next(&mut reports).await);
            }
        });
    }
}

#[test]
fn an_adopted_engine_that_is_frozen_is_told_of() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hb");
        // Bound, and nobody accepts: a stopped process.
        let _frozen = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(!next(&mut watched(true, &path)).await);
    });
}

#[test]
fn an_engine_that_idles_is_asked_ever_less_often_while_it_answers() {
    // Of a clock that stands still while there is something to do, and then goes to where the next timer is.
    let runtime = (tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build())
    .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::Ipc {
            path: dir.path().join("hb").display().to_string(),
        };
        let listener = Listener::bind(&endpoint).await.unwrap();
        let (busy, active) = watch::channel(false);
        let pace = Pace::default();
        tokio::task::spawn_local(super::watch(endpoint, pace, false, active, |_| {}));
        let stream = listener.accept().await.unwrap();
        let limits = Limits::default();
        let shaken = transport::handshake(stream, SocketType::Rep, &[], limits, PATIENCE).await;
        let (mut reader, mut writer, _) = shaken.unwrap();
        let mut last = Instant::now();
        let mut pings = async |count: usize, answered: bool| {
            let mut seconds = Vec::new();
            for _ in 0..count {
                let Ok(Some(Incoming::Message(parts))) = reader.recv().await else {
                    panic!("no ping");
                };
                seconds.push((Instant::now() - last).as_secs());
                last = Instant::now();
                if answered {
                    writer.send(&parts).await.unwrap();
                }
            }
            seconds
        };
        assert_eq!(pings(7, true).await, [0, 5, 10, 20, 40, 40, 40]);
        busy.send_replace(true);
        assert_eq!(pings(4, true).await, [5, 5, 5, 5]);
        busy.send_replace(false);
        assert_eq!(pings(5, true).await, [5, 5, 10, 20, 40]);
        // No answer: it is not left at that.
        assert_eq!(pings(4, false).await, [40, 5, 5, 5]);
        // One that has been silent begins anew.
        assert_eq!(pings(4, true).await, [5, 5, 10, 20]);
    });
}
