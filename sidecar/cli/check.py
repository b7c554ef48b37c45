"""`sidecar check`: is the configuration right, what does it add up to, and (`--connect`) do the upstreams take us?"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.errors import ConfigurationError, CredentialError, EndpointError

if TYPE_CHECKING:
    from sidecar.config import Config

EXIT_UNREACHABLE, EXIT_CREDENTIAL, EXIT_CONFIGURATION = 69, 77, 78


def run(argv: list[str]) -> int:
    """Exit status: 0 right, 78 configuration, 69 an upstream not reached, 77 a credential refused or unreadable."""
    parser = argparse.ArgumentParser(prog="sidecar check", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="default: /etc/sidecar/sidecar.toml")
    parser.add_argument("--instance", metavar="NAME", help="as `sidecar serve --instance` would take it")
    parser.add_argument("--connect", action="store_true", help="connect and authenticate to each upstream")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args(argv)
    try:
        config, result = _validate(arguments.config, arguments.instance)
    except (ConfigurationError, EndpointError) as error:
        if arguments.json:
            print(json.dumps({"ok": False, "exit": EXIT_CONFIGURATION, "error": str(error)}))
        else:
            print(f"sidecar: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    status = 0
    if not arguments.json:
        from sidecar.config.summary import summary

        print(summary(config, endpoint=result["endpoint"]))
        for note in result["notes"]:
            print(f"note: {note}")
    if arguments.connect:
        from sidecar.cli.check_connect import check_all

        reports = check_all(
            config, environ=os.environ, tell=None if arguments.json else lambda line: print(line, flush=True)
        )
        result["connect"] = [report.as_dict() for report in reports]
        statuses = {report.status for report in reports}
        status = next((each for each in (EXIT_CREDENTIAL, EXIT_UNREACHABLE) if each in statuses), 0)
    if arguments.json:
        print(json.dumps({"ok": status == 0, "exit": status, **result}))
    return status


def _validate(path: Path | None, instance: str | None) -> tuple[Config, dict[str, Any]]:
    """Everything that can be known without a connection: the file, and what it names on this machine."""
    import grp

    from sidecar.config import load, path_of
    from sidecar.config.summary import describe
    from sidecar.credentials import CredentialReader
    from sidecar.transport.dial import tls_context_of
    from sidecar.transport.endpoint import advice, control_of, resolve

    path = path_of(path, instance)
    config = load(path, environ=os.environ)
    frontend = config.frontend
    endpoint = resolve(frontend.endpoint, os.environ, uid=os.getuid(), instance=instance)
    control_of(endpoint, frontend.control_endpoint)
    if frontend.group is not None:
        try:
            grp.getgrnam(frontend.group)
        except KeyError:
            raise ConfigurationError(
                f"no group {frontend.group!r} on this machine",
                where="frontend.group",
                mend=f"groupadd --system {frontend.group}",
            ) from None
    notes = []
    if instance is not None:
        notes.append(f"instance {instance} reads {path}")
        if path.name != f"{instance}.toml":
            fixed = advice(frontend.endpoint, frontend.control_endpoint, os.environ, instance=instance)
            if fixed:
                notes.append(f"the second instance would end with 75{fixed}")
    for upstream in config.upstream:
        tls_context_of(upstream)
        # Not an error yet: the daemon's user and systemd's credentials are not ours here.
        if upstream.credential is not None and not (
            not isinstance(upstream.credential, str) and upstream.credential.command
        ):
            try:
                CredentialReader(upstream.credential, environ=os.environ).read()
            except CredentialError as error:
                notes.append(f"upstream {upstream.name}: {error}")
    return config, {"endpoint": endpoint, **describe(config), "notes": notes}
