"""`parl/VisualTools-v0` as TRL's GRPOTrainer wants an environment: an oracle for rewards and masks, no product.

In: tasks, and for each the texts of several attempts. Out: a trainer that "samples" these texts, turn by turn, and
keeps what it would learn from. Everything else is TRL's: tools, images, masks, rewards, advantages, loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
from transformers import ProcessorMixin, Qwen3VLProcessor
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from parl.config.env import EnvConfig
from parl.core import images
from parl.core.messages import assistant
from parl.core.types import Task, ToolCall
from parl.env.registry import make_env

CONFIG = EnvConfig(id="parl/VisualTools-v0", kwargs={"questions": ["read", "sum"], "boxes": [4, 6]})
Attempts = Mapping[str, Sequence[Sequence[str]]]
"""Task id -> attempts -> turns."""

CHATML = """
{%- for m in messages -%}
{{- ('' if loop.first else '\\n') + '<|im_start|>' + m.role + '\\n' -}}
{%- for part in m.content -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text -}}
{%- endfor -%}
{%- for call in m.tool_calls or [] -%}{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' -}}{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{{- '\\n<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""
"""Our renderer's format (`parl.policy.renderers.chatml`) as a template."""


class Processor(Qwen3VLProcessor):
    """Qwen3-VL's, for images alone: its video processor needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class Looking:
    """The environment as a class whose public methods are tools."""

    tasks: ClassVar[dict[str, Task]] = {}

    def __init__(self) -> None:
        self._env = make_env(CONFIG)

    def reset(self, task: str, **_: Any) -> list[dict[str, Any]]:
        self._env.reset(options={"task": self.tasks[task]})
        return _blocks(self.tasks[task].prompt)

    def zoom(self, bbox: str, image: str) -> list[dict[str, Any]]:
        """Look closer.

        Args:
            bbox: The part.
            image: Its name.
        """
        return self._call("zoom", bbox=bbox, image=image)

    def image_op(self, op: str, image: str, value: str) -> list[dict[str, Any]]:
        """Change an image.

        Args:
            op: What to do.
            image: Its name.
            value: How.
        """
        return self._call("image_op", op=op, image=image, value=value)

    def _call(self, name: str, **arguments: str) -> list[dict[str, Any]]:
        messages, *_ = self._env.step(assistant(calls=[ToolCall(name, arguments)]))
        return _blocks(messages[0]["content"])

    def _score(self, answer: str) -> float:
        return self._env.step(assistant(answer))[1]


def _blocks(text: str) -> list[dict[str, Any]]:
    return [
        {"type": "image", "image": images.from_uri(part)}
        if images.is_image(part)
        else {"type": "text", "text": part}
        for part in images.split(text)
    ]


def outcome(completions: Sequence[Any], environments: Sequence[Looking], **_: Any) -> list[float]:
    """The environment's score of the last message."""
    return [
        env._score(turns[-1]["content"])
        for turns, env in zip(completions, environments, strict=True)
    ]


class Trainer(GRPOTrainer):
    """Writes down given texts where it would sample."""

    def __init__(
        self, model: Any, tokenizer: Any, tasks: Sequence[Task], attempts: Attempts, folder: Path
    ) -> None:
        Looking.tasks = {task.id: task for task in tasks}
        self.attempts, self.learned = attempts, list[dict[str, Any]]()
        self._texts: list[list[str]] = []
        num = len(attempts[tasks[0].id])
        tokenizer.response_template = qwen3_template
        rows = [
            {
                "prompt": [
                    {"role": "system", "content": "orchestrator"},
                    {"role": "user", "content": ""},
                ],
                "task": task.id,
            }
            for task in tasks
        ]
        arguments = GRPOConfig(
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=num * len(tasks),
            num_generations=num,
            max_completion_length=2000,
            scale_rewards="none",
            beta=0.0,
            shuffle_dataset=False,
            learning_rate=1e-3,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        super().__init__(
            model=model,
            args=arguments,
            reward_funcs=outcome,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=Processor(model.image_adapter.processor, tokenizer, CHATML),
            environment_factory=Looking,
        )

    def _generate_single_turn(
        self, prompt_ids: Any, *_: Any, **__: Any
    ) -> tuple[list[list[int]], None]:
        """The next turn of each attempt that is not over. The first call has all, a later one those that called."""
        if not self._texts:
            going = {task: iter(texts) for task, texts in self.attempts.items()}
            self._texts = [list(next(going[env._env.task.id])) for env in self.environments]
        left = [texts for texts in self._texts if texts]
        assert len(left) == len(prompt_ids), "TRL goes on with other attempts than it should"
        written = [texts.pop(0) + "<|im_end|>" for texts in left]
        return [
            self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in written
        ], None

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        made = super()._generate_and_score_completions(inputs)
        self.learned.append({**made, "tasks": [row["task"] for row in inputs]})
        return made
