#!/usr/bin/env python3
"""What the policies of two roles take in memory: two full models, or two adapters on one base.

Counted after one update of both, each piece of memory once however many modules use it. Gradients are counted as
large as what they are of; activations and the engine's pages, which are the same in both, are left out.

    scripts/bench/adapters.py
    scripts/bench/adapters.py --hidden 1024 --layers 24
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import torch
from common import finish, set_up, table

from parl.core.types import ROLES, Sample
from parl.learner.policies import PolicySet


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of the memory under these tensors, each piece once."""
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def memory(policies: PolicySet) -> dict[str, int]:
    """Bytes by what they are for, of policies that have learned at least once."""
    learners: Any = policies.learners.values()
    engines: Any = [handle.engine for handle in policies.handles().values()]
    trained = [
        p for learner in learners for p in learner.bare_model.parameters() if p.requires_grad
    ]
    states = [s for learner in learners for s in learner.optimizer.state.values()]
    moments = [v for state in states for v in state.values() if torch.is_tensor(v) and v.dim()]
    weights = [p for model in policies.models.values() for p in model.parameters()]
    served = [p for engine in engines for p in engine.model.parameters()]
    return {
        "weights": num_bytes(weights),
        "engines, beyond that": num_bytes([*weights, *served]) - num_bytes(weights),
        "gradients": num_bytes(trained),
        "optimizers": num_bytes(moments),
    }


def learn(overrides: list[str]) -> PolicySet:
    """The policies of a config after one update of each."""
    config, _, policies = set_up(overrides)
    policies.engines.start()
    policies.learners.start()
    samples = [
        Sample(
            "e",
            str(i),
            role,
            config.roles.of(role).policy,
            (3, 4, 5, 6),
            (0, 1, 1, 1),
            (0.0,) + (-1.0,) * 3,
            a,
            1.0,
            (0,),
        )
        for role in ROLES
        for i, a in enumerate((1.0, -1.0))
    ]
    mass = {config.roles.of(role).policy: 6.0 for role in ROLES}
    policies.update(samples, mass, 0)
    policies.sync(())
    return policies


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--layers", type=int, default=8, help="attention layers")
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    shape = {
        "hidden_size": args.hidden,
        "ff_size": 4 * args.hidden,
        "layers": ["full_attention"] * args.layers,
    }
    optimizer = {"muon_lr": 0.0}
    full = {name: {"tiny": shape, "optimizer": optimizer} for name in ("main", "subagent")}
    adapter = {"adapter": {"base": "main", "rank": args.rank}, "optimizer": optimizer}
    adapters: dict[str, dict[str, Any]] = {"main": {"tiny": shape}}
    adapters |= dict.fromkeys(ROLES, adapter)
    bytes_by_setup = {}
    for name, policies, orchestrator in (
        ("two full models", full, "main"),
        ("two adapters", adapters, "orchestrator"),
    ):
        overrides = [f"policies.{k}={json.dumps(v)}" for k, v in policies.items()]
        roles = [f"roles.orchestrator.policy={orchestrator}", "roles.subagent.policy=subagent"]
        bytes_by_setup[name] = memory(learn([*overrides, *roles]))
    rows: list[list[Any]] = []
    for part in bytes_by_setup["two adapters"]:
        rows.append([part, *(setup[part] / 1e6 for setup in bytes_by_setup.values())])
    totals = [sum(setup.values()) for setup in bytes_by_setup.values()]
    rows.append(["total", *(total / 1e6 for total in totals)])
    table(["MB", *bytes_by_setup], rows)
    full_bytes, adapter_bytes = totals
    finish(
        {
            "full_mb": full_bytes / 1e6,
            "adapters_mb": adapter_bytes / 1e6,
            "ratio": full_bytes / adapter_bytes,
        }
    )


if __name__ == "__main__":
    main()
