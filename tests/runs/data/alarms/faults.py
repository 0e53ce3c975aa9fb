"""`parl` with a fault in it, to record what its metrics look like: python faults.py FAULT train CONFIG ..."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from parl.cli import main as cli
from parl.learner.policies import PolicySet
from parl.policy.engines.torch import TorchEngine

FROM_VERSION = 6


def hot_engine() -> None:
    """From the sixth update on the engine samples at 1.25 times the temperature that the learner knows of."""
    sample: Callable[..., None] = TorchEngine._sample

    def hotter(self: Any, rows: Any, logits: Any) -> None:
        sample(self, rows, logits * (0.8 if self.version >= FROM_VERSION else 1.0))

    TorchEngine._sample = hotter  # type: ignore[method-assign,assignment]


def forgotten_engine() -> None:
    """Episodes are sampled by a copy of the first weights that never gets new ones; the engine that does is idle."""
    handles: Callable[..., dict[str, Any]] = PolicySet.handles

    def stale(self: Any, roles: Any = None) -> dict[str, Any]:
        out = handles(self, roles)
        if "_forgotten" not in vars(self):
            self._forgotten = {
                h.name: self._engine(h.name, self.models[h.name]) for h in out.values()
            }
        return {role: replace(h, engine=self._forgotten[h.name]) for role, h in out.items()}

    PolicySet.handles = stale  # type: ignore[method-assign]


if __name__ == "__main__":
    {"hot-engine": hot_engine, "forgotten-engine": forgotten_engine}[sys.argv.pop(1)]()
    cli.main()
