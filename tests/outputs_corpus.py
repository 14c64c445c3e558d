"""Holds farside's replays against nbclient's own output logic, on a large generated corpus.

Started by tests/outputs_corpus.rs, which answers on stdin each line that this writes to stdout:
    -> {"messages": [{"msg_type": ..., "content": ...}, ...], "cuts": [3, 17]}
    <- {"replay": [...], "prefixes": [[...], [...]], "nbformat": [...]}
`prefixes` are the replays of the first 3 and 17 messages; live, the rest follows. Every sequence of messages goes
through NotebookClient.process_message; what it leaves in the notebook and in Output widgets is then drawn as
JupyterLab draws a notebook: streams of one name that follow each other are one, `\\r` and `\\b` are applied.
"""

import copy
import json
import os
import random
import re
import sys
from types import SimpleNamespace

import nbformat
import nbformat.v4.nbbase
from nbclient import NotebookClient

# nbclient has each output checked against the schema as it comes, which takes most of the time and is not asked here.
nbformat.v4.nbbase.validate = lambda *_args, **_more: None

PARENT = "the-request"
CASES = int(os.environ.get("FARSIDE_CORPUS_CASES", "500"))
SEED = int(os.environ.get("FARSIDE_CORPUS_SEED", "1"))
# An image: anything opaque will do, in several sizes.
PNG = "iVBORw0KGgo" + "A" * 200


# --- What is shown -------------------------------------------------------------------------------------------


def draw_text(text):
    """processText of @jupyterlab/outputarea, on UTF-16 units."""
    units, cursor = [], 0
    data = text.encode("utf-16-le", "surrogatepass")
    for i in range(0, len(data), 2):
        unit = data[i : i + 2]
        if unit == b"\n\0":
            units.append(unit)
            cursor = len(units)
        elif unit == b"\r\0":
            while cursor > 0 and units[cursor - 1] != b"\n\0":
                cursor -= 1
        elif unit == b"\b\0":
            if cursor > 0 and units[cursor - 1] != b"\n\0":
                del units[cursor - 1 : cursor + 1]
                cursor -= 1
        else:
            units[cursor : cursor + 1] = [unit]
            cursor += 1
    return b"".join(units).decode("utf-16-le", "surrogatepass")


def draw(outputs):
    """The outputs of a notebook as JupyterLab shows them."""
    drawn = []
    for output in json.loads(json.dumps(outputs)):
        last = drawn[-1] if drawn else {}
        if output["output_type"] == "stream" == last.get("output_type") and output["name"] == last["name"]:
            last["text"] += output["text"]
        else:
            drawn.append(output)
    for output in drawn:
        if output["output_type"] == "stream":
            output["text"] = draw_text(output["text"])
    return drawn


LONE = re.compile("[\ud800-\udfff]")


def visible(drawn):
    """A browser shows half a surrogate pair as U+FFFD."""
    return json.loads(LONE.sub("\ufffd", json.dumps(drawn, ensure_ascii=False)))


class Channel:
    def msg(self, msg_type, **_):
        return msg_type

    def send(self, _):
        pass


def show(messages):
    """What nbclient makes of the messages: this cell, Output widgets, the widget state, an earlier cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell() for _ in range(2)])
    client = NotebookClient(notebook, record_timing=False)
    client.kc = SimpleNamespace(session=Channel(), shell_channel=Channel())
    # As at the start of every cell.
    client.clear_before_next_output = False
    for n in range(3):
        process(client, notebook, 0, {"msg_type": "display_data", "content": display(f"far{n}", n)[1]})
    for message in messages:
        process(client, notebook, 1, message)
    widgets = {comm: draw(widget.outputs) for comm, widget in client.comm_objects.items()}
    state = {comm: state for comm, state in client.widget_state.items()}
    for comm, widget in state.items():
        if "outputs" in widget:
            widget["outputs"] = draw(widget["outputs"])
    return {
        "cell": draw(notebook.cells[1].outputs),
        "widgets": widgets,
        "state": json.loads(json.dumps(state)),
        "elsewhere": draw(notebook.cells[0].outputs),
    }


def process(client, notebook, cell, message):
    message = {
        "msg_type": message["msg_type"],
        "header": {"msg_type": message["msg_type"], "msg_id": "m"},
        "parent_header": {"msg_id": PARENT, "msg_type": "execute_request"},
        "metadata": {},
        "content": copy.deepcopy(message["content"]),
        "buffers": [],
    }
    client.process_message(message, notebook.cells[cell], cell)


# --- The corpus ----------------------------------------------------------------------------------------------


def stream(text, name="stdout"):
    return ("stream", {"name": name, "text": text})


def display(display_id, value, msg_type="display_data"):
    content = {"data": {"text/plain": f"<{value}>", "image/png": PNG + str(value)}, "metadata": {"v": value}}
    if display_id:
        content["transient"] = {"display_id": display_id}
    if msg_type == "execute_result":
        content["execution_count"] = 7
    return (msg_type, content)


def clear(wait):
    return ("clear_output", {"wait": wait})


def update(comm, **state):
    return ("comm_msg", {"comm_id": comm, "data": {"method": "update", "state": state, "buffer_paths": []}})


def widget(comm, model, **state):
    module = "@jupyter-widgets/output" if model == "OutputModel" else "@jupyter-widgets/controls"
    state = {"_model_module": module, "_model_name": model, "_model_module_version": "2.0.0", **state}
    return (
        "comm_open",
        {"comm_id": comm, "target_name": "jupyter.widget", "data": {"state": state, "buffer_paths": []}},
    )


def cut_anywhere(rng, text, name):
    """A kernel's buffer is flushed at any place."""
    while text:
        n = rng.randint(1, 30)
        yield stream(text[:n], name)
        text = text[n:]


def training(rng):
    for epoch in range(rng.randint(1, 4)):
        yield stream(f"epoch {epoch}\n")
        for step in range(rng.randint(1, 12)):
            bar = "█" * step + "▌"
            yield stream(f"\r {step:3}%|{bar:12}| {step}/12", "stderr")
            if rng.random() < 0.1:
                yield stream(f"loss {rng.random():.3f}\n")
        if rng.random() < 0.8:
            yield stream("\n", "stderr")


def spinner(rng):
    text = "working "
    for n in range(rng.randint(1, 20)):
        text += "|/-\\"[n % 4] + rng.choice(["\b", "\b\b", "\b \b", "\r"])
    yield from cut_anywhere(rng, text + rng.choice(["", "done", "\ndone\r\n"]), rng.choice(["stdout", "stderr"]))


def colours(rng):
    parts = ["\x1b[31m", "\x1b[0m", "\x1b[1;32mok\x1b[0m", "plain ", "\r", "\r\n", "\n", "\x1b[2K", "ünï", "😀", "\b", "\t"]
    text = "".join(rng.choices(parts, k=rng.randint(1, 40)))
    yield from cut_anywhere(rng, text, "stdout")


def live_plot(rng):
    wait = rng.random() < 0.8
    for n in range(rng.randint(1, 6)):
        yield clear(wait)
        if rng.random() < 0.5:
            yield stream(f"step {n}\n")
        if rng.random() < 0.8:
            yield display(None, n)


def updated_display(rng):
    name = f"near{rng.randint(0, 2)}"
    yield display(name, 0, rng.choice(["display_data"] * 4 + ["execute_result"]))
    for n in range(1, rng.randint(2, 8)):
        yield display(name, n, rng.choice(["update_display_data"] * 5 + ["display_data"]))
        if rng.random() < 0.2:
            yield stream(".")


def other_cells_display(rng):
    name = f"far{rng.randint(0, 2)}"
    for n in range(rng.randint(1, 5)):
        yield display(name, n + 10, "update_display_data")


def notebook_bar(rng):
    bar, label = f"bar{rng.randint(0, 99)}", f"label{rng.randint(0, 99)}"
    yield widget(bar, "FloatProgressModel", value=0, max=10)
    yield widget(label, "HTMLModel", value="")
    yield ("display_data", {"data": {"application/vnd.jupyter.widget-view+json": {"model_id": bar}}, "metadata": {}})
    for n in range(rng.randint(1, 10)):
        yield update(bar, value=n)
        yield update(label, value=f"{n}/10")
        if rng.random() < 0.1:
            yield update(bar, value=n, bar_style="danger")
        if rng.random() < 0.1:
            yield ("comm_msg", {"comm_id": bar, "data": {"method": "custom", "content": {"n": n}}})
    if rng.random() < 0.3:
        yield ("comm_close", {"comm_id": bar, "data": {}})


def output_widget(rng, depth=0):
    out = f"out{rng.randint(0, 99)}-{depth}"
    yield widget(out, "OutputModel", outputs=[], msg_id="")
    yield ("display_data", {"data": {"application/vnd.jupyter.widget-view+json": {"model_id": out}}, "metadata": {}})
    for _ in range(rng.randint(1, 3)):
        yield update(out, msg_id=PARENT)
        for _ in range(rng.randint(1, 3)):
            if depth == 0 and rng.random() < 0.2:
                yield from output_widget(rng, depth + 1)
            else:
                yield from rng.choice([training, live_plot, colours, updated_display])(rng)
        yield update(out, msg_id="")
        if rng.random() < 0.5:
            yield stream("outside\n")


def anything(rng):
    for _ in range(rng.randint(1, 15)):
        yield rng.choice(
            [
                stream(rng.choice(["a\n", "b", "c\r", "\bd", "", "e\r\n", "\n"]), rng.choice(["stdout", "stderr"])),
                stream(rng.choice(["a\n", "b", "c\r", "\bd", "\n"])),
                display(rng.choice([None, "near0", "near1"]), rng.randint(0, 9)),
                display(rng.choice(["near0", "near1", "nowhere"]), rng.randint(0, 9), "update_display_data"),
                clear(rng.random() < 0.5),
                ("status", {"execution_state": "busy"}),
                ("execute_input", {"code": "1", "execution_count": 7}),
                ("debug_event", {"seq": 1, "type": "event"}),
                ("of_tomorrow", {"x": [1, "two"]}),
            ]
        )


def failure(rng):
    yield ("error", {"ename": "ValueError", "evalue": "no", "traceback": ["\x1b[31mValueError\x1b[0m: no"]})


SCENES = [training, spinner, colours, live_plot, updated_display, other_cells_display, notebook_bar, anything]


def sequence(rng):
    scenes = SCENES + ([output_widget] if rng.random() < 0.15 else [])
    messages = [("status", {"execution_state": "busy"}), ("execute_input", {"code": "x", "execution_count": 7})]
    for _ in range(rng.randint(1, 5)):
        messages.extend(rng.choice(scenes)(rng))
    if rng.random() < 0.2:
        messages.extend(failure(rng))
    return [{"msg_type": msg_type, "content": content} for msg_type, content in messages]


# --- The comparison ------------------------------------------------------------------------------------------


def ask(case):
    print(json.dumps(case), flush=True)
    return json.loads(sys.stdin.readline())


def differ(what, seed, messages, replay, shown, expected):
    if visible(shown) == visible(expected):
        return False
    print(f"{what} of sequence {seed} differs:", file=sys.stderr)
    for part in expected:
        if visible(shown[part]) != visible(expected[part]):
            for name, value in [("expected", expected[part]), ("got", shown[part])]:
                print(f"  {part}, {name}: {json.dumps(value)}", file=sys.stderr)
    for name, sent in [("engine", messages), ("replay", replay)]:
        print(f"  {name}:", *(f"    {json.dumps(message)}" for message in sent), sep="\n", file=sys.stderr)
    return True


def main():
    totals = dict.fromkeys(["sequences", "messages", "replayed", "prefixes", "bytes", "bytes replayed"], 0)
    for seed in range(SEED, SEED + CASES):
        rng = random.Random(seed)
        messages = sequence(rng)
        cuts = sorted(rng.randint(0, len(messages)) for _ in range(3))
        answer = ask({"messages": messages, "cuts": cuts})
        expected = show(messages)

        replay = answer["replay"]
        if differ("The replay", seed, messages, replay, show(replay), expected):
            return 1
        in_file = {"cell": answer["nbformat"]}
        if differ("The nbformat", seed, messages, replay, in_file, {"cell": expected["cell"]}):
            return 1
        if seed % 10 == 0:
            cell = nbformat.v4.new_code_cell(outputs=[nbformat.from_dict(output) for output in answer["nbformat"]])
            nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))

        for cut, prefix in zip(cuts, answer["prefixes"], strict=True):
            # Half an emoji, left by `\b`: replayed as U+FFFD.
            if LONE.search(json.dumps(show(messages[:cut]), ensure_ascii=False)):
                continue
            live = prefix + messages[cut:]
            if differ(f"The replay of the first {cut}, then live,", seed, messages, live, show(live), expected):
                return 1
            totals["prefixes"] += 1
        totals["sequences"] += 1
        totals["messages"] += len(messages)
        totals["replayed"] += len(replay)
        totals["bytes"] += len(json.dumps(messages))
        totals["bytes replayed"] += len(json.dumps(replay))
    print("the same as nbclient:", ", ".join(f"{n} {what}" for what, n in totals.items()), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
