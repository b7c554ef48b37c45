"""What can be decided about a call on receipt, from its route and options alone."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from sidecar.dialects.options import InvalidOption, UnsupportedOption
from sidecar.service import terminals
from sidecar.service.routes import RouteRuntime, TargetRuntime
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
        return route, [_options_for(target, route, call) for target in route.targets]
    except UnsupportedOption as error:
        return terminals.refusal(call, "unsupported_option", str(error))
    except InvalidOption as error:
        return terminals.refusal(call, "invalid_request", str(error))


def _options_for(target: TargetRuntime, route: RouteRuntime, call: Call) -> Options:
    merged = target.options(call.options)
    unsupported = target.pool.dialect.unsupported(merged)
    if not unsupported:
        return merged
    if route.config.unsupported_options == "fail":
        raise UnsupportedOption(", ".join(unsupported), f"upstream {target.pool.name} cannot take it")
    return structs.replace(merged, **dict.fromkeys(unsupported))
