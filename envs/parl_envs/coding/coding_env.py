"""`parl/Coding-v0`: repair a small repository until its hidden tests pass.

In: a task (files, shown and hidden tests). Out: the share of hidden tests that pass. Each subagent works in a copy of
the repository; `merge` brings the copies' changes together. Whatever agents write runs in the sandbox only.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from parl.core.errors import ConfigError, did_you_mean
from parl.core.types import Task
from parl.env.base import AgentEnv, Demonstration
from parl.env.demonstrations import Segment
from parl.env.tools import tool
from parl_envs.coding import expert, functions, practice, tasks
from parl_envs.coding.merge import merge
from parl_envs.coding.sandbox import run_python
from parl_envs.coding.testing import Case, cases_of, run_cases

MOST_FILES, LARGEST_FILE, LONGEST_OUTPUT = 200, 100_000, 4_000
"""Of a workspace: files, characters of one, characters of a program's output that an agent reads."""


class Coding(AgentEnv):
    """Repair a repository.

    Args:
        n: the range of generated tasks' files, [lo, hi]; each has one function with one mistake.
        levels: numbers of statements of a generated function, equally likely; of 1, 2 and 3.
        style: `python` (as people lay it out) or `words` (one line, blanks between the words: for tiny models).
    """

    blocking = True
    merges = ("merge",)
    cases: tuple[Case, ...]
    files: Mapping[str, str]
    base: Mapping[str, str]
    """The files that this world started from."""
    forks: dict[str, Coding]
    """By subtask: the subagents' worlds that have not been merged."""
    num_conflicts: int
    asked: frozenset[str]
    """Files under test that a subagent's prompt names."""

    def __init__(
        self,
        n: Sequence[int] = (4, 8),
        levels: Sequence[int] = (1, 2),
        style: Literal["python", "words"] = "python",
    ) -> None:
        super().__init__()
        if len(n) != 2 or not 1 <= n[0] <= n[1] <= len(tasks.MODULES):
            raise ConfigError(
                f"env.kwargs.n is {n!r}; give [lo, hi] with 1 <= lo <= hi <= {len(tasks.MODULES)}"
            )
        if not levels or not set(levels) <= set(functions.LEVELS):
            raise ConfigError(
                f"env.kwargs.levels is {levels!r}; give some of {list(functions.LEVELS)}"
            )
        if style not in ("python", "words"):
            raise ConfigError(
                f"env.kwargs.style is '{style}'.{did_you_mean(str(style), ('python', 'words'))}"
            )
        self.knobs = tasks.CodingKnobs((int(n[0]), int(n[1])), tuple(int(k) for k in levels), style)
        self.asked = frozenset()

    # --- tools ---

    @tool
    def read_file(
        self, path: Annotated[str, Field(description="A file of the repository.")]
    ) -> str:
        """Read a file. A path that is not there is answered with the list of files."""
        text = self.files.get(path)
        return (
            f"error: no file {path} ; files : {' '.join(sorted(self.files))}"
            if text is None
            else text
        )

    @tool
    def write_file(
        self,
        path: Annotated[str, Field(description="A file of the repository, or a new one.")],
        content: Annotated[str, Field(description="The whole text of the file.")],
    ) -> str:
        """Write a file; what it held is replaced."""
        parts = PurePosixPath(path).parts
        if (
            not parts
            or path.startswith("/")
            or not all(re.fullmatch(r"[\w.-]+", p) and p != ".." for p in parts)
        ):
            return f"error: {path} is no path inside the repository"
        if len(content) > LARGEST_FILE or (
            path not in self.files and len(self.files) >= MOST_FILES
        ):
            return f"error: at most {MOST_FILES} files of {LARGEST_FILE} characters"
        self.files = {**self.files, str(PurePosixPath(path)): content}
        return "ok"

    @tool
    def run_tests(
        self,
        path: Annotated[str, Field(description="Only the tests of this file; empty for all.")] = "",
    ) -> str:
        """Run the repository's tests on the files as they are. Tells, for each that fails, what was expected."""
        cases = [c for c in self.cases if not c.hidden and path in ("", c.file)]
        if not cases:
            return "no tests"
        verdicts = run_cases(self.files, cases)
        lines = [f"{sum(v.passed for v in verdicts)} of {len(cases)} passed"]
        for case, verdict in zip(cases, verdicts, strict=True):
            if not verdict.passed:
                lines.append(
                    f"{case.call} : expected {case.expect or case.check} got {verdict.got[:200]}"
                )
        return "\n".join(lines)[:LONGEST_OUTPUT]

    @tool
    def python(
        self,
        code: Annotated[str, Field(description="A program; it can import the repository's files.")],
    ) -> str:
        """Run a program beside a copy of the repository, in a sandbox. Returns what it printed."""
        setup = "import os, sys\nsys.path.insert(0, os.getcwd())\n"
        result = run_python(setup + code, files=self.files)
        text = (result.stdout + result.stderr).strip()
        if result.timed_out:
            text += "\nerror: timed out"
        return text[-LONGEST_OUTPUT:] or "ok"

    @tool
    def merge(self) -> str:
        """Take over what your subagents changed in their copies. A conflict leaves your file and adds theirs beside."""
        merged: dict[str, None] = {}
        conflicts = []
        # in the order of their subtasks: that of their threads would differ from run to run
        for number, (_, child) in enumerate(sorted(self.forks.items()), 1):
            for path in sorted(set(child.files) | set(child.base)):
                base, ours, theirs = (
                    child.base.get(path),
                    self.files.get(path),
                    child.files.get(path),
                )
                if theirs == base:
                    continue
                text, clean = merge(base, ours, theirs)
                aside = path if clean else f"{path}.{number}"
                self.files = {**self.files, aside: (text if clean else theirs) or ""}
                if clean:
                    merged[path] = None
                else:
                    conflicts.append(f"conflict : {path} ; yours is kept , the other is {aside}")
        self.num_conflicts += len(conflicts)
        self.forks = {}
        return "\n".join(
            [f"merged {' '.join(merged)}" if merged else "nothing to merge", *conflicts]
        )

    # --- tasks and scores ---

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return tasks.generate(self.knobs, split, num, seed)

    def load_task(self, row: Mapping[str, Any]) -> Task:
        return tasks.load_task(row)

    def start(self, task: Task) -> None:
        self.cases = cases_of(task.data)
        self.files = self.base = dict(task.data["files"])
        self.forks, self.num_conflicts = {}, 0
        self.asked = frozenset()

    def score(self, answer: str) -> Mapping[str, float]:
        """The files count, whatever the answer says; but without an answer (a limit was reached) the score is 0."""
        passed = self._passed([c for c in self.cases if c.hidden])
        solved = sum(all(passed[c] for c in passed if c.file == file) for file in self._tested())
        share = sum(passed.values()) / len(passed)
        score = share if answer.strip() else 0.0
        return {
            "score": score,
            "tests_passed": share,
            "files_solved": solved / len(self._tested()),
            "success": float(score == 1.0),
        }

    def facts(self) -> Mapping[str, Any]:
        before = self.task.data["files"]
        changed = sorted(p for p in self.files if self.files[p] != before.get(p))
        return {
            "files_changed": changed,
            "conflicts": self.num_conflicts,
            "unmerged": len(self.forks),
        }

    def num_parts(self) -> int | None:
        return len(self._tested())

    def _tested(self) -> list[str]:
        return sorted({c.file for c in self.cases if c.hidden})

    def _passed(self, cases: Sequence[Case]) -> dict[Case, bool]:
        """Which hidden cases pass. A file that equals the known solution is not run: its values are the expected."""
        solution = self.task.data.get("solution") or {}
        known = {path for path, text in solution.items() if self.files.get(path) == text}
        rest = [c for c in cases if c.file not in known]
        ran = dict(zip(rest, (v.passed for v in run_cases(self.files, rest)), strict=True))
        return {c: ran.get(c, True) for c in cases}

    # --- subagents ---

    def fork(self, subtask: str) -> Coding:
        """A subagent has a copy of the files as they are now. It is asked for the files that its prompt names.

        Forks for the same subtask are attempts at one assignment: `merge` takes the first.
        """
        child = copy.copy(self)
        child.base, child.forks, child.num_conflicts = self.files, {}, 0
        words = set(re.split(r"[\s,;:'\"`()]+", subtask))
        child.asked = frozenset(f for f in self._tested() if f in words or f"{f}." in words)
        self.forks.setdefault(subtask, child)
        return child

    def check_result(self, message: str) -> bool:
        """In form: it says something, and has changed a file that it was asked for (any, if its prompt named none)."""
        changed = {p for p in self.files if self.files[p] != self.base.get(p)}
        return bool(message.strip()) and bool(changed & self.asked if self.asked else changed)

    def subtask_score(self, message: str) -> float | None:
        """Share of hidden tests that pass of the files that the prompt named (gold-informed)."""
        if not self.asked:
            return None
        passed = self._passed([c for c in self.cases if c.hidden and c.file in self.asked])
        return sum(passed.values()) / len(passed)

    # --- a policy from nothing ---

    def vocabulary(self) -> Sequence[str]:
        if self.knobs.style != "words":
            raise ConfigError("`model: tiny` reads words: set env.kwargs.style: words")
        return practice.vocabulary(self.knobs.n[1])

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """`recall`, `enumerate`, `copy`, `locate`, `repair`: texts to practise on. `episode`: the expert at work."""
        if kind in practice.KINDS:
            return practice.KINDS[kind](rng, self.knobs)
        if kind != "episode":
            raise ConfigError(
                f"No demonstrations of kind '{kind}'.{did_you_mean(kind, [*practice.KINDS, 'episode'])}"
            )
        task = tasks.one_task(self.knobs, rng, "train", "demo")
        return Demonstration(self, task, expert.CodingExpert(rng, **knobs))
