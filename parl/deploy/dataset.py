"""`parl export --episodes`: stored episodes as a `datasets` dataset, to train other models on.

In: a run folder, which is only read, one stored step after the other. Out: a folder of Parquet files, one for each step
that gave rows, and README.md, the dataset card. `sft` has one row for each agent's trace, `preferences` one pair for
each group of agents that got the same messages: the best against the worst.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

Record = Mapping[str, Any]
Row = dict[str, Any]
DEFAULT_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """Which rows are written."""

    kind: Kind
    role: Role | None = None
    """null = both."""
    steps: str | None = None
    """`FIRST-LAST`, both included, or one step. null = all that are stored."""
    min_score: float = 0.0
    """Of a row; of a pair's chosen one."""
    min_margin: float = DEFAULT_MARGIN
    """Of a pair: least difference of the two scores."""

    def said(self) -> dict[str, str]:
        """What was asked for, in words."""
        margin = {"least margin": f"{self.min_margin:g}"} if self.kind == "preferences" else {}
        everything = {"roles": self.role or "both", "steps": self.steps or "all that are stored"}
        return {**everything, "lowest score": f"{self.min_score:g}", **margin}


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The folder, and what is in it and what is not: text -> how many."""

    folder: Path
    num_rows: int
    counts: Mapping[str, int]


def export_episodes(run: Path, output: Path, wanted: DatasetRequest) -> ExportResult:
    """Write the run's stored episodes to a new folder, whole or not at all.

    Raises:
        CheckpointError: no run, no stored episodes, or a folder that holds something.
        ConfigError: a range that is none, nothing that fits, or a run whose agents had prompts of their own.
    """
    config = parse(read_resolved(run), source=str(run))
    for role in ROLES if wanted.role is None else (wanted.role,):
        if config.roles.of(role).external_agent is not None:
            raise ConfigError(
                f"{run} was played by roles.{role}.external_agent, whose prompts are not stored as messages. Choose the other "
                "role with --role, or read the tokens with parl.runs.folder.read_episodes (docs/reference/metrics.md)."
            )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"{output} holds something already. Choose another folder, or delete it."
        )
    reader = RunReader(run)
    steps = _steps(reader, wanted.steps)
    writer = _Writer(config, reader.name, wanted)
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with Progress("stored steps", len(steps)) as bar:
            for step in steps:
                writer.write(
                    read_episodes(run / "episodes" / f"step_{step:06d}.jsonl.zst"), step, temporary
                )
                bar.advance()
        if not writer.num_rows:
            said = "; ".join(f"{text}: {num}" for text, num in writer.counts.items())
            raise ConfigError(
                f"No row fits what was asked for ({said}). Lower --min-score or --min-margin."
            )
        made = {
            **wanted.said(),
            "rows": str(writer.num_rows),
            **{text: str(n) for text, n in writer.counts.items()},
        }
        (temporary / CARD).write_text(card(reader, config, wanted.kind, made), encoding="utf-8")
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExportResult(output, writer.num_rows, writer.counts)


def _steps(reader: RunReader, asked: str | None) -> list[int]:
    stored = reader.steps()
    if not stored:
        raise CheckpointError(f"{reader.path} has no stored episodes (train.store_episodes_every).")
    if asked is None:
        return stored
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", asked)
    chosen = [s for s in stored if match and int(match[1]) <= s <= int(match[2] or match[1])]
    if not chosen:
        raise ConfigError(
            f"--steps {asked}: no stored step is in it. Say FIRST-LAST, both included, or one step; "
            f"stored are {stored[0]} to {stored[-1]}."
        )
    return chosen


class _Writer:
    """Turns one stored step after the other into a Parquet file, and counts."""

    def __init__(self, config: Config, run: str, wanted: DatasetRequest) -> None:
        plugins.load()
        self._env = make_env(config.env)
        self._config, self._run, self._wanted = config, run, wanted
        self._features = _features(wanted.kind)
        self.counts: Counter[str] = Counter({"episodes read": 0, "failed episodes, left out": 0})
        self.num_rows = 0

    def write(self, records: Sequence[Record], step: int, folder: Path) -> None:
        rows = list(self._traces(records) if self._wanted.kind == "sft" else self._pairs(records))
        self.num_rows += len(rows)
        if rows:
            import datasets

            datasets.disable_progress_bars()  # progress is ours
            made = datasets.Dataset.from_list(rows, features=self._features)
            made.to_parquet(folder / f"step_{step:06d}.parquet")

    def _traces(self, records: Sequence[Record]) -> Iterator[Row]:
        for record, trace, system in self._agents(records):
            score = score_of(record, trace)
            if score < self._wanted.min_score:
                self.counts["traces below --min-score, left out"] += 1
                continue
            self.counts["rows of truncated agents (`status`)"] += trace["status"] == "truncated"
            self.counts["tokens"] += len(trace["token_ids"])
            self.counts["tokens that the agents wrote"] += sum(trace["mask"])
            yield {
                "messages": [*_opening(trace, system), *_turns(trace)],
                "tools": self._tools(record, trace["role"]),
                "run": self._run,
                "step": record["step"],
                "task_id": record["task"]["id"],
                "group": record["group"],
                "episode": record["id"],
                "agent": trace["id"],
                "role": trace["role"],
                "policy": trace["policy"],
                "status": trace["status"],
                "stop_reason": trace["stop_reason"],
                "score": score,
                "outcome": record["outcome"]["score"],
                "reward": record["rewards"].get(trace["id"], {}).get("total"),
                "token_ids": trace["token_ids"],
                "mask": trace["mask"],
            }

    def _pairs(self, records: Sequence[Record]) -> Iterator[Row]:
        """Of the agents that got the same messages in the same group: the best that completed, and the worst."""
        alike: dict[tuple[str, ...], list[tuple[float, Record, Record]]] = {}
        for record, trace, system in self._agents(records):
            key = (record["group"], trace["role"], system, trace["prompt"])
            alike.setdefault(key, []).append((score_of(record, trace), record, trace))
        for (group, role, system, _), found in alike.items():
            done = [item for item in found if item[2]["status"] == "completed"]
            if len(found) == 1 or not done:
                self.counts["prompts with one attempt, or none that completed, left out"] += 1
                continue
            best, worst = max(done, key=lambda item: item[0]), min(found, key=lambda item: item[0])
            if best[0] < self._wanted.min_score or best[0] - worst[0] < max(
                self._wanted.min_margin, 1e-9
            ):
                self.counts[
                    "prompts whose attempts differ too little, or are not good enough, left out"
                ] += 1
                continue
            self.counts["pairs whose rejected one was truncated (`rejected_status`)"] += (
                worst[2]["status"] != "completed"
            )
            yield {
                "prompt": _opening(best[2], system),
                "chosen": _turns(best[2]),
                "rejected": _turns(worst[2]),
                "tools": self._tools(best[1], role),
                "run": self._run,
                "step": best[1]["step"],
                "task_id": best[1]["task"]["id"],
                "group": group,
                "role": role,
                "chosen_score": best[0],
                "rejected_score": worst[0],
                "chosen_episode": best[1]["id"],
                "chosen_agent": best[2]["id"],
                "rejected_episode": worst[1]["id"],
                "rejected_agent": worst[2]["id"],
                "rejected_status": worst[2]["status"],
            }

    def _agents(self, records: Sequence[Record]) -> Iterator[tuple[Record, Record, str]]:
        """(episode, trace, its system prompt) of the agents that are wanted and wrote something, siblings included."""
        for record in records:
            self.counts["episodes read"] += 1
            if record["status"] == "failed":
                self.counts["failed episodes, left out"] += 1
                continue
            for trace in (*record["traces"], *record.get("siblings", ())):
                if self._wanted.role not in (None, trace["role"]):
                    continue
                if not trace["turns"]:
                    self.counts["traces without a turn, left out"] += 1
                    continue
                orchestrator = trace["role"] == "orchestrator"
                own = self._config.roles.orchestrator.prompt_for(task_of(record).ability)
                yield record, trace, own if orchestrator else _system(record, trace)

    def _tools(self, record: Record, role: str) -> list[Row]:
        """Those of the task's environment, and of the swarm for who leads one."""
        swarm = SWARM_TOOLS if self._config.swarm.mode == "swarm" and role == "orchestrator" else ()
        return _schemas([*env_of(self._env, task_of(record)).tool_specs(), *swarm])


def score_of(record: Record, trace: Record) -> float:
    """What an agent is judged by here: its own score where it has one, else the episode's outcome (0..1)."""
    own = trace["score"] if trace["role"] == "subagent" else None
    return float(record["outcome"]["score"] if own is None else own)


def _system(record: Record, trace: Record) -> str:
    """What `create_subagent` wrote under the subagent's name, the last time up to the turn that launched it."""
    turns = record["traces"][0]["turns"][: trace["spawned_at"] + 1]
    calls = [
        c
        for turn in turns
        for c in turn["tool_calls"]
        if c["name"] == CREATE and c["error"] is None
    ]
    written = [
        c["arguments"].get("system_prompt")
        for c in calls
        if c["arguments"].get("name") == trace["name"]
    ]
    return next(text for text in reversed(written) if isinstance(text, str))


def _opening(trace: Record, system: str) -> list[Row]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": trace["prompt"]}]


def _turns(trace: Record) -> list[Row]:
    """What the agent said and heard. It ends with what the agent said last: answers to that were never read."""
    messages: list[Row] = []
    for turn in trace["turns"]:
        calls = [
            c for c in turn["tool_calls"] if c["error"] is None
        ]  # one that is malformed stays in the text
        said: Row = {"role": "assistant", "content": without_calls(turn["text"])}
        if calls:
            functions = [{"name": c["name"], "arguments": c["arguments"]} for c in calls]
            said["tool_calls"] = [{"type": "function", "function": f} for f in functions]
        messages += [said, *({"role": "tool", "content": text} for text in turn["observations"])]
    while messages[-1]["role"] == "tool":
        messages.pop()
    return messages


def _schemas(tools: Sequence[ToolSpec]) -> list[Row]:
    return [{"type": "function", "function": t.model_dump()} for t in tools]


def _features(kind: Kind) -> Any:
    from datasets import Features, Json, List, Value

    types = {
        **dict.fromkeys(
            ("messages", "tools", "prompt", "chosen", "rejected"), List(Json())
        ),  # no key of another's
        **dict.fromkeys(
            ("score", "outcome", "reward", "chosen_score", "rejected_score"), Value("float64")
        ),
        "step": Value("int32"),
        "token_ids": List(Value("int32")),
        "mask": List(Value("int8")),
    }
    return Features({name: types.get(name, Value("string")) for name in COLUMNS[kind]})
