"""OpenAI-compatible endpoints: of a judge, or of a policy whose weights are elsewhere."""

from __future__ import annotations

from typing import Literal

from parl.config.base import ConfigModel, NonNegInt, PositiveFloat, PositiveInt


class Endpoint(ConfigModel):
    """An OpenAI-compatible endpoint."""

    base_url: str
    """Address, such as http://127.0.0.1:8000/v1."""
    model: str
    """Name of the model at the endpoint."""
    # A name and never the key: configs are copied into run folders, cards and reports.
    api_key_env: str | None = None
    """Name of the environment variable that holds the key. The key itself never stands in a
    file."""
    deadline_s: PositiveFloat = 60.0
    """Deadline of one turn, or of all verdicts on an answer, new attempts included."""
    max_retries: NonNegInt = 2
    """New attempts of a request when the endpoint fails or its reply cannot be used."""


class RemoteConfig(Endpoint):
    """The engine of a frozen policy behind an endpoint: see docs/how-to/use-an-endpoint.md."""

    type: Literal["openai"]
    max_concurrent: PositiveInt = 32
    """Most requests that one process has running at once; others wait, outside of `deadline_s`."""
