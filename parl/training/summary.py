"""What a finished run says of itself: `summary.json`, and the value of `parl.train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a training run.

    Example: summary.heldout["trained"]["swarm"]["greedy"]["score"] -> 0.93
    """

    seed: int
    wall_s: float
    cold_start_attempts: int
    """The largest number of attempts that a stage took; 0 without a cold start."""
    cold_start_stages: Sequence[Mapping[str, Any]]
    split: str
    """The split that `heldout` was measured on."""
    heldout: Mapping[str, Any]
    """Phase (cold_start, trained) -> mode -> decoding -> metric -> mean over the tasks."""
    path: Path
    """The run folder."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of summary.json, which has no path: a run folder may be moved."""
        fields = asdict(self)
        del fields["path"]
        return fields
