"""N daemons through one outage of the service they share, in virtual time: is there a herd?

Each daemon is the real `Daemon` with its bots' port, dial, clock and dice exchanged. The service refuses connects and
cuts what stands for 30 s, then admits 200 handshakes per second for a thousand daemons (fewer for fewer); or it
answers badly in place of being gone. What is counted is counted at the service. See docs/herd.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "herd"))

from common import Verdicts, _die_with_parent, finish, parser
from herd_figures import figures
from herd_host import DESIGNS, Design
from herd_plot import plot
from herd_run import Scenario, run
from herd_text import for_terminal, into_markdown
from msgspec import structs

#: Attempts at the service per offered call, at most, through an outage.
AMPLIFICATION = 1.2
#: Of so many hosts and more is asked that they do not move in step: of a hundred, fifteen dial at once by chance.
ENOUGH = 500
#: Hosts where the service answers badly, and where bots ask again: each host is on its own there.
FEW = 50
#: The highest share of the hosts that may dial within a tenth of a second; in the outage's first seconds, and later.
STEP_FIRST, STEP_LATER = 0.3, 0.1


def plan(sizes: list[int], *, quick: bool) -> list[Scenario]:
    """Every run, the big ones first."""
    found = []
    for hosts in sorted(sizes, reverse=True):
        designs = DESIGNS[1:2] if hosts == 1 else DESIGNS if hosts < ENOUGH and not quick else DESIGNS[:3]
        found += [Scenario(name="dark", hosts=hosts, design=design) for design in designs]
        found.append(Scenario(name="two targets", hosts=hosts, targets=2))
    if quick:
        found.append(Scenario(name="patient bots", hosts=3, manners="patient"))
        return [structs.replace(scenario, outage=15.0, recovery=30.0) for scenario in found]
    found += _bad_answers(FEW, DESIGNS[:3])
    found += [Scenario(name=f"{manners} bots", hosts=FEW, manners=manners) for manners in ("patient", "impatient")]
    return found


def _bad_answers(hosts: int, designs: Sequence[Design]) -> list[Scenario]:
    """Where the service stands and answers badly. What each host does is its own affair: no need of a thousand."""
    return [
        scenario
        for design in designs
        for scenario in (
            Scenario(name="erring", hosts=hosts, design=design, fault="erring"),
            Scenario(name="brown-out, 429", hosts=hosts, design=design, fault="brown"),
            Scenario(name="brown-out, 503", hosts=hosts, design=design, fault="brown", refusal=(503, "overloaded")),
        )
    ]


def measure(scenario: Scenario) -> dict[str, Any]:
    """One run's figures."""
    return figures(run(scenario))


def measured(scenarios: list[Scenario], processes: int, raw: Path | None) -> list[dict[str, Any]]:
    """All of them, `processes` at once. What `raw` has is not measured again, what is measured goes there."""
    rows: list[dict[str, Any]] = json.loads(raw.read_text()) if raw is not None and raw.exists() else []
    known = {(row["scenario"], row["hosts"], row["design"]) for row in rows}
    left = [one for one in scenarios if (one.name, one.hosts, one.design) not in known]
    if processes == 1:
        for scenario in left:
            rows.append(noted(measure(scenario)))
            keep(rows, raw)
        return rows
    with ProcessPoolExecutor(processes, max_tasks_per_child=1, initializer=_die_with_parent) as pool:
        for done in as_completed([pool.submit(measure, scenario) for scenario in left]):
            rows.append(noted(done.result()))
            keep(rows, raw)
    return rows


def keep(rows: list[dict[str, Any]], raw: Path | None) -> None:
    """In a file that a stopped run goes on from."""
    if raw is not None:
        raw.write_text(json.dumps(rows))


def noted(row: dict[str, Any]) -> dict[str, Any]:
    """Say to who waits at a terminal that it is done."""
    if sys.stderr.isatty():
        print(f"{row['cpu_s']:6.1f} s  {row['scenario']}, {row['hosts']}, {row['design']}", file=sys.stderr)
    return row


def judge(rows: list[dict[str, Any]]) -> Verdicts:
    """The promises."""
    verdicts = Verdicts()
    for row in rows:
        who = f"{row['scenario']}, {row['hosts']} hosts, {row['design']}"
        if row["unended"]:
            verdicts.judge(f"{who}: every call has ended", kept=False)
        if "internal" in {**row["codes"], **row["after_codes"]}:
            verdicts.judge(f"{who}: no error of the daemon's own", kept=False)
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
        if row["scenario"] == "dark":
            verdicts.judge(f"{who}: all are connected again", row["connected"]["never"] == 0)
    return verdicts


def main() -> int:
    """The command."""
    flags = parser(__doc__.splitlines()[0])
    flags.add_argument("--hosts", default="1,10,1000", help="how many daemons, by commas")
    flags.add_argument("--svg", type=Path, help="write the plot there")
    flags.add_argument("--markdown", type=Path, help="put the tables between the marks of this file")
    flags.add_argument("--raw", type=Path, help="keep figures there; those it has are not measured again")
    flags.add_argument("--processes", type=int, default=1, help="runs at once; each run is one process")
    asked = flags.parse_args()
    sizes = [1, 3] if asked.quick else [int(hosts) for hosts in asked.hosts.split(",")]
    scenarios = plan(sizes, quick=asked.quick)
    order = {(one.name, one.hosts, one.design): place for place, one in enumerate(scenarios)}
    rows = measured(scenarios, asked.processes, asked.raw)
    rows.sort(key=lambda row: order.get((row["scenario"], row["hosts"], row["design"]), len(order)))
    if asked.svg is not None:
        asked.svg.write_text(plot(rows))
    if asked.markdown is not None:
        asked.markdown.write_text(into_markdown(asked.markdown.read_text(), rows))
    return finish({"rows": rows}, judge(rows), as_json=asked.json, text=for_terminal(rows))


if __name__ == "__main__":
    sys.exit(main())
