"""The limits farside has to hold, measured beside the bare engine in one run.

    bench.py [--json FILE] [--only NAME]... [--quick] [--strict]

Each measurement is taken in turns, one of the bare engine, one of farside, so that whatever else the machine does
falls on both; medians and their ratio are what counts. The client is the same for both and is bare ZMQ without JSON
where a client library's own cost would hide the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/e2e"))

import zmq
from sandbox import Launcher, Sandbox, wait_until
from wire import DELIMITER, Client, dumps, endpoint

BARE, FARSIDE = "python3", "farside-python3"
MB = 1_000_000


@dataclass
class Row:
    """One line of the table. `limit` is of the ratio, or of farside's own value where `unit_limit` says so."""

    name: str
    unit: str
    bare: float | None
    farside: float
    limit: float
    of_ratio: bool
    samples: int
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.farside / self.bare if self.bare else None

    @property
    def held(self) -> bool:
        return (self.ratio if self.of_ratio else self.farside) <= self.limit


class Fast:
    """Sends prepared requests and counts what comes back, without parsing it."""

    def __init__(self, client: Client):
        self.client = client
        self.shell, self.control, self.iopub = (client.sockets[c] for c in ("shell", "control", "iopub"))

    def request(self, kind: str, content: dict, channel: str = "shell") -> tuple[bytes, zmq.Socket]:
        header = self.client.header(kind)
        parts = [dumps(header), b"{}", b"{}", dumps(content)]
        socket = self.client.sockets[channel]
        socket.send_multipart([DELIMITER, self.client.sign(parts), *parts])
        return header["msg_id"].encode(), socket

    def reply(self, msg_id: bytes, socket: zmq.Socket, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            frames = socket.recv_multipart()
            if msg_id in frames[frames.index(DELIMITER) + 3]:
                return
        raise AssertionError("no reply")

    def until_idle(self, msg_id: bytes, kind: bytes = b"", seconds: float = 120) -> tuple[int, int]:
        """(messages of `kind`, their content's bytes) up to the idle of `msg_id`."""
        count = size = 0
        deadline = time.monotonic() + seconds
        while self.iopub.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            frames = self.iopub.recv_multipart()
            at = frames.index(DELIMITER)
            header, parent, content = frames[at + 2], frames[at + 3], frames[at + 5]
            if kind and kind in header:
                count += 1
                size += len(content)
            if len(content) < 100 and b'"idle"' in content and msg_id in parent:
                return count, size
        raise AssertionError("no idle")

    def execute(self, code: str, kind: bytes = b"", channel: str = "shell") -> tuple[float, int, int]:
        """Seconds from request to reply and idle, whichever is later; and what was counted."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
        begun = time.perf_counter()
        msg_id, socket = self.request("execute_request", content, channel)
        counted = self.until_idle(msg_id, kind)
        self.reply(msg_id, socket)
        return time.perf_counter() - begun, *counted


class Bench:
    def __init__(self, quick: bool):
        self.quick = quick
        self.rows: list[Row] = []
        self.sandbox = Sandbox()
        for kernel in (BARE, FARSIDE):
            self.sandbox.kernelspec(kernel)
        self.folders = {kernel: self.sandbox.ipython(f"ipython-{kernel}") for kernel in (BARE, FARSIDE)}

    def rounds(self, full: int) -> int:
        return max(3, full // 10) if self.quick else full

    def pair(self) -> dict[str, Fast]:
        return {kernel: Fast(self.launch(kernel).client()) for kernel in (BARE, FARSIDE)}

    def launch(self, kernel: str, **kw) -> Launcher:
        """With an IPython folder of its own: two engines would wait for each other's history database."""
        return self.sandbox.launch(kernel, env={"IPYTHONDIR": self.folders[kernel]}, **kw)

    def end(self, launcher: Launcher) -> None:
        """Ends a kernel, and with farside its session."""
        client = Client(launcher.connection)
        client.send("control", "shutdown_request", {"restart": False})
        launcher.wait_exit(30)
        client.close()

    def end_all(self) -> None:
        for client in self.sandbox.clients:
            client.close()
        for launcher in self.sandbox.launchers:
            if launcher.running():
                self.end(launcher)
        self.sandbox.clients.clear()

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"  {line(row)}", file=sys.stderr, flush=True)

    def in_turns(self, count: int, measure: Callable[[str], float]) -> tuple[float, float]:
        """Medians of `count` measurements each, alternating, who is first alternating too."""
        seconds: dict[str, list[float]] = {BARE: [], FARSIDE: []}
        for turn in range(count):
            for kernel in (BARE, FARSIDE) if turn % 2 else (FARSIDE, BARE):
                seconds[kernel].append(measure(kernel))
        return statistics.median(seconds[BARE]), statistics.median(seconds[FARSIDE])

    # The measurements, one function a limit.

    def latency(self) -> None:
        fast = self.pair()

        def execute(kernel: str) -> float:
            one = fast[kernel]
            begun = time.perf_counter()
            msg_id, socket = one.request("execute_request", {"code": "pass", "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": True, "stop_on_error": True})
            one.reply(msg_id, socket)
            seconds = time.perf_counter() - begun
            one.until_idle(msg_id)
            return seconds

        def info(kernel: str) -> float:
            one = fast[kernel]
            begun = time.perf_counter()
            msg_id, socket = one.request("kernel_info_request", {})
            one.reply(msg_id, socket)
            seconds = time.perf_counter() - begun
            one.until_idle(msg_id)
            return seconds

        count = self.rounds(500)
        self.in_turns(20, execute)
        bare, farside = self.in_turns(count, execute)
        self.add(Row("execute `pass`, request to reply, median", "ms", bare * 1e3, farside * 1e3, 1.10, True, count))
        bare, farside = self.in_turns(count, info)
        self.add(Row("kernel_info while idle, median", "ms", bare * 1e3, farside * 1e3, 0.30, True, count))

        one = fast[FARSIDE]
        gate = self.sandbox.work / "gate"
        running, socket = one.request("execute_request", {"code": f"import os\nwhile not os.path.exists({str(gate)!r}): sum(range(10_000))", "silent": False})
        times = []
        for turn in range(self.rounds(1000)):
            begun = time.perf_counter()
            msg_id, asked_on = one.request("kernel_info_request", {}, "control" if turn % 2 else "shell")
            one.reply(msg_id, asked_on)
            times.append(time.perf_counter() - begun)
        gate.touch()
        one.until_idle(running)
        one.reply(running, socket)
        worst = statistics.quantiles(times, n=100)[98]
        self.add(Row("kernel_info while a cell runs, 99th percentile", "ms", None, worst * 1e3, 5.0, False, len(times)))
        self.end_all()

    def displays(self) -> None:
        fast = self.pair()
        wanted = 20_000
        code = f"from IPython.display import publish_display_data\nfor i in range({wanted}): publish_display_data({{'text/plain': str(i)}})"

        def measure(kernel: str) -> float:
            nonlocal lost
            seconds, count, _ = fast[kernel].execute(code, b'"display_data"')
            # An engine's own PUB socket drops what a busy client does not take in time. farside's must not.
            if kernel == BARE:
                lost += wanted - count
            else:
                assert count == wanted, f"{kernel}: {count} of {wanted} display_data arrived"
            return seconds

        count, lost = self.rounds(7), 0
        measure(BARE), measure(FARSIDE)
        bare, farside = self.in_turns(count, measure)
        note = "all arrived" + (f" (the bare engine lost {lost})" if lost else "")
        self.add(Row("20,000 display_data in one cell", "s", bare, farside, 1.10, True, count, note))
        self.end_all()

    def stdout(self) -> None:
        fast = self.pair()
        wanted = 200 * MB
        code = f"print('x' * {wanted - 1})"

        def measure(kernel: str) -> float:
            seconds, _, size = fast[kernel].execute(code, b'"stream"')
            assert size >= wanted, f"{kernel}: {size} of {wanted} bytes arrived"
            return seconds

        count = self.rounds(5)
        bare, farside = self.in_turns(count, measure)
        self.add(Row("200 MB of stdout in one print", "s", bare, farside, 1.30, True, count, "all arrived"))
        self.end_all()

    def start(self) -> None:
        def first_answer(kernel: str, **kw) -> tuple[float, Launcher]:
            begun = time.perf_counter()
            launcher = self.launch(kernel, **kw)
            with zmq.Context() as context, context.socket(zmq.DEALER) as shell:
                shell.linger = 0
                # The default, 100 ms, would round every start up to its next multiple.
                shell.reconnect_ivl = 2
                shell.connect(endpoint(launcher.connection, "shell"))
                client = Client.__new__(Client)
                client.key, client.session_id, client.username = launcher.connection["key"].encode(), "s", "u"
                parts = [dumps(client.header("kernel_info_request")), b"{}", b"{}", b"{}"]
                shell.send_multipart([DELIMITER, client.sign(parts), *parts])
                assert shell.poll(60_000), f"{kernel} did not answer"
                return time.perf_counter() - begun, launcher

        def launch(kernel: str) -> float:
            seconds, launcher = first_answer(kernel)
            self.end(launcher)
            return seconds

        count = self.rounds(15)
        launch(BARE), launch(FARSIDE)
        bare, farside = self.in_turns(count, launch)
        self.add(Row("launch to first kernel_info_reply", "s", bare, farside, 1.15, True, count))

        key = str(self.sandbox.work / "bench.ipynb")
        launcher = self.launch(FARSIDE, jupyter_session=key)
        client = launcher.client()
        client.execute("import threading; threading.Event().wait()")
        client.wait_for(lambda m: m.type == "execute_input", "the cell to run")
        session = self.sandbox.session()["id"]
        times = []
        for _ in range(count):
            launcher.kill()
            self.sandbox.wait_session(lambda s: not s["attached"], "detached", session)
            seconds, launcher = first_answer(FARSIDE, jupyter_session=key)
            assert self.sandbox.session()["id"] == session
            times.append(seconds)
        self.add(Row("reattach to a running session, beside a bare launch", "s", bare, statistics.median(times), 0.15, True, count))
        self.sandbox.cli("stop", session, "--now", check=True)
        self.end_all()

    def memory(self) -> None:
        launcher = self.launch(FARSIDE)
        client = launcher.client()
        client.run("1")
        pids = {"launcher": launcher.pid, "host": self.sandbox.session()["host_pid"]}
        keeper = self.sandbox.keeper_pid(self.sandbox.session())
        wait_until(lambda: settled(pids), "memory to settle")
        idle = total(pids, "VmRSS")
        self.add(Row("memory of launcher and host, idle", "MB", None, idle / MB, 20.0, False, 1, f"keeper beside them: {field(keeper, 'VmRSS') / MB:.1f} MB"))

        messages, size = (1000 if self.quick else 10_000), 100_000
        stopped = subprocess.Popen(
            [sys.executable, "-c", STOPPED, str(launcher.connection_file)], env=self.sandbox.env, stdout=subprocess.PIPE
        )
        try:
            assert stopped.stdout is not None and stopped.stdout.readline() == b"subscribed\n"
            os.kill(stopped.pid, signal.SIGSTOP)
            peak, over = 0, threading.Event()

            def watch() -> None:
                nonlocal peak
                while not over.wait(0.01):
                    peak = max(peak, total(pids, "VmRSS"))

            watcher = threading.Thread(target=watch)
            watcher.start()
            code = f"from IPython.display import publish_display_data\nfor i in range({messages}): publish_display_data({{'text/plain': 'x' * {size}}})"
            seconds, count, _ = Fast(client).execute(code, b'"display_data"')
            over.set()
            watcher.join()
            assert count == messages, f"{count} of {messages} arrived"
            after = total(pids, "VmRSS")
        finally:
            stopped.kill()
            stopped.wait()
        what = f"{messages * size / 1e9:.1f} GB in 100 kB messages, one subscriber stopped"
        self.add(Row(f"memory during {what}", "MB", None, peak / MB, 64.0, False, 1, f"{messages * size / MB / seconds:.0f} MB/s"))
        self.add(Row(f"memory after {what}", "MB", None, after / MB, 64.0, False, 1))
        self.end_all()


STOPPED = """
import json, sys, time, zmq
c = json.load(open(sys.argv[1]))
s = zmq.Context().socket(zmq.SUB); s.rcvhwm = 10; s.connect(f"tcp://{c['ip']}:{c['iopub_port']}"); s.subscribe(b"")
s.recv_multipart(); print("subscribed", flush=True)
while True: time.sleep(1)
"""


def field(pid: int, name: str) -> int:
    for text in Path(f"/proc/{pid}/status").read_text().splitlines():
        if text.startswith(f"{name}:"):
            return int(text.split()[1]) * 1024
    raise AssertionError(f"no {name}")


def total(pids: dict[str, int], name: str) -> int:
    return sum(field(pid, name) for pid in pids.values())


def settled(pids: dict[str, int]) -> bool:
    before = total(pids, "VmRSS")
    time.sleep(0.3)
    return total(pids, "VmRSS") == before


def line(row: Row) -> str:
    def value(number: float | None) -> str:
        return "-" if number is None else f"{number:.3g} {row.unit}"

    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    limit = f"{row.limit:.2f}x" if row.of_ratio else f"{row.limit:g} {row.unit}"
    return f"{row.name:<72}{value(row.bare):>10}{value(row.farside):>10}{ratio:>7}{limit:>8}  {'held' if row.held else 'OVER'}{'  ' + row.note if row.note else ''}"


MEASUREMENTS = ("latency", "displays", "stdout", "start", "memory")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="where to write the figures")
    options.add_argument("--only", action="append", choices=MEASUREMENTS, help="this measurement only")
    options.add_argument("--quick", action="store_true", help="a tenth of the rounds: to see that it works, not how fast")
    options.add_argument("--strict", action="store_true", help="exit 1 where a limit is not held")
    args = options.parse_args()
    bench = Bench(args.quick)
    try:
        for name in args.only or MEASUREMENTS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            getattr(bench, name)()
    finally:
        wrong = bench.sandbox.close()
    cpus = len(os.sched_getaffinity(0))
    print(f"\n{'':<72}{'bare':>10}{'farside':>10}{'ratio':>7}{'limit':>8}")
    for row in bench.rows:
        print(line(row))
    print(f"\nbare: ipykernel started by the same client in the same run, in turns. {cpus} CPUs, Linux {platform.release()}, Python {platform.python_version()}.")
    if args.json:
        figures = [{**asdict(row), "ratio": row.ratio, "held": row.held} for row in bench.rows]
        args.json.write_text(json.dumps({"cpus": cpus, "python": platform.python_version(), "rows": figures}, indent=1) + "\n")
        print(f"figures: {args.json}")
    for problem in wrong:
        print(f"left behind: {problem}", file=sys.stderr)
    return 1 if wrong or (args.strict and not all(row.held for row in bench.rows)) else 0


if __name__ == "__main__":
    sys.exit(main())
