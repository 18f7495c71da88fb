"""Which of Dask's protocols can be used: those that encrypt, unless security is off, and UCX where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from batchlet.errors import SettingsError
from batchlet.protocols import security_off
from batchlet.settings import PREFIX, Settings


def refused(keywords: dict[str, object], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as raised:
        Settings.resolve(keywords, environ or {})
    return str(raised.value)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with packages, and nothing else is installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize("protocol", ["ucx", "ucxx", "ucx://", "tcp", "ws"])
def test_with_security_on_only_what_encrypts_is_taken(protocol):
    """Whether it is installed or not: the reason, and what to type."""
    text = refused({"protocol": protocol})
    assert text.startswith(f"protocol={protocol!r} does not encrypt")
    assert ("UCX cannot" in text) == protocol.startswith("ucx")
    assert f"Add security=False ({PREFIX}SECURITY=false)" in text


@pytest.mark.parametrize("protocol", ["ucx", "ucxx", "ucxx://"])
def test_ucx_that_is_not_installed_is_refused_before_anything_starts(installed, protocol):
    """What was found, what was needed and what to type."""
    assert list(installed.iterdir()) == []
    text = refused({"security": False}, {f"{PREFIX}PROTOCOL": protocol})
    assert text.startswith(f"{PREFIX}PROTOCOL={protocol!r} needs UCX for Dask, which {sys.executable} does not have.")
    assert "pip install distributed-ucxx-cu13" in text


def test_ucx_that_is_installed_is_taken_by_either_name(installed):
    """By the entry points of the package distributed-ucxx."""
    place = installed / "distributed_ucxx_cu13-0.52.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: distributed-ucxx-cu13\nVersion: 0.52.0\n")
    (place / "entry_points.txt").write_text("[distributed.comm.backends]\nucx = a:B\nucxx = a:B\n")
    for protocol in ("ucx", "ucxx", "ucxx://"):
        assert Settings.resolve({"protocol": protocol, "security": False}, {}).protocol == protocol


def test_the_ucx_of_older_dasks_is_taken(installed):
    """Up to 2024 Dask itself had it, on ucx-py."""
    (installed / "ucp.py").touch()
    assert Settings.resolve({"protocol": "ucx", "security": False}, {}).protocol == "ucx"
    assert "needs UCX" in refused({"protocol": "ucxx", "security": False})


@pytest.mark.parametrize("protocol", ["tcp", "ws", "inproc", "mine"])
def test_of_other_protocols_dask_knows_best(installed, protocol):
    """A script may have brought one itself."""
    assert Settings.resolve({"protocol": protocol, "security": False}, {}).protocol == protocol
    assert security_off(protocol) == "security off"


def test_the_line_at_the_start_names_a_protocol_that_never_encrypts():
    assert security_off("ucxx://") == "security off (ucxx does not encrypt)"
    assert security_off(None) == "security off"
