"""What was measured, in one JSON file that is written after every measurement, so that a stopped run can go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Ledger:
    """Figures by cell and repetition: ``cells["latency/asyncio/16"]["0"]``.

    Args:
        path: where it lies; read when it is there.
        options: of this run. A file of other options is refused.
    """

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path = path
        options = json.loads(json.dumps(options))  # as it will be read again: tuples are lists
        self.data: dict[str, Any] = {
            "options": options, "about": {}, "versions": {}, "settings": {}, "missing": {}, "load": [], "cells": {},
        }  # fmt: skip
        if path.exists():
            found = json.loads(path.read_text())
            other = {key: value for key, value in found["options"].items() if options.get(key, value) != value}
            if other:
                raise SystemExit(f"{path} is of a run with other options: {other}")
            self.data = found

    def save(self) -> None:
        """Whole or not at all."""
        waiting = self.path.with_name(self.path.name + ".new")
        waiting.write_text(json.dumps(self.data, indent=1))
        waiting.replace(self.path)

    def has(self, key: str, repetition: int) -> bool:
        """Whether it was measured, also if it failed."""
        return str(repetition) in self.data["cells"].get(key, {})

    def note(self, key: str, repetition: int, figures: dict[str, Any]) -> None:
        """Keep what was found."""
        self.data["cells"].setdefault(key, {})[str(repetition)] = figures
        self.data["load"].append(round(os.getloadavg()[0], 2))
        self.save()

    def figures(self, key: str, repetition: int) -> dict[str, Any] | None:
        """Of a measurement that did not fail."""
        found: dict[str, Any] | None = self.data["cells"].get(key, {}).get(str(repetition))
        return None if found is None or "failed" in found else found

    def failure(self, key: str) -> str | None:
        """What went wrong last with a cell, if anything did."""
        told = [one["failed"] for one in self.data["cells"].get(key, {}).values() if "failed" in one]
        return told[-1] if told else None

    def repetitions(self) -> int:
        """How many there are at most, in any cell."""
        return max((len(by) for by in self.data["cells"].values()), default=0)
