"""TensorZero's gateway: the Rust HTTP server inside its Python package, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from peering import (
    KEY,
    MODEL,
    Gateway,
    Started,
    Target,
    python_environment,
    python_version,
    start,
    until,
)

_WANTED = ("tensorzero",)

_CONFIGURATION = """
[gateway]
observability.enabled = false
disable_pseudonymous_usage_analytics = true

[models.sim]
routing = ["sim"]
[models.sim.providers.sim]
type = "openai"
model_name = "{model}"
api_base = "http://127.0.0.1:{port}/v1/"
api_key_location = "env::OPENAI_API_KEY"
"""


class TensorZero(Gateway):
    """Rust, axum; the server is embedded in a Python process that only waits."""

    name = "tensorzero"
    title = "TensorZero gateway (embedded in its Python package)"
    settings = (
        "observability off and no database, which spares it work (tensorzero.com, Optimize latency and throughput)",
        "its gateway program is published as a container image only; the same HTTP server is inside the Python package",
    )
    flood_tokens = 100_000
    short_requests = 800

    def setup(self) -> str:
        """Into an environment of its own."""
        return python_version(python_environment("tensorzero", _WANTED), "tensorzero")

    def launch(self, folder: Path, port: int, upstream: int) -> Started:
        """It chooses a port of its own: `port` is not used."""
        python = python_environment("tensorzero", _WANTED)
        (folder / "tensorzero.toml").write_text(_CONFIGURATION.format(model=MODEL, port=upstream))
        self._address = folder / "tensorzero.address"
        environ = {"OPENAI_API_KEY": KEY, "RUST_LOG": "error"}
        started = start(
            [python, Path(__file__).with_name("tensorzero_server.py"), "tensorzero.toml", self._address],
            log=folder / "tensorzero.log", folder=folder, environ=environ,
        )  # fmt: skip
        until(self._address.exists, started)
        return started

    def target(self, port: int, upstream: int) -> Target:
        """Its own name for the model, in its OpenAI-compatible door."""
        found = urlsplit(self._address.read_text())
        path = found.path.rstrip("/") + "/chat/completions"
        return Target(found.port or 0, path=path, model="tensorzero::model_name::sim")
