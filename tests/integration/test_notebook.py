"""The notebook of examples/ runs from its first cell to its last, and its policy learns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import parl
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NOTEBOOK = ROOT / "examples" / "first_environment.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The executed notebook and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    roots = [str(ROOT), str(ROOT / "envs"), str(ROOT / "rewards")]
    # A hang of a cell is a failure of the test, not of the whole suite.
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(folder)}}, kernel_name="python3"
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)})
    return notebook, folder


def test_the_policy_learns_to_knock(executed: tuple[Any, Path]) -> None:
    _, folder = executed
    run = parl.load_run(folder / "runs" / "password")
    scores = run.metrics["outcome/score"]
    assert run.state == "finished"
    assert scores.iloc[:3].mean() < 0.6 < scores.iloc[-5:].mean()


def test_the_curve_is_drawn(executed: tuple[Any, Path]) -> None:
    notebook, _ = executed
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1


def test_it_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_the_environment_takes_fifteen_lines() -> None:
    """The class without blank lines; README and docs promise it."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells]
    (source,) = [cell for cell in cells if "class Password" in cell]
    body = source[source.index("class Password") :]
    lines = [line for line in body.splitlines() if line.strip()]
    assert len(lines) <= 15


def test_the_page_shows_the_same_code() -> None:
    page = (ROOT / "docs/start/your-first-environment.md").read_text()
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and "class " in cell.source:
            assert cell.source in page
