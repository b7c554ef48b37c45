"""The journal: what came and how it ended, in order, by upstream."""

from __future__ import annotations

from tests.simulator.harness import Talk, http_get, relaying, request, until


async def test_the_journal_tells_what_came_and_how_it_ended() -> None:
    """Connects, calls and their ends, by group, in the order in which they happened; also over HTTP, by label."""
    async with relaying() as relay:
        relay.set_scenario("silent", upstream="a")
        one = await Talk.open(relay.port, "/u/a/v1/responses")
        two = await Talk.open(relay.port, "/u/b/v1/responses")
        await two.answer(request("[[id=whole]]"))
        await two.answer(request("[[id=lost scenario=reset]]"))
        await one.send(request("[[id=left]]"))
        await until(lambda: relay.counters.in_flight == 1)
        await one.stream.aclose()
        await until(lambda: sum(note.event == "gone" for note in relay.counters.journal) == 2)
        status, said = await http_get(relay.port, "/_journal?upstream=a")
        _, later = await http_get(relay.port, f"/_journal?since_us={relay.mono_us() + 1}")
        wrong, _ = await http_get(relay.port, "/_journal?since_us=soon")
    lines = [(note.group, note.event, note.name, note.number) for note in relay.counters.journal]
    assert [line[1:] for line in lines if line[0] == "u/a"] == [
        ("connect", "", 1),
        ("call", "left", 2),
        ("stopped", "left", 2),
        ("gone", "", 1),
    ]
    assert [line[1:3] for line in lines if line[0] == "u/b"] == [
        ("connect", ""),
        ("call", "whole"),
        ("finished", "whole"),
        ("call", "lost"),
        ("cut", "lost"),
        ("gone", ""),
    ]
    instants = [note.at_us for note in relay.counters.journal]
    assert instants == sorted(instants)
    assert (status, wrong) == (200, 400)
    assert [note["event"] for note in said["journal"]] == ["connect", "call", "stopped", "gone"]
    assert later["journal"] == []
