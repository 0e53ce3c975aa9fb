"""Coding on the user's own tasks: rows of HumanEval and MBPP, folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from parl.core.errors import ConfigError
from parl.core.types import Task
from parl_envs.coding.coding_env import Coding
from parl_envs.coding.tasks import load_task
from parl_envs.coding.testing import cases_of

ADD = "def add(a, b):\n    return a - b\n"
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef first(xs: List[int]) -> int:\n    """ The first. """\n',
    "canonical_solution": "    return xs[0]\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([3, 4]) == 3\n"
    "    assert candidate([5]) == 5\n    assert abs(candidate([1.5]) - 1.5) < 1e-6\n"
    "    for i in range(3):\n        assert candidate([i]) == i\n",
    "entry_point": "first",
}
MBPP = {
    "task_id": 11,
    "text": "Write a python function to remove first and last occurrence of a given character from the string.",
    "code": "def remove_Occ(s, ch):\n    i, j = s.find(ch), s.rfind(ch)\n    return ''.join(c for k, c in enumerate(s) "
    "if k not in (i, j))",
    "test_list": [
        'assert remove_Occ("hello","l") == "heo"',
        'assert remove_Occ("abcda","a") == "bcd"',
        'assert set(remove_Occ("PHP","P")) == set(("H",))',
    ],
    "challenge_test_list": [],
}


def started(task: Task | None = None, **kwargs: Any) -> Coding:
    env = Coding(**kwargs)
    env.reset(seed=0, options={"task": task} if task else None)
    return env


def score_of(task: Task, files: Mapping[str, str]) -> float:
    env = started(task)
    for path, text in files.items():
        env.write_file(path, text)
    return env.score("done")["score"]


def test_rows_of_human_eval_and_mbpp() -> None:
    for row, solution, hidden in (
        (HUMAN_EVAL, HUMAN_EVAL["prompt"] + HUMAN_EVAL["canonical_solution"], 3),
        (MBPP, str(MBPP["code"]), 2),
    ):
        task = load_task(row)
        assert sum(c.hidden for c in cases_of(task.data)) == hidden
        assert score_of(task, {}) == 0.0
        assert score_of(task, {"solution.py": solution}) == 1.0
        assert score_of(task, {"solution.py": ""}) == 0.0
    assert [c.call for c in cases_of(load_task(MBPP).data) if not c.hidden] == [
        "remove_Occ('hello', 'l')"
    ]


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    (folder / "repo" / "pkg").mkdir(parents=True)
    (folder / "prompt.txt").write_text("Correct pkg/calc.py\n")
    (folder / "repo" / "pkg" / "calc.py").write_text(ADD)
    (folder / "hidden_tests.py").write_text(
        "from pkg.calc import add\n\ndef test_add():\n    assert add(2, 3) == 5\n"
    )
    task = load_task({"id": "mine", "folder": str(folder)})
    assert task.prompt == "Correct pkg/calc.py"
    assert json.loads(json.dumps(task.data)) == task.data
    assert score_of(task, {}) == 0.0
    assert score_of(task, {"pkg/calc.py": ADD.replace("-", "+")}) == 1.0
    (folder / "hidden_tests.py").write_text("assert True")
    with pytest.raises(ConfigError, match="no import names a file"):
        load_task({"id": "mine", "folder": str(folder)})
    (folder / "prompt.txt").unlink()
    with pytest.raises(ConfigError, match=r"there is no .*prompt\.txt"):
        load_task({"id": "mine", "folder": str(folder)})


@pytest.mark.parametrize(
    "row, says",
    [
        ({"id": "x"}, "A coding task is"),
        (
            {
                "id": "x",
                "prompt": "p",
                "files": {"a.py": ""},
                "hidden_tests": "from a import f\nf(1)",
            },
            "no assert calls f",
        ),
        (
            {"id": "x", "prompt": "p", "files": {"a.py": ""}, "hidden_tests": "from a import"},
            "is not Python",
        ),
        ({**HUMAN_EVAL, "test": ""}, "needs prompt and test"),
        ({**MBPP, "test_list": ["assert 1 == 1"]}, "no function is called"),
    ],
)
def test_a_row_that_is_no_task_says_what_is_missing(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_task(row)
