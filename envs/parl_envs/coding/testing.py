"""Tests that the code under test cannot forge.

A case is an expression that calls the code, and its expected value. The expressions run in the
sandbox, and only their values come back; the expected value stays in this process, and the
comparison is made here. So editing tests, printing, exiting early or patching Python cannot help:
to pass, a program has to give the right value of a call whose right value it has never seen.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from parl_envs.coding.sandbox import run_python

# Generous: a machine with many episodes is slow, and a hang costs this once for each text.
TIMEOUT_S = 10.0
LONGEST_VALUE = 20_000
"""Characters of a value's text. A longer one is wrong: reading it would keep this process busy."""

# The answers go to a copy of stdout; what the code under test prints goes to stderr.
RUNNER = """
import json, os, sys
setup, calls = json.loads(sys.stdin.read())
out = os.fdopen(os.dup(1), "w")
sys.stdout = sys.stderr
sys.path.insert(0, os.getcwd())
scope = {}
exec(setup, scope)
for number, call in enumerate(calls):
    try:
        answer = {"value": repr(eval(call, scope))[:%d]}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:200]}
    print(json.dumps([number, answer]), file=out, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One test.

    Example: Case("f7.py", "from f7 import f7", "f7(2, 3)", "5")
    """

    file: str
    """The file under test: a subagent that was assigned this file is judged by the case."""
    setup: str
    """Statements that make the call possible, such as imports."""
    call: str
    """Expression that runs in the sandbox, next to the code under test."""
    expect: str
    """Literal that the value should equal; empty with `check`."""
    check: str = ""
    """Instead of `expect`: an expression over `got`, the call's value.

    It runs in a sandbox that does not have the code under test.
    """
    hidden: bool = True
    """Hidden cases make the score; `run_tests` shows the others."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a mapping, for a task's data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TestResult:
    """Whether a case passed, and the text of the value or error that the code gave."""

    passed: bool
    got: str


def run_cases(files: Mapping[str, str], cases: Sequence[Case]) -> list[TestResult]:
    """Run cases, and return their results in the same order.

    Each file under test has a process of its own, so that no file can spoil another's results.
    """
    results: dict[Case, TestResult] = {}
    for group in _by_setup(cases):
        needed = _needed_files(group, files)
        group_results = _run_group(needed, tuple(group))
        results.update(zip(group, group_results, strict=True))
    return [results[case] for case in cases]


def cases_of(data: Mapping[str, Any]) -> tuple[Case, ...]:
    """Return the cases of a task from its `data`."""
    return tuple(Case(**row) for row in data["tests"])


def _by_setup(cases: Sequence[Case]) -> list[list[Case]]:
    # One run for each file and setup: starting the interpreter is most of a run's time.
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.file, case.setup), []).append(case)
    return list(groups.values())


def _needed_files(group: Sequence[Case], files: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The file under test alone, where no text names another file; else all files.

    An equal text is then an equal run whatever other files there are, so that `_run_group` can
    remember it.
    """
    file = group[0].file
    texts = [files.get(file, ""), group[0].setup, *(case.call for case in group)]
    words = set(re.findall(r"\w+", " ".join(texts)))
    for path in files:
        if path == file:
            continue
        if words & set(PurePosixPath(path).with_suffix("").parts):
            return tuple(sorted(files.items()))
    return ((file, files[file]),) if file in files else ()


# An episode runs the tests of a file several times, and the episodes of a group run the same ones.
@lru_cache(maxsize=65536)
def _run_group(
    files: tuple[tuple[str, str], ...], cases: tuple[Case, ...]
) -> tuple[TestResult, ...]:
    """Run the calls of one file and compare their values."""
    # One character more than the limit, so that a value that was cut is too long.
    runner = RUNNER % (LONGEST_VALUE + 1)
    job = json.dumps([cases[0].setup, [case.call for case in cases]])
    result = run_python(runner, stdin=job, files=dict(files), timeout_s=TIMEOUT_S)
    answers = _answers(result.stdout, len(cases))
    if result.timed_out:
        reason = "timed out"
    else:
        last_lines = result.stderr.strip().splitlines()[-1:]
        reason = last_lines[0] if last_lines else "no value"
    results = []
    for case, answer in zip(cases, answers, strict=True):
        results.append(_judge(case, answer, reason))
    return tuple(results)


def _answers(stdout: str, num: int) -> list[Mapping[str, Any] | None]:
    """One answer for each case. None where there is none, or several: a program must not guess."""
    answers: list[list[Mapping[str, Any]]] = [[] for _ in range(num)]
    for line in stdout.splitlines():
        # The program may print to the same stream, so a line can be anything.
        try:
            number, answer = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(number, int) and 0 <= number < num and isinstance(answer, dict):
            answers[number].append(answer)
    return [candidates[0] if len(candidates) == 1 else None for candidates in answers]


def _judge(case: Case, answer: Mapping[str, Any] | None, reason: str) -> TestResult:
    if answer is None or not isinstance(answer.get("value"), str):
        # The program's own error says more than the reason for which the process ended.
        error = (answer or {}).get("error", reason)
        return TestResult(False, str(error))
    text = answer["value"]
    passed = _passes_check(case, text) if case.check else equal(text, case.expect)
    return TestResult(passed, text)


def equal(text: str, expect: str) -> bool:
    """Whether two literals are equal values, by Python's `==`. Anything else equals nothing."""
    try:
        return bool(_literal(text) == _literal(expect))
    except ValueError:
        return False


def _literal(text: str) -> Any:
    """The value of a literal, read without running anything. Raises ValueError."""
    # Before parsing, which takes time and memory in proportion.
    if len(text) > LONGEST_VALUE:
        raise ValueError("too long")
    try:
        # It builds numbers, texts and containers, and never calls anything.
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a literal: {error}") from None


def _passes_check(case: Case, text: str) -> bool:
    """Evaluate the check on a value, in a sandbox without the code under test."""
    try:
        # The value goes in as a literal, so no code of the agent's comes with it.
        code = f"import math\ngot = {_literal(text)!r}\nprint(bool({case.check}))"
    except ValueError:
        return False
    return run_python(code, timeout_s=TIMEOUT_S).stdout.strip() == "True"
