"""Mixtures of experts: whether the engine's passes choose the experts that the learner's choose.

In: both models, one sequence. Out: the share of choices that agree. Where they do not, the two compute different
functions of the same weights, and log-probs differ by more than rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def router_agreement(engine: Any, learner: Any, token_ids: Sequence[int]) -> float | None:
    """Share of (token, layer, expert) choices that sampling's passes and a training pass have in common, in 0..1.

    None where the model has no experts, or one of both is in other processes (`train.learner_processes`, vLLM).
    """
    trained, sampled = getattr(learner, "bare_model", None), getattr(engine, "model", None)
    if trained is None or sampled is None or not routers(trained):
        return None
    with _choices(sampled) as ours, _choices(trained) as theirs:
        engine.score(token_ids)
        learner.logprobs(token_ids)
    pairs = [(torch.cat(ours[name]), torch.cat(theirs[name])) for name in ours]
    agree = torch.stack([(a[:, :, None] == b[:, None, :]).any(-1).float().mean() for a, b in pairs])
    return float(agree.mean())


def routers(model: Any) -> dict[str, tuple[Any, int]]:
    """A model's routers, by what its class says that it can record; none where it has no experts.

    Name -> (module, place of its logits in what it returns).
    """
    spec: Any = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
    target = getattr(spec, "target_class", None)
    if target is None:
        return {}
    return {
        name: (module, spec.index)
        for name, module in model.named_modules()
        if isinstance(module, target)
    }


@contextmanager
def _choices(model: Any) -> Iterator[dict[str, list[torch.Tensor]]]:
    """While inside, the experts of every pass are noted: (tokens, k) ids per router and pass."""
    noted: dict[str, list[torch.Tensor]] = {}
    hooks = []
    most = model.config.num_experts_per_tok
    for name, (module, place) in routers(model).items():

        def note(
            _module: Any, _inputs: Any, output: Any, name: str = name, place: int = place
        ) -> None:
            logits = output[place] if isinstance(output, tuple) else output
            noted.setdefault(name, []).append(logits.flatten(0, -2).topk(most, -1).indices)

        hooks.append(module.register_forward_hook(note))
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()
