"""Portkey's open gateway on node, in production mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from peering import Gateway, Started, Target, npm_package, start, step

_PACKAGE: Final = "@portkey-ai/gateway"
#: Held at what its own lock file has: with a later one it fails every stream (its issue 1389, open).
_HELD: Final = {"@hono/node-server": "1.13.5"}

#: It listens on every address of the host and has no setting for that; loaded first, this keeps it on loopback.
_LOOPBACK = """
const net = require('node:net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (typeof port === 'number') {
    return listen.call(this, { port, host: '127.0.0.1' }, rest.find((one) => typeof one === 'function'));
  }
  return listen.call(this, port, ...rest);
};
"""


class Portkey(Gateway):
    """TypeScript, Hono."""

    name = "portkey"
    title = "Portkey gateway"
    settings = (
        "node build/start-server.js --headless with NODE_ENV=production, one process (its installation guide)",
        "x-portkey-provider: openai and x-portkey-custom-host for each request; no hooks, no cache",
        "@hono/node-server as in its lock file, 1.13.5: a later one fails every stream (its issue 1389)",
        "kept on loopback by a preloaded script, as it has no setting for that",
    )
    flood_tokens = 60_000
    short_requests = 600

    def setup(self) -> str:
        """From npm."""
        found = npm_package("portkey", _PACKAGE, **_HELD)
        step(["node", "--version"], folder=found, timeout=30)
        version: str = json.loads((found / "package.json").read_text())["version"]
        return version

    def launch(self, folder: Path, port: int, upstream: int) -> Started:
        """One process."""
        found = npm_package("portkey", _PACKAGE, **_HELD)
        (folder / "loopback.cjs").write_text(_LOOPBACK)
        return start(
            ["node", "--require", folder / "loopback.cjs", found / "build" / "start-server.js", f"--port={port}",
             "--headless"],
            log=folder / "portkey.log", folder=found, environ={"NODE_ENV": "production"},
        )  # fmt: skip

    def target(self, port: int, upstream: int) -> Target:
        """The upstream stands in the request."""
        return Target(port, headers={"x-portkey-provider": "openai",
                                     "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1"})  # fmt: skip
