"""Reads a journal's files by docs/journal.md alone, and so holds farside's own reader to that page.

Gives what is there, in order: records, and marks where something is missing (a seq that no record has, bytes that are
no record). Nothing else counts as "said": a loss beside such a mark, or beside a `gap` note, is one that a reader is
told of.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"\xf5\xa7\xfd\x1e"
SEGMENT = struct.Struct("<8sIIQII")
FRAME = struct.Struct("<4sIIIQ")
HEAD = struct.Struct("<BBBBIIIQQQ16s")
REQUEST, REPLY, IOPUB, NOTE = 1, 2, 3, 4


@dataclass(slots=True)
class Record:
    """A record whose checksums are right."""

    seq: int
    time: int
    kind: int
    execution: int
    to_one: bool
    identities: int
    parts: list[bytes]

    @property
    def header(self) -> dict:
        return json.loads(self.parts[self.identities])

    @property
    def content(self) -> bytes:
        return self.parts[self.identities + 3]

    @property
    def note(self) -> dict:
        return json.loads(self.parts[0]) if self.kind == NOTE else {}


@dataclass(slots=True)
class Missing:
    """Here a reader is told that something is not there."""

    why: str


class Disk:
    """One session's journal, read on from where the last look ended."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.segment, self.offset, self.next_seq = 0, 0, 1

    def look(self) -> Iterator[Record | Missing]:
        """What has come since. Only a quiet journal has no half written record at its end."""
        for path in sorted(self.folder.glob("journal-*.seg")):
            number = int(path.stem.split("-")[1])
            if number < self.segment:
                continue
            start = self.offset if number == self.segment else SEGMENT.size
            with path.open("rb") as file:
                if number != self.segment:
                    magic, version, said, _, _, crc = SEGMENT.unpack(file.read(SEGMENT.size).ljust(SEGMENT.size, b"\0"))
                    file.seek(0)
                    if (magic, version, said) != (b"FARSIDEJ", 1, number) or zlib.crc32(file.read(28)) != crc:
                        yield Missing(f"the header of {path.name}")
                file.seek(start)
                data = file.read()
            at = yield from self._records(number, data, start)
            self.segment, self.offset = number, start + at

    def _records(self, number: int, data: bytes, start: int) -> Iterator[Record | Missing]:
        at, damaged_from = 0, None
        while at + FRAME.size <= len(data):
            found = self._record(number, data, at, start)
            if found is None:
                # The next frame, if there is one: up to it nothing can be told.
                damaged_from = at if damaged_from is None else damaged_from
                at = data.find(MAGIC, at + 1)
                if at < 0:
                    return damaged_from
                continue
            record, length = found
            if damaged_from is not None:
                yield Missing(f"{at - damaged_from} damaged bytes at {start + damaged_from} of segment {number}")
                damaged_from = None
            at += length
            if record is None:
                yield Missing(f"a record with a damaged payload before {start + at} of segment {number}")
                continue
            if record.seq < self.next_seq:
                # Of a segment that was compacted, and whose host died before it had removed it.
                continue
            if record.seq > self.next_seq:
                yield Missing(f"seqs {self.next_seq} to {record.seq - 1}")
            self.next_seq = record.seq + 1
            if record.note.get("note") == "compacted":
                self.next_seq = record.note["until"] + 1
            yield record
        return at

    def _record(self, number: int, data: bytes, at: int, start: int) -> tuple[Record | None, int] | None:
        magic, head_crc, payload_crc, head_bytes, body_bytes = FRAME.unpack_from(data, at)
        length, head_at = FRAME.size + body_bytes, at + FRAME.size
        if magic != MAGIC or at + length > len(data) or head_bytes < HEAD.size or head_bytes > body_bytes:
            return None
        crc = zlib.crc32(struct.pack("<IQ", number, start + at))
        crc = zlib.crc32(data[at + 8 : head_at + head_bytes], crc)
        if crc != head_crc:
            return None
        payload = memoryview(data)[head_at + head_bytes : at + length]
        if zlib.crc32(payload) != payload_crc:
            return None, length
        kind, _, flags, _, identities, _, _, seq, time, execution, _ = HEAD.unpack_from(data, head_at)
        lengths = struct.unpack_from(f"<{(head_bytes - HEAD.size) // 8}Q", data, head_at + HEAD.size)
        parts, place = [], 0
        for size in lengths:
            parts.append(bytes(payload[place : place + size]))
            place += size
        return Record(seq, time, kind, execution, bool(flags & 1), identities, parts), length
