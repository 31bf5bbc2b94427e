import re

import pytest

from data_prep import progress as room
from data_prep.progress import Meter


def test_a_log_gets_the_size_then_lines_with_speeds_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(room.time, "perf_counter", lambda: now)
    with Meter(True, total_bytes=1_000, texts=2_000, vector_bytes=10_768) as meter:
        for _ in range(7):
            now += 10
            meter.advance(texts=10, tokens=500, size=100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "embedding: 2,000 new vectors will take 21.5 MB"
    assert lines[1] == "embedding 40%: 40 texts, 1 texts/s, 50 tokens/s, 0:01:00 left"
    assert lines[2] == "embedding 70%: 70 texts, 1 texts/s, 50 tokens/s, 0:00:30 left"
    assert len(lines) == 3


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    with Meter(True, total_bytes=1_000, texts=10, vector_bytes=100) as meter:
        meter.advance(texts=5, tokens=100, size=500)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "10 new vectors will take 1 kB" in shown
    assert "50%" in shown
    assert "5 texts, " in shown
    assert "tokens/s" in shown


def test_nothing_is_shown_where_nothing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(False, 1, 1, 1) as meter:
        meter.advance(1, 1, 1)
    assert capsys.readouterr() == ("", "")
