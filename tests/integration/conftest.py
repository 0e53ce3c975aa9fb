"""What integration tests share."""

from __future__ import annotations

import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from parl import scoring
from parl.types import Episode
from tests.integration.sandbox_host import gone, processes


@pytest.fixture
def some_number() -> Iterator[None]:
    """The untrained model earns nothing: a reward that differs from episode to episode makes it learn something."""

    @scoring.reward
    def some_number(episode: Episode) -> float:
        return zlib.crc32(repr(episode.orchestrator.token_ids).encode()) / 2**32

    yield
    del scoring._REGISTRY["some_number"]


@pytest.fixture
def sandboxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sandbox makes its folders; afterwards nothing is there, nothing runs, no descriptor is open."""
    folder = tmp_path / "sandboxes"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    descriptors = set(os.listdir("/proc/self/fd"))
    yield folder
    assert list(folder.iterdir()) == []
    assert all(gone(pid) for pid in processes(str(folder)))
    assert not [thread for thread in threading.enumerate() if thread.name == "sandbox"]
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)
