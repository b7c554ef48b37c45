"""The daemon against somebody else's WebSocket server (`websockets`), over ws, and wss with a private CA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from tests.end_to_end.processes import Processes, route, upstream
from tests.fakes.websockets_server import Authority, websockets_server

WORDS = ["HOLD", " until", " the", " press", " conference."]


async def responses(connection: ServerConnection) -> None:
    """The least a Responses server says: created, deltas, completed."""
    async for message in connection:
        request = json.loads(message)
        assert request["type"] == "response.create"
        assert request["store"] is False
        common: dict[str, Any] = {"output_index": 0, "content_index": 0, "item_id": "msg_1"}
        response = {"id": "resp_1", "object": "response", "status": "in_progress", "model": request["model"]}
        await connection.send(json.dumps({"type": "response.created", "sequence_number": 0, "response": response}))
        for number, word in enumerate(WORDS, 1):
            delta = {"type": "response.output_text.delta", "sequence_number": number, "delta": word, **common}
            await connection.send(json.dumps(delta))
        usage = {"input_tokens": 7, "output_tokens": len(WORDS), "total_tokens": 7 + len(WORDS)}
        response |= {"status": "completed", "usage": usage}
        await connection.send(json.dumps({"type": "response.completed", "sequence_number": 9, "response": response}))


async def chat(connection: ServerConnection) -> None:
    """The least a chat server says: chunks, finish_reason, and no `[DONE]`."""
    async for message in connection:
        request = json.loads(message)
        assert request["stream"] is True
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": request["model"]}
        for word in WORDS:
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            await connection.send(json.dumps({**chunk, "choices": [choice]}))
        await connection.send(json.dumps({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("dialect", ["responses", "chat"])
def test_against_the_websockets_package(tmp_path: Path, dialect: str, secure: bool) -> None:
    """Text, usage and finish come out right; wss is verified against the private CA of the configuration."""
    authority = Authority(tmp_path)
    handler = {"responses": responses, "chat": chat}[dialect]
    tls = authority.server_context() if secure else None
    with websockets_server(handler, tls=tls) as server, Processes() as processes:
        url = f"{'wss' if secure else 'ws'}://localhost:{server.port}/v1/{dialect}"
        more = f'[upstream.tls]\nca_file = "{authority.ca_file}"\n' if secure else ""
        processes.daemon(upstream("theirs", url, dialect, more=more) + route("theirs"))
        for number in range(3):
            *messages, done = processes.talk({"type": "call", "id": str(number), "input": "x", "timeout_ms": 5000})
            assert done["type"] == "done", done
            assert "".join(m["text"] for m in messages if m["type"] == "delta") == "".join(WORDS)
            assert done["usage"]["estimated"] is (dialect == "chat")


def test_an_unknown_authority_is_no_connection(tmp_path: Path) -> None:
    """Without the private CA nothing connects, `check --connect` names the step, and a call is told at once."""
    authority = Authority(tmp_path)
    with websockets_server(responses, tls=authority.server_context()) as server, Processes() as processes:
        configuration = upstream("theirs", f"wss://localhost:{server.port}/v1/responses") + route("theirs")
        processes.daemon(configuration, ready=False)
        report = processes.report()
        assert report is not None
        assert not report["ready"]
        check = processes.run("check", "--connect", "-c", str(processes.folder / "sidecar.toml"))
        assert check.returncode == 69
        assert "tls" in (check.stdout + check.stderr)
        *_, failed = processes.talk({"type": "call", "id": "a", "input": "x", "timeout_ms": 300})
        assert failed["type"] == "failed"
