"""The report: ready means that every route can be served now, degraded that somebody should look."""

import pytest

from sidecar.core.health import RouteHealth, UpstreamHealth, report, worst
from sidecar.wire import JSON, Report

ROUTES = (RouteHealth(name="default", targets=(("openai", "gpt"), ("xai", "grok"))),)


def upstream(name="openai", *, ready=2, busy=0, connecting=0, **fields):
    """A healthy upstream, unless said."""
    return UpstreamHealth(
        name=name, connections={"READY": ready, "BUSY": busy, "CONNECTING": connecting}, warm=2, **fields
    )


def said(upstreams=None, **fields):
    """The report of a healthy daemon, unless said."""
    given = {
        "version": "0.1.0",
        "session": "s",
        "pid": 7,
        "uptime": 1.5,
        "in_flight": 0,
        "queued": 0,
        "routes": ROUTES,
        "upstreams": upstreams if upstreams is not None else [upstream(), upstream("xai")],
    }
    return report(**(given | fields))


def test_all_is_well():
    """Ready, not degraded, the preferred target named, units in microseconds, and it encodes."""
    it = said([upstream(rtt=0.0123), upstream("xai")], loop_lag=0.002)
    assert (it.live, it.ready, it.degraded, it.reasons) == (True, True, False, [])
    assert it.routes[0].target == "openai"
    assert (it.uptime_us, it.loop_lag_us, it.upstreams[0].rtt_us) == (1_500_000, 2000, 12_300)
    assert it.upstreams[1].rtt_us is None
    assert isinstance(JSON.decode_from_daemon(JSON.encode(it)), Report)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (upstream(ready=0, connecting=2), "upstream openai: no connection"),
        (upstream(ready=0, refused=True), "upstream openai: credential refused"),
        (upstream(disabled=True), "upstream openai: disabled"),
        (upstream(breakers={"gpt": "open"}), "upstream openai: breaker open for gpt"),
    ],
)
def test_the_next_target_serves_when_the_first_cannot(broken, reason):
    """Degraded, with the reason and who serves instead."""
    it = said([broken, upstream("xai")])
    assert (it.ready, it.degraded) == (True, True)
    assert it.routes[0].target == "xai"
    assert it.reasons == [reason, "route default: served by xai"]


def test_no_target_left_is_not_ready():
    """Not ready is not degraded: it is worse."""
    it = said([upstream(ready=0), upstream("xai", ready=0)])
    assert (it.live, it.ready, it.degraded) == (True, False, False)
    assert it.routes[0].target is None
    assert "route default: no target can take a call" in it.reasons


def test_busy_connections_stand():
    """Every connection taken: ready, and a reason to look."""
    it = said([upstream(ready=0, busy=2), upstream("xai")])
    assert (it.ready, it.routes[0].target) == (True, "openai")
    assert it.reasons == ["upstream openai: every connection is busy"]


def test_a_half_open_breaker_and_another_models_breaker_do_not_close_the_route():
    """Half-open may serve; a breaker of another model says nothing about this route."""
    it = said([upstream(breakers={"gpt": "half_open", "old": "open"}), upstream("xai")])
    assert it.routes[0].target == "openai"
    assert it.upstreams[0].breaker == "open", "the report shows the worst"
    assert it.degraded


@pytest.mark.parametrize(
    ("fields", "ready", "reason"),
    [
        ({"bound": False}, False, "the endpoint is not bound"),
        ({"draining": True}, False, "draining"),
        ({"halted": ["entry"]}, True, "lane entry: halted"),
        ({"queued": 5, "queue_max": 5}, True, "the queue is full"),
        ({"loop_lag": 0.25}, True, "loop lag 250 ms"),
    ],
)
def test_what_else_is_wrong(fields, ready, reason):
    """Each with its reason."""
    it = said(**fields)
    assert (it.ready, it.reasons) == (ready, [reason])
    assert it.degraded == ready


def test_the_worst_of_no_breakers_is_closed():
    """An upstream never called has no open breaker."""
    assert worst([]) == "closed"
    assert worst(["closed", "half_open"]) == "half_open"


def test_a_clock_gone_wrong_makes_no_negative_numbers():
    """The wire's counts are never negative."""
    assert said(uptime=-1.0).uptime_us == 0


def test_a_route_that_goes_over_https_says_so():
    """Another way to the same service is no other target: served over HTTPS, and somebody should look."""
    ways = [
        upstream("openai", ready=0, upstream="openai", transport="websocket"),
        upstream("openai over HTTPS", upstream="openai", transport="sse"),
    ]
    route = RouteHealth(name="default", targets=(("openai", "gpt"), ("openai over HTTPS", "gpt")))
    it = said(ways, routes=[route])
    assert (it.ready, it.degraded) == (True, True)
    assert (it.routes[0].target, it.routes[0].transport) == ("openai", "sse")
    assert it.reasons[-1] == "route default: served over HTTPS"
