"""Covers items 3 and 6: what a frontend sees of farside is, message for message and byte for byte, what it sees of
the bare engine. Allowed differences are in `ANSWERED_BY_FARSIDE`, `same_kernel_info` and `is_reminder`, and nowhere else."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import replace

from sandbox import Sandbox
from wire import CHANNELS, Client, Msg

# Answered by farside, kernel_info from its cache, interrupts since ipykernel's spec has them as a signal: compared as
# parsed JSON, since the bytes are farside's own.
ANSWERED_BY_FARSIDE = {"kernel_info_request", "interrupt_request"}

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="

# Cells that need nothing but reply and idle to be over. Order matters: they share a namespace.
CELLS = [
    "a = 1",
    "a",
    "print('out')",
    "import sys; print('err', file=sys.stderr)",
    "",
    "   \n\t\n",
    "# only a comment",
    "print('umlaut ä, euro €, clef 𝄞, nul \\x00, escape \\x1b[31m, cr \\r, bs \\b')",
    "'quotes \" and \\\\ backslashes \u2028 and separators'",
    "1e400, -0.0, 10**30, 1.0, float('nan')",
    "1/0",
    "def f():\n    raise KeyError('deep')\nf()",
    "x = = 1",
    "  indented",
    "undefined_name",
    "raise SystemExit(3)",
    "raise KeyboardInterrupt",
    "assert False, 'ä'",
    "zip?",
    "get_ipython().set_next_input('next')",
    "!echo from a subprocess",
    "%lsmagic_nope",
    "%%nope\nbody",
    "%%capture c\nprint('captured')",
    "c.stdout",
    "_, __, Out[2]",
    "from IPython.display import *; display(HTML('<b>bold</b>'), metadata={'text/html': {'isolated': True}})",
    f"import base64; display(Image(data=base64.b64decode('{PNG}')))",
    "h = display('first', display_id='the-display')",
    "h.update('second')",
    "update_display(HTML('<i>third</i>'), display_id='the-display')",
    "display({'text/plain': 'raw', 'application/x-custom+json': {'k': [1, None, 1.50]}}, raw=True, transient={'t': 1})",
    "display('before'); clear_output(); display('after')",
    "display('before'); clear_output(wait=True); display('after')",
    "display(JSON({'deep': {'er': [1, {'x': None}]}}))",
    "display(Markdown('# t'), Latex('$x$'), SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'))",
    "k = get_ipython().kernel; s = k.session\n"
    "_m = s.send(k.iopub_socket, 'made_up_type', {'any': ['thing']}, parent=k.get_parent(), ident=b'made.up.topic',"
    " buffers=[b'\\x00\\xff', b''], metadata={'m': 1})",
    "_m = s.send(k.iopub_socket, 'stream', {'name': 'stdout', 'text': 'an orphan', 'extra': 1}, parent={})",
    "_m = s.send(k.iopub_socket, 'status', {'execution_state': 'pondering'}, parent=k.get_parent())",
    "del _m, k, s",
    "from ipywidgets import IntSlider; w = IntSlider(value=7); w",
    "w.value = 9",
    "w.close()",
    "print('x' * 300_000)",
    "display({'text/plain': 'y' * 300_000}, raw=True)",
    "%farsideish",
    "print('%farside status')",
    "#%farside status",
]

# Requests that get exactly one reply: (channel, type, content).
REQUESTS = [
    ("shell", "kernel_info_request", {}),
    ("control", "kernel_info_request", {}),
    ("shell", "is_complete_request", {"code": "for i in range(3):"}),
    ("shell", "is_complete_request", {"code": "1"}),
    ("shell", "is_complete_request", {"code": "x = = 1"}),
    ("shell", "inspect_request", {"code": "zip", "cursor_pos": 3, "detail_level": 0}),
    ("shell", "inspect_request", {"code": "zip", "cursor_pos": 3, "detail_level": 1}),
    ("shell", "inspect_request", {"code": "no_such", "cursor_pos": 7, "detail_level": 0}),
    ("shell", "complete_request", {"code": "impor", "cursor_pos": 5}),
    ("shell", "complete_request", {"code": "ä.upp", "cursor_pos": 5}),
    ("shell", "history_request", {"output": False, "raw": True, "hist_access_type": "tail", "n": 5}),
    ("shell", "history_request", {"output": True, "raw": True, "hist_access_type": "tail", "n": 5}),
    ("shell", "history_request", {"output": False, "raw": False, "hist_access_type": "range", "session": 0, "start": 1, "stop": 6}),
    ("shell", "history_request", {"output": True, "raw": True, "hist_access_type": "range", "session": 0, "start": 1, "stop": 6}),
    ("shell", "history_request", {"output": False, "raw": True, "hist_access_type": "search", "pattern": "*print*", "n": 3, "unique": True}),
    ("shell", "comm_info_request", {}),
    ("shell", "comm_info_request", {"target_name": "echo"}),
    ("control", "list_subshell_request", {}),
    ("control", "interrupt_request", {}),
    ("control", "debug_request", {"type": "request", "command": "debugInfo", "seq": 1, "arguments": {}}),
    ("control", "debug_request", {
        "type": "request", "command": "initialize", "seq": 2,
        "arguments": {"clientID": "t", "adapterID": "", "linesStartAt1": True, "columnsStartAt1": True, "locale": "en"},
    }),
    ("control", "debug_request", {"type": "request", "command": "dumpCell", "seq": 3, "arguments": {"code": "b = 2"}}),
    ("control", "debug_request", {"type": "request", "command": "inspectVariables", "seq": 4, "arguments": {}}),
    ("control", "execute_request", {"code": "'on control'", "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}),
]  # fmt: skip

# What an engine answers with silence or a log line: (channel, type, content).
UNANSWERED = [
    ("shell", "made_up_request", {"x": 1}),
    ("control", "made_up_request", {"x": 1}),
    ("shell", "execute_request", {"no": "code"}),
    ("shell", "execute_request", []),
    ("shell", "comm_msg", {"comm_id": "nobody", "data": {}}),
    ("shell", "input_reply", {"value": "on the wrong channel"}),
]


def fence(client: Client, channel: str) -> None:
    """A request whose end proves that everything before it on that channel has been dealt with."""
    kind = "is_complete_request" if channel == "shell" else "list_subshell_request"
    client.result(client.send(channel, kind, {"code": "1"}))


def comms(client: Client) -> None:
    client.run(
        "def _echo(comm, opened):\n"
        "    comm.send({'opened': opened['content']['data']}, buffers=[bytes(b)[::-1] for b in opened['buffers']])\n"
        "    comm.on_msg(lambda m: comm.send({'got': m['content']['data'], 'meta': m['metadata']}, metadata={'x': [1]},"
        " buffers=[bytes(b) * 2 for b in m['buffers']]))\n"
        "get_ipython().kernel.comm_manager.register_target('echo', _echo)"
    )
    comm = {"comm_id": "comm-of-the-test"}
    buffers = [b"\x00\x01\xfe\xff", b"", b"<IDS|MSG>", bytes(range(256)) * 400]
    client.idle(client.send("shell", "comm_open", {**comm, "target_name": "echo", "data": {"o": 1}}, buffers=buffers))
    client.idle(client.send("shell", "comm_msg", {**comm, "data": {"m": "ä"}}, buffers=buffers, metadata={"u": {"v": 1}}))
    client.result(client.send("shell", "comm_info_request", {"target_name": "echo"}))
    client.idle(client.send("shell", "comm_close", {**comm, "data": {}}))
    client.idle(client.send("shell", "comm_open", {"comm_id": "no-target", "target_name": "nobody", "data": {}}))
    client.run(
        "from comm import create_comm\n"
        "_c = create_comm(target_name='frontend', data={'k': 1}, metadata={'m': 2}, buffers=[b'\\x80abc'])\n"
        "_c.send({'n': 2}, buffers=[memoryview(b'\\x81')]); _c.close()"
    )


def stdin(client: Client) -> None:
    cells = {"input('name? ')": 1, "import getpass; getpass.getpass('secret: ')": 1, "input(), input('2')": 2}
    for code, prompts in cells.items():
        asked, seen = client.execute(code), 0
        for turn in range(prompts):
            request = client.wait_for(lambda m: m.type == "input_request" and m.parent_id == asked, "a prompt", start=seen)  # noqa: B023
            seen = client.messages.index(request) + 1
            client.send("stdin", "input_reply", {"value": f"ä{turn}", "status": "ok"}, parent=request.header)
        client.result(asked)
    client.run("input('nobody may answer')", allow_stdin=False)


def subshells(client: Client) -> None:
    shell_ids = []
    for _ in range(2):
        created = client.result(client.send("control", "create_subshell_request"))
        shell_ids.append(created.reply.content["subshell_id"])
    client.result(client.send("control", "list_subshell_request"))
    for shell_id in shell_ids:
        client.run("print('in a subshell')", header={"subshell_id": shell_id})
    # The main shell is busy; a subshell and control answer all the same.
    running = client.execute("import threading; _go = threading.Event(); _go.wait(20)")
    client.wait_for(lambda m: m.type == "execute_input" and m.parent_id == running, "the cell to run")
    client.run("1 + 1", header={"subshell_id": shell_ids[0]})
    client.result(client.send("control", "list_subshell_request"))
    client.run("_go.set()", header={"subshell_id": shell_ids[1]}, silent=True)
    client.result(running)
    for shell_id in shell_ids:
        client.result(client.send("control", "delete_subshell_request", {"subshell_id": shell_id}))
    client.result(client.send("control", "delete_subshell_request", {"subshell_id": "no-such"}))
    client.result(client.send("control", "list_subshell_request"))


def variations(client: Client) -> None:
    client.run("'silent'; print('said anyway')", silent=True)
    client.run("'no history'", store_history=False)
    client.run("1/0", silent=True)
    client.run("q = 3", user_expressions={"good": "q + 1", "bad": "1/0", "html": "HTML('<p>')"})
    client.run("'meta'", metadata={"cellId": "cell-1", "trusted": True, "unknown": {"deep": [None, 1.0]}, "tags": ["ä"]})
    client.run("'head'", header={"made_up_field": {"x": [1]}, "version": "5.3", "username": "ä"})
    client.run("'buffers'", buffers=[b"\x00", b"\xff" * 1000])
    client.run("'no such shell'; 1", header={"subshell_id": None})
    client.result(client.send("shell", "is_complete_request", {"code": "1", "made_up": 1}, metadata={"x": 1}, odd="header"))


def converse(client: Client) -> None:
    for cell in CELLS:
        client.run(cell)
    for channel, kind, content in REQUESTS:
        client.result(client.send(channel, kind, content))
    for channel, kind, content in UNANSWERED:
        client.send(channel, kind, content)
        fence(client, channel)
    for part in (comms, stdin, subshells, variations):
        part(client)
    for channel in ("shell", "control"):
        fence(client, channel)


class Normal:
    """Takes out what differs from run to run, keeping which ids are the same as which others."""

    RUN = [
        (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"), "<date>"),
        (re.compile(r"0x[0-9a-f]{6,}"), "<address>"),
        (re.compile(r"ipykernel_\d+"), "ipykernel_<pid>"),
        (re.compile(r'"(seq|tmp_file_prefix|tmp_file_suffix|processId|systemProcessId|pid|variablesReference|port)": ?("[^"]*"|\d+)'), r'"\1": <own>'),
    ]
    # jupyter_client's ids (session, session_pid_count), uuids with and without dashes; and the header.session that
    # farside pins for an engine.
    ID = re.compile(
        r"farside-[a-z0-9]{8}(?:_\d+_\d+)?|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?:_\d+_\d+)?|[0-9a-f]{8}-[0-9a-f]{24}(?:_\d+_\d+)?|(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"
    )

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        for pattern, instead in self.RUN:
            text = pattern.sub(instead, text)
        return self.ID.sub(lambda m: self.ids.setdefault(m[0], f"<id {len(self.ids)}>"), text)


def own_answer(message: Msg) -> bool:
    return message.parent.get("msg_type") in ANSWERED_BY_FARSIDE


def is_reminder(message: Msg, before: list[Msg]) -> bool:
    """Where something else ends while a cell runs, its busy comes once more: frontends have one status for all."""
    states = [m.state for m in before if m.parent_id == message.parent_id and m.state]
    return (message.state, message.header["username"], states) == ("busy", "farside", ["busy"])


Recording = tuple[list[str], list[Msg]]


def in_order(recording: Recording, channel: str) -> list[Msg]:
    """In order within each request, requests in the order they were sent: ipykernel's threads (shell, subshells,
    control, debugger) race each other, and `converse` waits wherever the order is meant. debugpy's events, and
    what it executes for itself, come when they come."""
    sent, messages = recording
    groups: dict[tuple, list[Msg]] = {(msg_id, False): [] for msg_id in sent}
    for message in messages:
        if message.channel == channel:
            groups.setdefault((message.parent_id, message.type == "debug_event"), []).append(message)
    return [message for group in groups.values() for message in merged(group)]


def merged(group: list[Msg]) -> list[Msg]:
    """What ipykernel flushes together depends on the clock: adjacent texts of one stream count as one."""
    whole: list[Msg] = []
    for message in group:
        last = whole[-1] if whole else None
        if last and (last.type, message.type) == ("stream", "stream") and last.content["name"] == message.content["name"]:
            text = last.content["text"] + message.content["text"]
            whole[-1] = replace(last, content={**last.content, "text": text})
        else:
            whole.append(message)
    return whole


def lines(recording: Recording, channel: str) -> list[str]:
    normal, found = Normal(), []
    for message in in_order(recording, channel):
        if own_answer(message):
            content = dict(message.content)
            if message.type == "kernel_info_reply":
                content = same_kernel_info(content)
            parts = [message.type, json.dumps(message.parent, sort_keys=True), json.dumps(content, sort_keys=True)]
            assert set(message.header) >= {"msg_id", "msg_type", "session", "username", "date", "version"}
        else:
            topics = [topic.decode() for topic in message.identities] if channel == "iopub" else []
            parts = [*topics, *(part.decode() for part in message.raw), *(b.hex() for b in message.buffers)]
            if message.type == "stream":  # ipykernel sends these parents through a set: no order of its own.
                parts[len(topics) + 1] = json.dumps(message.parent, sort_keys=True)
                parts[len(topics) + 3] = json.dumps(message.content, sort_keys=True)
        found += [normal(part) if len(part) < 4000 else f"{normal(part[:2000])}... {len(part)}" for part in parts]
        found.append("")
    return found


def same_kernel_info(content: dict) -> dict:
    """The two things farside may add."""
    own = content.pop("farside", None)
    if own is not None:
        assert own["version"] and own["session"], own
        *bare_banner, ours = content["banner"].rstrip("\n").split("\n")
        assert "farside" in ours
        content["banner"] = "\n".join(bare_banner)
    content["banner"] = content["banner"].rstrip("\n")
    # IPython's banner ends with a tip of the day.
    content["banner"] = re.sub(r"\nTip: .*", "", content["banner"])
    return content


def record(sandbox: Sandbox, kernel: str, talk: Callable[[Client], None]) -> Recording:
    # A history of its own.
    env = {"IPYTHONDIR": sandbox.ipython(f"ipython-{len(sandbox.launchers)}")}
    client = sandbox.launch(kernel, env=env).client(identity=b"the-frontend", session_id="0" * 8 + "-" + "1" * 24)
    before = len(client.sent)
    talk(client)
    # On a busy machine it was asked more than once whether it is there, and the first answers may come only now; as may
    # what it said when it began.
    earlier = set(client.sent[:before])
    messages: list[Msg] = []
    for message in client.messages:
        if message.parent_id not in earlier and message.state != "starting" and not is_reminder(message, messages):
            messages.append(message)
    return client.sent[before:], messages


def differences(bare: Recording, farside: Recording) -> list[str]:
    found = []
    for channel in CHANNELS:
        found += difflib.unified_diff(
            lines(bare, channel), lines(farside, channel), f"bare {channel}", f"farside {channel}", lineterm="", n=4
        )
    return found


def compare(sandbox: Sandbox, bare: str, farside: str) -> tuple[list[Msg], list[Msg]]:
    sandbox.kernelspec(farside)
    first, second = (record(sandbox, kernel, converse) for kernel in (bare, farside))
    wrong = differences(first, second)
    assert not wrong, "\n".join(wrong[:80])
    return first[1], second[1]


def test_whole_transcripts_are_the_bare_engines(sandbox: Sandbox) -> None:
    bare, farside = compare(sandbox, "python3", "farside-python3")
    # The list above is real: a good part of the protocol took place.
    assert len({m.type for m in bare}) >= 20, sorted({m.type for m in bare})
    assert len(bare) > 400
    assert any(m.buffers and m.type == "comm_msg" for m in farside)
    # One header.session for all that came from farside to this frontend.
    assert len({m.header["session"] for m in farside}) == 1
    # No id twice: frontends refuse duplicates.
    ids = [m.header["msg_id"] for m in farside]
    assert len(ids) == len(set(ids))
