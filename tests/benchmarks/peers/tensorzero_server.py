"""Run with the interpreter of TensorZero's environment: `tensorzero_server.py CONFIGURATION PORT-FILE`.

Neither PyPI nor npm nor Debian has its gateway as a program. The Python package has it inside, as compiled Rust, with
its HTTP server: the one that `patch_openai_client` starts. This starts that one and then only waits.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import tensorzero  # type: ignore[import-not-found, unused-ignore]

gateway = tensorzero._start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
waiting = Path(sys.argv[2] + ".new")
waiting.write_text(gateway.base_url)
waiting.rename(sys.argv[2])
signal.pause()
