"""What integration tests share."""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from parl.core.types import Episode
from parl.rewards import terms
from parl_envs.coding.sandbox import run_python
from tests.support.sandbox_outside import gone, host_pid, processes, used


@pytest.fixture
def some_number() -> Iterator[None]:
    """The untrained model earns nothing: a reward that differs from episode to episode makes it learn something."""

    @terms.reward
    def some_number(episode: Episode) -> float:
        return zlib.crc32(repr(episode.orchestrator.token_ids).encode()) / 2**32

    yield
    del terms._REGISTRY["some_number"]


@pytest.fixture
def sandboxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sandbox makes its folders; afterwards nothing is there, nothing runs, no descriptor is open."""
    folder = tmp_path / "sandboxes"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    run_python("")  # what the first run opens for good
    before = [used(pid) for pid in (os.getpid(), host_pid())]
    yield folder
    assert list(folder.iterdir()) == []
    assert all(gone(pid) for pid in processes(str(folder)))
    until = time.monotonic() + 2  # a thread of the host ends just after its result is here
    for pid, (num_descriptors, num_threads) in zip((os.getpid(), host_pid()), before, strict=True):
        while used(pid)[0] > num_descriptors or used(pid)[1] > num_threads:
            assert time.monotonic() < until, (used(pid), num_descriptors, num_threads)
            time.sleep(0.01)
