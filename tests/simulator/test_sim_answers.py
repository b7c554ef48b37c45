"""Healthy answers: both dialects, lanes and queues, steering, compression, floods, determinism."""

from __future__ import annotations

import json
import ssl
from typing import Any

import pytest
import trio
import trustme

from sidecar.simulator import Behaviour, Relay
from tests.simulator.harness import QUICK, Talk, chat, relaying, request, said, until


async def test_responses_answers_with_every_event_in_order() -> None:
    """created, in_progress, item, part, deltas, their ends, completed; numbered without a hole; usage at the end."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        events = await talk.answer(request())
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * 6,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = events[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == said(events) == events[-4]["text"]
    assert final["usage"]["output_tokens"] == 6
    assert not any("stream_id" in event for event in events)


async def test_chat_answers_with_chunks_usage_and_done() -> None:
    """Role, content, finish_reason, then the usage that was asked for, then [DONE]."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port, "/v1/chat")
        texts = await talk.chunks(chat("[[text='BUY at open' ]]", id="a1"))
        unasked = await talk.chunks(chat(stream_options=None))
    chunks = [json.loads(text) for text in texts[:-1]]
    assert (
        "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
        == "BUY at open BUY at open"
    )
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]][-2:] == [None, "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert not any('"usage"' in text for text in unasked)
    assert relay.counters.attempts == {"a1": 1, "hello": 1}


@pytest.mark.parametrize("envelope", ["wrapped", "sse"])
async def test_chat_envelopes(envelope: str) -> None:
    """A chunk may come as {id, data}, with the request's own id, or behind `data: `."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port, f"/v1/ws/stream?envelope={envelope}&tokens=2&done=false&usage=false")
        await talk.send(chat(id="mine"))
        texts = [await talk.text() for _ in range(4)]
    for text in texts:
        assert text is not None
        chunk = json.loads(text.removeprefix("data: ")) if envelope == "sse" else json.loads(text)["data"]
        assert chunk["object"] == "chat.completion.chunk"
        assert text.startswith("data: " if envelope == "sse" else '{"id":"mine"')


async def test_a_socket_answers_one_after_another_without_stream_id() -> None:
    """Requests without stream_id are queued, first in, first out."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        for word in ("one", "two", "three"):
            await talk.send(request(f"[[text={word} tokens=2]]"))
        order: list[str] = []
        while order.count("end") < 3:
            event = await talk.event()
            assert event is not None
            if event["type"] == "response.output_text.delta":
                order.append(event["delta"].strip())
            elif event["type"] == "response.completed":
                order.append("end")
    assert order == ["one", "one", "end", "two", "two", "end", "three", "three", "end"]
    assert relay.counters.calls_finished == 3


async def test_sixteen_lanes_at_once_the_seventeenth_waits() -> None:
    """With stream_id calls run side by side, at most sixteen; a lane of its own is still a queue."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        for number in range(17):
            await talk.send(request("[[scenario=silent_after_created]]", stream_id=f"s{number}"))
        created = [await talk.event() for _ in range(32)]
        assert {event["stream_id"] for event in created if event} == {f"s{n}" for n in range(16)}
        await until(lambda: relay.counters.in_flight == 17)
        await talk.goodbye()
        await until(lambda: relay.counters.calls_stopped == 17)
    assert relay.counters.in_flight == 0


async def test_the_thirty_third_stream_name_is_refused() -> None:
    """At most 32 names on a socket; the error names the stream, the socket goes on."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        for number in range(32):
            await talk.answer(request("[[tokens=1]]", stream_id=f"s{number}"))
        (error,) = await talk.answer(request(stream_id="one-more"))
        assert error["error"]["code"] == "websocket_stream_limit_reached"
        assert error["stream_id"] == "one-more"
        assert (await talk.answer(request("[[tokens=1]]", stream_id="s0")))[-1]["type"] == "response.completed"


BAD: list[tuple[Any, str | None]] = [
    (b"not json", None),
    (b"[]", None),
    (b"[" * 5000, None),
    (b'{"type":"response.create"}', None),
    (b'{"type":"response.cancel","model":"m"}', None),
    (request(stream=True), None),
    (request(model=7), None),
    (request(input=7), None),
    (request(max_output_tokens=-1), None),
    (request(stream_id=""), "invalid_stream_id"),
    (request(stream_id="a b"), "invalid_stream_id"),
    (request(previous_response_id="resp_never"), "previous_response_not_found"),
    (request("[[scenario=nonsense]]"), None),
    (request("[[scenario=http_503]]"), None),
    (request("[[scenario=half]]"), None),
    (request("[[tokens=many]]"), None),
    (request("[[tokens=-1]]"), None),
    (request("[[what]]"), None),
    (request('[[text="open]]'), None),
]


async def test_bad_requests_get_an_error_frame_and_harm_nothing() -> None:
    """Each is answered with status 400 and counted; the connection goes on."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        for body, code in BAD:
            (error,) = await talk.answer(body)
            assert error["status"] == 400, body
            assert error["error"]["code"] == code, body
        assert said(await talk.answer(request("[[text=fine tokens=1]]"))) == "fine"
    assert relay.counters.bad_requests == len(BAD)
    assert relay.counters.calls_started == relay.counters.calls_finished == 1


async def test_bad_chat_requests_get_an_error() -> None:
    """No model, no messages, no stream, not an object."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port, "/v1/chat")
        for body in (b"{}", chat(model=""), chat(messages=[]), chat(messages="x"), chat(stream=False), b"\xff"):
            if body == b"\xff":
                continue
            await talk.send(body)
            error = await talk.event()
            assert error is not None
            assert error["error"]["type"] == "invalid_request_error"


async def test_earlier_turns_do_not_steer() -> None:
    """Only the last user message may steer: a conversation quotes what was said before."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        turns = [
            {"role": "user", "content": "[[text=OLD]]"},
            {"role": "user", "content": [{"type": "input_text", "text": "[[text=NEW tokens=1]]"}]},
        ]
        assert said(await talk.answer(request(input=turns))) == "NEW"


async def test_a_request_may_limit_its_answer() -> None:
    """max_output_tokens cuts the answer, which is then incomplete, unless the behaviour says otherwise."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        events = await talk.answer(request(max_output_tokens=2))
        whole = await talk.answer(request("[[obey_limit=false]]", max_output_tokens=2))
    assert len(said(events).split()) == 2
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert whole[-1]["type"] == "response.completed"


async def test_generate_false_gives_no_output() -> None:
    """Warming up: created and completed, no item."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        events = await talk.answer(request(generate=False))
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.completed"]
    assert events[-1]["response"]["output"] == []
    assert relay.counters.tokens == 0


async def test_obfuscation_is_left_out_when_asked() -> None:
    """stream_options.include_obfuscation false halves the deltas, as at the real one."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        padded = await talk.answer(request("[[tokens=1]]"))
        plain = await talk.answer(request("[[tokens=1]]", stream_options={"include_obfuscation": False}))
    assert "obfuscation" in padded[4]
    assert "obfuscation" not in plain[4]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat"])
async def test_a_flood_says_the_same_as_a_stream(path: str) -> None:
    """Cadence 0 sends rendered bytes; but for ids and pace they are what a cadence sends."""
    async with relaying() as relay:
        said_by: list[list[str]] = []
        for cadence in (0, 0.01):
            talk = await Talk.open(relay.port, f"{path}?tokens=100&cadence_ms={cadence}&text=a+b+c")
            if path == "/v1/chat":
                said_by.append([text.split('"choices"')[-1] for text in await talk.chunks(chat())])
            else:
                events = await talk.answer(request())
                said_by.append([json.dumps(event).replace(events[0]["response"]["id"][5:], "") for event in events])
    assert said_by[0] == said_by[1]
    assert relay.counters.tokens == 200


async def test_a_long_flood_is_whole_and_counted() -> None:
    """More tokens than a rendered block: every one arrives, numbers without a hole, on each lane under its own id."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        for lane in ("x", "y"):
            events = await talk.answer(request("[[tokens=5000 cadence_ms=0 text='p q r']]", stream_id=lane))
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            assert said(events) == events[-1]["response"]["output"][0]["content"][0]["text"]
            assert len(said(events).split()) == 5000
            assert {event["stream_id"] for event in events} == {lane}
            items = {event["item_id"] for event in events if "item_id" in event}
            assert items == {events[0]["response"]["id"].replace("resp_", "msg_")}
    assert relay.counters.tokens == 10_000


@pytest.mark.parametrize("cadence", [0, 0.001])
async def test_stamped_tokens_carry_the_clock(cadence: float) -> None:
    """For one-way latency: each token is CLOCK_MONOTONIC in microseconds and a blank."""
    ticks = iter(range(1_000_000, 2_000_000))
    async with relaying(
        behaviour=Behaviour(tokens=5, stamp=True, cadence_s=cadence), mono_us=lambda: next(ticks)
    ) as relay:
        talk = await Talk.open(relay.port)
        events = await talk.answer(request())
    stamps = [int(word) for word in said(events).split()]
    assert len(stamps) == 5
    assert stamps == sorted(stamps)


@pytest.mark.parametrize("cadence", [0, 0.001])
async def test_zstd_stream(cadence: float) -> None:
    """With ?compress=zstd-stream every message is the next slice of one stream, and says the same."""
    async with relaying() as relay:
        packed = await Talk.open(relay.port, f"/v1/responses?compress=zstd-stream&cadence_s={cadence}")
        plain = await Talk.open(relay.port)
        first = await packed.answer(request("[[text=x]]"))
        second = await packed.answer(request("[[text=x]]"))
        other = await plain.answer(request("[[text=x]]"))
    kinds = [event["type"] for event in other]
    assert [event["type"] for event in first] == [event["type"] for event in second] == kinds
    assert said(first) == said(second) == said(other)


async def test_zstd_is_ignored_where_it_is_off() -> None:
    """compression=False: the parameter is not known, text frames come."""
    async with relaying(compression=False) as relay:
        talk = await Talk.open(relay.port, "/v1/responses?compress=zstd-stream")
        await talk.send(request())
        while not talk.frames:
            await talk.pump()
        assert talk.frames[0].data.startswith(b"{")


async def _transcript(seed: int) -> list[str]:
    async with relaying("ok@0.5+error_500@0.3+incomplete_length@0.2", seed=seed) as relay:
        talk = await Talk.open(relay.port)
        for number in range(12):
            await talk.answer(request(f"call {number}"))
        return talk.texts


async def test_the_same_seed_says_the_same_bytes() -> None:
    """Choices, words and ids depend on the seed alone."""
    first, second, other = await _transcript(1), await _transcript(1), await _transcript(2)
    assert first == second
    assert first != other


async def test_over_tls() -> None:
    """The same over wss with a private CA, a large answer included; plain bytes at that door get nothing."""
    ca = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("localhost").configure_cert(server)
    ca.configure_trust(client)
    async with relaying(tls=server) as relay:
        talk = await Talk.open(relay.port, tls=client)
        events = await talk.answer(request("[[tokens=3000 cadence_ms=0]]"))
        assert len(said(events).split()) == 3000
        plain = await Talk.open(relay.port)
        assert plain.lost
        again = await Talk.open(relay.port, tls=client)
        assert said(await again.answer(request("[[text=x tokens=1]]"))) == "x"


async def test_only_loopback() -> None:
    """A simulated relay never listens to the world."""
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(ValueError, match="loopback"):
            Relay().bind(host)
    with pytest.raises(ValueError, match="port"):
        Relay().bind(port=99999)


async def test_ipv6_loopback() -> None:
    """::1 is loopback, too."""
    relay = Relay(behaviour=QUICK)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(relay.serve, "::1")
        stream = await trio.open_tcp_stream("::1", port)
        await stream.send_all(b"GET /_stats HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        await stream.aclose()
        nursery.cancel_scope.cancel()
