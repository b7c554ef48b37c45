"""nginx of Debian as a plain reverse proxy that does not buffer: what relaying bytes costs at the least."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from peering import Gateway, Missing, Started, cache_folder, start, step

_CONFIGURATION = """
daemon off;
worker_processes {workers};
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; multi_accept on; }}
http {{
  access_log off;
  tcp_nodelay on;
  keepalive_requests 1000000;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream sim {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    proxy_read_timeout 600s;
    location / {{ proxy_pass http://sim; }}
  }}
}}
"""


def _binary() -> Path:
    """That of the host, or the package unpacked into the cache: installing it would start a public server."""
    there = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if there:
        return Path(there)
    folder = cache_folder() / "nginx"
    found = folder / "usr" / "sbin" / "nginx"
    if not found.exists():
        folder.mkdir(exist_ok=True)
        step(["apt-get", "download", "nginx"], folder=folder, timeout=120)
        packages = sorted(folder.glob("nginx_*.deb"))
        if not packages:
            raise Missing("apt-get download nginx left no package")
        step(["dpkg", "-x", packages[-1], folder], folder=folder, timeout=60)
    return found


class Nginx(Gateway):
    """C."""

    name = "nginx"
    title = "nginx, 1 worker"
    workers = "1"
    settings = (
        "proxy_buffering off, HTTP/1.1 with keep-alive to the upstream, tcp_nodelay on, access log off",
        "(nginx.org, ngx_http_proxy_module; ngx_http_upstream_module, keepalive)",
    )
    flood_tokens = 800_000
    short_requests = 4000

    def setup(self) -> str:
        """Nothing is started by that."""
        binary = _binary()
        try:
            said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True, timeout=20).stderr
        except (OSError, subprocess.SubprocessError) as error:
            raise Missing(f"nginx does not run here: {error}") from error
        found = re.search(r"nginx/(\S+)", said)
        return found.group(1) if found else said.strip()

    def launch(self, folder: Path, port: int, upstream: int) -> Started:
        """A folder of its own as prefix."""
        prefix = folder / self.name
        prefix.mkdir()
        (prefix / "nginx.conf").write_text(_CONFIGURATION.format(workers=self.workers, port=port, upstream=upstream))
        return start([_binary(), "-p", prefix, "-c", "nginx.conf", "-e", "stderr"], log=folder / f"{self.name}.log",
                     folder=prefix, environ={})  # fmt: skip


class NginxAuto(Nginx):
    """As many workers as cores."""

    name = "nginx-auto"
    title = "nginx, a worker per core"
    workers = "auto"
