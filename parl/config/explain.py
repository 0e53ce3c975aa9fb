"""A config in words, for `parl config explain`.

Every field's documentation and value, and the numbers that follow from several fields.
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
    """Yield a line per value and its documentation below it, in the order of the tree.

    Args:
        node: a section, or the whole config.
        path: the section's path with a final dot, such as "train.".
    """
    for name, field in type(node).model_fields.items():
        value = getattr(node, name)
        yield from _explain_value(value, f"{path}{name}", field.description)
    # Knobs that a plugin or a reward term defines; their documentation is the plugin's.
    for name, value in (node.model_extra or {}).items():
        yield from _explain_value(value, f"{path}{name}", None)


def plain(value: Any) -> str:
    """Return a value as in YAML.

    Example:
        None -> null, (0.9, 0.98) -> [0.9, 0.98]
    """
    return json.dumps(value, default=str, ensure_ascii=False)


def derived(config: Config) -> dict[str, int | str]:
    """Return numbers that follow from several values, by name."""
    train, evaluation = config.train, config.eval
    episodes_per_step = train.tasks_per_step * train.group_size
    num_evals = 1
    if evaluation.every:
        num_evals += train.num_steps // evaluation.every
    numbers: dict[str, int | str] = {
        "run folder": str(config.run_path),
        "episodes per step": episodes_per_step,
        "episodes in all": episodes_per_step * train.num_steps,
        "episodes per update": episodes_per_step // train.updates_per_step,
        "updates in all": train.num_steps * train.updates_per_step,
        "tokens per batch": train.tokens_per_batch,
        "episodes per evaluation": evaluation.num_tasks * len(evaluation.decoding),
        "evaluations (about)": num_evals,
        # Rounded up: a checkpoint follows the last step as well.
        "checkpoints written (about)": -(-train.num_steps // train.checkpoint_every),
    }
    numbers |= _passes_over_tasks(config)
    for name, role in config.roles.items():
        limits = role.limits
        in_all_turns = limits.turns * role.sampling.max_tokens
        most = min(limits.tokens or sys.maxsize, in_all_turns, limits.context_tokens)
        numbers[f"tokens of one {name}, at most"] = most
    for term_name, term in config.reward.terms.items():
        first = term.weight_at(0)
        last = term.weight_at(train.num_steps - 1)
        text = f"{first:g}" if first == last else f"{first:g} -> {last:g} in the last step"
        numbers[f"weight of {term_name}"] = text
    return numbers


def _passes_over_tasks(config: Config) -> dict[str, str]:
    """Return how often the run sees each training task, by ability.

    Files of unknown length are left out.
    """
    weights = config.env.weights
    total_weight = sum(weights.values())
    passes: dict[str, str] = {}
    for ability, part in config.env.parts.items():
        num_tasks = part.tasks.train.num
        if num_tasks is None:
            continue
        share = weights[ability] / total_weight
        num_problems = share * config.train.tasks_per_step * config.train.num_steps
        label = f" ({ability})" if ability else ""
        passes[f"passes over the train tasks{label}"] = f"{num_problems / num_tasks:.2f}"
    return passes


def _explain_value(value: Any, path: str, doc: str | None) -> Iterator[str]:
    children: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        children = value
    elif isinstance(value, tuple):
        children = dict(enumerate(value))
    if isinstance(value, BaseModel):
        yield f"\n{path}"
        yield from _doc_lines(doc or type(value).__doc__)
        yield from explain(value, f"{path}.")
    elif children and all(isinstance(child, BaseModel) for child in children.values()):
        yield from _doc_lines(doc)
        for key, child in children.items():
            yield from _explain_value(child, f"{path}.{key}", None)
    else:
        yield f"{path}: {plain(value)}"
        yield from _doc_lines(doc)


def _doc_lines(text: str | None) -> list[str]:
    return textwrap.wrap(text or "", width=100, initial_indent="    ", subsequent_indent="    ")
