"""`parl export --episodes`: stored episodes as a `datasets` dataset, to train other models on.

The result is a folder of Parquet files, one for each stored step that gives rows, and README.md, the
dataset card. `sft` has one row for each agent's trace. `preferences` has one pair for each set of
agents of a group that got the same messages: the best attempt against the worst.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parl.config import Config, parse
from parl.core.errors import CheckpointError, ConfigError
from parl.core.progress import Progress
from parl.core.types import ROLES, Role
from parl.deploy.cards import COLUMNS, Kind, card
from parl.deploy.model import CARD
from parl.env import registry as plugins
from parl.env.mixture import env_of
from parl.env.registry import make_env
from parl.env.swarm_tools import CREATE, SWARM_TOOLS
from parl.env.tools import ToolSpec
from parl.policy.renderers.chatml import without_calls
from parl.runs.folder import read_episodes, read_resolved
from parl.runs.reader import RunReader
from parl.runs.records import task_of

if TYPE_CHECKING:
    from datasets import Features

Record = Mapping[str, Any]
"""An episode, or one agent of it, as it is stored."""
Row = dict[str, Any]
DEFAULT_MARGIN = 0.1
SMALLEST_MARGIN = 1e-9
"""Two attempts with equal scores are no pair, whatever margin is asked for."""


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """Which rows are written."""

    kind: Kind
    role: Role | None = None
    """None = both."""
    steps: str | None = None
    """`FIRST-LAST`, both included, or one step. None = all stored steps."""
    min_score: float = 0.0
    """Smallest score of a row; for a pair, of the chosen attempt."""
    min_margin: float = DEFAULT_MARGIN
    """Smallest difference between the two scores of a pair."""

    def describe(self) -> dict[str, str]:
        """Return the request in words, for the card."""
        description = {
            "roles": self.role or "both",
            "steps": self.steps or "all that are stored",
            "lowest score": f"{self.min_score:g}",
        }
        if self.kind == "preferences":
            description["least margin"] = f"{self.min_margin:g}"
        return description


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The written dataset."""

    folder: Path
    num_rows: int
    counts: Mapping[str, int]
    """What is in it and what was left out: text -> number."""


def export_episodes(run: Path, output: Path, request: DatasetRequest) -> ExportResult:
    """Write a run's stored episodes to a new folder, completely or not at all.

    Args:
        run: the run folder; it is only read.
        output: the new folder.
        request: which rows.
    Raises:
        CheckpointError: no run, no stored episodes, or a folder that is not empty.
        ConfigError: no stored step in the range, no row that fits, or a run whose agents had prompts
            of their own.
    """
    config = parse(read_resolved(run), source=str(run))
    _check_roles(config, run, request.role)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"{output} holds something already. Choose another folder, or delete it."
        )
    reader = RunReader(run)
    steps = _select_steps(reader, request.steps)
    writer = _Writer(config, reader.name, request)

    # Written next to its place and moved there at the end: an interrupted export leaves nothing that
    # looks like a dataset.
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with Progress("stored steps", len(steps)) as bar:
            for step in steps:
                records = read_episodes(run / "episodes" / f"step_{step:06d}.jsonl.zst")
                writer.write(records, step, temporary)
                bar.advance()
        if not writer.num_rows:
            counts = "; ".join(f"{text}: {num}" for text, num in writer.counts.items())
            raise ConfigError(
                f"No row fits what was asked for ({counts}). Lower --min-score or --min-margin."
            )
        facts = request.describe()
        facts["rows"] = str(writer.num_rows)
        for text, num in writer.counts.items():
            facts[text] = str(num)
        text = card(reader, config, request.kind, facts)
        (temporary / CARD).write_text(text, encoding="utf-8")
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExportResult(output, writer.num_rows, writer.counts)


def _check_roles(config: Config, run: Path, role: Role | None) -> None:
    """Refuse roles that an external agent played: nobody knows the messages behind their tokens."""
    roles = ROLES if role is None else (role,)
    for name in roles:
        if config.roles.of(name).external_agent is not None:
            raise ConfigError(
                f"{run} was played by roles.{name}.external_agent, whose prompts are not stored as "
                "messages. Choose the other role with --role, or read the tokens with "
                "parl.runs.folder.read_episodes (docs/reference/metrics.md)."
            )


def _select_steps(reader: RunReader, step_range: str | None) -> list[int]:
    """Return the stored steps in `FIRST-LAST`, or all of them."""
    stored = reader.steps()
    if not stored:
        raise CheckpointError(f"{reader.path} has no stored episodes (train.store_episodes_every).")
    if step_range is None:
        return stored
    steps: list[int] = []
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", step_range)
    if match:
        first = int(match[1])
        last = int(match[2] or match[1])
        steps = [step for step in stored if first <= step <= last]
    if not steps:
        raise ConfigError(
            f"--steps {step_range}: no stored step is in it. Say FIRST-LAST, both included, or one "
            f"step; stored are {stored[0]} to {stored[-1]}."
        )
    return steps


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One agent of one episode."""

    record: Record
    """The episode."""
    trace: Record
    system: str
    """The system prompt; empty without one."""
    score: float


class _Writer:
    """Turns one stored step after the other into a Parquet file, and counts."""

    def __init__(self, config: Config, run_name: str, request: DatasetRequest) -> None:
        plugins.load()
        self._env = make_env(config.env)
        self._config = config
        self._run_name = run_name
        self._request = request
        self._features = _features(request.kind)
        self.counts: Counter[str] = Counter({"episodes read": 0, "failed episodes, left out": 0})
        self.num_rows = 0

    def write(self, records: Sequence[Record], step: int, folder: Path) -> None:
        """Write the rows of one step; no file where there are none."""
        attempts = self._attempts(records)
        rows = list(
            self._sft_rows(attempts)
            if self._request.kind == "sft"
            else self._preference_rows(attempts)
        )
        self.num_rows += len(rows)
        if not rows:
            return
        import datasets

        # The export has a progress bar of its own, over steps.
        datasets.disable_progress_bars()
        dataset = datasets.Dataset.from_list(rows, features=self._features)
        dataset.to_parquet(folder / f"step_{step:06d}.parquet")

    def _attempts(self, records: Sequence[Record]) -> Iterator[_Attempt]:
        """Yield the agents of the requested role that wrote something, siblings included."""
        for record in records:
            self.counts["episodes read"] += 1
            if record["status"] == "failed":
                self.counts["failed episodes, left out"] += 1
                continue
            for trace in (*record["traces"], *record.get("siblings", ())):
                if self._request.role not in (None, trace["role"]):
                    continue
                if not trace["turns"]:
                    self.counts["traces without a turn, left out"] += 1
                    continue
                system = self._system_prompt(record, trace)
                yield _Attempt(record, trace, system, score_of(record, trace))

    def _system_prompt(self, record: Record, trace: Record) -> str:
        if trace["role"] == "orchestrator":
            return self._config.roles.orchestrator.prompt_for(task_of(record).ability)
        return _created_prompt(record, trace)

    def _sft_rows(self, attempts: Iterable[_Attempt]) -> Iterator[Row]:
        for attempt in attempts:
            record = attempt.record
            trace = attempt.trace
            if attempt.score < self._request.min_score:
                self.counts["traces below --min-score, left out"] += 1
                continue
            self.counts["rows of truncated agents (`status`)"] += trace["status"] == "truncated"
            self.counts["tokens"] += len(trace["token_ids"])
            self.counts["tokens that the agents wrote"] += sum(trace["mask"])
            yield {
                "messages": [*_opening(attempt), *_turns(trace)],
                "tools": self._tools(record, trace["role"]),
                "run": self._run_name,
                "step": record["step"],
                "task_id": record["task"]["id"],
                "group": record["group"],
                "episode": record["id"],
                "agent": trace["id"],
                "role": trace["role"],
                "policy": trace["policy"],
                "status": trace["status"],
                "stop_reason": trace["stop_reason"],
                "score": attempt.score,
                "outcome": record["outcome"]["score"],
                "reward": record["rewards"].get(trace["id"], {}).get("total"),
                "token_ids": trace["token_ids"],
                "mask": trace["mask"],
            }

    def _preference_rows(self, attempts: Iterable[_Attempt]) -> Iterator[Row]:
        """Yield a pair for each set of agents that got the same messages in the same group."""
        alike: dict[tuple[str, ...], list[_Attempt]] = {}
        for attempt in attempts:
            trace = attempt.trace
            key = (attempt.record["group"], trace["role"], attempt.system, trace["prompt"])
            alike.setdefault(key, []).append(attempt)

        for same_prompt in alike.values():
            # A text that a limit cut off is no example to follow; it may be the worse one.
            completed = [a for a in same_prompt if a.trace["status"] == "completed"]
            if len(same_prompt) == 1 or not completed:
                self.counts["prompts with one attempt, or none that completed, left out"] += 1
                continue
            best = max(completed, key=lambda a: a.score)
            worst = min(same_prompt, key=lambda a: a.score)
            margin = max(self._request.min_margin, SMALLEST_MARGIN)
            if best.score < self._request.min_score or best.score - worst.score < margin:
                self.counts[
                    "prompts whose attempts differ too little, or are not good enough, left out"
                ] += 1
                continue
            self.counts["pairs whose rejected one was truncated (`rejected_status`)"] += (
                worst.trace["status"] != "completed"
            )
            yield self._pair(best, worst)

    def _pair(self, best: _Attempt, worst: _Attempt) -> Row:
        record = best.record
        role = best.trace["role"]
        return {
            "prompt": _opening(best),
            "chosen": _turns(best.trace),
            "rejected": _turns(worst.trace),
            "tools": self._tools(record, role),
            "run": self._run_name,
            "step": record["step"],
            "task_id": record["task"]["id"],
            "group": record["group"],
            "role": role,
            "chosen_score": best.score,
            "rejected_score": worst.score,
            "chosen_episode": record["id"],
            "chosen_agent": best.trace["id"],
            "rejected_episode": worst.record["id"],
            "rejected_agent": worst.trace["id"],
            "rejected_status": worst.trace["status"],
        }

    def _tools(self, record: Record, role: str) -> list[Row]:
        """Return the JSON schemas of the tools that an agent could call."""
        tools: list[ToolSpec] = [*env_of(self._env, task_of(record)).tool_specs()]
        if self._config.swarm.mode == "swarm" and role == "orchestrator":
            tools.extend(SWARM_TOOLS)
        return [{"type": "function", "function": tool.model_dump()} for tool in tools]


def score_of(record: Record, trace: Record) -> float:
    """Return an agent's score, 0..1.

    It is a subagent's own `subtask_score` where the environment has one, else the episode's outcome.
    """
    if trace["role"] == "subagent" and trace["score"] is not None:
        return float(trace["score"])
    return float(record["outcome"]["score"])


# --- messages ----------------------------------------------------------------------------


def _created_prompt(record: Record, trace: Record) -> str:
    """Return the system prompt of a subagent: the last that `create_subagent` wrote for its name.

    A later call with the same name replaces the prompt, but only for assignments that follow.
    """
    turns = record["traces"][0]["turns"][: trace["spawned_at"] + 1]
    prompt: str | None = None
    for turn in turns:
        for call in turn["tool_calls"]:
            if call["name"] != CREATE or call["error"] is not None:
                continue
            arguments = call["arguments"]
            if arguments.get("name") == trace["name"] and isinstance(
                arguments.get("system_prompt"), str
            ):
                prompt = arguments["system_prompt"]
    assert prompt is not None, "a subagent is created before it is launched"
    return prompt


def _opening(attempt: _Attempt) -> list[Row]:
    """Return the messages before the agent's first turn."""
    messages: list[Row] = []
    if attempt.system:
        messages.append({"role": "system", "content": attempt.system})
    messages.append({"role": "user", "content": attempt.trace["prompt"]})
    return messages


def _turns(trace: Record) -> list[Row]:
    """Return the agent's turns and the answers of tools as messages."""
    messages: list[Row] = []
    for turn in trace["turns"]:
        message: Row = {"role": "assistant", "content": without_calls(turn["text"])}
        # A malformed call has no arguments to store; it stays in the text.
        calls = [call for call in turn["tool_calls"] if call["error"] is None]
        if calls:
            message["tool_calls"] = [_tool_call(call) for call in calls]
        messages.append(message)
        for text in turn["observations"]:
            messages.append({"role": "tool", "content": text})
    # It ends with what the agent wrote last: a stopped agent never read the answers to that.
    while messages[-1]["role"] == "tool":
        messages.pop()
    return messages


def _tool_call(call: Record) -> Row:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"type": "function", "function": function}


def _features(kind: Kind) -> Features:
    """Return the columns' types."""
    from datasets import Features, Json, List, Value

    # Json and not a struct: a struct would give each message the keys of all others, as null.
    messages = List(Json())
    score = Value("float64")
    types: dict[str, Any] = {
        **dict.fromkeys(("messages", "tools", "prompt", "chosen", "rejected"), messages),
        **dict.fromkeys(("score", "outcome", "reward", "chosen_score", "rejected_score"), score),
        "step": Value("int32"),
        "token_ids": List(Value("int32")),
        "mask": List(Value("int8")),
    }
    return Features({name: types.get(name, Value("string")) for name in COLUMNS[kind]})
