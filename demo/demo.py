"""`make demo`: a training run on a real ipykernel survives kill -9 of its frontend's kernel process.

Uses jupyter_client's KernelManager, which is what Jupyter Server starts kernels with. Everything it writes goes to
target/demo and a folder under /tmp for the sockets; both are gone, and all processes ended, when it is over. What it
claims at the end it has checked; where something is not so, it says so and exits with 1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from queue import Empty

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target/demo"
FARSIDE = os.environ.get("FARSIDE_BIN", str(ROOT / "target/debug/farside"))
EPOCHS, STEPS = 3, 60
KERNEL = "farside-python3"
NOTEBOOK = FOLDER / "train.ipynb"
PRINTED = FOLDER / "printed-by-the-cell.txt"
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def say(text: str) -> None:
    print(f"\n{paint('1', '==> ' + text)}", flush=True)


def note(text: str) -> None:
    print(f"    {text}", flush=True)


def farside(*args: str) -> str:
    """Runs a command as a person would type it, and shows it."""
    print(paint("36", f"    $ farside {' '.join(args)}"), flush=True)
    out = subprocess.run([FARSIDE, *args], env=ENV, capture_output=True, text=True, timeout=60)
    for line in (out.stdout + out.stderr).rstrip().splitlines():
        print(f"    {line}")
    if out.returncode != 0:
        raise SystemExit(f"farside {args[0]} failed with {out.returncode}")
    return out.stdout


def session() -> dict:
    out = subprocess.run([FARSIDE, "ls", "--json"], env=ENV, capture_output=True, text=True, timeout=60, check=True)
    [one] = json.loads(out.stdout)
    return one


def start() -> tuple[KernelManager, object]:
    """Starts the kernel process for the notebook as Jupyter Server does: it puts the path in JPY_SESSION_NAME."""
    specs = KernelSpecManager(kernel_dirs=[str(FOLDER / "jupyter/kernels")], ensure_native_kernel=False)
    manager = KernelManager(kernel_name=KERNEL, kernel_spec_manager=specs)
    with (FOLDER / "launcher.log").open("a") as log:
        manager.start_kernel(env={**ENV, "JPY_SESSION_NAME": str(NOTEBOOK)}, cwd=str(FOLDER), stderr=log)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    return manager, client


def watch(client, msg_id: str, stop) -> dict[str, str]:
    """Shows the streams of one request as they come, until `stop(text)` or its idle; gives them. Of a progress bar,
    which overwrites itself, its state before the next line of output is shown."""
    text = {"stdout": "", "stderr": ""}
    bar = ""
    deadline = time.monotonic() + 120

    def show_bar() -> None:
        nonlocal bar
        if bar.strip():
            last = re.split(r"[\r\n]", bar.strip())[-1].strip()
            print(f"      {paint('33', last)}", flush=True)
        bar = ""

    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=5)
        except Empty:
            continue
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        content = message["content"]
        if message["msg_type"] == "stream":
            text[content["name"]] += content["text"]
            if content["name"] == "stderr":
                bar += content["text"]
            else:
                show_bar()
                for line in content["text"].splitlines():
                    print(f"      {paint('32', line)}", flush=True)
            if stop(text["stdout"]):
                return text
        elif message["msg_type"] == "error":
            print(f"      {content['ename']}: {content['evalue']}")
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            show_bar()
            return text
    raise SystemExit("the cell did not end within two minutes")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main() -> int:
    begun = time.monotonic()
    say("A Jupyter kernelspec for farside, in a folder of the demo's own")
    farside("install", "--user", "--engine", "python3")

    say("A frontend starts that kernel for train.ipynb and runs a cell: gradient descent, with a progress bar")
    manager, client = start()
    code = f"PRINTED, EPOCHS, STEPS = {str(PRINTED)!r}, {EPOCHS}, {STEPS}\n" + (ROOT / "demo/train.py").read_text()
    original = client.execute(code)
    seen = watch(client, original, lambda text: text.count("\n") >= STEPS // 5 + 4)["stdout"]
    before = session()

    launcher = manager.provisioner.pid
    say(f"kill -9 {launcher}: the kernel process of that frontend is gone, in the middle of epoch 2")
    os.kill(launcher, signal.SIGKILL)
    client.stop_channels()
    manager.provisioner.process.wait()
    while (detached := session())["attached"]:
        time.sleep(0.05)
    note(f"the engine (ipykernel, pid {before['engine_pid']}) runs on: {'yes' if alive(before['engine_pid']) else 'NO'}")

    say("What is there now, with no frontend at all")
    farside("ls")
    lines_then = PRINTED.read_text().count("\n")
    deadline = time.monotonic() + 60
    while PRINTED.read_text().count("\n") < lines_then + 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    note(f"while nobody was attached, the cell printed {PRINTED.read_text().count(chr(10)) - lines_then} more lines")

    say("The frontend comes back, opens train.ipynb again, and runs the cell `%farside attach`")
    again, frontend = start()
    attach = frontend.execute("%farside attach")
    got = watch(frontend, attach, lambda _: False)
    bars = [f"epoch {n}: 100%" in got["stderr"] for n in range(1, EPOCHS + 1)]

    say("Every line accounted for?")
    printed = PRINTED.read_text().splitlines()
    delivered = got["stdout"].splitlines()
    after = session()
    checks = [
        (f"lines the cell printed, by its own file: {len(printed)}", len(printed) == EPOCHS * STEPS // 5 + 1),
        (f"of them seen before the kill: {len(seen.splitlines())}", printed[: len(seen.splitlines())] == seen.splitlines()),
        (f"of them delivered by the attach: {sum(line in delivered for line in printed)}", all(line in delivered for line in printed)),
        (f"missing: {len(set(printed) - set(delivered))}, more than once: {len(delivered) - len(set(delivered))}, out of order: {0 if delivered == printed else 'some'}", delivered == printed),
        (f"progress bars that came to 100%: {sum(bars)} of {EPOCHS}", all(bars)),
        (f"the same engine: pid {before['engine_pid']} then, {after['engine_pid']} now", before["engine_pid"] == after["engine_pid"]),
        (f"the same session: {after['name'] or after['id']}", before["id"] == after["id"] == detached["id"]),
    ]
    reply = frontend.execute_interactive("print(f'{slope:.3f}')", timeout=20, output_hook=lambda m: None)
    checks.append(("the trained model is still in memory", reply["content"]["status"] == "ok"))

    frontend.stop_channels()
    again.shutdown_kernel()
    deadline = time.monotonic() + 20
    left = [after["engine_pid"], after["host_pid"]]
    while any(map(alive, left)) and time.monotonic() < deadline:
        time.sleep(0.05)
    checks.append(("shut down by the frontend, and no process left", not any(map(alive, left))))
    for text, good in checks:
        print(f"    {paint('32', 'yes') if good else paint('31', 'NO ')}  {text}")
    failed = [text for text, good in checks if not good]
    say(f"{'All of it is so' if not failed else f'{len(failed)} of it NOT so'}. The demo took {time.monotonic() - begun:.0f} s.")
    return 1 if failed else 0


shutil.rmtree(FOLDER, ignore_errors=True)
FOLDER.mkdir(parents=True)
# A unix socket's path has at most 107 bytes, and this clone may lie deep.
SOCKETS = Path(tempfile.mkdtemp(prefix="fs-demo-", dir="/tmp"))
ENV = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY_", "FARSIDE", "XDG_"))},
    "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
    "JUPYTER_DATA_DIR": str(FOLDER / "jupyter"), "JUPYTER_CONFIG_DIR": str(FOLDER / "jupyter/config"),
    "JUPYTER_RUNTIME_DIR": str(FOLDER / "jupyter/runtime"), "IPYTHONDIR": str(FOLDER / "ipython"),
    "FARSIDE_STATE_DIR": str(FOLDER / "farside"), "XDG_CONFIG_HOME": str(FOLDER / "config"),
    "XDG_RUNTIME_DIR": str(SOCKETS), "PYTHONDONTWRITEBYTECODE": "1",
}
os.environ.update({name: ENV[name] for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")})
(FOLDER / "jupyter/runtime").mkdir(parents=True)

if __name__ == "__main__":
    status = 1
    try:
        status = main()
    finally:
        # Whatever happened: leave nothing running.
        try:
            for one in json.loads(subprocess.run([FARSIDE, "ls", "--json"], env=ENV, capture_output=True, text=True, timeout=60).stdout or "[]"):
                subprocess.run([FARSIDE, "stop", "--now", one["id"]], env=ENV, capture_output=True, timeout=60)
        finally:
            shutil.rmtree(SOCKETS, ignore_errors=True)
    sys.exit(status)
