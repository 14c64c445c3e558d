//! Subshells of frontends that are gone are deleted, and no others.

use bytes::Bytes;
use farside::journal::record::ClientId;
use farside::session::event::Event;
use farside::wire::{Channel, Message};
use serde_json::{Value, json};

use crate::bench::{Bench, content, id, message};

/// The setting `subshell_timeout` in these tests, seconds.
const TIMEOUT: u64 = 600;

fn ready() -> (Bench, ClientId) {
    Bench::ready_with(&[
        ("subshell_timeout", "10m"),
        ("idle_timeout", "none"),
        ("idle_timeout_detached", "none"),
        ("max_lifetime", "none"),
    ])
}

/// A request of a page: its session is also its sockets' identity, as a Jupyter Server has it.
fn request(page: &str, n: u32, msg_type: &str, subshell: Option<&str>, content: Value) -> Message {
    let msg_id = format!("{page}-{n}");
    let mut request = message(msg_type, &msg_id, page, &Bytes::new(), content);
    request.identities = vec![Bytes::from(page.to_owned())];
    if let Some(subshell) = subshell {
        let header = String::from_utf8(request.header.to_vec()).unwrap();
        let field = format!("{{\"subshell_id\": \"{subshell}\", ");
        request.header = header.replacen('{', &field, 1).into();
    }
    request
}

fn connected(b: &mut Bench, client: ClientId, pages: &[&str]) {
    let identities = pages.iter().map(|page| page.as_bytes().to_vec()).collect();
    b.event(Event::Frontends { client, identities });
}

/// The page creates a subshell of this id.
fn create(b: &mut Bench, client: ClientId, page: &str, subshell: &str) {
    let create = request(page, 1, "create_subshell_request", None, json!({}));
    b.send(client, Channel::Control, &create);
    let create = b.engine_gets("create_subshell_request");
    let reply = json!({ "status": "ok", "subshell_id": subshell });
    b.engine_replies_on(Channel::Control, &create, reply);
    b.skip(client);
}

/// The engine is asked to delete it, by farside, and does. What it says to that nobody hears.
fn is_deleted(b: &mut Bench, client: ClientId, subshell: &str) {
    let delete = b.engine_gets("delete_subshell_request");
    assert_eq!(content(&delete), json!({ "subshell_id": subshell }));
    b.skip(client);
    b.status(&delete, "busy");
    b.engine_replies_on(Channel::Control, &delete, json!({ "status": "ok" }));
    b.status(&delete, "idle");
    assert_eq!(b.heard(client), [""; 0]);
    assert_eq!(b.core.state().subshells.ids().next(), None);
    b.wait(3 * TIMEOUT);
    assert!(b.to_engine.is_empty(), "once");
}

/// Nothing is deleted, however long one waits.
fn stays(b: &mut Bench) {
    b.wait(3 * TIMEOUT);
    assert!(b.to_engine.is_empty(), "{:?}", b.to_engine);
    assert_eq!(b.core.state().subshells.ids().count(), 1);
}

#[test]
fn a_page_that_vanished_leaves_no_subshell() {
    let (mut b, a) = ready();
    connected(&mut b, a, &["page", "other"]);
    create(&mut b, a, "page", "s1");
    stays(&mut b);
    connected(&mut b, a, &["other"]);
    b.wait(TIMEOUT - 1);
    assert!(b.to_engine.is_empty(), "it may come back");
    b.wait(2);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn a_page_that_comes_back_in_time_keeps_it() {
    let (mut b, a) = ready();
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT - 1);
    connected(&mut b, a, &["page"]);
    stays(&mut b);
    // Each absence counts from its own beginning.
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT - 1);
    assert!(b.to_engine.is_empty());
    b.wait(2);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn a_launcher_takes_all_its_pages_along_and_another_one_brings_them_back() {
    let (mut b, a) = ready();
    connected(&mut b, a, &["page"]);
    create(&mut b, a, "page", "s1");
    b.detach(a);
    b.wait(TIMEOUT - 1);
    let c = b.attach();
    connected(&mut b, c, &["page"]);
    stays(&mut b);
    b.detach(c);
    b.wait(TIMEOUT + 1);
    is_deleted(&mut b, c, "s1");
}

#[test]
fn a_page_is_known_by_its_session_where_its_socket_is_another() {
    let (mut b, a) = ready();
    connected(&mut b, a, &["page"]);
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &["socket 2"]);
    b.wait(TIMEOUT - 1);
    let mut request = request("page", 2, "kernel_info_request", None, json!({}));
    request.identities = vec![Bytes::from_static(b"socket 2")];
    b.send(a, Channel::Shell, &request);
    stays(&mut b);
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT + 1);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn who_names_a_subshell_keeps_it() {
    let (mut b, a) = ready();
    connected(&mut b, a, &["page", "other"]);
    create(&mut b, a, "page", "s1");
    let comm = request("other", 1, "comm_msg", Some("s1"), json!({}));
    b.send(a, Channel::Shell, &comm);
    b.engine_gets("comm_msg");
    connected(&mut b, a, &["other"]);
    stays(&mut b);
    connected(&mut b, a, &["page"]);
    stays(&mut b);
    connected(&mut b, a, &["somebody"]);
    b.wait(TIMEOUT + 1);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn a_word_of_one_whose_socket_is_gone_counts_once() {
    let (mut b, a) = ready();
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT - 1);
    // It was on its way for long.
    let last_words = request("page", 2, "kernel_info_request", None, json!({}));
    b.send(a, Channel::Shell, &last_words);
    b.wait(TIMEOUT - 1);
    assert!(b.to_engine.is_empty());
    b.wait(2);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn what_runs_in_it_goes_on_to_its_end() {
    let (mut b, a) = ready();
    connected(&mut b, a, &["page"]);
    create(&mut b, a, "page", "s1");
    let run = |n, code| {
        let content = json!({ "code": code });
        request("page", n, "execute_request", Some("s1"), content)
    };
    b.send(a, Channel::Shell, &run(2, "train()"));
    b.send(a, Channel::Shell, &run(3, "queued()"));
    let first = b.engine_begins();
    connected(&mut b, a, &[]);
    b.wait(5 * TIMEOUT);
    b.engine_ends_ok(&first);
    b.wait(TIMEOUT);
    let second = b.engine_begins();
    b.engine_asks(&second, "?");
    b.wait(5 * TIMEOUT);
    b.engine_replies(&second, json!({ "status": "ok" }));
    b.event(Event::Tick);
    assert!(b.to_engine.is_empty(), "it has not said idle");
    b.status(&second, "idle");
    b.wait(0);
    is_deleted(&mut b, a, "s1");
    let ends = b.records.iter().filter(|record| {
        let record = format!("{:?}", record.body);
        record.contains("Execution {") && record.contains("state: Ok")
    });
    assert_eq!(ends.count(), 2);
}

#[test]
fn one_that_still_waits_for_an_answer_is_in_use() {
    let (mut b, a) = ready();
    connected(&mut b, a, &["page"]);
    create(&mut b, a, "page", "s1");
    let complete = request("page", 2, "complete_request", Some("s1"), json!({}));
    b.send(a, Channel::Shell, &complete);
    let complete = b.engine_gets("complete_request");
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT + 1);
    assert!(b.to_engine.is_empty());
    b.status(&complete, "busy");
    b.engine_replies(&complete, json!({ "status": "ok" }));
    b.wait(1);
    assert!(b.to_engine.is_empty(), "it is busy");
    b.status(&complete, "idle");
    b.wait(1);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn who_comes_back_too_late_is_served_by_the_main_shell() {
    let (mut b, a) = ready();
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT + 1);
    let delete = b.engine_gets("delete_subshell_request");
    // The engine may not have come to that; and farside's next host knows it, too.
    let run = |n| {
        request(
            "page",
            n,
            "execute_request",
            Some("s1"),
            json!({ "code": "1" }),
        )
    };
    for n in [2, 3, 4] {
        b.send(a, Channel::Shell, &run(n));
        let run = b.engine_begins();
        assert_eq!(run.header().unwrap().subshell_id, None);
        assert_eq!(id(&run), format!("page-{n}"));
        b.skip(a);
        b.engine_ends_ok(&run);
        let ended = [
            format!("shell page-{n} execute_reply ok"),
            format!("iopub page-{n} status idle"),
        ];
        assert_eq!(b.heard(a), ended);
        if n == 2 {
            b.engine_replies_on(Channel::Control, &delete, json!({ "status": "ok" }));
        }
        if n == 3 {
            b.host_dies();
            b.adopted_engine_connects();
            b.answer_probe();
        }
    }
    let elsewhere = request("page", 5, "complete_request", Some("s2"), json!({}));
    b.send(a, Channel::Shell, &elsewhere);
    let elsewhere = b.engine_gets("complete_request");
    let named = elsewhere.header().unwrap().subshell_id.map(String::from);
    assert_eq!(named, Some("s2".into()), "that is not ours to say");
}

#[test]
fn a_deleted_one_counts_as_the_main_shell_in_a_gap() {
    let (mut b, a) = ready();
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT + 1);
    is_deleted(&mut b, a, "s1");
    let run = request(
        "page",
        2,
        "execute_request",
        Some("s1"),
        json!({ "code": "1" }),
    );
    b.send(a, Channel::Shell, &run);
    b.engine_begins();
    b.skip(a);
    b.host_dies();
    b.adopted_engine_connects();
    b.answer_probe();
    let heard = b.heard(a);
    assert!(
        heard.contains(&"shell page-2 execute_reply ExecutionLost".into()),
        "{heard:?}"
    );
}

#[test]
fn a_frontend_that_deletes_its_own_is_left_to_it() {
    for (status, left) in [("ok", 0), ("error", 1)] {
        let (mut b, a) = ready();
        connected(&mut b, a, &["page"]);
        create(&mut b, a, "page", "s1");
        let content = json!({ "subshell_id": "s1" });
        let delete = request("page", 2, "delete_subshell_request", None, content);
        b.send(a, Channel::Control, &delete);
        let delete = b.engine_gets("delete_subshell_request");
        connected(&mut b, a, &[]);
        b.wait(1);
        let reply = json!({ "status": status, "ename": "E" });
        b.engine_replies_on(Channel::Control, &delete, reply);
        let ids = b.core.state().subshells.ids().count();
        assert_eq!(ids, left, "{status}");
        b.wait(TIMEOUT);
        assert_eq!(b.to_engine.len(), left, "{status}");
    }
}

#[test]
fn the_next_host_knows_them_and_gives_them_the_whole_time() {
    let (mut b, a) = ready();
    connected(&mut b, a, &["page"]);
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT - 1);
    b.host_dies();
    b.adopted_engine_connects();
    b.answer_probe();
    // The launcher is not back yet: nothing is known of its sockets.
    b.wait(2 * TIMEOUT);
    assert!(b.to_engine.is_empty());
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT - 1);
    assert!(b.to_engine.is_empty());
    b.wait(2);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn a_host_that_dies_before_the_answer_leaves_it_to_the_next() {
    let (mut b, a) = ready();
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT + 1);
    b.engine_gets("delete_subshell_request");
    b.detach(a);
    b.host_dies();
    b.adopted_engine_connects();
    b.answer_probe();
    b.wait(TIMEOUT + 1);
    let again = b.engine_gets("delete_subshell_request");
    let gone = json!({ "status": "error", "evalue": "Unknown subshell_id" });
    b.engine_replies_on(Channel::Control, &again, gone);
    assert_eq!(b.core.state().subshells.ids().next(), None);
}

#[test]
fn an_engine_takes_its_subshells_along() {
    let (mut b, a) = ready();
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &[]);
    b.engine_dies();
    assert_eq!(b.core.state().subshells.ids().next(), None);
    // The page has not noticed.
    let content = json!({ "code": "1" });
    let run = request("page", 2, "execute_request", Some("s1"), content);
    b.send(a, Channel::Shell, &run);
    b.engine_starts(2);
    let run = b.engine_begins();
    assert_eq!(run.header().unwrap().subshell_id, None);
    b.engine_ends_ok(&run);
    b.wait(2 * TIMEOUT);
    assert!(b.to_engine.is_empty());
}

#[test]
fn an_older_launcher_keeps_what_it_brought_until_it_leaves() {
    let (mut b, a) = ready();
    create(&mut b, a, "page", "s1");
    stays(&mut b);
    b.detach(a);
    b.wait(TIMEOUT + 1);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn sockets_without_a_name_are_told_apart_by_their_launchers() {
    let (mut b, a) = ready();
    let made = "\0\0\0\0\u{1}";
    connected(&mut b, a, &[made]);
    create(&mut b, a, made, "s1");
    let other = b.attach();
    connected(&mut b, other, &[made]);
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT + 1);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn a_machine_that_sleeps_deletes_nothing() {
    let (mut b, a) = ready();
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &[]);
    b.wait(TIMEOUT - 1);
    b.sleep(5 * TIMEOUT);
    b.event(Event::Tick);
    assert!(b.to_engine.is_empty());
    b.wait(2);
    is_deleted(&mut b, a, "s1");
}

#[test]
fn it_can_be_switched_off() {
    let (mut b, a) = ready();
    create(&mut b, a, "page", "s1");
    connected(&mut b, a, &[]);
    b.execute(a, "%farside set subshell_timeout none");
    stays(&mut b);
}
