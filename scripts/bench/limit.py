#!/usr/bin/env python3
"""How much of the machine's matrix multiplication limit rollout and learner reach.

Every matrix product and attention of a piece of work is counted with its shapes; then the same products alone are
timed, on the same thread. Their time over the time of the whole piece is the share.

    scripts/bench/limit.py
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from common import finish, set_up, table
from torch.utils._python_dispatch import TorchDispatchMode
from traffic import play_swarm, record

from parl.config.policy import EngineConfig
from parl.core.types import Episode, Sample
from parl.learner.learner import Learner
from parl.policy.engines.torch import TorchEngine

aten = torch.ops.aten
PRODUCTS = {
    aten.linear.default,  # inference mode shows these three, training what they are made of
    aten.matmul.default,
    aten.scaled_dot_product_attention.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


class Count(TorchDispatchMode):
    """Products by operator and arguments (tensors as shape and strides)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            named = tuple(sorted((kwargs or {}).items(), key=lambda kv: kv[0]))
            self.calls[
                func, tuple(map(_frozen, args)), tuple((k, _frozen(v)) for k, v in named)
            ] += 1
        return func(*args, **(kwargs or {}))


def _frozen(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), tuple(value.stride()), value.dtype)
    return tuple(value) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, tuple) and value and value[0] == "tensor":
        _, shape, stride, dtype = value
        made = torch.empty_strided(shape, stride, dtype=dtype)
        return (
            made.fill_(True)
            if dtype == torch.bool
            else made.normal_()
            if dtype.is_floating_point
            else made.zero_()
        )
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=64, help="live agents of the rollout")
    parser.add_argument(
        "--episodes",
        type=int,
        default=48,
        help="recorded episodes; the learner learns from all of them",
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config, env, policies = set_up()
    episodes = record(config, env, policies.renderers["main"], args.episodes)
    engine = TorchEngine(policies.models["main"], [], EngineConfig())
    crowd = agents(episodes, args.agents)
    rollout = share(lambda: asyncio.run(play_all(engine, crowd)), args.repeats)
    policy = config.policies["main"]
    model = policies.models["main"].requires_grad_(True)
    learner = Learner("main", model, policy.optimizer, config.loss, config.train.tokens_per_batch)
    samples = samples_of(episodes)
    mass = float(sum(sum(s.mask) for s in samples))
    temperatures = {"orchestrator": 1.0, "subagent": 1.0}
    learn = share(lambda: learner.update(samples, temperatures, mass, 0, 1, 1), args.repeats)
    table(
        ["work", "seconds", "products alone", "share"],
        [[f"rollout, {args.agents} live agents", *rollout], ["learner", *learn]],
    )
    finish({"rollout_share": rollout[2], "learner_share": learn[2]})


def share(work: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """(seconds of the work, seconds of its products alone, their ratio), the best of `repeats` each."""
    with Count() as counted:
        work()
    whole, products = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        whole.append(time.perf_counter() - began)
        products.append(sum(num * alone(*call) for call, num in counted.calls.items()))
    return min(whole), min(products), min(products) / min(whole)


@torch.no_grad()
def alone(func: Any, args: Any, kwargs: Any) -> float:
    """Seconds of one call, from five."""
    given, named = [_thawed(a) for a in args], {k: _thawed(v) for k, v in kwargs}
    func(*given, **named)
    began = time.perf_counter()
    for _ in range(5):
        func(*given, **named)
    return (time.perf_counter() - began) / 5


def agents(episodes: list[Episode], num: int) -> list[Episode]:
    """As many episodes as have this many subagents together."""
    chosen, have = [], 0
    for episode in episodes:
        if have >= num:
            break
        chosen.append(episode)
        have += len(episode.subagents)
    return chosen


async def play_all(engine: TorchEngine, episodes: list[Episode]) -> None:
    await asyncio.gather(*(play_swarm(engine, f"s{i}", e) for i, e in enumerate(episodes)))


def samples_of(episodes: list[Episode]) -> list[Sample]:
    return [
        Sample(
            episode=e.id,
            agent=t.id,
            role=t.role,
            policy="main",
            token_ids=t.token_ids,
            mask=tuple(int(m) for m in t.mask),
            logprobs=tuple(-0.1 * m for m in t.mask),
            advantage=0.5,
            weight=1.0,
            policy_versions=(0,),
        )
        for e in episodes
        for t in e.traces
    ]


if __name__ == "__main__":
    main()
