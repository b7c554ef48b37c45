"""A fake daemon, or a bare listening socket, for every test that asks for one: real ipc, in a folder of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.fake_daemon import FakeDaemon
from tests.fakes.listening_peer import Peer


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


@pytest.fixture
def base() -> Iterator[Path]:
    """A short folder: socket paths are."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def peer(base: Path) -> Iterator[Peer]:
    """The other end of a client's connection."""
    made = Peer(base / "s")
    yield made
    for one in made.open:
        one.close()
