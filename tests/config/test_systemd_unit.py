"""The units: systemd itself finds nothing wrong with them, and they say what the documents say."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sidecar.cli.halt import place_beside
from sidecar.transport import halt_file

FOLDER = Path(__file__).parents[2] / "systemd"
UNIT = FOLDER / "inference-sidecar.service"
TEMPLATE = FOLDER / "inference-sidecar@.service"
TARGET = FOLDER / "inference-sidecar.target"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


@needs_systemd
def test_systemd_has_nothing_to_say_of_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent, with a program that exists in the place of ours, and the drop-ins for 252."""
    assert complaints(UNIT.name, tmp_path) == []


@needs_systemd
def test_systemd_has_nothing_to_say_of_instances_and_their_target(tmp_path: Path) -> None:
    """The same of an instance of the template; the target that it belongs to is there beside it."""
    shutil.copy(TARGET, tmp_path)
    assert complaints(TEMPLATE.name.replace("@", "@a"), tmp_path) == []
    assert complaints(TARGET.name, tmp_path) == []


@needs_systemd
def test_verify_would_complain(tmp_path: Path) -> None:
    """The witness of the tests above: a misspelt key is told."""
    assert complaints(UNIT.name, tmp_path, more="[Service]\nRuntimeDirektory=x\n") != []


@pytest.mark.parametrize("unit", [UNIT, TEMPLATE, TARGET], ids=lambda unit: unit.name)
def test_the_documents_are_where_the_instructions_put_them(unit: Path) -> None:
    """Files of this tree, below the folder that README copies them to; no page of a project that is not published."""
    (named,) = re.findall(r"^Documentation=(.*)$", unit.read_text(), re.MULTILINE)
    where = re.findall(r"cp -r README.md docs (\S+)/$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    for document in named.split():
        assert document.startswith(f"file:{where[0]}/")
        assert (FOLDER.parent / document.removeprefix(f"file:{where[0]}/")).is_file()


def complaints(name: str, folder: Path, *, more: str = "") -> list[str]:
    """What `systemd-analyze verify` says of a unit of ours, by its name as installed."""
    source = TEMPLATE if "@" in name else FOLDER / name
    unit = folder / name
    unit.write_text(source.read_text().replace("/opt/inference-sidecar/bin/python", "/bin/sh"))
    if unit.suffix == ".service":
        drop_ins = folder / f"{name}.d"
        drop_ins.mkdir()
        shutil.copy(FOLDER / "drop-ins" / "10-credentials.conf", drop_ins)
        for example in ("30-network.conf", "40-cpu.conf"):
            text = (FOLDER / "drop-ins" / f"{example}.example").read_text()
            (drop_ins / example).write_text(re.sub(r"^#(\w+=)", r"\1", text, flags=re.MULTILINE))
        (drop_ins / "99-more.conf").write_text(more)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=30, check=False
    )
    ours = [line for line in (result.stderr + result.stdout).splitlines() if "inference-sidecar" in line]
    return ours or ([] if result.returncode == 0 else [f"status {result.returncode}"])


@needs_systemd
def test_exposure_is_as_low_as_the_readme_says() -> None:
    """At most the figure written down."""
    written = re.search(r"exposure level for inference-sidecar.service: (\d\.\d)", (FOLDER / "README.md").read_text())
    assert written is not None
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    found = re.search(r"exposure level for inference-sidecar.service: (\d\.\d)", result.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze knows no offline check: {result.stderr[:100]}")
    assert float(found[1]) <= float(written[1])


def test_the_promises_of_the_documents_stand_in_the_unit() -> None:
    """What other parts rely on: notify, the runtime directory, no restart on 78, bots' uids left as they are."""
    keys = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert keys["Type"] == "notify"
    assert keys["RuntimeDirectory"] == "sidecar"
    assert keys["StateDirectory"] == "sidecar"
    assert keys["StateDirectoryMode"] == "0700"
    assert keys["RestartPreventExitStatus"] == "78"
    assert keys["Restart"] == "always"
    assert keys["UMask"] == "0077"
    assert keys["LimitCORE"] == "0"
    assert keys["ExecStart"].endswith("python -I -m sidecar serve")
    assert "PrivateUsers" not in keys
    assert f"g {keys['Group']} " in (FOLDER / "sysusers.d" / "inference-sidecar.conf").read_text()


def test_a_halt_of_the_unit_is_where_the_command_looks_for_it() -> None:
    """When the daemon does not answer, the command writes the file that systemd's folder leads the daemon to."""
    for unit, instance, folder in ((UNIT, None, "sidecar"), (TEMPLATE, "a", "sidecar-a")):
        keys = dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))
        assert keys["StateDirectory"].replace("%i", "a") == keys["RuntimeDirectory"].replace("%i", "a") == folder
        theirs = halt_file.place(None, {"STATE_DIRECTORY": f"/var/lib/{folder}"}, instance=instance)
        assert place_beside(f"ipc:///run/{folder}/sidecar.sock")() == theirs


def settings(unit: Path) -> list[str]:
    """Its lines in order, without comments and blanks: what systemd reads."""
    return [line for line in unit.read_text().splitlines() if line and not line.startswith("#")]


def test_the_template_is_the_unit_but_for_what_names_the_instance() -> None:
    """One hardening for both: whatever else is changed in one of them must be changed in the other."""
    plain, template = settings(UNIT), settings(TEMPLATE)
    assert [line for line in plain if line not in template] == [
        "Description=Inference sidecar for the trading bots of this host",
        "ExecStart=/opt/inference-sidecar/bin/python -I -m sidecar serve",
        "RuntimeDirectory=sidecar",
        "StateDirectory=sidecar",
        "WantedBy=multi-user.target",
    ]
    assert [line for line in template if line not in plain] == [
        "Description=Inference sidecar %i for the trading bots of this host",
        f"PartOf={TARGET.name}",
        "ExecStart=/opt/inference-sidecar/bin/python -I -m sidecar serve --instance %i",
        "RuntimeDirectory=sidecar-%i",
        "StateDirectory=sidecar-%i",
        f"WantedBy={TARGET.name}",
    ]
    common = [line for line in plain if line in template]
    assert common == [line for line in template if line in plain]


def test_every_unit_is_in_the_readme() -> None:
    """Nothing lies there that nobody is told of."""
    text = (FOLDER / "README.md").read_text()
    assert [path.name for path in FOLDER.glob("inference-sidecar*") if path.name not in text] == []


def test_every_drop_in_is_in_the_readme() -> None:
    """Nothing lies there that nobody is told of."""
    text = (FOLDER / "README.md").read_text()
    assert [path.name for path in (FOLDER / "drop-ins").iterdir() if f"`{path.name}`" not in text] == []
