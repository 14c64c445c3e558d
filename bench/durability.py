"""What `durability = "power"` costs beside `"process"`: two sessions with the same engine, in turns."""

from __future__ import annotations

from bed import FARSIDE, MB, Bed, Fast
from floods import DISPLAYS
from rows import number

MODES = ("process", "power")


def measure(bed: Bed) -> None:
    fast = {}
    for mode in MODES:
        # Two engines would wait for each other's history database.
        folder = bed.sandbox.ipython(f"ipython-{mode}")
        fast[mode] = Fast(bed.launch(FARSIDE, env={"FARSIDE_DURABILITY": mode, "IPYTHONDIR": folder}).client())
    outputs, printed = bed.size(2_000), bed.size(50 * MB)
    cells = [
        ("`pass`, until reply and idle", "pass", bed.rounds(200)),
        (f"{outputs:,} display_data", DISPLAYS.format(count=outputs, text="str(i)"), bed.rounds(7)),
        (f"{printed // MB} MB printed at once", f"print('x' * {printed - 1})", bed.rounds(7)),
    ]
    lines = []
    for what, code, rounds in cells:
        for mode in MODES:
            fast[mode].execute(code)
        pairs = bed.in_turns(rounds, lambda mode: fast[mode].execute(code)[0], MODES)
        lines.append([what, str(rounds), number(pairs.bare * 1e3), number(pairs.farside * 1e3), f"{pairs.ratio:.2f}"])
    bed.tables.append(("What durability costs", ["", "times", "`process`, ms", "`power`, ms", "ratio"], lines))
    bed.end_all()
