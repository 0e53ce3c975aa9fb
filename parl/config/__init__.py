"""Configuration: YAML in, one frozen `Config` out. Light: pydantic and yaml only."""

from __future__ import annotations

from parl.config.loader import load, load_raw, parse
from parl.config.schema import Config

__all__ = ["Config", "load", "load_raw", "parse"]
