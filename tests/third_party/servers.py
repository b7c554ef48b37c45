"""The programs of other people, each as it is started here: what stands in a file of its own, command, environment.

All listen on loopback. Behind LiteLLM and nginx is a `sidecar sim`: behind LiteLLM over TLS with a private authority,
as its WebSockets go to such backends only; behind nginx over plain HTTP/1.1, as behind most of those that people run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

KEY: Final = "sk-not-a-secret"
#: nginx: a GOAWAY after so many requests of a connection, this many streams at once, seconds without a request.
NGINX_REQUESTS, NGINX_STREAMS, NGINX_IDLE_S = 25, 8, 5


class Place(Struct, frozen=True, kw_only=True):
    """Where a server is to be: its folder, its port, its backend's, and the files of a private authority."""

    folder: Path
    port: int
    backend: int
    program: Path
    ca: Path
    certificate: Path
    key: Path


class Way(Struct, frozen=True, kw_only=True):
    """A way to ask: an upstream's keys."""

    dialect: str
    scheme: str
    path: str
    keys: str = ""


class Server(Struct, frozen=True, kw_only=True):
    """One program.

    Attributes:
        command: writes its files and says how it is started.
        ways: by name.
        relay: arguments of the simulator behind it; with TLS if `backend_tls`.
        environ: more of its environment.
        reloads: SIGHUP has it replace its processes, those that run answers to their end.
        log: where it notes requests, in its folder; "" for nowhere.
    """

    name: str
    command: Callable[[Place], list[str]]
    ways: Mapping[str, Way]
    relay: tuple[str, ...] = ()
    backend_tls: bool = False
    environ: Callable[[Place], dict[str, str]] = lambda _: {}
    reloads: bool = False
    log: str = ""


#: dialect -> path
_PATHS: Final = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}


def _ways(*, secure: bool) -> dict[str, Way]:
    """Each dialect over HTTP/1.1, `responses` over a WebSocket, too."""
    tail, said = ("s", ", TLS") if secure else ("", "")
    ways = {f"{d}, HTTP/1.1{said}": Way(dialect=d, scheme=f"http{tail}", path=path) for d, path in _PATHS.items()}
    ways[f"responses, WebSocket{said}"] = Way(dialect="responses", scheme=f"ws{tail}", path=_PATHS["responses"])
    return ways


#: HTTP/2 as it is offered where calls are to share a connection: ALPN decides.
_HTTP2: Final = {
    f"{d}, HTTP/2, TLS": Way(dialect=d, scheme="https", path=path, keys="calls_per_connection = 16\n")
    for d, path in _PATHS.items()
}


def _litellm(place: Place) -> list[str]:
    config = place.folder / "litellm.yaml"
    backend = f"https://localhost:{place.backend}/v1"
    config.write_text(
        "model_list:\n  - model_name: mock\n"
        f'    litellm_params: {{ model: openai/gpt-5-mini, api_key: none, api_base: "{backend}" }}\n'
        f"general_settings: {{ master_key: {KEY} }}\n"
    )
    return [str(place.program), "--config", str(config), "--port", str(place.port), "--host", "127.0.0.1"]


def _litellm_http2(place: Place) -> list[str]:
    tls = ["--ssl_certfile_path", str(place.certificate), "--ssl_keyfile_path", str(place.key)]
    return [*_litellm(place), "--run_hypercorn", *tls]


def _trusting(place: Place) -> dict[str, str]:
    """LiteLLM trusts who stands in this file, over HTTPS and over WebSockets."""
    return {"SSL_CERT_FILE": str(place.ca)}


def _aimock(place: Place) -> list[str]:
    fixtures = place.folder / "fixtures.json"
    content = {"fixtures": [{"match": {}, "response": {"content": "Hold the position and wait"}}]}
    fixtures.write_text(json.dumps(content))
    return [str(place.program), "--fixtures", str(fixtures), "--port", str(place.port), "--host", "127.0.0.1"]


_NGINX: Final = """
%(user)s
daemon off;
worker_processes 2;
pid %(folder)s/nginx.pid;
error_log %(folder)s/error.log notice;
events { worker_connections 256; }
http {
    log_format told '$server_protocol $connection $status';
    access_log %(folder)s/access.log told;
    client_body_temp_path %(folder)s/body;
    proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    keepalive_requests %(requests)d;
    keepalive_timeout %(idle)ds;
    http2_max_concurrent_streams %(streams)d;
    map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
    # The simulator upgrades a connection by its first request only.
    map $http_upgrade $simulator { default fresh; '' kept; }
    upstream kept { server 127.0.0.1:%(backend)d; keepalive 16; }
    upstream fresh { server 127.0.0.1:%(backend)d; }
    server {
        listen 127.0.0.1:%(port)d ssl http2;
        ssl_certificate %(certificate)s;
        ssl_certificate_key %(key)s;
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {
            proxy_pass http://$simulator;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_read_timeout 300s;
        }
    }
}
"""


def _nginx(place: Place) -> list[str]:
    config = place.folder / "nginx.conf"
    told = {"folder": place.folder, "port": place.port, "backend": place.backend, "certificate": place.certificate}
    told |= {"requests": NGINX_REQUESTS, "streams": NGINX_STREAMS, "idle": NGINX_IDLE_S, "key": place.key}
    # The folder is for its owner alone, and so must the workers be.
    config.write_text(_NGINX % {**told, "user": "user root root;" if os.geteuid() == 0 else ""})
    return [str(place.program), "-c", str(config), "-p", str(place.folder)]


LITELLM: Final = Server(
    name="LiteLLM, uvicorn", command=_litellm, ways=_ways(secure=False), backend_tls=True, environ=_trusting
)
LITELLM_HTTP2: Final = Server(
    name="LiteLLM, hypercorn", command=_litellm_http2, ways=_HTTP2, backend_tls=True, environ=_trusting
)
AIMOCK: Final = Server(name="aimock", command=_aimock, ways=_ways(secure=False))
NGINX: Final = Server(
    name="nginx", command=_nginx, ways={**_HTTP2, **_ways(secure=True)}, relay=("--key", KEY),
    reloads=True, log="access.log",
)  # fmt: skip
