"""From a request to its answer: the door's scenario, the key, the body, the call's scenario."""

from __future__ import annotations

from typing import Final

from msgspec import structs

from sidecar.simulator import calls
from sidecar.simulator.behaviour import known, steer, steering_of
from sidecar.simulator.door import Knock
from sidecar.simulator.scenarios import scenario
from sidecar.simulator.voices import Fault, Request, RequestRefused, read_chat, read_messages, read_responses
from sidecar.simulator.voices.base import bad_request
from sidecar.simulator.web import doors, heads
from sidecar.simulator.web.fates import play
from sidecar.simulator.web.pipe import Pipe
from sidecar.simulator.web.reply import Reply
from sidecar.simulator.web.talk import Talk

_NOWHERE: Final = Fault(status=404, type="invalid_request_error", code=None, message="No such path.")


async def respond(talk: Talk, pipe: Pipe, knock: Knock, body: bytes) -> None:
    """Answer one POST, or do to it what befalls it."""
    host, dialect = talk.host, knock.dialect
    host.counters.requested(pipe.way)
    request_id = f"req_{host.digits(-sum(host.counters.requests.values()))}"

    def refuse(fault: Fault, *, patient: bool = False) -> None:
        named = dialect or "responses"
        status, fields, content = heads.refusal(named, fault, request_id, behaviour, host.wall_s(), patient=patient)
        pipe.whole(status, fields, content)

    behaviour = structs.replace(host.behaviour, envelope="bare")
    try:
        host.check(knock.group)
        name = host.next_door(knock.group) if dialect in host.dialects else None
    except ValueError as problem:
        talk.asked(knock.group, "")
        refuse(structs.replace(_NOWHERE, message=str(problem)))
        return
    if name == "ok" and host.keys is not None and knock.key not in host.keys:
        name = "http_401"
    talk.asked(knock.group, name or "")
    if name is None or dialect is None:
        refuse(_NOWHERE)
        return
    if name.startswith("http_"):
        talk.refused(knock.group, name)
        fault, patient = heads.by_status(int(name.removeprefix("http_")))
        refuse(fault, patient=patient)
        return
    if name not in doors.OPEN and not name.startswith("toxic_"):
        talk.refused(knock.group, name)
        await doors.misbehave(name, talk, pipe)
        return
    if name != "ok":
        host.counters.scenarios[name] = host.counters.scenarios.get(name, 0) + 1
    try:
        request = _read(dialect, knock, body)
        try:
            named, given = steering_of(request.prompt)
            behaviour = steer(steer(behaviour, known(knock.query)), given)
            if named is not None and scenario(named).kind != "call":
                raise ValueError(f"{named!r} does not befall a call")
        except ValueError as problem:
            raise bad_request(f"Steering: {problem}") from None
    except RequestRefused as refused:
        host.counters.bad_requests += 1
        refuse(refused.fault)
        return
    stream = request.body.get("stream") is True
    reply = Reply(talk, pipe, dialect=dialect, behaviour=behaviour, request_id=request_id, stream=stream)
    call = calls.begin(
        host,
        reply,
        dialect=dialect,
        group=knock.group,
        way=pipe.way,
        request=request,
        behaviour=behaviour,
        request_id=request_id,
        named=named or host.next_fate(knock.group),
    )
    pipe.call = reply.call = call
    talk.calls.add(call)
    with call.scope:
        call.act.begin()
        await play(call.scenario, call.act, reply)
        if not call.over:
            reply.finish()
    talk.calls.discard(call)
    calls.end(host, call, "finished")  # nothing, if it was cut or stopped


def _read(dialect: str, knock: Knock, body: bytes) -> Request:
    if dialect == "responses":
        return read_responses(body, over_http=True)
    if dialect == "chat":
        return read_chat(body, over_http=True)
    if "anthropic-version" not in knock.headers:
        raise bad_request("anthropic-version: header is required")
    return read_messages(body)
