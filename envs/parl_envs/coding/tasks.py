"""Tasks: a repository, the tests that agents may run, and the hidden ones that score it.

In: knobs and a seed; or one row of a file: HumanEval's, MBPP's, or the user's own (files in the row, or a folder). Out:
a `Task` whose data holds `files`, `tests` and, where it is known, `solution`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parl.core.errors import ConfigError
from parl.core.types import Task
from parl_envs.coding import functions
from parl_envs.coding.asserts import read_asserts, read_check
from parl_envs.coding.testing import Case

ENV_ID = "parl/Coding-v0"
MODULES = tuple(f"f{i}" for i in range(1, 41))
"""Names of generated files and of the function in each."""
SHOWN, HIDDEN = 2, 4
"""Tests of a generated function: those that `run_tests` shows, and those that score."""
SOLUTION = "solution.py"
LARGEST_FILE = 100_000
"""Bytes of one file of a user's folder."""


@dataclass(frozen=True, slots=True)
class CodingKnobs:
    n: tuple[int, int]
    levels: tuple[int, ...]
    style: str


def generate(knobs: CodingKnobs, split: str, num: int, seed: int) -> list[Task]:
    """`num` tasks, the same for the same seed; no function of one split computes what one of another does."""
    rng = np.random.default_rng([seed, 13, *split.encode()])
    return [one_task(knobs, rng, split, f"{split}-{seed}-{i}") for i in range(num)]


def one_task(knobs: CodingKnobs, rng: np.random.Generator, split: str, task_id: str) -> Task:
    """A repository of N files with one wrong function each."""
    lo, hi = knobs.n
    names = [str(m) for m in rng.choice(MODULES, size=int(rng.integers(lo, hi + 1)), replace=False)]
    drawn = [functions.draw(rng, name, knobs.levels, split, SHOWN + HIDDEN) for name in names]
    lay_out = functions.tidy if knobs.style == "python" else str
    paths = [f"{name}.py" for name in names]
    data = {
        "files": {p: lay_out(e.source) for p, e in zip(paths, drawn, strict=True)},
        "solution": {p: lay_out(e.solution) for p, e in zip(paths, drawn, strict=True)},
        "tests": [
            case.as_dict() for p, e in zip(paths, drawn, strict=True) for case in _tests(p, e)
        ],
    }
    return Task(task_id, ENV_ID, _prompt(paths, knobs.style), data)


def numbered(paths: Sequence[str]) -> list[str]:
    """`#1 f7.py` and so on: who works through a list by number does not lose its place."""
    return [f"#{i} {path}" for i, path in enumerate(paths, 1)]


def load_task(row: Mapping[str, Any]) -> Task:
    """A task from a row of a file. Raises ConfigError."""
    if "entry_point" in row:
        return _human_eval(row)
    if row.get("test_list"):
        return _mbpp(row)
    task_id = str(row.get("id") or "")
    if task_id and row.get("folder"):
        return _folder(task_id, Path(str(row["folder"])))
    if task_id and row.get("prompt") and row.get("files") and row.get("hidden_tests"):
        files = {str(k): str(v) for k, v in row["files"].items() if v is not None}
        tests = read_asserts(str(row["hidden_tests"]), files, True, f"Task {task_id}: hidden_tests")
        if row.get("tests"):
            tests += read_asserts(str(row["tests"]), files, False, f"Task {task_id}: tests")
        return _task(task_id, str(row["prompt"]), files, tests)
    raise ConfigError(
        "A coding task is a row of HumanEval (entry_point, prompt, test) or of MBPP (test_list), or has id and folder, "
        f"or id, prompt, files and hidden_tests; got the fields {sorted(row)}"
    )


def _task(task_id: str, prompt: str, files: Mapping[str, str], tests: Sequence[Case]) -> Task:
    return Task(
        task_id, ENV_ID, prompt, {"files": dict(files), "tests": [c.as_dict() for c in tests]}
    )


def _tests(path: str, exercise: functions.Exercise) -> list[Case]:
    name = exercise.right.name
    return [
        Case(
            path,
            f"from {name} import {name}",
            f"{name} ( {a} , {b} )",
            str(exercise.right(a, b)),
            hidden=i >= SHOWN,
        )
        for i, (a, b) in enumerate(exercise.inputs)
    ]


def _prompt(paths: Sequence[str], style: str) -> str:
    if style == "words":
        return f"fix : {' ; '.join(numbered(paths))}"
    return (
        f"Tests fail in each of these files: {', '.join(paths)}. Each has a function that does not do what its "
        "docstring says. Correct the files, then say that you are done."
    )


def _human_eval(row: Mapping[str, Any]) -> Task:
    task_id, entry = str(row.get("task_id") or row.get("id")), str(row["entry_point"])
    prompt = str(row.get("prompt") or "")
    if not prompt or not row.get("test"):
        raise ConfigError(f"Task {task_id}: a row of HumanEval needs prompt and test")
    tests = read_check(str(row["test"]), entry, SOLUTION, True, f"Task {task_id}: test")
    files = {SOLUTION: prompt.rstrip() + "\n    pass\n"}
    return _task(task_id, f"Complete the function {entry} in {SOLUTION}.", files, tests)


def _mbpp(row: Mapping[str, Any]) -> Task:
    """MBPP shows its tests' form: the first one is shown here, the others are hidden (all, if there is only one)."""
    task_id, text = (
        str(row.get("task_id") or row.get("id")),
        str(row.get("text") or row.get("prompt") or ""),
    )
    listed = [str(t) for t in row["test_list"]]
    source = f"Task {task_id}: test_list"
    entry = _entry(listed[0], source)
    hidden = listed[1:] or listed
    more = [str(t) for t in row.get("challenge_test_list") or ()]
    tests = read_check("\n".join([*hidden, *more]), entry, SOLUTION, True, source)
    tests += read_check(listed[0], entry, SOLUTION, False, source)
    return _task(
        task_id, f"{text}\nWrite {entry} in {SOLUTION}. A test: {listed[0]}", {SOLUTION: ""}, tests
    )


def _entry(text: str, source: str) -> str:
    """The function that an MBPP assert is about: the first one called that Python does not have itself."""
    import ast
    import builtins

    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError as error:
        raise ConfigError(f"{source} is not Python: {error}") from None
    called = [n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    own = [name for name in called if not hasattr(builtins, name)]
    if not own:
        raise ConfigError(f"{source}: no function is called in {text!r}")
    return own[0]


def _folder(task_id: str, folder: Path) -> Task:
    """prompt.txt, repo/, hidden_tests.py and, if agents may run some, tests.py."""
    for name in ("prompt.txt", "repo", "hidden_tests.py"):
        if not (folder / name).exists():
            raise ConfigError(
                f"Task {task_id}: there is no {folder / name}. A folder holds prompt.txt, repo/ (what "
                "agents read and write), hidden_tests.py, and tests.py if agents may run some."
            )
    repo = folder / "repo"
    files = {}
    for path in sorted(p for p in repo.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        if path.is_symlink() or path.stat().st_size > LARGEST_FILE:
            raise ConfigError(
                f"Task {task_id}: {path} is a link, or larger than {LARGEST_FILE} bytes; remove it."
            )
        try:
            files[path.relative_to(repo).as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"Task {task_id}: {path} is not a UTF-8 text; remove it.") from None
    tests = []
    for name, hidden in (("hidden_tests.py", True), ("tests.py", False)):
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8")
            tests += read_asserts(text, files, hidden, str(folder / name))
    return _task(task_id, (folder / "prompt.txt").read_text(encoding="utf-8").strip(), files, tests)
