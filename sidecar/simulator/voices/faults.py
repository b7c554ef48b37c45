"""The errors an upstream may send, by scenario name, worded as the services word them."""

from __future__ import annotations

from typing import Final

from sidecar.simulator.voices.base import Fault

_INVALID: Final = "invalid_request_error"

FAULTS: Final[dict[str, Fault]] = {
    "error_401": Fault(status=401, type=_INVALID, code="invalid_api_key", message="Incorrect API key provided."),
    "error_403": Fault(status=403, type="permission_error", code="forbidden", message="Not allowed for this project."),
    "error_404": Fault(
        status=404, type=_INVALID, code="model_not_found", message="The model does not exist.", param="model"
    ),
    "error_429": Fault(
        status=429, type="rate_limit_error", code="rate_limit_exceeded", message="Rate limit reached for requests."
    ),
    "error_quota": Fault(
        status=429, type="insufficient_quota", code="insufficient_quota", message="You exceeded your current quota."
    ),
    "error_500": Fault(status=500, type="server_error", code="server_error", message="The server had an error."),
    "error_503": Fault(
        status=503, type="server_error", code="service_unavailable", message="The service is unavailable."
    ),
    "error_529": Fault(status=529, type="overloaded_error", code="overloaded_error", message="Overloaded."),
    "error_context_length": Fault(
        status=400,
        type=_INVALID,
        code="context_length_exceeded",
        message="Your input exceeds the context window of this model.",
        param="input",
    ),
    "error_content_filter": Fault(
        status=400, type=_INVALID, code="content_filter", message="The prompt was filtered.", param="prompt"
    ),
}

#: Those that say when to come back.
PATIENT: Final = frozenset({"error_429", "error_503"})

LIMIT_REACHED: Final = Fault(
    status=400,
    type=_INVALID,
    code="websocket_connection_limit_reached",
    message="The WebSocket connection has reached its age limit. Open a new connection to continue.",
)
EXPIRING: Final = Fault(
    status=400, type=_INVALID, code="connection_expiring", message="This connection will be closed soon."
)
