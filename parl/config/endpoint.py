"""An OpenAI-compatible endpoint: of a judge, or of a policy whose weights are somebody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from parl.config.base import ConfigModel, NonNegInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    pass


class Endpoint(ConfigModel):
    """Where a model is asked, and for how long."""

    base_url: str
    """An OpenAI-compatible endpoint: http://127.0.0.1:8000/v1, say."""
    model: str
    """Its name at the endpoint."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key. The key itself never stands in a file."""
    deadline_s: PositiveFloat = 60.0
    """For what is wanted of it (one turn; all verdicts on an answer), new attempts included."""
    max_retries: NonNegInt = 2
    """New attempts of a request when the endpoint fails or its reply is of no use."""


class RemoteConfig(Endpoint):
    """How a frozen policy generates that an endpoint serves: see docs/how-to/use-an-endpoint.md."""

    type: Literal["openai"]
    max_concurrent: PositiveInt = 32
    """Requests that one process has running at once; further ones wait, outside of `deadline_s`."""
