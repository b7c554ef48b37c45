"""The relay that misbehaves on demand: `sidecar sim`. The daemon never imports it.

Reading order: `behaviour` (what a healthy answer looks like) and `scenarios` (what may go wrong, by name);
`frames`, `link`, `toxics` (bytes below and at the WebSocket); `voices` (the two dialects' frames); `fates` (how one
call is answered); `session` (one connection), `door` (the handshake and what may go wrong in it), `relay` (the
server), `control` (how it is steered while it runs).
"""

from __future__ import annotations

from sidecar.simulator.behaviour import Behaviour
from sidecar.simulator.counters import Counters, Stop
from sidecar.simulator.relay import Relay
from sidecar.simulator.scenarios import SCENARIOS, Plan, Scenario

__all__ = ["SCENARIOS", "Behaviour", "Counters", "Plan", "Relay", "Scenario", "Stop"]
