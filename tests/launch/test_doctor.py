"""`eyas doctor`: what it finds on this machine, and what it says of things that are wrong."""

import importlib.metadata
import os
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from launch import doctor
from launch.cli import app


def test_this_machine_is_well_and_no_key_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 0.0)  # how much room this disk has is not what is shown
    monkeypatch.setenv("WANDB_API_KEY", "do-not-show-me")
    monkeypatch.setenv("HF_TOKEN", "hf_do-not-show-me")
    result = CliRunner().invoke(app, ["doctor", "--folder", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    assert "0 bad" in result.stdout
    assert "two ranks added up" in result.stdout
    assert "a Hugging Face token is set" in result.stdout
    assert "WANDB_API_KEY is set" in result.stdout
    assert "do-not-show-me" not in result.output
    assert list(tmp_path.iterdir()) == []  # the sample is gone


def test_a_version_outside_the_range_is_bad_and_an_untested_one_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    wrong = {"torch": "2.1.0", "rich": "14.0.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: wrong.get(name) or real(name))
    found = {finding.name: finding for finding in doctor.versions()}
    assert found["torch"].state == "bad"
    assert "pip install 'torch>=2.9'" in found["torch"].mend
    assert found["rich"].state == "note"
    assert found["numpy"].state == "ok"


def test_a_missing_library_is_bad_and_a_missing_extra_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("accelerate", "wandb"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {finding.name: finding for finding in doctor.versions()}
    assert (found["accelerate"].state, found["wandb"].state) == ("bad", "note")
    assert "eyas[wandb]" in found["wandb"].mend


def test_a_folder_that_cannot_be_written_is_bad(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        folder = Path("/proc/1")  # nobody writes there, root neither
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
    states = {finding.name: finding.state for finding in doctor.disk(folder)}
    assert states["disk"] == "bad"


def test_a_disk_without_room_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 1e18)
    assert next(doctor.disk(tmp_path)).state == "bad"


def test_ranks_that_do_not_meet_in_time_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "RANKS_SECONDS", 0.01)
    assert doctor.ranks().state == "bad"


def test_ranks_that_fail_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    assert doctor.ranks().state == "bad"


def test_a_hub_that_does_not_answer_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    finding = doctor.hub()
    assert finding.state == "note"
    assert "HF_ENDPOINT" in finding.mend
