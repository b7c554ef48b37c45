"""Credentials: read only where nobody else could have written or read them, and never shown."""

import copy
import os
import pickle
import stat
import sys
import traceback
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from sidecar import credentials
from sidecar.config import CredentialSource
from sidecar.credentials import CredentialReader, Secret
from sidecar.errors import CredentialError

CANARY = "sk-proj-CANARY0123456789abcdef"


def file_reader(path: Path) -> CredentialReader:
    """A reader of that file."""
    return CredentialReader(CredentialSource(file=str(path)), environ={})


def write(path: Path, content: bytes = CANARY.encode(), mode: int = 0o600) -> Path:
    """A file with this content and mode."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


def refusal(reader: CredentialReader) -> str:
    """What the error says, with its whole traceback text; nothing of the secret may be in either."""
    with pytest.raises(CredentialError) as caught:
        reader.read()
    told = "".join(traceback.format_exception(caught.value))
    assert "CANARY" not in told
    return str(caught.value)


def test_a_secret_is_not_shown() -> None:
    """Not by repr, str, format, an exception, msgspec, pickle or an attribute dictionary."""
    secret = Secret(CANARY)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>20}",
        repr([secret]),
        repr(ValueError(secret)),
    ]
    assert "CANARY" not in "".join(shown)
    for encode in (msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins, pickle.dumps):
        with pytest.raises(TypeError) as caught:
            encode(secret)
        assert "CANARY" not in str(caught.value)
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError):
        hash(secret)
    with pytest.raises(TypeError):
        copy.copy(secret)


def test_secrets_compare_by_value() -> None:
    """Equal values are equal, and equal to nothing that is no secret."""
    assert Secret(CANARY) == Secret(CANARY)
    assert Secret(CANARY) != Secret(CANARY + "x")
    assert Secret(CANARY) != CANARY
    assert Secret(CANARY).reveal() == CANARY


@pytest.mark.parametrize("name", ["openai", "sidecar.openai"])
def test_a_name_is_a_file_in_the_credentials_directory(tmp_path: Path, name: str) -> None:
    """`NAME` or `sidecar.NAME`; systemd's 0400 and 0440 are fine."""
    for mode in (0o400, 0o440):
        path = write(tmp_path / name, CANARY.encode() + b"\n", 0o600)
        path.chmod(mode)
        secret = CredentialReader("openai", environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}).read()
        assert secret == Secret(CANARY)
        path.unlink()


def test_a_missing_credential_says_where_it_was_looked_for(tmp_path: Path) -> None:
    """Both file names, or that systemd gave no directory; an unset variable by its name."""
    told = refusal(CredentialReader("openai", environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}))
    assert str(tmp_path / "openai") in told
    assert "sidecar.openai" in told
    assert "$CREDENTIALS_DIRECTORY is not set" in refusal(CredentialReader("openai", environ={}))
    assert "$KEY: is not set" in refusal(CredentialReader(CredentialSource(env="KEY"), environ={}))
    assert "No such file" in refusal(file_reader(tmp_path / "none"))
    assert "fetch()" in refusal(CredentialReader(CredentialSource(command=["true"]), environ={}))


@pytest.mark.parametrize("name", ["../x", "a/b", "", CANARY + "\n", "a\0b", ".hidden"])
def test_a_name_is_no_path(name: str) -> None:
    """A name cannot leave the directory, whoever made it."""
    assert "not a name" in refusal(CredentialReader(name, environ={"CREDENTIALS_DIRECTORY": "/etc"}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"CANARY\nCANARY", "one line"),
        (b"CANARY\rCANARY", "one line"),
        (b"CANARY CANARY", "without blanks"),
        (b"CANARY\x00", "printable"),
        (b"CANARY\x1b[0m", "printable"),
        (b"\xef\xbb\xbfCANARY", "printable"),
        ("CANARYé".encode(), "printable"),
        (b"CANARY\xff", "printable"),
        (b"CANARY" * 20_000, "64 KiB"),
    ],
)
def test_what_is_no_credential_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    """One printable line, from a file and from the environment alike; the refusal shows none of it."""
    assert says in refusal(file_reader(write(tmp_path / "key", content)))
    if b"\0" not in content:
        environ = {"KEY": content.decode("utf-8", "surrogateescape")}
        assert says in refusal(CredentialReader(CredentialSource(env="KEY"), environ=environ))


def test_blanks_around_are_stripped(tmp_path: Path) -> None:
    """An editor's last line break is no part of a key."""
    assert file_reader(write(tmp_path / "key", b"  " + CANARY.encode() + b"\r\n\n")).read().reveal() == CANARY


@pytest.mark.parametrize(
    ("mode", "says"),
    [(0o604, "everybody can read"), (0o644, "everybody can read"), (0o620, "can write"), (0o602, "can write")],
)
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int, says: str) -> None:
    """Mode and mend are named."""
    told = refusal(file_reader(write(tmp_path / "key", mode=mode)))
    assert says in told
    assert f"{mode:04o}" in told
    assert "chmod" in told


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A link, a FIFO, a folder, a device, a path with a NUL."""
    os.mkfifo(tmp_path / "fifo", 0o600)
    write(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for path, says in (
        (tmp_path / "fifo", "not a regular file"),
        (tmp_path, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "link", "symbolic link"),
        (Path("a\0b"), "not a path"),
    ):
        assert says in refusal(file_reader(path))


def test_a_file_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither root's nor ours: whoever owns it could change it."""
    path = write(tmp_path / "key")
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert "chown" in refusal(file_reader(path))


def test_a_reader_shows_its_place_only() -> None:
    """Its repr names where, and of a command only the program."""
    reader = CredentialReader(CredentialSource(command=["/bin/echo", CANARY]), environ={"X": CANARY})
    assert repr(reader) == "<CredentialReader credential command /bin/echo>"
    assert CANARY not in repr(CredentialReader(CANARY + "!", environ={}))


def command(*lines: str) -> CredentialReader:
    """A reader that runs these lines of Python."""
    source = CredentialSource(command=[sys.executable, "-I", "-S", "-c", "\n".join(lines)])
    return CredentialReader(source, environ={"KEY": CANARY})


async def test_a_command_gives_its_first_line() -> None:
    """Its environment is the daemon's, its error output is nobody's."""
    reader = command("import os, sys", "print(' ' + os.environ['KEY'])", "print('more')", "print('x', file=sys.stderr)")
    assert (await reader.fetch()).reveal() == CANARY


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"print('{CANARY}'); raise SystemExit(3)", "status 3"),
        ("pass", "empty"),
        ("print(); print('CANARY')", "empty"),
        ("print('CANARY' * 100_000)", "64 KiB"),
        ("import os\nwhile True: os.write(1, b'CANARY' * 1000)", "64 KiB"),
    ],
)
async def test_a_command_that_fails_is_an_error_without_its_words(line: str, says: str) -> None:
    """Whatever it printed."""
    with pytest.raises(CredentialError, match=says) as caught:
        await command(line).fetch()
    assert "CANARY" not in str(caught.value)


async def test_a_command_that_is_not_there_is_named() -> None:
    """The program, and not its arguments."""
    reader = CredentialReader(CredentialSource(command=["/none/such", CANARY]), environ={})
    with pytest.raises(CredentialError, match="/none/such: cannot be run: No such file") as caught:
        await reader.fetch()
    assert "CANARY" not in str(caught.value)


async def test_a_command_that_hangs_is_killed_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At the time cap, even when it ignores SIGTERM and a child of its own holds the pipe."""
    monkeypatch.setattr(credentials, "COMMAND_TIMEOUT", 0.5)
    pid_file = tmp_path / "pid"
    reader = command(
        "import os, signal, time",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "child = os.fork()",
        f"open({str(pid_file)!r} + str(bool(child)), 'w').write(str(os.getpid()))",
        "time.sleep(60)",
    )
    with trio.fail_after(20), pytest.raises(CredentialError, match="took longer"):
        await reader.fetch()
    for name in ("True", "False"):
        path = Path(f"{pid_file}{name}")
        if path.exists() and path.read_text():  # it may be killed before it wrote
            await _gone(int(path.read_text()))


async def _gone(pid: int) -> None:
    """Wait until the process has ended (a zombie that nobody reaps has)."""
    with trio.fail_after(10):
        while True:
            try:
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    return
            except (FileNotFoundError, ProcessLookupError):
                return
            await trio.sleep(0.01)


async def test_changed_waits_for_another_secret(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    """Rewritten alike, removed, spoilt: still waiting. Another secret, by rename: returned within a second."""
    path = write(tmp_path / "key")
    reader = file_reader(path)
    known = reader.read()
    found: list[Secret] = []

    async def watch() -> None:
        found.append(await reader.changed(known))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.sleep(3)
        write(path)
        await trio.sleep(3)
        path.unlink()
        await trio.sleep(3)
        write(path, b"half of it\n")
        await trio.sleep(3)
        assert not found
        os.replace(write(tmp_path / "new", b"another-secret"), path)
        await trio.sleep(1.5)
        assert found == [Secret("another-secret")]


async def test_changed_sees_at_once_what_changed_before_it_was_asked(tmp_path: Path) -> None:
    """Between the read and the watch nothing is missed."""
    reader = file_reader(write(tmp_path / "key"))
    assert await reader.changed(Secret("an-older-one")) == Secret(CANARY)


async def test_the_environment_does_not_change(autojump_clock: trio.testing.MockClock) -> None:
    """Waiting for it is waiting for ever."""
    reader = CredentialReader(CredentialSource(env="KEY"), environ={"KEY": CANARY})
    with trio.move_on_after(3600) as scope:
        await reader.changed(Secret("x"))
    assert scope.cancelled_caught


def test_a_file_is_opened_for_reading_only(tmp_path: Path) -> None:
    """0400 is enough, and no descriptor stays open."""
    path = write(tmp_path / "key")
    path.chmod(stat.S_IRUSR)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        file_reader(path).read()
    assert len(os.listdir("/proc/self/fd")) == before
