"""Tests that the code under test cannot forge.

In: files, and cases (an expression that calls the code, and what is expected of it). Out: which cases pass. The
expressions run in the sandbox and only their values come back; what is expected stays in this process, and the
comparison is made here. So editing tests, printing, exiting early or patching Python cannot help: to pass, a program
has to say the right value of a call whose right value it has never seen.
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

TIMEOUT_S = 10.0
LONGEST_VALUE = 20_000
"""Characters of a value's text. What is longer counts as wrong: it would only keep this process busy."""

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
    """Whose code it is about: a subagent that was given this file is judged by it."""
    setup: str
    """Statements that make the call possible, such as imports."""
    call: str
    """Expression that runs in the sandbox, beside the code under test."""
    expect: str
    """Literal that it should equal; or, with `check`, empty."""
    check: str = ""
    """Instead of `expect`: an expression over `got`, the call's value. It runs in a sandbox without the code."""
    hidden: bool = True
    """Hidden cases make the score; the others are what `run_tests` shows."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TestResult:
    """Whether a case passed, and what the code gave: the text of a value, or of an error."""

    passed: bool
    got: str


def run_cases(files: Mapping[str, str], cases: Sequence[Case]) -> list[TestResult]:
    """Verdicts in the order of the cases. One process for each file under test, so no file spoils another's."""
    verdicts: dict[Case, TestResult] = {}
    for group in _by_setup(cases):
        needed = _needed(group, files)
        verdicts |= zip(group, _run(needed, tuple(group)), strict=True)
    return [verdicts[c] for c in cases]


def cases_of(data: Mapping[str, Any]) -> tuple[Case, ...]:
    """The cases of a task, as its `data` holds them."""
    return tuple(Case(**row) for row in data["tests"])


def _by_setup(cases: Sequence[Case]) -> list[list[Case]]:
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.file, case.setup), []).append(case)
    return list(groups.values())


def _needed(group: Sequence[Case], files: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The file alone where nothing names another one: an equal text is then an equal run, whatever stands beside it."""
    file = group[0].file
    text = " ".join([files.get(file, ""), group[0].setup, *(case.call for case in group)])
    others = {
        part for path in files if path != file for part in PurePosixPath(path).with_suffix("").parts
    }
    alone = {file: files[file]} if file in files else {}
    return tuple(sorted((files if others & set(re.findall(r"\w+", text)) else alone).items()))


@lru_cache(maxsize=65536)
def _run(files: tuple[tuple[str, str], ...], cases: tuple[Case, ...]) -> tuple[TestResult, ...]:
    """Run the calls of one file and compare. Cached: the same text gives the same values."""
    runner = RUNNER % (LONGEST_VALUE + 1)
    job = json.dumps([cases[0].setup, [case.call for case in cases]])
    result = run_python(runner, stdin=job, files=dict(files), timeout_s=TIMEOUT_S)
    answers = _answers(result.stdout, len(cases))
    why = (
        "timed out"
        if result.timed_out
        else (result.stderr.strip().splitlines() or ["no value"])[-1]
    )
    return tuple(_verdict(c, answers[i], why) for i, c in enumerate(cases))


def _answers(stdout: str, num: int) -> list[Mapping[str, Any] | None]:
    """One answer for each case; None where there is none, or several: a program that guesses does not know."""
    found: list[list[Mapping[str, Any]]] = [[] for _ in range(num)]
    for line in stdout.splitlines():
        try:
            number, answer = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(number, int) and 0 <= number < num and isinstance(answer, dict):
            found[number].append(answer)
    return [answers[0] if len(answers) == 1 else None for answers in found]


def _verdict(case: Case, answer: Mapping[str, Any] | None, why: str) -> TestResult:
    if answer is None or not isinstance(answer.get("value"), str):
        return TestResult(False, str((answer or {}).get("error", why)))
    text = answer["value"]
    if case.check:
        return TestResult(_checks(case, text), text)
    return TestResult(equal(text, case.expect), text)


def equal(text: str, expect: str) -> bool:
    """Whether two literals are equal values, by Python's `==`. Anything but a literal equals nothing."""
    try:
        return bool(_literal(text) == _literal(expect))
    except ValueError:
        return False


def _literal(text: str) -> Any:
    """The value of a literal, read without running anything. Raises ValueError."""
    if len(text) > LONGEST_VALUE:
        raise ValueError("too long")
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a literal: {error}") from None


def _checks(case: Case, text: str) -> bool:
    """Evaluate the check on a value, in a sandbox that holds no code under test."""
    try:
        code = f"import math\ngot = {_literal(text)!r}\nprint(bool({case.check}))"
    except ValueError:
        return False
    return run_python(code, timeout_s=TIMEOUT_S).stdout.strip() == "True"
