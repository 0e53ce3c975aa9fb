"""What integration tests share."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest

from parl import scoring
from parl.types import Episode


@pytest.fixture
def some_number() -> Iterator[None]:
    """The untrained model earns nothing: a reward that differs from episode to episode makes it learn something."""

    @scoring.reward
    def some_number(episode: Episode) -> float:
        return zlib.crc32(repr(episode.orchestrator.token_ids).encode()) / 2**32

    yield
    del scoring._REGISTRY["some_number"]
