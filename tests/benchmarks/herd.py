"""N daemons through one outage of the service they share, in virtual time: is there a herd?

Each daemon is the real `Daemon` with its bots' port, dial, clock and dice exchanged. The service refuses connects and
cuts what stands for 30 s, then admits 200 handshakes per second for a thousand daemons (fewer for fewer); or it
answers badly in place of being gone. What is counted is counted at the service. See docs/herd.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "herd"))

from common import Verdicts, _die_with_parent, finish, parser
from herd_figures import figures
from herd_host import DESIGNS
from herd_plot import plot
from herd_run import Scenario, run
from herd_text import for_terminal

#: Attempts at the service per offered call, at most, through an outage.
AMPLIFICATION = 1.2
#: Of so many hosts and more is asked that they do not move in step: of three, three dial at once by chance.
ENOUGH = 100
#: The highest share of the hosts that may dial within a tenth of a second; in the outage's first seconds, and later.
STEP_FIRST, STEP_LATER = 0.3, 0.1


def plan(sizes: list[int], *, quick: bool) -> list[Scenario]:
    """Every run, the big ones first."""
    found = []
    for hosts in sorted(sizes, reverse=True):
        designs = DESIGNS[1:2] if hosts == 1 else DESIGNS if hosts <= ENOUGH and not quick else DESIGNS[:3]
        found += [Scenario(name="dark", hosts=hosts, design=design) for design in designs]
        found.append(Scenario(name="two targets", hosts=hosts, targets=2))
        if hosts > 1 and (hosts <= ENOUGH or hosts == max(sizes)):
            found.append(Scenario(name="patient bots", hosts=hosts, manners="patient"))
    middle = max([hosts for hosts in sizes if hosts <= ENOUGH], default=min(sizes))
    for design in DESIGNS[1:3]:
        found.append(Scenario(name="erring", hosts=middle, design=design, fault="erring"))
        found.append(Scenario(name="brown-out, 429", hosts=middle, design=design, fault="brown"))
        found.append(
            Scenario(name="brown-out, 503", hosts=middle, design=design, fault="brown", refusal=(503, "overloaded"))
        )
    found.append(Scenario(name="impatient bots", hosts=middle, manners="impatient"))
    return found


def measure(scenario: Scenario) -> dict[str, Any]:
    """One run's figures."""
    return figures(run(scenario))


def measured(scenarios: list[Scenario], processes: int) -> Iterator[dict[str, Any]]:
    """All of them, `processes` at once."""
    if processes == 1:
        rows = map(measure, scenarios)
        yield from map(noted, rows)
        return
    with ProcessPoolExecutor(processes, max_tasks_per_child=1, initializer=_die_with_parent) as pool:
        yield from map(noted, pool.map(measure, scenarios))


def noted(row: dict[str, Any]) -> dict[str, Any]:
    """Say to who waits at a terminal that it is done."""
    if sys.stderr.isatty():
        print(f"{row['wall_s']:6.1f} s  {row['scenario']}, {row['hosts']}, {row['design']}", file=sys.stderr)
    return row


def judge(rows: list[dict[str, Any]]) -> Verdicts:
    """The promises."""
    verdicts = Verdicts()
    for row in rows:
        who = f"{row['scenario']}, {row['hosts']} hosts, {row['design']}"
        if row["unended"]:
            verdicts.judge(f"{who}: every call has ended", kept=False)
        if row["design"] != "this design":
            continue
        verdicts.judge(
            f"{who}: {row['amplification']:.2f} attempts per offered call through the outage, under {AMPLIFICATION}",
            row["amplification"] < AMPLIFICATION,
        )
        if row["scenario"] == "two targets":
            verdicts.judge(f"{who}: all {row['offered']} offered calls are served", row["unserved"] == 0)
        if row["scenario"] == "dark" and row["hosts"] >= ENOUGH:
            verdicts.judge(
                f"{who}: at most {row['step_later']:.0%} of the hosts dial in one tenth of a second "
                f"(in the first seconds {row['step_first']:.0%})",
                row["step_first"] <= STEP_FIRST and row["step_later"] <= STEP_LATER,
            )
            verdicts.judge(f"{who}: all are connected again", row["connected"]["never"] == 0)
    return verdicts


def main() -> int:
    """The command."""
    flags = parser(__doc__.splitlines()[0])
    flags.add_argument("--hosts", default="1,10,1000", help="how many daemons, by commas")
    flags.add_argument("--svg", type=Path, help="write the plot there")
    flags.add_argument("--markdown", type=Path, help="put the tables between the marks of this file")
    flags.add_argument("--processes", type=int, default=1, help="runs at once; each run is one process")
    asked = flags.parse_args()
    sizes = [1, 3] if asked.quick else [int(hosts) for hosts in asked.hosts.split(",")]
    rows = list(measured(plan(sizes, quick=asked.quick), asked.processes))
    if asked.svg is not None:
        asked.svg.write_text(plot(rows))
    return finish({"rows": rows}, judge(rows), as_json=asked.json, text=for_terminal(rows))


if __name__ == "__main__":
    sys.exit(main())
