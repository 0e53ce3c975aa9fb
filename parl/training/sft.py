"""Supervised training on demonstrations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from parl.config.schema import Config
from parl.config.training import Stage
from parl.core.progress import Progress
from parl.learner.batch import micro_batches
from parl.learner.optim import build_optimizer, lr_scale, set_lr_scale
from parl.policy.models.vision import forward as passes
from parl.training.demonstrator import Demonstrator, SftExample

IGNORE = -100


MICRO_BATCHES = 3


@torch.inference_mode()
def token_accuracy(model: Any, texts: Sequence[SftExample], budget: int = 8192) -> float:
    """Share of loss-carrying tokens that the model's argmax predicts."""
    right = total = 0
    was_training = model.training
    model.eval()
    for indices in micro_batches([len(t.token_ids) for t in texts], budget):
        part = [texts[i] for i in indices]
        ids, labels = (t.to(model.device) for t in _pad(part))
        hidden = passes.hidden_states(model, ids, [t.images for t in part])
        here = labels[:, 1:] != IGNORE
        right += int(
            (passes.logits(model, hidden[:, :-1][here]).argmax(-1) == labels[:, 1:][here]).sum()
        )
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


def _pad(texts: Sequence[SftExample]) -> tuple[torch.Tensor, torch.Tensor]:
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
        texts: list[SftExample] = []
        while (
            sum(len(t.token_ids) for t in texts) < stage.tokens_per_step
            or len(texts) < MICRO_BATCHES
        ):
            texts += source.draw(stage)
        texts.sort(key=lambda t: len(t.token_ids))
        for part in _equal_parts(texts, MICRO_BATCHES):
            ids, labels = _pad(part)
            yield {"input_ids": ids, "labels": labels, "images": [t.images for t in part]}


def _equal_parts(texts: Sequence[SftExample], num: int) -> list[list[SftExample]]:
    """Cut sorted texts into `num` parts of about equal padded size, none empty."""
    total = sum(len(t.token_ids) for t in texts)
    parts: list[list[SftExample]] = [[]]
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


def train_stage(
    config: Config,
    stage: Stage,
    source: Demonstrator,
    model: Any,
    tokenizer: Any,
    measure: Callable[[], float],
    bar: Progress,
) -> tuple[int, float]:
    """One attempt at a stage with TRL's SFTTrainer. Returns (steps taken, last measured skill)."""

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
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            """Cross-entropy at the loss-carrying positions only: a third faster here than TRL's fused head."""
            return (
                loss_on_labels(model, inputs["input_ids"], inputs["labels"], inputs["images"])
                / num_items_in_batch
            )

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
        trainer.model_accepts_loss_kwargs = (
            True  # `compute_loss` divides by the count, whatever the model's own does
        )
        trainer.train()
        steps = int(trainer.state.global_step)
    return steps, value
