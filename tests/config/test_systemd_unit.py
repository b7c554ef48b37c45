"""The unit: systemd itself finds nothing wrong with it, and it says what the documents say."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "systemd"
UNIT = FOLDER / "inference-sidecar.service"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


@needs_systemd
def test_systemd_has_nothing_to_say_of_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent, with a program that exists in the place of ours, and the drop-in for 252."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/inference-sidecar/bin/python", "/bin/sh"))
    drop_ins = tmp_path / f"{UNIT.name}.d"
    drop_ins.mkdir()
    shutil.copy(FOLDER / "drop-ins" / "10-credentials.conf", drop_ins)
    shutil.copy(FOLDER / "drop-ins" / "30-network.conf.example", drop_ins / "30-network.conf")
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=30, check=False
    )
    ours = [line for line in (result.stderr + result.stdout).splitlines() if "inference-sidecar" in line]
    assert ours == []
    assert result.returncode == 0


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
    assert keys["RestartPreventExitStatus"] == "78"
    assert keys["Restart"] == "always"
    assert keys["UMask"] == "0077"
    assert keys["LimitCORE"] == "0"
    assert keys["ExecStart"].endswith("python -I -m sidecar serve")
    assert "PrivateUsers" not in keys
    assert f"g {keys['Group']} " in (FOLDER / "sysusers.d" / "inference-sidecar.conf").read_text()


def test_every_drop_in_is_in_the_readme() -> None:
    """Nothing lies there that nobody is told of."""
    text = (FOLDER / "README.md").read_text()
    assert [path.name for path in (FOLDER / "drop-ins").iterdir() if f"`{path.name}`" not in text] == []
