"""Credentials in the whole data path, in virtual time: rotated, refused, late."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.fakes.clockwork import House, clockwork, counted, virtual
from tests.fakes.upstream import Asked, Delay, answers, erring


def key_file(folder: Path, key: str, *, name: str = "key") -> Path:
    """A file that may hold a key."""
    path = folder / name
    path.write_text(key)
    path.chmod(0o600)
    return path


@virtual
async def test_a_rotated_credential_loses_no_call(tmp_path: Path) -> None:
    """401 in twenty answers after the key was rotated: the new one is read, every call is answered."""
    secret = key_file(tmp_path, "old-key")

    def keyed(house: House) -> None:
        house["a"].key = "old-key"

    upstream = {"credential": {"file": str(secret)}, "warm_connections": 25, "max_connections": 60}
    async with clockwork({"a": upstream}, prepare=keyed, route={"timeout_ms": 9000}) as house:
        bot = house.bot()

        async def checks(asked: Asked) -> None:
            if asked.connection.authorization != "Bearer new-key":
                await asked.send(asked.error(401, "invalid_api_key"))
            else:
                await answers(asked)

        house["a"].default = checks
        house["a"].key = "new-key"
        key_file(tmp_path, "new-key", name="new").replace(secret)
        ends = [await bot.terminal(name) for name in [bot.call() for _ in range(20)]]
        assert {end["type"] for end in ends} == {"done"}, [end.get("code") for end in ends]
        assert house.breaker("a").state(trio.current_time()) == "closed"
        await trio.sleep(10)
        assert all(served.authorization == "Bearer new-key" for served in house["a"].standing)


@virtual
async def test_connects_refused_together_see_one_rotation(tmp_path: Path) -> None:
    """Several connects meet 401 with the old key at once: the second one does not take the new key for refused, too."""
    secret = key_file(tmp_path, "old-key")

    async def keyed(house: House) -> None:
        house["a"].key = "old-key"

    upstream = {"credential": {"file": str(secret)}, "warm_connections": 6, "max_connections": 8}
    async with clockwork({"a": upstream}, prepare=keyed) as house:
        house["a"].key = "new-key"
        secret.write_text("new-key")
        await house["a"].cut_all()
        done = await house.bot().ask(timeout_ms=5000)
        assert done["type"] == "done"
        assert house.daemon.pools["a"].refusal is None


@virtual
async def test_a_refused_credential_is_no_hot_loop(tmp_path: Path) -> None:
    """A bad key: calls go to the next target or fail upstream_auth at once; connects wait half a minute and more."""
    secret = key_file(tmp_path, "bad-key")

    def keyed(house: House) -> None:
        house["a"].key = "good-key"

    upstream = {"credential": {"file": str(secret)}}
    async with clockwork({"a": upstream}, prepare=keyed, warm=False) as house:
        await trio.sleep(5)
        bot = house.bot()
        failed = await bot.ask()
        assert (failed["code"], failed["retryable"]) == ("upstream_auth", False)
        assert len(house["a"].dialled_at) <= 4
        assert "bad-key" not in str(house.log) + str(bot.log)
        secret.write_text("good-key")
        await trio.sleep(2)
        assert (await bot.ask())["type"] == "done", "a new key is tried at once"


@virtual
async def test_a_credential_that_appears_late(tmp_path: Path) -> None:
    """No file at the start: calls are told upstream_auth; two seconds after it appears they are answered."""
    secret = tmp_path / "key"
    async with clockwork({"a": {"credential": {"file": str(secret)}}}, warm=False) as house:
        await trio.sleep(10)
        bot = house.bot()
        assert (await bot.ask())["code"] == "upstream_auth"
        assert not house["a"].dialled_at
        key_file(tmp_path, "some-key")
        await trio.sleep(2)
        assert (await bot.ask())["type"] == "done"


@virtual
async def test_a_key_refused_in_an_answer_sends_calls_to_the_next_target(tmp_path: Path) -> None:
    """401 inside a connection with an unchanged key: the next target answers, this upstream is left alone."""
    secret = key_file(tmp_path, "some-key")
    async with clockwork({"a": {"credential": {"file": str(secret)}}, "b": {}}) as house:
        house["a"].default = erring(401)
        bot = house.bot()
        assert (await bot.ask())["upstream"] == "b"
        await trio.sleep(0.1)
        asked = len(house["a"].asked)
        for _ in range(5):
            assert (await bot.ask())["upstream"] == "b"
        assert len(house["a"].asked) == asked
        assert counted(house, "a") == 0


@pytest.mark.parametrize(
    ("status", "code"), [(401, None), (401, "some-key"), (500, None), (429, "x some-key"), (400, None)]
)
@virtual
async def test_an_upstream_that_repeats_what_it_was_sent(tmp_path: Path, status: int, code: str | None) -> None:
    """Neither its key nor one bot's prompt reach the log, the report or another bot; no bot is told the key."""
    secret = key_file(tmp_path, "some-key")
    prompt = "buy nine tonnes of copper"

    async def echoes(asked: Asked) -> None:
        said = f"refused: {asked.connection.authorization} asked {asked.body}"
        await asked.send(asked.frame({"type": "error", "status": status, "error": {"code": code, "message": said}}))

    async with clockwork({"a": {"credential": {"file": str(secret)}}}) as house:
        house["a"].default = echoes
        first, second = house.bot(), house.bot()
        told = await first.ask(prompt, timeout_ms=3000)
        assert told["type"] == "failed"
        assert prompt in told["message"], "who asked is told its upstream's own words"
        await trio.sleep(1)
        await second.ask("another", timeout_ms=1000)
        second.send(type="probe", check="full")
        await trio.sleep(0.1)
        assert any(message["type"] == "report" for _, message in second.log)
        assert "some-key" not in f"{house.log} {first.log} {second.log}"
        assert prompt not in f"{house.log} {second.log}"
        if status == 401:
            assert "the credential was refused in an answer (HTTP 401)" in str(second.log)
            assert "the credential was refused in an answer (HTTP 401)" in str(house.log)


@virtual
async def test_a_key_rotated_while_a_connection_is_made_replaces_it(tmp_path: Path) -> None:
    """A connection begun with the old key that stands after the rotation does not live on with it for an hour."""
    secret = key_file(tmp_path, "old-key")
    upstream = {"credential": {"file": str(secret)}, "warm_connections": 1}
    async with clockwork({"a": upstream}) as house:
        house["a"].connects.append(Delay(30.0))
        await house["a"].cut_all()
        await trio.sleep(1)
        key_file(tmp_path, "new-key", name="new").replace(secret)
        await trio.sleep(60)
        assert [served.authorization for served in house["a"].standing] == ["Bearer new-key"]
