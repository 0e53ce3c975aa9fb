"""Tasks of Coding: a repository, the tests that agents may run, and the hidden ones that score it.

Tasks are generated, or come from the user's file: a row of HumanEval's, of MBPP's, or of the user's
own (files in the row, or a folder). A task's data has `files`, `tests` and, where it is known,
`solution`.
"""

from __future__ import annotations

import ast
import builtins
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
"""Names of generated files, and of the function in each."""
SHOWN, HIDDEN = 2, 4
"""Tests of a generated function: those that `run_tests` shows, and those that score."""
SOLUTION = "solution.py"
"""The file of a HumanEval or MBPP task."""
LARGEST_FILE = 100_000
"""Bytes of one file of a user's folder."""


@dataclass(frozen=True, slots=True)
class CodingKnobs:
    """What generated tasks look like; see the arguments of `Coding`."""

    n: tuple[int, int]
    levels: tuple[int, ...]
    style: str


def generate(knobs: CodingKnobs, split: str, num: int, seed: int) -> list[Task]:
    """Generate `num` tasks. The same seed gives the same tasks.

    No function of one split has the shape of one of another split.
    """
    # The split's name is in the seed: splits with the same seed are not shifted copies of each
    # other.
    rng = np.random.default_rng([seed, 13, *split.encode()])
    return [one_task(knobs, rng, split, f"{split}-{seed}-{i}") for i in range(num)]


def one_task(knobs: CodingKnobs, rng: np.random.Generator, split: str, task_id: str) -> Task:
    """Draw a repository of N files, with one wrong function in each."""
    lowest, highest = knobs.n
    num_files = int(rng.integers(lowest, highest + 1))
    modules = [str(module) for module in rng.choice(MODULES, size=num_files, replace=False)]
    # Words with blanks between them are Python, too, so both styles run as they are.
    lay_out = functions.tidy if knobs.style == "python" else str

    files, solution = {}, {}
    tests: list[dict[str, Any]] = []
    for module in modules:
        path = f"{module}.py"
        exercise = functions.draw(rng, module, knobs.levels, split, SHOWN + HIDDEN)
        files[path] = lay_out(exercise.source)
        solution[path] = lay_out(exercise.solution)
        tests += [case.as_dict() for case in _tests(path, exercise)]
    data = {"files": files, "solution": solution, "tests": tests}
    return Task(task_id, ENV_ID, _prompt(list(files), knobs.style), data)


def _tests(path: str, exercise: functions.Exercise) -> list[Case]:
    name = exercise.right.name
    cases = []
    for i, (a, b) in enumerate(exercise.inputs):
        case = Case(
            file=path,
            setup=f"from {name} import {name}",
            call=f"{name} ( {a} , {b} )",
            expect=str(exercise.right(a, b)),
            hidden=i >= SHOWN,
        )
        cases.append(case)
    return cases


def _prompt(paths: Sequence[str], style: str) -> str:
    if style == "words":
        return f"fix : {' ; '.join(numbered(paths))}"
    return (
        f"Tests fail in each of these files: {', '.join(paths)}. Each has a function that does not "
        "do what its docstring says. Correct the files, then say that you are done."
    )


def numbered(paths: Sequence[str]) -> list[str]:
    """Number a list of files: `#1 f7.py` and so on.

    A policy that works through a list by number does not lose its place.
    """
    return [f"#{i} {path}" for i, path in enumerate(paths, 1)]


# --- from a file ---


def load_task(row: Mapping[str, Any]) -> Task:
    """Make a task from a row of a file.

    Raises:
        ConfigError: fields are missing, or the tests cannot be used.
    """
    if "entry_point" in row:
        return _human_eval(row)
    if row.get("test_list"):
        return _mbpp(row)
    task_id = str(row.get("id") or "")
    if task_id and row.get("folder"):
        return _folder(task_id, Path(str(row["folder"])))
    if task_id and row.get("prompt") and row.get("files") and row.get("hidden_tests"):
        return _files_in_row(task_id, row)
    raise ConfigError(
        "A coding task is a row of HumanEval (entry_point, prompt, test) or of MBPP (test_list), "
        "or has id and folder, or id, prompt, files and hidden_tests; "
        f"got the fields {sorted(row)}"
    )


def _task(task_id: str, prompt: str, files: Mapping[str, str], tests: Sequence[Case]) -> Task:
    data = {"files": dict(files), "tests": [case.as_dict() for case in tests]}
    return Task(task_id, ENV_ID, prompt, data)


def _files_in_row(task_id: str, row: Mapping[str, Any]) -> Task:
    # `datasets` gives all rows the same fields: a file that a row lacks is None.
    files = {str(path): str(text) for path, text in row["files"].items() if text is not None}
    hidden_tests = str(row["hidden_tests"])
    tests = read_asserts(hidden_tests, files, True, f"Task {task_id}: hidden_tests")
    if row.get("tests"):
        tests += read_asserts(str(row["tests"]), files, False, f"Task {task_id}: tests")
    return _task(task_id, str(row["prompt"]), files, tests)


def _human_eval(row: Mapping[str, Any]) -> Task:
    task_id = str(row.get("task_id") or row.get("id"))
    function = str(row["entry_point"])
    prompt = str(row.get("prompt") or "")
    if not prompt or not row.get("test"):
        raise ConfigError(f"Task {task_id}: a row of HumanEval needs prompt and test")
    tests = read_check(str(row["test"]), function, SOLUTION, True, f"Task {task_id}: test")
    # With `pass` the prompt is a program that can be imported.
    files = {SOLUTION: prompt.rstrip() + "\n    pass\n"}
    return _task(task_id, f"Complete the function {function} in {SOLUTION}.", files, tests)


def _mbpp(row: Mapping[str, Any]) -> Task:
    """Make a task of a row of MBPP, whose prompts rely on a test to tell the function's name.

    The first test is shown, the others are hidden (all of them, if there is only one).
    """
    task_id = str(row.get("task_id") or row.get("id"))
    text = str(row.get("text") or row.get("prompt") or "")
    source = f"Task {task_id}: test_list"
    shown, *hidden = [str(test) for test in row["test_list"]]
    # A task without hidden tests could not be scored.
    hidden = hidden or [shown]
    hidden += [str(test) for test in row.get("challenge_test_list") or ()]
    function = _function_under_test(shown, source)
    tests = read_check("\n".join(hidden), function, SOLUTION, True, source)
    # The shown test does not score: it could be special-cased.
    tests += read_check(shown, function, SOLUTION, False, source)
    prompt = f"{text}\nWrite {function} in {SOLUTION}. A test: {shown}"
    return _task(task_id, prompt, {SOLUTION: ""}, tests)


def _function_under_test(text: str, source: str) -> str:
    """The function that an MBPP assert is about: the first called one that Python does not have."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f"{source} is not Python: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if not hasattr(builtins, name):
                return name
    raise ConfigError(f"{source}: no function is called in {text!r}")


def _folder(task_id: str, folder: Path) -> Task:
    """Make a task of a folder with prompt.txt, repo/, hidden_tests.py and perhaps tests.py."""
    for name in ("prompt.txt", "repo", "hidden_tests.py"):
        if not (folder / name).exists():
            raise ConfigError(
                f"Task {task_id}: there is no {folder / name}. A folder holds prompt.txt, repo/ "
                "(what agents read and write), hidden_tests.py, and tests.py if agents may run "
                "some."
            )
    files = _read_repository(folder / "repo", task_id)
    tests = []
    for name, hidden in (("hidden_tests.py", True), ("tests.py", False)):
        path = folder / name
        if path.is_file():
            tests += read_asserts(path.read_text(encoding="utf-8"), files, hidden, str(path))
    prompt = (folder / "prompt.txt").read_text(encoding="utf-8").strip()
    return _task(task_id, prompt, files, tests)


def _read_repository(repo: Path, task_id: str) -> dict[str, str]:
    """Relative path -> text of every file of a folder."""
    files = {}
    for path in sorted(repo.rglob("*")):
        # Bytecode of whoever tried the repository is no part of the task.
        if not path.is_file() or "__pycache__" in path.parts:
            continue
        # A link could show an agent a file outside of the folder.
        if path.is_symlink() or path.stat().st_size > LARGEST_FILE:
            raise ConfigError(
                f"Task {task_id}: {path} is a link, or larger than {LARGEST_FILE} bytes; remove it."
            )
        try:
            files[path.relative_to(repo).as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"Task {task_id}: {path} is not a UTF-8 text; remove it.") from None
    return files
