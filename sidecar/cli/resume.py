"""`sidecar resume`: see `halt`."""

from __future__ import annotations

from sidecar.cli.halt import run_resume as run

__all__ = ["run"]
