"""Progress on a terminal, in a notebook and in a log."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

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


class Handle:
    """What IPython gives for an output with an id."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def update(self, data: dict[str, str], raw: bool) -> None:
        assert raw
        self.texts.append(data["text/plain"])


def test_a_notebook_has_one_line_that_is_written_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs: list[list[str]] = []

    def display(data: dict[str, str], raw: bool, display_id: bool = False) -> Handle:
        outputs.append([data["text/plain"]])
        return Handle(outputs[-1])

    shell = SimpleNamespace(kernel=object())
    module = ModuleType("IPython")
    module.get_ipython = lambda: shell  # type: ignore[attr-defined]
    module.display = SimpleNamespace(display=display)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)
    with Progress("training", 1000) as bar:
        for step in range(1000):
            bar.advance(f"outcome {step}")
        bar.say("ALARM [x]: look")
    line, alarm = outputs
    assert alarm == ["ALARM [x]: look"]
    assert line[0] == "training ..."
    assert len(line) < 20
    assert line[-1] == "training 1000/1000, about 0 s left. outcome 999"
    assert capsys.readouterr().err == ""


def test_ipython_without_a_kernel_is_no_notebook(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("IPython")
    module.get_ipython = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)
    with Progress("training", 3):
        pass
    assert capsys.readouterr().err == "training ...\n"
