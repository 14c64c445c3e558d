"""Covers items 2, 10 and 13: nbclient, papermill and jupyter console run unchanged and leave nothing behind; and an
attach shows what an uninterrupted nbclient run shows."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import nbformat
import pytest
from sandbox import START_SECONDS, Sandbox, wait_until

CELLS = [
    "import sys\nprint('out'); print('err', file=sys.stderr); print('more')",
    "for i in range(50): print(f'\\r{i}%', end='', flush=True)\nprint()",
    "print('abc\\b\\bX')",
    "from IPython.display import *\ndisplay(HTML('<b>x</b>')); print('between'); display({'text/plain': 't', 'application/json': {'a': 1}}, raw=True)",
    "print('gone'); clear_output(); print('stays')",
    "print('gone'); display('gone too'); clear_output(wait=True); print('stays')",
    "print('stays'); clear_output(wait=True)",
    "h = display('first', display_id='shown'); print('x'); h.update('second')",
    "import base64; display(Image(data=base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==')))",
    "6 * 7",
    "None",
    "from ipywidgets import IntSlider\nIntSlider(value=3)",
    "import tqdm\nfor _ in tqdm.tqdm(range(30), file=sys.stdout, mininterval=0, bar_format='{percentage:3.0f}%|{bar:20}| {n_fmt}'): pass",
    "print('no newline', end='')",
    "import os; _ = os.system('echo from a child process')",
    "print('x' * 200_000)",
    "print('ok so far'); 1 / 0",
]


def notebook(cells: list[str], kernel: str) -> nbformat.NotebookNode:
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(code) for code in cells]
    book.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    return book


def python(sandbox: Sandbox, *args: str, seconds: float = 80, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *args], env=sandbox.env, cwd=sandbox.work, capture_output=True, text=True, timeout=seconds)
    assert not check or done.returncode == 0, (done.stdout[-2000:], done.stderr[-3000:])
    return done


def nothing_left(sandbox: Sandbox) -> None:
    wait_until(lambda: not sandbox.processes(), "all processes to end", detail=sandbox.processes)
    assert sandbox.ls() == []


EXECUTE = (
    "import sys, nbformat, nbclient\n"
    "book = nbformat.read(sys.argv[1], 4)\n"
    "nbclient.NotebookClient(book, kernel_name=sys.argv[2], allow_errors=True, timeout=60).execute()\n"
    "nbformat.write(book, sys.argv[3])"
)


# What is printed "into" an Output widget belongs to the widget, and not to the cell.
WIDGET_CELLS = [
    "from ipywidgets import Output\nout = Output()\nwith out:\n    print('into the widget')\nprint('into the cell')",
]


def executed(sandbox: Sandbox, name: str, kernel: str, cells: list[str]) -> nbformat.NotebookNode:
    nbformat.write(notebook(cells, kernel), sandbox.work / f"{name}.ipynb")
    python(sandbox, "-c", EXECUTE, f"{name}.ipynb", kernel, f"{name}-out.ipynb")
    return nbformat.read(sandbox.work / f"{name}-out.ipynb", 4)


def rendered(outputs: list) -> list:
    """What a cell shows: adjacent streams of one name are one, with \\r and \\b applied; run-dependent ids out."""
    shown: list = []
    for output in outputs:
        one = json.loads(re.sub(r"[0-9a-f]{32}|0x[0-9a-f]+|\d+\.?\d*(it/s|s/it)|\d\d:\d\d", "<>", json.dumps(output)))
        if one["output_type"] == "stream":
            if shown and shown[-1]["output_type"] == "stream" and shown[-1]["name"] == one["name"]:
                shown[-1]["text"] += one["text"]
            else:
                shown.append(one)
        else:
            shown.append(one)
    for one in shown:
        if one["output_type"] == "stream":
            one["text"] = re.sub(r"\?it/s|<>", "<>", overwrite(one["text"]))
    return [one for one in shown if one.get("text") != ""]


def overwrite(text: str) -> str:
    """\\r and \\b as JupyterLab applies them: \\b takes the character before it away, what is written after \\r
    replaces what stood there, and what was longer stays."""
    lines = []
    for line in text.split("\n"):
        cells: list[str] = []
        at = 0
        for char in line:
            if char == "\r":
                at = 0
            elif char == "\b":
                at = max(0, at - 1)
                del cells[at : at + 1]
            else:
                cells[at : at + 1] = char
                at += 1
        lines.append("".join(cells))
    return "\n".join(lines)


def compare_with_nbclient(sandbox: Sandbox, cells: list[str]) -> None:
    """nbclient on farside shows what nbclient on the bare engine shows, and so does an attach to each cell."""
    for kernel in ("python3", "farside-python3"):
        sandbox.kernelspec(kernel)
    bare = executed(sandbox, "bare", "python3", cells)
    farside = executed(sandbox, "far", "farside-python3", cells)
    nothing_left(sandbox)
    for mine, theirs in zip(farside.cells, bare.cells, strict=True):
        assert rendered(mine.outputs) == rendered(theirs.outputs), mine.source
        assert mine.execution_count == theirs.execution_count

    # The same cells in a session that stays; then a notebook of attach cells only, run by the real nbclient.
    client = sandbox.launch(jupyter_session=str(sandbox.work / "n.ipynb"))
    frontend = client.client()
    for cell in cells:
        frontend.run(cell, seconds=30)
    client.kill()
    sandbox.wait_session(lambda s: not s["attached"], "detached")
    sandbox.env["FARSIDE_SESSION"] = str(sandbox.work / "n.ipynb")
    attached = executed(sandbox, "attach", "farside-python3", [f"%farside attach {n}" for n in range(1, len(cells) + 1)])
    for cell, mine, theirs in zip(cells, attached.cells, bare.cells, strict=True):
        assert rendered(mine.outputs) == rendered(theirs.outputs), cell


def test_nbclient_cannot_tell_and_an_attach_shows_the_same(sandbox: Sandbox) -> None:
    compare_with_nbclient(sandbox, CELLS)


def test_an_attach_shows_of_an_output_widget_what_nbclient_shows(sandbox: Sandbox) -> None:
    compare_with_nbclient(sandbox, WIDGET_CELLS)


def test_papermill_runs_and_leaves_nothing(sandbox: Sandbox) -> None:
    sandbox.kernelspec("farside-python3")
    book = notebook(["n = 1", "print(n * 2)"], "farside-python3")
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, sandbox.work / "in.ipynb")
    python(sandbox, "-m", "papermill", "in.ipynb", "out.ipynb", "-p", "n", "21", "--no-progress-bar")
    outputs = [o.text for cell in nbformat.read(sandbox.work / "out.ipynb", 4).cells for o in cell.get("outputs", [])]
    assert outputs == ["42\n"]
    nothing_left(sandbox)


@pytest.mark.parametrize("kernel", ["farside-python3"])
def test_jupyter_console_runs_and_leaves_nothing(sandbox: Sandbox, kernel: str) -> None:
    sandbox.kernelspec(kernel)
    console = Terminal([sys.executable, "-m", "jupyter_console", "--kernel", kernel, "--simple-prompt"], sandbox)
    console.expect("In [1]")
    console.type("print(6 * 7)\n")
    console.expect("42")
    console.type("input('name: ')\n")
    console.expect("name: ")
    console.type("Ada\n")
    console.expect("'Ada'")
    console.type("%farside status\n")
    console.expect(sandbox.session()["id"])
    console.type("exit\n")
    assert console.wait() == 0, console.text
    nothing_left(sandbox)


def test_farside_console_comes_back_to_a_session(sandbox: Sandbox) -> None:
    session = sandbox.json("new", "--name", "far")
    sandbox.cli("exec", session["id"], "kept = 'here'", check=True)
    from sandbox import FARSIDE

    console = Terminal([str(FARSIDE), "console", "far"], sandbox)
    console.expect("In [")
    console.type("kept.upper()\n")
    console.expect("HERE")
    # A plain `exit` ends ipykernel itself, farside or not.
    console.type("exit(keep_kernel=True)\n")
    console.wait()
    assert sandbox.session()["id"] == session["id"]
    assert sandbox.cli("exec", "far", "print(kept)", check=True)[1] == "here\n"


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, argv: list[str], sandbox: Sandbox):
        self.master, slave = pty.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            argv, env={**sandbox.env, "TERM": "dumb", "PROMPT_TOOLKIT_NO_CPR": "1"}, cwd=sandbox.work,
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        )
        os.close(slave)
        sandbox.children.append(self.process)
        self.seen = 0

    def read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0, seconds))
        if not ready:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: the other side has gone.
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def expect(self, what: str, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while what not in self.text[self.seen :]:
            assert self.read(deadline - time.monotonic()) or self.process.poll() is None, self.text[-2000:]
            assert time.monotonic() < deadline, f"no {what!r} in {self.text[self.seen :][-2000:]!r}"
        self.seen = self.text.index(what, self.seen) + len(what)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, seconds: float = 20) -> int:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.read(0.1)
            assert time.monotonic() < deadline, self.text[-2000:]
        os.close(self.master)
        return self.process.returncode
