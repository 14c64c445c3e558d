"""Covers item 9 as a person sees it: JupyterLab in a browser, its server stopped and started again, the page opened
again, and an attach cell that shows every line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import nbformat
from cells import Gated
from conftest import need
from sandbox import KERNEL, Sandbox, Server

LAB = Path(__file__).with_name("lab.mjs")


class Page:
    """One run of lab.mjs: a browser that opens the notebook, does its step, and closes."""

    def __init__(self, sandbox: Sandbox, server: Server, step: str, argument: str):
        self.process = subprocess.Popen(
            ["node", str(LAB), server.url, server.token, "n.ipynb", step, argument],
            env={**sandbox.env, "FARSIDE_NODE": os.environ["FARSIDE_NODE"]}, cwd=sandbox.work,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        sandbox.children.append(self.process)

    def until(self, line: str) -> None:
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == line + "\n", (said, self.process.communicate(timeout=100))

    def result(self) -> dict:
        out, err = self.process.communicate(timeout=100)
        assert self.process.returncode == 0, err[-3000:]
        return json.loads(out)


def test_jupyterlab_comes_back_to_its_running_cell(sandbox: Sandbox) -> None:
    need("node", bool(shutil.which("node")))
    need("chromium", bool(shutil.which("chromium")))
    need("playwright-core (make node)", (Path(os.environ.get("FARSIDE_NODE", "/nowhere")) / "node_modules/playwright-core").exists())
    sandbox.kernelspec(KERNEL)
    cell = Gated(sandbox, before=30, after=30)
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(code) for code in (cell.code, "%farside attach", "%farside status")]
    book.metadata.kernelspec = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    nbformat.write(book, sandbox.work / "n.ipynb")

    server = sandbox.server(lab=True)
    started = Page(sandbox, server, "start", "line 29").result()
    assert (started["opened"], started["during"]) == ("idle", "busy"), started
    before = sandbox.session()
    server.stop(signal.SIGTERM)
    sandbox.wait_session(lambda s: not s["attached"] and s["state"] == "busy", "the session to be detached and busy")

    server = sandbox.server(lab=True)
    page = Page(sandbox, server, "attach", "line 59")
    sandbox.wait_session(lambda s: s["attached"], "the page to have its kernel", seconds=60)
    page.until("the second cell is next")
    cell.open()
    shown = page.result()
    assert (shown["opened"], shown["beside"]) == ("busy", "busy"), shown
    assert shown["after"] == "idle"
    assert shown["output"].startswith(cell.text.rstrip("\n")), shown
    assert shown["seen"] == []
    assert sandbox.session()["engine_pid"] == before["engine_pid"]
