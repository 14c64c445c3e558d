"""Cells that stop where the test wants them to, and what they print."""

from __future__ import annotations

import uuid

from sandbox import Sandbox, Server, WebSocketClient
from wire import Client, Result


class Gated:
    """A cell that prints `line 0` to `line <before-1>`, waits for the test to open its gate, and prints the rest."""

    def __init__(self, sandbox: Sandbox, before: int = 40, after: int = 40, ending: str = "'done'"):
        self.gate = sandbox.work / f"gate-{uuid.uuid4().hex[:8]}"
        self.before, self.after = before, after
        self.code = (
            f"import os, time\n"
            f"for i in range({before}): print(f'line {{i}}', flush=True)\n"
            f"while not os.path.exists({str(self.gate)!r}): time.sleep(0.01)\n"
            f"for i in range({before}, {before + after}): print(f'line {{i}}', flush=True)\n"
            f"{ending}"
        )

    @property
    def first(self) -> str:
        return "".join(f"line {i}\n" for i in range(self.before))

    @property
    def text(self) -> str:
        return "".join(f"line {i}\n" for i in range(self.before + self.after))

    def open(self) -> None:
        self.gate.touch()

    def start(self, client: Client) -> str:
        """Runs it up to its gate."""
        msg_id = client.execute(self.code)
        client.wait_text(msg_id, f"line {self.before - 1}\n")
        return msg_id

    def start_at(self, server: Server, kernel_id: str) -> tuple[WebSocketClient, str]:
        socket = server.websocket(kernel_id)
        msg_id = socket.execute(self.code, cellId="cell-1", trusted=True)
        socket.wait_for(lambda m: f"line {self.before - 1}\n" in socket.text(msg_id), "the first half of the cell", 45)
        return socket, msg_id


def assert_attached(result: Result, code: str, text: str | None = None, status: str = "ok") -> None:
    """The order of the contract: busy, the original code, outputs, idle; the original's reply."""
    assert result.types[0] == "busy", result.types
    assert result.types[1] == "execute_input", result.types
    assert result.iopub[1].content["code"] == code
    assert result.types[-1] == "idle", result.types
    assert result.types.count("busy") == result.types.count("idle") == 1, result.types
    assert result.reply is not None
    assert result.reply.type == "execute_reply"
    assert result.reply.content["status"] == status, result.reply.content
    if text is not None:
        assert result.text == text, [repr(m.content)[-300:] for m in result.iopub]
