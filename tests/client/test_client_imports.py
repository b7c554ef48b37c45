"""What importing us costs a bot."""

from __future__ import annotations

import subprocess
import sys

import pytest

NEVER = {
    "trio",
    "structlog",
    "trio_websocket",
    "wsproto",
    "zstandard",
    "sidecar.daemon",
    "sidecar.service",
    "sidecar.core",
}


def loaded_by(code: str) -> set[str]:
    """The modules in `sys.modules` after running the code in a fresh interpreter."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize(
    ("code", "neither"),
    [
        ("import sidecar", {"zmq", "msgspec", "asyncio"}),
        ("import sidecar.client", {"zmq", "msgspec", "asyncio"}),
        ("from sidecar import Client", {"zmq", "asyncio"}),
        ("from sidecar.client import Client, Answer, Choice, Handle", {"zmq", "asyncio"}),
        ("from sidecar import AsyncClient", {"zmq"}),
        ("import sidecar.cli.probe", {"zmq", "msgspec", "asyncio", "argparse", "logging"}),
        ("import sidecar.cli.show", {"zmq", "msgspec", "asyncio"}),
    ],
)
def test_an_import_loads_no_more_than_it_must(code: str, neither: set[str]) -> None:
    """Neither the daemon nor Trio; asyncio only for those who use it; nothing heavy for a probe."""
    loaded = loaded_by(code)
    assert not loaded & (NEVER | neither)
