"""Environments: the contract, tools, mixtures, plugins, tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parl.core import moved

if not TYPE_CHECKING:  # with a module's __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        raise moved.missing_name(__name__, name)
