"""Covers item 2: the public conformance suite gives the same result, test for test, as for the bare engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import need_engine
from sandbox import Sandbox, wait_until

SUITE = Path(__file__).with_name("conformance.py")
# How many tests of the suite each engine must really pass: a suite that skips all would agree, too.
PASSES_MIN = {"python3": 20, "ir": 9, "deno": 6}


@pytest.mark.parametrize("engine", ["python3", "ir", "deno"])
def test_the_public_suite_cannot_tell_farside_from_its_engine(sandbox: Sandbox, engine: str) -> None:
    need_engine(engine)
    kernels = [engine, f"farside-{engine}"]
    results, runs = {}, {}
    for kernel in kernels:
        sandbox.kernelspec(kernel)
        runs[kernel] = subprocess.Popen(
            [sys.executable, str(SUITE), kernel, engine], env=sandbox.env, cwd=sandbox.work,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        sandbox.children.append(runs[kernel])
    for kernel, run in runs.items():
        out, err = run.communicate(timeout=100)
        assert run.returncode == 0, (kernel, err[-3000:])
        results[kernel] = json.loads(out)
    bare, farside = results.values()
    assert not [name for name, result in bare.items() if result.startswith("failed")], bare
    assert farside == bare
    assert list(farside.values()).count("ok") >= PASSES_MIN[engine], farside
    # The suite's kernels are owned ones: what it shut down is gone.
    wait_until(lambda: not sandbox.processes(), "all processes to end", detail=sandbox.processes)
    assert sandbox.ls() == []
