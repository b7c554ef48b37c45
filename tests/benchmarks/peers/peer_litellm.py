"""LiteLLM's proxy, one worker, as its page "Best Practices for Production" asks for."""

from __future__ import annotations

import secrets
from pathlib import Path

from peering import KEY, MODEL, Gateway, Started, Target, python_environment, python_version, start

_WANTED = ("litellm[proxy]",)

_CONFIGURATION = """
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: http://127.0.0.1:{port}/v1
      api_key: {key}
general_settings:
  master_key: {secret}
  disable_spend_logs: true
  disable_error_logs: true
litellm_settings:
  request_timeout: 600
  set_verbose: false
  json_logs: false
  telemetry: false
"""


class LiteLLM(Gateway):
    """Python, uvicorn, uvloop."""

    name = "litellm"
    title = "LiteLLM proxy, 1 worker"
    settings = (
        "LITELLM_MODE=PRODUCTION, LITELLM_LOG=ERROR, request_timeout 600, set_verbose off, one uvicorn worker",
        "spend and error logs off (all of it: docs.litellm.ai, Best Practices for Production)",
        "a master key, without which it does not start; no database, telemetry off, price map from the package",
    )
    flood_tokens = 4_000
    short_requests = 120

    def __init__(self) -> None:
        self._secret = "sk-" + secrets.token_hex(24)

    def setup(self) -> str:
        """Into an environment of its own."""
        return python_version(python_environment("litellm", _WANTED), "litellm")

    def launch(self, folder: Path, port: int, upstream: int) -> Started:
        """One worker."""
        python = python_environment("litellm", _WANTED)
        told = _CONFIGURATION.format(model=MODEL, port=upstream, key=KEY, secret=self._secret)
        (folder / "litellm.yaml").write_text(told)
        environ = {
            "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        return start(
            [python.with_name("litellm"), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port),
             "--num_workers", "1", "--telemetry", "False"],
            log=folder / "litellm.log", folder=folder, environ=environ,
        )  # fmt: skip

    def target(self, port: int, upstream: int) -> Target:
        """With the master key."""
        return Target(port, headers={"authorization": f"Bearer {self._secret}"})
