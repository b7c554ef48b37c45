"""A fake daemon for every test that asks for one: real ipc, in a folder of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.fake_daemon import FakeDaemon


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """Bound and answering."""
    with tempfile.TemporaryDirectory() as folder, FakeDaemon(Path(folder)) as fake:
        yield fake.start()


@pytest.fixture
def no_daemon() -> Iterator[FakeDaemon]:
    """Not started yet."""
    with tempfile.TemporaryDirectory() as folder, FakeDaemon(Path(folder)) as fake:
        yield fake
