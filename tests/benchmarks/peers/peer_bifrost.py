"""Bifrost: its npm package is a script that downloads the program from the vendor when it is first run."""

from __future__ import annotations

import json
from pathlib import Path

from peering import KEY, MODEL, Gateway, Missing, Started, Target, cache_folder, npm_package, start, step

_PACKAGE = "@maximhq/bifrost"


class Bifrost(Gateway):
    """Go."""

    name = "bifrost"
    title = "Bifrost gateway"
    settings = (
        "configuration by file, no configuration store, no request log (docs.getbifrost.ai, config.json)",
        "a provider of the type openai with a base_url",
    )
    flood_tokens = 100_000
    short_requests = 1000

    def setup(self) -> str:
        """From npm; the program itself is the vendor's download, asked for by `--help`."""
        found = npm_package("bifrost", _PACKAGE)
        try:
            step(["node", found / "bin.js", "--help"], folder=found, timeout=120,
                 XDG_CACHE_HOME=str(cache_folder()))  # fmt: skip
        except Missing as error:
            raise Missing(
                f"the npm package only downloads the program from the vendor's server, which failed: {error}"
            ) from error
        version: str = json.loads((found / "package.json").read_text())["version"]
        return version

    def launch(self, folder: Path, port: int, upstream: int) -> Started:
        """A folder of its own for what it keeps."""
        home = folder / "bifrost"
        home.mkdir()
        provider = {
            "keys": [{"name": "made-up", "value": KEY, "models": [MODEL], "weight": 1.0}],
            "network_config": {"base_url": f"http://127.0.0.1:{upstream}"},
            "custom_provider_config": {"base_provider_type": "openai"},
        }
        off = {"enabled": False}
        whole = {"client": {"enable_logging": False}, "providers": {"sim": provider}, "config_store": off}
        (home / "config.json").write_text(json.dumps({**whole, "logs_store": off}))
        found = npm_package("bifrost", _PACKAGE)
        return start(
            ["node", found / "bin.js", "-app-dir", home, "-host", "127.0.0.1", "-port", str(port), "-log-level",
             "error"],
            log=folder / "bifrost.log", folder=home, environ={"XDG_CACHE_HOME": str(cache_folder())},
        )  # fmt: skip

    def target(self, port: int, upstream: int) -> Target:
        """The provider stands before the model."""
        return Target(port, model=f"sim/{MODEL}")
