"""The two dialects as a server speaks them: requests in, frames out. `base.Voice` is what both can say."""

from __future__ import annotations

from sidecar.simulator.voices.base import PLACEHOLDER, Fault, Request, RequestRefused, Voice
from sidecar.simulator.voices.chat import ChatVoice, read_chat
from sidecar.simulator.voices.faults import FAULTS, error_body
from sidecar.simulator.voices.responses import ResponsesVoice, read_responses

__all__ = [
    "FAULTS",
    "PLACEHOLDER",
    "ChatVoice",
    "Fault",
    "Request",
    "RequestRefused",
    "ResponsesVoice",
    "Voice",
    "error_body",
    "read_chat",
    "read_responses",
]
