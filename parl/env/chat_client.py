"""Asking an OpenAI-compatible endpoint until it gives a reply that can be used, or has failed too often."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, TypeVar

from parl.config.endpoint import Endpoint
from parl.core.errors import ConfigError

T = TypeVar("T")
AGAIN = (408, 409, 429)
"""Statuses below 500 upon which the same request may succeed."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0


class MalformedReply(Exception):
    """A reply that is of no use."""


def key_of(config: Endpoint, whose: str) -> str:
    """The key. `whose` begins the message of the ConfigError that is raised when its variable is not set."""
    if config.api_key_env is None:
        return "none"  # the client wants one, local endpoints do not
    key = os.environ.get(config.api_key_env, "")
    if not key:
        raise ConfigError(
            f"{whose}.api_key_env is {config.api_key_env}, a variable that is not set. Type: export "
            f"{config.api_key_env}=KEY (with rollout.backend: ray, where the workers start)."
        )
    return key


async def ask(
    client: Any,
    config: Endpoint,
    read: Callable[[Any], T],
    failure: Callable[[str, str], Exception],
    **body: Any,
) -> T:
    """What `read` makes of a chat completion; it raises Malformed when it can make nothing of it.

    Args:
        client: an `openai.AsyncOpenAI` that does not try again by itself.
        failure: (`unavailable` or `malformed`, detail) -> what is raised after the last attempt.
        body: of the request, without the model.
    """
    import openai

    kind, detail, wait = "", "", 0.0
    for attempt in range(config.max_retries + 1):
        if attempt:
            await asyncio.sleep(max(wait, min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)))
        try:
            done = await client.chat.completions.create(
                model=config.model, timeout=config.deadline_s, **body
            )
            if not getattr(done, "choices", None):  # the client hands on whatever a 200 holds
                raise MalformedReply(f"not a chat completion: {str(done)[:200]!r}")
            return read(done)
        except MalformedReply as error:
            kind, detail = "malformed", str(error)
        except openai.APIStatusError as error:
            detail = f"{error.status_code}: {error.message} (code {error.code}, type {error.type})"
            kind, wait = "unavailable", _retry_after(error)
            if error.status_code < 500 and error.status_code not in AGAIN:
                break  # asked again, it would say the same
        except openai.APIError as error:  # no connection, or an answer that is not of the API
            kind, detail = "unavailable", repr(error)
    raise failure(kind, detail[:500])


def _retry_after(error: Any) -> float:
    """Seconds that the endpoint asks to wait; 0 where it does not say."""
    try:
        return float(error.response.headers.get("retry-after", 0))
    except ValueError:  # a date
        return 0.0
