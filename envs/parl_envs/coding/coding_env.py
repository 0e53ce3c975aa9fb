"""`parl/Coding-v0`: repair a small repository until its hidden tests pass.

A task has files, and shown and hidden tests. The score is the share of hidden tests that pass. Each
subagent works in a copy of the repository; `merge` brings the copies' changes together. Whatever
agents write runs in the sandbox only.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
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

# Bounds on a workspace: agents in training write files of any number and length.
MAX_FILES = 200
MAX_FILE_CHARS = 100_000
# Characters of a program's output that an agent reads.
MAX_OUTPUT_CHARS = 4_000


class Coding(AgentEnv):
    """Repair a repository.

    Args:
        n: the range of the number of files in a generated task, [lo, hi]. Each file has one
            function with one mistake.
        levels: numbers of statements of a generated function, equally likely; of 1, 2 and 3.
        style: `python` (as people lay it out) or `words` (one line with blanks between the words,
            for tiny models).
    """

    # Tools wait for processes, so each call has a thread of its own.
    blocking = True
    merges = ("merge",)
    cases: tuple[Case, ...]
    files: Mapping[str, str]
    base: Mapping[str, str]
    """The files that this environment started from."""
    forks: dict[str, Coding]
    """Subtask -> the subagent's environment, until it is merged."""
    num_conflicts: int
    assigned_files: frozenset[str]
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
        self.assigned_files = frozenset()

    # --- tools ---

    @tool
    def read_file(
        self, path: Annotated[str, Field(description="A file of the repository.")]
    ) -> str:
        """Read a file. A path that is not there is answered with the list of files."""
        text = self.files.get(path)
        if text is None:
            return f"error: no file {path} ; files : {' '.join(sorted(self.files))}"
        return text

    @tool
    def write_file(
        self,
        path: Annotated[str, Field(description="A file of the repository, or a new one.")],
        content: Annotated[str, Field(description="The whole text of the file.")],
    ) -> str:
        """Write a file; what it held is replaced."""
        if not _is_inside(path):
            return f"error: {path} is no path inside the repository"
        is_one_too_many = path not in self.files and len(self.files) >= MAX_FILES
        if len(content) > MAX_FILE_CHARS or is_one_too_many:
            return f"error: at most {MAX_FILES} files of {MAX_FILE_CHARS} characters"
        # A new mapping: forks share the one before.
        self.files = {**self.files, str(PurePosixPath(path)): content}
        return "ok"

    @tool
    def run_tests(
        self,
        path: Annotated[str, Field(description="Only the tests of this file; empty for all.")] = "",
    ) -> str:
        """Run the repository's tests on the files as they are. Tells, for each that fails, what was expected."""
        cases = [case for case in self.cases if not case.hidden and path in ("", case.file)]
        if not cases:
            return "no tests"
        num_passed = 0
        failures = []
        for case, result in zip(cases, run_cases(self.files, cases), strict=True):
            if result.passed:
                num_passed += 1
                continue
            expected = case.expect or case.check
            # Only the beginning of the value: an agent's code may return long ones.
            failures.append(f"{case.call} : expected {expected} got {result.got[:200]}")
        lines = [f"{num_passed} of {len(cases)} passed", *failures]
        return "\n".join(lines)[:MAX_OUTPUT_CHARS]

    @tool
    def python(
        self,
        code: Annotated[str, Field(description="A program; it can import the repository's files.")],
    ) -> str:
        """Run a program beside a copy of the repository, in a sandbox. Returns what it printed."""
        # The interpreter is isolated, so its own folder is not on the path.
        setup = "import os, sys\nsys.path.insert(0, os.getcwd())\n"
        # On a copy: what a program writes is not kept, so only `write_file` changes the workspace.
        result = run_python(setup + code, files=self.files)
        text = (result.stdout + result.stderr).strip()
        # What was printed before the limit stays: it may show where the program hangs.
        if result.timed_out:
            text += "\nerror: timed out"
        return text[-MAX_OUTPUT_CHARS:] or "ok"

    @tool
    def merge(self) -> str:
        """Take over what your subagents changed in their copies. A conflict leaves your file and adds theirs beside."""
        # A dict, so that a file that several subagents changed is named once.
        merged_paths: dict[str, None] = {}
        conflicts = []
        # In the order of their subtasks: that of their threads would differ from run to run.
        for number, (_, child) in enumerate(sorted(self.forks.items()), 1):
            for path in sorted(set(child.files) | set(child.base)):
                base = child.base.get(path)
                incoming = child.files.get(path)
                if incoming == base:
                    continue
                text, is_clean = merge(base, self.files.get(path), incoming)
                if is_clean:
                    self.files = {**self.files, path: text or ""}
                    merged_paths[path] = None
                else:
                    copy_path = f"{path}.{number}"
                    self.files = {**self.files, copy_path: incoming or ""}
                    conflicts.append(
                        f"conflict : {path} ; yours is kept , the other is {copy_path}"
                    )
        self.num_conflicts += len(conflicts)
        self.forks = {}
        first_line = f"merged {' '.join(merged_paths)}" if merged_paths else "nothing to merge"
        return "\n".join([first_line, *conflicts])

    # --- tasks and scores ---

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return tasks.generate(self.knobs, split, num, seed)

    def load_task(self, row: Mapping[str, Any]) -> Task:
        return tasks.load_task(row)

    def start(self, task: Task) -> None:
        self.cases = cases_of(task.data)
        self.files = self.base = dict(task.data["files"])
        self.forks = {}
        self.num_conflicts = 0
        self.assigned_files = frozenset()

    def score(self, answer: str) -> Mapping[str, float]:
        """Score the files, whatever the answer says.

        Without an answer (a limit was reached) the score is 0: the agents have not finished.
        """
        passed_by_file: dict[str, list[bool]] = {}
        for case, passed in self._run_hidden().items():
            passed_by_file.setdefault(case.file, []).append(passed)
        num_cases = sum(map(len, passed_by_file.values()))
        num_passed = sum(map(sum, passed_by_file.values()))
        num_solved = sum(map(all, passed_by_file.values()))
        tests_passed = num_passed / num_cases
        score = tests_passed if answer.strip() else 0.0
        return {
            "score": score,
            "tests_passed": tests_passed,
            "files_solved": num_solved / len(passed_by_file),
            "success": float(score == 1.0),
        }

    def facts(self) -> Mapping[str, Any]:
        return {
            "files_changed": sorted(_changed_paths(self.task.data["files"], self.files)),
            "conflicts": self.num_conflicts,
            "unmerged": len(self.forks),
        }

    def num_parts(self) -> int | None:
        return len(self._files_under_test())

    def _files_under_test(self) -> list[str]:
        return sorted({case.file for case in self.cases if case.hidden})

    def _run_hidden(self, files: Collection[str] | None = None) -> dict[Case, bool]:
        """Run the hidden cases of some files (None = all), and return which of them pass."""
        solution = self.task.data.get("solution") or {}
        passed: dict[Case, bool] = {}
        cases_to_run = []
        for case in self.cases:
            if not case.hidden or (files is not None and case.file not in files):
                continue
            # A file that equals the known solution is not run: the expected values are its own.
            # Until it has run, a case counts as passed; the dict keeps the order of the cases.
            passed[case] = True
            is_solved = case.file in solution and self.files.get(case.file) == solution[case.file]
            if not is_solved:
                cases_to_run.append(case)
        results = run_cases(self.files, cases_to_run)
        for case, result in zip(cases_to_run, results, strict=True):
            passed[case] = result.passed
        return passed

    # --- subagents ---

    def fork(self, subtask: str) -> Coding:
        """Make the environment of a subagent: a copy of the files as they are now.

        It is assigned the files that its prompt names. Forks for the same subtask are attempts at
        one
        assignment: `merge` takes the first.
        """
        child = copy.copy(self)
        child.base = self.files
        child.forks = {}
        child.num_conflicts = 0
        words = set(re.split(r"[\s,;:'\"`()]+", subtask))
        # A file's name may end a sentence.
        named = [file for file in self._files_under_test() if {file, f"{file}."} & words]
        child.assigned_files = frozenset(named)
        # `resample` forks the same subtask several times; only the first is part of the episode.
        self.forks.setdefault(subtask, child)
        return child

    def check_result(self, message: str) -> bool:
        """Accept a subagent that says something and has changed a file that it was assigned.

        If its prompt named no file, any changed file will do.
        """
        changed = _changed_paths(self.base, self.files)
        if self.assigned_files:
            changed &= self.assigned_files
        return bool(message.strip()) and bool(changed)

    def subtask_score(self, message: str) -> float | None:
        """Score a subagent: the share of hidden tests of its files that pass (gold-informed)."""
        if not self.assigned_files:
            return None
        passed = self._run_hidden(self.assigned_files)
        return sum(passed.values()) / len(passed)

    # --- a policy from nothing ---

    def vocabulary(self) -> Sequence[str]:
        if self.knobs.style != "words":
            # Indentation and line breaks are not words.
            raise ConfigError("`model: tiny` reads words: set env.kwargs.style: words")
        return practice.vocabulary(self.knobs.n[1])

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """Draw a demonstration.

        `recall`, `enumerate`, `copy`, `locate` and `repair` are texts to practise on; `episode` is
        the expert at work, with the knobs of `CodingExpert`.
        """
        if kind in practice.KINDS:
            return practice.KINDS[kind](rng, self.knobs)
        if kind != "episode":
            hint = did_you_mean(kind, [*practice.KINDS, "episode"])
            raise ConfigError(f"No demonstrations of kind '{kind}'.{hint}")
        task = tasks.one_task(self.knobs, rng, "train", "demo")
        return Demonstration(self, task, expert.CodingExpert(rng, **knobs))


def _is_inside(path: str) -> bool:
    """Whether a path is relative, of plain names, and does not lead out of the repository."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and all(map(_is_plain_name, parts))


def _is_plain_name(part: str) -> bool:
    return part != ".." and re.fullmatch(r"[\w.-]+", part) is not None


def _changed_paths(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Files that are new or have another text."""
    return {path for path, text in after.items() if text != before.get(path)}
