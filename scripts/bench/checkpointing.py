#!/usr/bin/env python3
"""What gradient checkpointing takes and spares: seconds and memory of one update, of each setting and dtype.

A model of Qwen3's layout with random weights learns from one long sample, in a process of its own for each row.
`activations` is the growth of the process's peak over a first update of 16 tokens, after which weights, gradients and
moments are all there. Seconds are of the processor, so that other programs do not count.

    scripts/bench/checkpointing.py
    scripts/bench/checkpointing.py --tokens 4096 --hidden 1024 --layers 12
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from common import finish, table
from transformers import Qwen3Config, Qwen3ForCausalLM

from parl.config.loss import Loss
from parl.config.policy import Optimizer, Policy
from parl.core.machine import pin_threads, rss_mb
from parl.core.types import Sample
from parl.learner.learner import Learner
from parl.policy.models.load import set_gradient_checkpointing

SETTINGS = (False, "selective", True)
DTYPES = ("float32", "bfloat16")


def sample(tokens: int) -> Sample:
    ids = tuple(3 + i * 7 % 900 for i in range(tokens))
    mask = (0, *[1] * (tokens - 1))
    return Sample(
        "e", "0", "orchestrator", "main", ids, mask, tuple(-7.0 * m for m in mask), 1.0, 1.0, (0,)
    )


def measure(
    hidden: int, layers: int, tokens: int, setting: bool | str, dtype: str
) -> tuple[float, float]:
    """(MB of activations, seconds of the processor) of one update."""
    pin_threads(1)
    shape = Qwen3Config(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        head_dim=64,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(shape)
    set_gradient_checkpointing("main", Policy(gradient_checkpointing=setting), model)
    learner = Learner("main", model, Optimizer(lr=1e-5), Loss(), tokens, getattr(torch, dtype))
    learner.update([sample(16)], {"orchestrator": 1.0}, 15.0, 0, 2, 1)
    before, began = rss_mb(), time.process_time()
    learner.update([sample(tokens)], {"orchestrator": 1.0}, float(tokens), 1, 2, 1)
    return rss_mb() - before, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 256")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024)
    args = parser.parse_args()
    rows: list[list[Any]] = []
    result: dict[str, float] = {}
    for dtype in DTYPES:
        for setting in SETTINGS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                megabytes, seconds = alone.submit(
                    measure, args.hidden, args.layers, args.tokens, setting, dtype
                ).result()
            name = str(setting).lower()
            rows.append([dtype, name, f"{megabytes:.0f}", f"{seconds:.1f}"])
            result |= {f"{dtype}_{name}_mb": megabytes, f"{dtype}_{name}_s": seconds}
    table(["dtype", "gradient_checkpointing", "activations, MB", "seconds"], rows)
    finish(result)


if __name__ == "__main__":
    main()
