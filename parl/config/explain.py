"""A config in words: every field's documentation and value, and the numbers that follow from several of them.

In: a validated `Config`. Out: lines and numbers for `parl config explain`.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from parl.config.schema import Config


def explain(node: BaseModel, path: str = "") -> Iterator[str]:
    """A line per value and its documentation below it, in the order of the tree."""
    for name, field in type(node).model_fields.items():
        value = getattr(node, name)
        yield from _explain_value(value, f"{path}{name}", field.description)
    for name, value in (node.model_extra or {}).items():
        yield from _explain_value(value, f"{path}{name}", None)


def _explain_value(value: Any, path: str, doc: str | None) -> Iterator[str]:
    nested: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        nested = value
    elif isinstance(value, tuple):
        nested = dict(enumerate(value))
    if isinstance(value, BaseModel):
        yield f"\n{path}"
        yield from _doc(doc or type(value).__doc__)
        yield from explain(value, f"{path}.")
    elif nested and all(isinstance(v, BaseModel) for v in nested.values()):
        yield from _doc(doc)
        for key, item in nested.items():
            yield from _explain_value(item, f"{path}.{key}", None)
    else:
        yield f"{path}: {plain(value)}"
        yield from _doc(doc)


def _doc(text: str | None) -> Iterator[str]:
    return iter(
        textwrap.wrap(text or "", width=100, initial_indent="    ", subsequent_indent="    ")
    )


def plain(value: Any) -> str:
    """Example: None -> null, (0.9, 0.98) -> [0.9, 0.98], as in the YAML."""
    return json.dumps(value, default=str, ensure_ascii=False)


def derived(config: Config) -> dict[str, int | str]:
    """Numbers that follow from several values, by name."""
    train_, eval_ = config.train, config.eval
    per_step = train_.tasks_per_step * train_.group_size
    num_evals = 1 + (train_.num_steps // eval_.every if eval_.every else 0)
    numbers: dict[str, int | str] = {
        "run folder": str(config.run_path),
        "episodes per step": per_step,
        "episodes in all": per_step * train_.num_steps,
        "episodes per update": per_step // train_.updates_per_step,
        "updates in all": train_.num_steps * train_.updates_per_step,
        "tokens per batch": train_.tokens_per_batch,
        "episodes per evaluation": eval_.num_tasks * len(eval_.decoding),
        "evaluations (about)": num_evals,
        "checkpoints written (about)": -(-train_.num_steps // train_.checkpoint_every),
    }
    weights = config.env.weights
    total_weight = sum(weights.values())
    for ability, part in config.env.parts.items():
        num_tasks = part.tasks.train.num
        if num_tasks is None:
            continue
        share = weights[ability] / total_weight
        num_problems = share * train_.tasks_per_step * train_.num_steps
        label = f" ({ability})" if ability else ""
        numbers[f"passes over the train tasks{label}"] = f"{num_problems / num_tasks:.2f}"
    for name in ("orchestrator", "subagent"):
        role = config.roles.of(name)
        most = min(role.limits.tokens or sys.maxsize, role.limits.turns * role.sampling.max_tokens)
        numbers[f"tokens of one {name}, at most"] = min(most, role.limits.context_tokens)
    for name, term in config.reward.terms.items():
        first, last = term.weight_at(0), term.weight_at(train_.num_steps - 1)
        numbers[f"weight of {name}"] = (
            f"{first:g}" if first == last else f"{first:g} -> {last:g} in the last step"
        )
    return numbers
