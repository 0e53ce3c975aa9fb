"""Progress where there is no terminal."""

from __future__ import annotations

import pytest

from parl.core.progress import Progress


def test_a_line_of_its_own_between_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training", 3) as bar:
        bar.advance("note")
        bar.say("ALARM [x]: look")
    assert capsys.readouterr().err.splitlines() == ["training ...", "ALARM [x]: look"]


def test_on_a_terminal_it_stands_above_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("training", 3) as bar:
        bar.say("ALARM [x]: look")
    assert "ALARM [x]: look\n" in capsys.readouterr().err
