"""Environments: the contract, tools, mixtures, plugins, tasks."""

from __future__ import annotations

from typing import Any

from parl.core import moved


def __getattr__(name: str) -> Any:
    raise moved.missing_name(__name__, name)
