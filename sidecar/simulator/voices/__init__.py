"""The dialects as a server speaks them: requests in, frames out. `base.Voice` is what all can say."""

from __future__ import annotations

from sidecar.simulator.voices.base import PLACEHOLDER, Fault, Request, RequestRefused, Voice
from sidecar.simulator.voices.chat import ChatVoice, read_chat
from sidecar.simulator.voices.faults import FAULTS
from sidecar.simulator.voices.messages import MessagesVoice, error_object, read_messages, worded
from sidecar.simulator.voices.responses import ResponsesVoice, read_responses

__all__ = [
    "FAULTS",
    "PLACEHOLDER",
    "ChatVoice",
    "Fault",
    "MessagesVoice",
    "Request",
    "RequestRefused",
    "ResponsesVoice",
    "Voice",
    "error_object",
    "read_chat",
    "read_messages",
    "read_responses",
    "worded",
]
