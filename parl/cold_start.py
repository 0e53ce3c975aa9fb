"""The cold start: a policy learns the tools from demonstrations before any reward.

In: a model, the environment's demonstrator, stages. Out: the model, and what each stage measured. A stage ends when a
skill measured on material that it never trained on reaches its gate: in steps, never in seconds. Demonstrations are
episodes that a scripted expert plays through the swarm runtime, so the tokens are those of a rollout. TRL's SFT trainer
trains on the agents' own tokens only; the trained fraction is checked.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from parl import images
from parl.config.schema import ColdStart, Config, Stage
from parl.env import AgentEnv, Demonstration, seed_for
from parl.errors import ConfigError
from parl.evaluate import Evaluator, heldout_metrics, load_tasks
from parl.learner.batch import micro_batches
from parl.learner.optim import build_optimizer, lr_scale, set_lr_scale
from parl.learner.policies import PolicySet
from parl.policy.base import PolicyHandle, Renderer
from parl.policy.scripted import ScriptedEngine
from parl.policy.vision import passes
from parl.progress import Progress
from parl.rollout.agent import Tape
from parl.rollout.swarm import SwarmRunner
from parl.run_folder import RunFolder
from parl.system import pin_threads

IGNORE = -100
MICRO_BATCHES = 3
SUBAGENTS_PER_EPISODE = 3
"""Subagents of one demonstration that are kept: they are many, short and alike."""


@dataclass(frozen=True, slots=True)
class Text:
    """A token sequence and which of its tokens carry loss."""

    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    kind: str
    images: tuple[str, ...] = ()
    """Those among the tokens, in order."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a stage did: steps, the skill it reached, whether its gate opened, attempts it took."""

    name: str
    steps: int
    metric: str
    value: float
    passed: bool
    attempts: int


class Demonstrator:
    """Draws texts of a stage's mixture. The same seed gives the same texts."""

    def __init__(self, env: AgentEnv, renderer: Renderer, config: Config, seed: int, lists_tools: bool = False) -> None:
        self._env, self._renderer, self._config, self._lists_tools = env, renderer, config, lists_tools
        self._rng = np.random.default_rng(seed)
        self._seed, self._count = seed, 0

    def draw(self, stage: Stage) -> list[Text]:
        """One item of the mixture: a practice text, or the traces of one episode."""
        kinds = sorted(stage.data)
        shares = np.array([stage.data[k] for k in kinds])
        kind = kinds[int(self._rng.choice(len(kinds), p=shares / shares.sum()))]
        return self.item(kind, knobs_of(kind, stage.kwargs))

    def item(self, kind: str, knobs: dict[str, Any]) -> list[Text]:
        made = self._env.demonstrate(kind, self._rng, **knobs)
        if isinstance(made, Demonstration):
            return self._play(made, kind)
        tape = Tape(())
        for piece in made:
            for part in (piece.text,) if piece.train else images.split(piece.text):
                if images.is_image(part) and not piece.train:
                    tape.feed(self._renderer.show(part), self._renderer.images(part))
                    continue
                new = self._renderer.encode(part)
                tape.ids += new
                tape.mask += [int(piece.train)] * len(new)
        return [Text(tuple(tape.ids), tuple(tape.mask), kind, tuple(tape.images))]

    def _play(self, demo: Demonstration, kind: str) -> list[Text]:
        self._count += 1
        handle = PolicyHandle("expert", self._renderer, ScriptedEngine(demo.script, self._renderer), self._lists_tools)
        swarm = self._config.swarm.model_copy(update={"critical_step_budget": None})
        roles = {"orchestrator": handle, "subagent": handle}
        runner = SwarmRunner(roles, self._config.roles, swarm, self._config.clock)
        name = f"demo-{self._seed}-{self._count}"
        episode = asyncio.run(runner.run(demo.env, demo.task, episode_id=name, group=name, step=0, seed=name))
        if episode.status != "completed":
            raise ConfigError(
                f"The expert's episode on {demo.task.id} ended as {episode.status}, not complete "
                f"({episode.orchestrator.stop_reason}). Raise that limit in roles.orchestrator, or correct the "
                "demonstrator."
            )
        kept = episode.subagents
        if len(kept) > SUBAGENTS_PER_EPISODE:
            order = self._rng.permutation(len(kept))[:SUBAGENTS_PER_EPISODE]
            kept = tuple(kept[i] for i in order)
        return [Text(t.token_ids, t.mask, f"{kind}/{t.role}", t.images) for t in (episode.orchestrator, *kept)]


def knobs_of(kind: str, knobs: dict[str, Any]) -> dict[str, Any]:
    """The knobs of an episode's demonstrator; the other kinds, of any ability, have none."""
    return knobs if kind.rpartition("/")[2] == "episode" else {}


def gate_of(metric: str) -> tuple[str, str]:
    """(kind of measurement or "", what it measures). Example: forced_parallel/score -> (forced_parallel, score)."""
    first, _, rest = metric.partition("/")
    return ("", metric) if first == "ability" or not rest else (first, rest)


def run_cold_start(
    config: Config, env: AgentEnv, policies: PolicySet, name: str, evaluator: Evaluator
) -> list[StageReport]:
    """Train the policy `name` in place through all stages: all its weights, also where adapters stand on it.

    A stage that misses its gate is extended by half as many steps again, until `max_attempts`: it never restarts.
    """
    cold: ColdStart | None = config.cold_start
    assert cold is not None
    model, renderer = policies.models[name], policies.renderers[name]
    model.requires_grad_(True)  # adapters on it have frozen it
    seed = seed_for(config.seed, "cold-start", name) % 2**31
    tools = config.policies[name].lists_tools
    source = Demonstrator(env, renderer, config, seed, tools)
    held = Demonstrator(env, renderer, config, seed + 1, tools)
    reports = []
    for stage in cold.stages:
        stage = stage.model_copy(update={"kwargs": {**cold.demos, **stage.kwargs}})
        measure = _gate(stage, model, held, config, env, policies, evaluator)
        steps = 0
        attempts = 0
        while attempts < cold.max_attempts:
            attempts += 1
            max_steps = stage.until.max_steps if attempts == 1 else max(1, stage.until.max_steps // 2)
            until = stage.until.model_copy(
                update={"max_steps": max_steps, "min_steps": min(stage.until.min_steps, max_steps)}
            )
            piece = stage.model_copy(update={"until": until})
            with Progress(f"cold start, {stage.name}", max_steps) as bar:
                taken, value = _train_stage(config, piece, source, model, policies.tokenizers[name], measure, bar)
            steps += taken
            if value >= stage.until.value:
                break
        passed = value >= stage.until.value
        if not passed:
            gate = f"{stage.until.metric} {value:.3f}, gate {stage.until.value}"
            print(f"cold start, {stage.name}: gate missed after {steps} steps ({gate}); going on.", file=sys.stderr)
        reports.append(StageReport(stage.name, steps, stage.until.metric, value, passed, attempts))
    return reports


def _gate(
    stage: Stage,
    model: Any,
    held: Demonstrator,
    config: Config,
    env: AgentEnv,
    policies: PolicySet,
    evaluator: Evaluator,
) -> Callable[[], float]:
    """The stage's skill as a function of the current weights.

    `accuracy/KIND`: next-token accuracy on texts of that kind that are never trained on. Any other metric is one of
    an evaluation on validation tasks, greedy: `score`, or `MODE/METRIC`, such as `forced_parallel/score`.
    """
    metric = stage.until.metric
    if metric.startswith("accuracy/"):
        kind = metric.removeprefix("accuracy/")
        probe = [t for _ in range(40) for t in held.item(kind, knobs_of(kind, stage.kwargs))]
        return lambda: token_accuracy(model, probe)
    mode, name = gate_of(metric)
    ability = name.split("/")[1] if name.startswith("ability/") else None  # only these tasks are asked then
    tasks = [
        t
        for t in load_tasks(config, env, "validation")[: config.eval.num_tasks]
        if ability is None or t.ability == ability
    ]

    def measure() -> float:
        if config.cold_start is not None and config.cold_start.policy is not None:
            policies.copy_weights(config.cold_start.policy)
        policies.start_engines()
        chosen: Any = mode or config.swarm.mode
        return heldout_metrics(evaluator.episodes(policies.handles(), tasks, "greedy", chosen, "gate"))[name]

    return measure


@torch.inference_mode()
def token_accuracy(model: Any, texts: Sequence[Text], budget: int = 8192) -> float:
    """Share of loss-carrying tokens that the model's argmax predicts."""
    right = total = 0
    was_training = model.training
    model.eval()
    for indices in micro_batches([len(t.token_ids) for t in texts], budget):
        part = [texts[i] for i in indices]
        ids, labels = (t.to(model.device) for t in _pad(part))
        hidden = passes.hidden_states(model, ids, [t.images for t in part])
        here = labels[:, 1:] != IGNORE
        right += int((passes.logits(model, hidden[:, :-1][here]).argmax(-1) == labels[:, 1:][here]).sum())
        total += int(here.sum())
    model.train(was_training)
    return right / max(1, total)


def loss_on_labels(
    model: Any, ids_BT: torch.Tensor, labels_BT: torch.Tensor, shown: Sequence[Sequence[str]] = ()
) -> torch.Tensor:
    """Sum of the cross-entropy of the labelled tokens, `shown` being the images of each row. Padding is on the right,
    so causality is mask enough."""
    hidden = passes.hidden_states(model, ids_BT, shown)
    here = labels_BT[:, 1:] != IGNORE
    logits = passes.logits(model, hidden[:, :-1][here])
    return torch.nn.functional.cross_entropy(logits, labels_BT[:, 1:][here], reduction="sum")


def _pad(texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(t.token_ids) for t in texts)
    ids = torch.zeros((len(texts), width), dtype=torch.long)
    labels = torch.full((len(texts), width), IGNORE)
    for i, text in enumerate(texts):
        row = torch.tensor(text.token_ids)
        ids[i, : len(row)] = row
        labels[i, : len(row)] = torch.where(torch.tensor(text.mask, dtype=torch.bool), row, IGNORE)
    labels[:, 0] = IGNORE
    return ids, labels


def _batches(source: Demonstrator, stage: Stage) -> Iterator[dict[str, Any]]:
    """Micro-batches without end: each optimizer step takes MICRO_BATCHES of them, of similar lengths inside."""
    while True:
        texts: list[Text] = []
        while sum(len(t.token_ids) for t in texts) < stage.tokens_per_step or len(texts) < MICRO_BATCHES:
            texts += source.draw(stage)
        texts.sort(key=lambda t: len(t.token_ids))
        for part in _equal_parts(texts, MICRO_BATCHES):
            ids, labels = _pad(part)
            yield {"input_ids": ids, "labels": labels, "images": [t.images for t in part]}


def _equal_parts(texts: Sequence[Text], num: int) -> list[list[Text]]:
    """Cut sorted texts into `num` parts of about equal padded size, none empty."""
    total = sum(len(t.token_ids) for t in texts)
    parts: list[list[Text]] = [[]]
    size = 0
    for k, text in enumerate(texts):
        left = len(texts) - k
        full = size >= total * len(parts) / num or left <= num - len(parts)
        if parts[-1] and len(parts) < num and full:
            parts.append([])
        parts[-1].append(text)
        size += len(text.token_ids)
    assert len(parts) == num, "a step needs at least as many texts as micro-batches"
    return parts


def _train_stage(
    config: Config,
    stage: Stage,
    source: Demonstrator,
    model: Any,
    tokenizer: Any,
    measure: Callable[[], float],
    bar: Progress,
) -> tuple[int, float]:
    """One attempt at a stage with TRL's SFTTrainer. Returns (steps taken, last measured skill)."""
    import datasets
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    until = stage.until
    value = 0.0
    optimizer = build_optimizer(model, stage.optimizer)

    class Gate(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            set_lr_scale(optimizer, lr_scale(stage.optimizer, state.global_step, until.max_steps))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal value
            step = state.global_step
            if step >= until.min_steps and (step % until.every == 0 or step == until.max_steps):
                value = measure()
                control.should_training_stop = value >= until.value
                bar.advance(f"{until.metric} {value:.3f} (gate {until.value})", to=step)
            else:
                bar.advance(to=step)

    class Trainer(SFTTrainer):
        def get_train_dataloader(self) -> Any:
            return _batches(source, stage)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """Cross-entropy at the loss-carrying positions only: a third faster here than TRL's fused head."""
            return loss_on_labels(model, inputs["input_ids"], inputs["labels"], inputs["images"]) / num_items_in_batch

    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            max_steps=until.max_steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=MICRO_BATCHES,
            max_grad_norm=stage.optimizer.grad_clip,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=config.seed,
            bf16=False,
            gradient_checkpointing=False,
        )
        example = {"input_ids": [[0, 0]], "labels": [[IGNORE, 0]]}
        trainer = Trainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_dict(example),
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
            callbacks=[Gate()],
        )
        trainer.remove_callback(PrinterCallback)  # progress is ours
        trainer.model_accepts_loss_kwargs = True  # `compute_loss` divides by the count, whatever the model's own does
        trainer.train()
        steps = int(trainer.state.global_step)
    return steps, value


def sft_command(config: Config) -> None:
    """`parl sft`: the cold start alone. The run folder can be trained later with --resume."""
    from parl.train import Run

    pin_threads(config.threads)
    run = Run(config)
    with closing(run.pool):
        run.open(RunFolder.create(config.run_path, config))
        run.warm_up()
    path = config.run_path
    print(
        f"The cold start is in {path}/checkpoints. Go on with: parl train {path}/config.resolved.yaml --resume {path}"
    )
