"""What can be decided about a call on receipt, from its route and options alone."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.dialects.options import InvalidOption, UnsupportedOption
from sidecar.service import terminals
from sidecar.service.routes import RouteRuntime
from sidecar.wire import Call, Failed, Options


def examine(call: Call, routes: Mapping[str, RouteRuntime]) -> Failed | tuple[RouteRuntime, list[Options]]:
    """The refusal, or the call's route and what each of its targets would be given as options.

    What any target of the route cannot take is refused here: no surprise at failover.
    """
    route = routes.get(call.route)
    if route is None:
        known = ", ".join(sorted(routes))
        return terminals.refusal(call, "unknown_route", f"no route of that name; this daemon has: {known}")
    try:
        return route, route.options(call.options)
    except UnsupportedOption as error:
        return terminals.refusal(call, "unsupported_option", str(error))
    except InvalidOption as error:
        return terminals.refusal(call, "invalid_request", str(error))
