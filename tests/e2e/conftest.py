"""Fixtures. Each test gets a Sandbox of its own, and fails where that was not clean at the end."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox import FARSIDE, KERNEL, Launcher, Sandbox
from wire import Client


def pytest_configure(config: pytest.Config) -> None:
    if not FARSIDE.exists() and KERNEL.startswith("farside-"):
        raise pytest.UsageError(f"no farside at {FARSIDE}: run `make e2e`, or set FARSIDE_BIN")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.failed and report.when == "call":
        sandbox = getattr(item, "funcargs", {}).get("sandbox")
        if sandbox is not None:
            report.sections.append(("launchers, servers and hosts", sandbox.logs()))
    return report


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    one = Sandbox()
    yield one
    wrong = one.close()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def launcher(sandbox: Sandbox) -> Launcher:
    return sandbox.launch()


@pytest.fixture
def client(launcher: Launcher) -> Client:
    return launcher.client()


def need(what: str, there: bool) -> None:
    """Skips, with the reason in the report, where an optional program is missing; in CI that is a failure."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is not installed here")


def need_engine(name: str) -> None:
    if name == "ir":
        kernels = [Path("/usr/share/jupyter/kernels/ir"), Path("/usr/local/share/jupyter/kernels/ir")]
        need("R with IRkernel (r-cran-irkernel)", bool(shutil.which("R")) and any(k.exists() for k in kernels))
    elif name == "deno":
        # From tests/requirements.txt, so it is always there.
        assert (Path(sys.prefix) / "bin/deno").exists()
