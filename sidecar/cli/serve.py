"""`sidecar serve`: the daemon."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from sidecar.errors import ConfigurationError, EndpointError, EndpointHeld

EXIT_HELD, EXIT_CONFIGURATION = 75, 78


def run(argv: list[str]) -> int:
    """Exit status: 0 after a drain, 78 bad configuration, 75 the endpoint is held by another daemon."""
    parser = argparse.ArgumentParser(prog="sidecar serve", description="The daemon: calls in over ZeroMQ, tokens back.")
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="default: /etc/sidecar/sidecar.toml")
    parser.add_argument(
        "--instance", metavar="NAME", help="one of several daemons: NAME.toml beside the file, if there; a folder apart"
    )
    parser.add_argument("--endpoint", metavar="IPC", help="instead of the file's frontend.endpoint")
    arguments = parser.parse_args(argv)

    import trio

    from sidecar.config import load, path_of
    from sidecar.process import serve

    try:
        config = load(
            path_of(arguments.config, arguments.instance),
            environ=os.environ,
            overrides={"frontend.endpoint": arguments.endpoint},
        )
        trio.run(lambda: serve(config, environ=os.environ, instance=arguments.instance, say=_say))
    except EndpointHeld as error:
        return _fail(error, EXIT_HELD)
    except (ConfigurationError, EndpointError) as error:
        return _fail(error, EXIT_CONFIGURATION)
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is None:
            return 130
        raise
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fail(error: Exception, status: int) -> int:
    print(f"sidecar: {error}", file=sys.stderr)
    return status
