"""Supervised training of a stage with TRL's trainer, on the agents' own tokens only.

B rows, T positions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from trl import SFTConfig, SFTTrainer

from parl.config import Config
from parl.config.gate import StageGate
from parl.config.training import Stage
from parl.core.progress import Progress
from parl.learner.batch import micro_batches
from parl.learner.optim import build_optimizer, lr_scale, set_lr_scale
from parl.policy.models.vision import forward
from parl.training.demonstrator import Demonstrator, SftExample

IGNORE = -100
"""The label of a token without loss, as in torch."""
MICRO_BATCHES = 3
"""Micro-batches of an optimizer step.

Examples of similar length share one, so that little of it is padding.
"""


def train_stage(
    config: Config,
    stage: Stage,
    source: Demonstrator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    measure: Callable[[], float],
    bar: Progress,
) -> tuple[int, float]:
    """Make one attempt at a stage: train until its gate opens or its steps are used up.

    Args:
        measure: returns the skill of the current weights that the gate waits for.
    Returns:
        the number of optimizer steps, and the skill as last measured.
    """
    optimizer = build_optimizer(model, stage.optimizer)
    gate = _GateCallback(stage, optimizer, measure, bar)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=stage.until.max_steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=MICRO_BATCHES,
            max_grad_norm=stage.optimizer.grad_clip,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            report_to=[],
            logging_strategy="no",
            # The run folder holds the only checkpoints.
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=config.seed,
            # The policy's own precision is decided when it is loaded; autocast would differ from
            # the engine (log-probs off by .054 on average where a bfloat16 copy has .025).
            bf16=False,
            gradient_checkpointing=False,
        )
        # The trainer wants a data set; its batches come from `get_train_dataloader`.
        example = {"input_ids": [[0, 0]], "labels": [[IGNORE, 0]]}
        # The learning rate is set by the callback, as RL sets it.
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        trainer = _DemonstrationTrainer(
            source,
            stage,
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_dict(example),
            optimizers=(optimizer, constant),
            callbacks=[gate],
        )
        # Progress is shown by the gate's callback, with the time that is left.
        trainer.remove_callback(PrinterCallback)
        # `compute_loss` divides by the number of labelled tokens, whatever the model's own loss
        # does.
        trainer.model_accepts_loss_kwargs = True
        trainer.train()
        return int(trainer.state.global_step), gate.value


@torch.inference_mode()
def token_accuracy(
    model: PreTrainedModel, examples: Sequence[SftExample], tokens_per_batch: int = 8192
) -> float:
    """Return the share of loss-carrying tokens that the model's argmax predicts."""
    num_right = num_tokens = 0
    was_training = model.training
    model.eval()
    # Batches of similar length: the accuracy is a count, so the order does not matter.
    for indices in micro_batches([len(e.token_ids) for e in examples], tokens_per_batch):
        batch = [examples[i] for i in indices]
        ids_BT, labels_BT = _pad(batch)
        ids_BT, labels_BT = ids_BT.to(model.device), labels_BT.to(model.device)
        hidden = forward.hidden_states(model, ids_BT, [e.images for e in batch])
        is_labelled = labels_BT[:, 1:] != IGNORE
        predicted = forward.logits(model, hidden[:, :-1][is_labelled]).argmax(-1)
        num_right += int((predicted == labels_BT[:, 1:][is_labelled]).sum())
        num_tokens += int(is_labelled.sum())
    model.train(was_training)
    return num_right / max(1, num_tokens)


def loss_on_labels(
    model: PreTrainedModel,
    ids_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    images: Sequence[Sequence[str]] = (),
) -> torch.Tensor:
    """Return the sum of the cross-entropy over the labelled tokens.

    Args:
        images: of each row, as data URIs.
    """
    # Padding is on the right, so that the causal mask is mask enough.
    hidden = forward.hidden_states(model, ids_BT, images)
    is_labelled = labels_BT[:, 1:] != IGNORE
    logits = forward.logits(model, hidden[:, :-1][is_labelled])
    targets = labels_BT[:, 1:][is_labelled]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


class _GateCallback(TrainerCallback):
    """Sets the learning rate of each step, and ends the stage when its skill reaches the gate."""

    def __init__(
        self,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        measure: Callable[[], float],
        bar: Progress,
    ) -> None:
        self._stage = stage
        self._until: StageGate = stage.until
        self._optimizer = optimizer
        self._measure = measure
        self._bar = bar
        self.value = 0.0

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        scale = lr_scale(self._stage.optimizer, state.global_step, self._until.max_steps)
        set_lr_scale(self._optimizer, scale)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step, until = state.global_step, self._until
        is_last = step == until.max_steps
        # A measurement costs an evaluation, so it is made every few steps and at the last one.
        if step >= until.min_steps and (step % until.every == 0 or is_last):
            self.value = self._measure()
            control.should_training_stop = self.value >= until.value
            note = f"{until.metric} {self.value:.3f} (gate {until.value})"
            self._bar.advance(note, to=step)
        else:
            self._bar.advance(to=step)


class _DemonstrationTrainer(SFTTrainer):
    """TRL's trainer with batches drawn from a demonstrator."""

    def __init__(self, source: Demonstrator, stage: Stage, **arguments: Any) -> None:
        self._source = source
        self._stage = stage
        super().__init__(**arguments)

    def get_train_dataloader(self) -> Iterator[dict[str, Any]]:
        return _batches(self._source, self._stage)

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        # Cross-entropy at the loss-carrying positions only: TRL's fused head took 32 % of a step of
        # this stage in a profile, because most positions carry no loss.
        loss = loss_on_labels(model, inputs["input_ids"], inputs["labels"], inputs["images"])
        return loss / num_items_in_batch


def _batches(source: Demonstrator, stage: Stage) -> Iterator[dict[str, Any]]:
    """Yield micro-batches without end; MICRO_BATCHES of them make an optimizer step."""
    while True:
        examples = _draw_step(source, stage)
        for part in _equal_parts(examples, MICRO_BATCHES):
            ids_BT, labels_BT = _pad(part)
            images = [example.images for example in part]
            yield {"input_ids": ids_BT, "labels": labels_BT, "images": images}


def _draw_step(source: Demonstrator, stage: Stage) -> list[SftExample]:
    """Draw the examples of an optimizer step, shortest first."""
    examples: list[SftExample] = []
    num_tokens = 0
    while num_tokens < stage.tokens_per_step or len(examples) < MICRO_BATCHES:
        item = source.draw(stage)
        examples += item
        num_tokens += sum(len(example.token_ids) for example in item)
    examples.sort(key=lambda example: len(example.token_ids))
    return examples


def _equal_parts(examples: Sequence[SftExample], num: int) -> list[list[SftExample]]:
    """Cut sorted examples into `num` parts of about equal size in tokens, none empty."""
    total = sum(len(example.token_ids) for example in examples)
    parts: list[list[SftExample]] = [[]]
    size = 0
    for index, example in enumerate(examples):
        num_remaining = len(examples) - index
        is_full = size >= total * len(parts) / num or num_remaining <= num - len(parts)
        if parts[-1] and len(parts) < num and is_full:
            parts.append([])
        parts[-1].append(example)
        size += len(example.token_ids)
    assert len(parts) == num, "a step needs at least as many examples as micro-batches"
    return parts


def _pad(examples: Sequence[SftExample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels (B, T), padded on the right."""
    width = max(len(example.token_ids) for example in examples)
    ids_BT = torch.zeros((len(examples), width), dtype=torch.long)
    labels_BT = torch.full((len(examples), width), IGNORE)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.token_ids)
        mask = torch.tensor(example.mask, dtype=torch.bool)
        ids_BT[row, : len(ids)] = ids
        labels_BT[row, : len(ids)] = torch.where(mask, ids, IGNORE)
    labels_BT[:, 0] = IGNORE  # nothing predicts the first token
    return ids_BT, labels_BT
