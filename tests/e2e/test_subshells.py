"""Subshells (JEP 91) that a vanished page has created are deleted, when nothing runs in them, and no others."""

from __future__ import annotations

import pytest
from sandbox import EVENT_SECONDS, KERNEL, START_SECONDS, Launcher, Sandbox, kill, wait_until
from wire import Client

THREAD = "__import__('threading').current_thread().name"


@pytest.fixture
def launcher(sandbox: Sandbox) -> Launcher:
    """Of a session in which a page may be away for five seconds."""
    sandbox.env["FARSIDE_SUBSHELL_TIMEOUT"] = "5s"
    return sandbox.launch(jupyter_session=str(sandbox.work / "n.ipynb"))


def create(page: Client) -> str:
    return page.reply(page.send("control", "create_subshell_request")).content["subshell_id"]


def subshells(watcher: Client) -> set[str]:
    """All that the engine has."""
    return set(watcher.reply(watcher.send("control", "list_subshell_request")).content["subshell_id"])


def wait_for_subshells(watcher: Client, expected: set[str]) -> None:
    wait_until(lambda: subshells(watcher) == expected, f"the subshells {expected}", detail=lambda: subshells(watcher))


def thread(page: Client, subshell: str) -> str:
    return page.result(page.execute(THREAD, header={"subshell_id": subshell})).iopub[2].content["data"]["text/plain"]


def test_a_page_that_comes_back_keeps_its_subshell_and_one_that_does_not_leaves_none(launcher: Launcher) -> None:
    watcher, stays, leaves = launcher.client(), launcher.client(), launcher.client()
    kept, left = create(stays), create(leaves)
    assert subshells(watcher) == {kept, left}
    stays.close()
    leaves.close()
    back = launcher.client(identity=stays.identity, session_id=stays.session_id)
    wait_for_subshells(watcher, {kept})
    assert kept in thread(back, kept)
    # Nobody asked for it, and nobody hears of it.
    heard = [m for page in (watcher, back) for m in page.messages]
    assert not [m for m in heard if m.type == "delete_subshell_reply" or m.parent.get("msg_type") == "delete_subshell_request"]


def test_one_that_is_busy_stays_to_its_end(sandbox: Sandbox, launcher: Launcher) -> None:
    watcher, page, clock = launcher.client(), launcher.client(), launcher.client()
    watcher.run("import threading; go = threading.Event()")
    busy, idle = create(page), create(clock)
    runs = page.execute("print('begun', flush=True); go.wait(); print('done')", header={"subshell_id": busy})
    page.wait_text(runs, "begun")
    queued = page.execute("print('queued')", header={"subshell_id": busy})
    page.close()
    clock.close()
    # The time is over for both.
    wait_for_subshells(watcher, {busy})
    assert subshells(watcher) == {busy}
    watcher.run("go.set()")
    wait_for_subshells(watcher, set())
    states = {e["msg_id"]: e["state"] for e in sandbox.executions(sandbox.session()["id"])}
    assert (states[runs], states[queued]) == ("ok", "ok")
    assert watcher.run(f"%farside attach {queued}").text == "queued\n"


def test_who_comes_back_too_late_is_served_by_the_main_shell(launcher: Launcher) -> None:
    watcher, page = launcher.client(), launcher.client()
    subshell = create(page)
    page.close()
    wait_for_subshells(watcher, set())
    back = launcher.client(identity=page.identity, session_id=page.session_id)
    assert thread(back, subshell) == "'MainThread'"


def test_a_page_outlives_its_launcher_and_its_host(sandbox: Sandbox, launcher: Launcher) -> None:
    page = launcher.client()
    kept, left = create(page), create(launcher.client())
    before = sandbox.session()
    launcher.kill()
    launcher = sandbox.launch(jupyter_session=str(sandbox.work / "n.ipynb"))
    back = launcher.client(identity=page.identity, session_id=page.session_id)
    kill(before["host_pid"])
    sandbox.wait_session(lambda s: s["host_pid"] != before["host_pid"], "the next host")
    watcher = launcher.client()
    assert sandbox.session()["engine_pid"] == before["engine_pid"]
    wait_for_subshells(watcher, {kept})
    assert kept in thread(back, kept)
    assert left not in subshells(watcher)


def test_a_page_that_is_loaded_anew_leaves_none_at_a_server(sandbox: Sandbox) -> None:
    """A Jupyter Server keeps the sockets of the last page that was closed, until another one comes."""
    sandbox.env["FARSIDE_SUBSHELL_TIMEOUT"] = "5s"
    sandbox.kernelspec(KERNEL)
    server = sandbox.server()
    kernel_id = server.open_notebook("n.ipynb", KERNEL)["kernel"]["id"]

    def ask(page, msg_type: str):
        asked = page.send("control", msg_type, {})
        answer = page.wait_for(
            lambda m: m["channel"] == "control" and m["parent_header"].get("msg_id") == asked, msg_type, START_SECONDS
        )
        return answer["content"]["subshell_id"]

    page = server.websocket(kernel_id)
    page.idle(page.execute("1"), START_SECONDS)
    subshell = ask(page, "create_subshell_request")
    page.close()
    anew = server.websocket(kernel_id)
    kept = ask(anew, "create_subshell_request")
    wait_until(lambda: ask(anew, "list_subshell_request") == [kept], f"{subshell} to be deleted", EVENT_SECONDS)
