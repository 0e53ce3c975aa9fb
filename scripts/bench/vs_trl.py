#!/usr/bin/env python3
"""Against TRL's `GRPOTrainer` with `environment_factory`: the same checkpoint, tasks and episodes a step, on one core.

One agent, no subagents. Both start from the cold start of a single-agent run and take `--steps` steps of as many
episodes. TRL gets a chat template and a parser that give it our tokens, so that the policy is at home; first it is
shown that both score the same episodes alike.

    scripts/bench/vs_trl.py runs/quickstart-single
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common import finish, table

from parl.config import Config, load
from parl.core.machine import pin_threads
from parl.core.messages import assistant
from parl.core.types import Task
from parl.env import registry as plugins
from parl.env.base import AgentEnv
from parl.env.registry import make_env
from parl.env.tasks import load_tasks
from parl.learner import checkpoint as checkpoints
from parl.policy.renderers.chatml import ChatML
from parl.runs.folder import read_episodes

SINGLE = Path(__file__).parents[2] / "configs" / "quickstart-single.yaml"
TEMPLATE = (
    "{% for m in messages %}{{ '' if loop.first else '\n' }}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>"
    "{% endfor %}{{ '\n<|im_start|>assistant\n' if add_generation_prompt }}"
)
SKIPPED = 1
"""Steps at the beginning that do not count."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, help="a single-agent run whose cold start both begin with"
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=6, help="tasks of a step")
    parser.add_argument("--group", type=int, default=8, help="episodes of a task")
    args = parser.parse_args()
    pin_threads(1)
    plugins.load()
    config = load(SINGLE, [f"train.tasks_per_step={args.tasks}", f"train.group_size={args.group}"])
    folder = Path(tempfile.mkdtemp())
    ours = run_ours(args, folder / "ours")
    same_scores(config, folder / "ours")
    theirs = run_trl(
        config, checkpoints.find(args.run, "cold-start") / "policies" / "main", args, folder / "trl"
    )
    header = [
        "",
        "s a step",
        "episodes/s",
        "generated tokens/s",
        "tokens an episode",
        "mean reward",
    ]
    table(header, [[name, *row.values()] for name, row in (("PARL", ours), ("TRL", theirs))])
    finish(
        {
            "episodes_per_s_ratio": ours["episodes_per_s"] / theirs["episodes_per_s"],
            "steps": args.steps,
        }
    )


def run_ours(args: argparse.Namespace, run: Path) -> dict[str, float]:
    overrides = [
        f"run_dir={run}",
        f"cold_start.from_run={args.run.resolve()}",
        f"train.num_steps={args.steps}",
        f"train.tasks_per_step={args.tasks}",
        f"train.group_size={args.group}",
        "eval={num_tasks: 2, every: null, split: validation}",
        "env.tasks.validation.num=2",
        "tracking.wandb.mode=disabled",
    ]
    command = [sys.executable, "-m", "parl.cli", "train", str(SINGLE), *overrides]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][SKIPPED:]
    return summary(
        [r["time/step_s"] for r in rows],
        args.tasks * args.group,
        [r["swarm/tokens_per_episode"] for r in rows],
        [r["reward/total"] for r in rows],
    )


def summary(
    seconds: Sequence[float], episodes: int, tokens: Sequence[float], rewards: Sequence[float]
) -> dict[str, float]:
    step, each = fmean(seconds), fmean(tokens)
    return {
        "s_a_step": step,
        "episodes_per_s": episodes / step,
        "tokens_per_s": episodes * each / step,
        "tokens_per_episode": each,
        "reward": fmean(rewards),
    }


# --- TRL -------------------------------------------------------------------------------------------------------------


class Scorer:
    """TRL's reward function: the environment's own score of the last message."""

    __name__ = "item_f1"

    def __init__(self, env: AgentEnv, tasks: Sequence[Task]) -> None:
        self.env, self.tasks = env, {t.id: t for t in tasks}
        self.rewards: list[float] = []

    def __call__(
        self, completions: Any, task_id: Sequence[str], completion_ids: Any = None, **_: Any
    ) -> list[float]:
        scores = []
        for messages, name in zip(completions, task_id, strict=True):
            last = messages[-1] if messages else {}
            answer = (
                last.get("content") or ""
                if last.get("role") == "assistant" and not last.get("tool_calls")
                else ""
            )
            scores.append(self.score(name, answer))
        self.rewards.append(fmean(scores))
        return scores

    def score(self, task_id: str, answer: str) -> float:
        self.env.reset(options={"task": self.tasks[task_id]})
        return float(self.env.step(assistant(answer))[1])


def same_scores(config: Config, run: Path) -> None:
    """Our stored episodes through TRL's reward function. Raises AssertionError when it would pay otherwise."""
    env = make_env(config.env)
    files = sorted((run / "episodes").glob("*.zst"))[:2]
    records = [e for file in files for e in read_episodes(file) if e["status"] != "failed"]
    scorer = Scorer(
        env,
        [
            Task(e["task"]["id"], e["task"]["env"], e["task"]["prompt"], e["task"]["data"])
            for e in records
        ],
    )
    completions = [[{"role": "assistant", "content": e["answer"]}] for e in records]
    theirs = scorer(completions, [e["task"]["id"] for e in records])
    assert theirs == [e["outcome"]["score"] for e in records]
    print(f"{len(records)} stored episodes are scored alike", file=sys.stderr)


def run_trl(
    config: Config, checkpoint: Path, args: argparse.Namespace, folder: Path
) -> dict[str, float]:
    import datasets
    import transformers
    import trl.trainer.grpo_trainer as module
    from trl import GRPOConfig, GRPOTrainer

    env = make_env(config.env)
    tasks = load_tasks(config, env, "train")
    by_prompt = {t.prompt: t for t in tasks}
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, "ours"
    tokenizer.padding_side = "left"
    renderer = ChatML(tokenizer)

    written: list[int] = []

    def parse(_: Any, ids: Sequence[int], prefix: Any = None, tools: Any = None) -> dict[str, Any]:
        written.append(len(ids))  # it is called once for each turn
        text, calls = renderer.parse(list(ids))
        good = [
            {"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}}
            for c in calls
        ]
        return {
            "role": "assistant",
            "content": text.split("<tool_call>")[0].strip(),
            "tool_calls": good or None,
        }

    module.parse_response = parse

    class World:
        """The environment as TRL wants it: tools as methods, `reset` with the row of the data."""

        def __init__(self) -> None:
            self._env = make_env(config.env)

        def reset(self, prompt: Any = None, **_: Any) -> None:
            self._env.reset(options={"task": by_prompt[prompt[-1]["content"]]})

        def search(self, query: str) -> str:
            """Search the corpus.

            Args:
                query: what to look for.
            """
            return self._env.call("search", {"query": query})

        def open(self, doc: str) -> str:
            """Open a page.

            Args:
                doc: its id.
            """
            return self._env.call("open", {"doc": doc})

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.tokens: list[float] = []
            self.began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()
            written.clear()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)
            self.tokens.append(sum(written) / (args.tasks * args.group))
            print(
                f"TRL step {len(self.seconds)}: {self.seconds[-1]:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    role = config.roles.orchestrator
    rows = [
        {
            "prompt": [
                {"role": "system", "content": role.system_prompt},
                {"role": "user", "content": t.prompt},
            ],
            "task_id": t.id,
        }
        for t in tasks[: args.steps * args.tasks]
    ]
    scorer, clock = Scorer(env, tasks), Clock()
    optimizer = config.policies["main"].optimizer
    trainer = GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32"),
        reward_funcs=[scorer],
        args=GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            per_device_train_batch_size=args.tasks * args.group,
            num_generations=args.group,
            max_steps=args.steps,
            max_completion_length=role.limits.context_tokens - 100,
            max_tool_calling_iterations=role.limits.turns,
            # a turn's limit; max_completion_length is that of an episode
            generation_kwargs={"max_new_tokens": role.sampling.max_tokens},
            temperature=1.0,
            learning_rate=optimizer.lr,
            beta=0.0,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            bf16=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=World,
        callbacks=[clock],
    )
    trainer.train()
    return summary(
        clock.seconds[SKIPPED:],
        args.tasks * args.group,
        clock.tokens[SKIPPED:],
        scorer.rewards[SKIPPED:],
    )


if __name__ == "__main__":
    main()
