"""The cell that the faults hit, and the frontend that watches it."""

from __future__ import annotations

import base64
import mmap
import random
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from wire import Client, Msg

# Every output of the cell has its number in it, in these brackets; nothing else of a session does.
TOKEN = re.compile(rb"\xc2\xab(\d+)\xc2\xbb|\\u00ab(\d+)\\u00bb")

# A small one, and one that is too large to be copied by the journal.
IMAGE_BYTES = (300, 300, 300, 30_000)

# A flood must not keep the campaign from looking at its clock.
TAKE_MAX = 2000

# Numbered lines, images and progress, as fast as the engine goes. `count` is shared with the campaign, so that it is
# known how far the cell came also when it was killed.
SOURCE = """
import mmap, os, struct
from IPython.display import publish_display_data
def cell(stop, count, image, flush, limit, large):
    with open(count, 'r+b') as file, mmap.mmap(file.fileno(), 8) as shared:
        n = 0
        while n < limit and not os.path.exists(stop):
            for kind in range(16):
                if kind == 7:
                    publish_display_data({'image/png': image, 'text/plain': f'\\xab{n}\\xbb'})
                elif kind % 5 == 3:
                    print(f'\\r\\xab{n}\\xbb', end='', flush=flush)
                else:
                    print(f'\\xab{n}\\xbb', flush=flush)
                n += 1
                shared[:] = struct.pack('<Q', n)
            if large and n >= 512:
                print('x' * large, f'\\xab{n}\\xbb', flush=True)
                large, n = 0, n + 1
                shared[:] = struct.pack('<Q', n)
    print('the end', flush=True)
"""


def tokens(content: bytes) -> list[int]:
    return [int(plain or escaped) for plain, escaped in TOKEN.findall(content)]


class Cell:
    """One execution. `flush`: each line is a message of its own; else the engine merges what 0.2 s bring."""

    def __init__(self, folder: Path, name: str, rng: random.Random, limit: int = 1 << 60, large: int = 0):
        self.stop_file, self.count_file = folder / f"{name}.stop", folder / f"{name}.count"
        self.count_file.write_bytes(bytes(8))
        self.flush = rng.random() < 0.7
        image = base64.b64encode(rng.randbytes(rng.choice(IMAGE_BYTES))).decode()
        places = f"{str(self.stop_file)!r}, {str(self.count_file)!r}"
        self.code = f"cell({places}, {image!r}, {self.flush}, {limit}, {large})"

    @property
    def count(self) -> int:
        """How many outputs it has printed."""
        with self.count_file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
            return struct.unpack("<Q", shared[:8])[0]

    def stop(self) -> None:
        self.stop_file.touch()


@dataclass
class Sight:
    """What a frontend got for one request."""

    ids: dict[str, int] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    replies: list[dict] = field(default_factory=list)
    idle: bool = False
    # What was no output of the cell: farside's own lines, errors.
    text: str = ""

    @property
    def over(self) -> bool:
        return self.idle and bool(self.replies)


class Watcher(Client):
    """A frontend that counts what it gets for the requests it watches, and keeps no messages of those."""

    # Whether what it was connected to has ended.
    gone = False

    def __init__(self, *args: Any, **kw: Any):
        super().__init__(*args, **kw)
        self.sights: dict[str, Sight] = {}

    def watch(self, msg_id: str) -> Sight:
        return self.sights.setdefault(msg_id, Sight())

    def pump(self, seconds: float) -> bool:
        ready = dict(self.poller.poll(max(0, int(seconds * 1000))))
        for channel, socket in self.sockets.items():
            if socket in ready:
                self._drain(channel, socket)
        return bool(ready)

    def _drain(self, channel: str, socket: zmq.Socket) -> None:
        for _ in range(TAKE_MAX):
            try:
                self.take(self.parse(channel, socket.recv_multipart(zmq.NOBLOCK)))
            except zmq.Again:
                return

    def take(self, message: Msg) -> None:
        sight = self.sights.get(message.parent_id or "")
        if sight is None:
            self.messages.append(message)
            return
        if message.channel != "iopub":
            sight.replies.append(message.content)
            return
        msg_id = message.header["msg_id"]
        sight.ids[msg_id] = sight.ids.get(msg_id, 0) + 1
        sight.idle |= message.state == "idle"
        if message.type in ("stream", "display_data", "error"):
            found = tokens(message.raw[3])
            sight.tokens += found
            if not found:
                sight.text += str(message.content)[:2000]
