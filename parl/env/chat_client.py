"""Requests to an OpenAI-compatible endpoint, repeated until a reply can be used."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from parl.config.endpoint import Endpoint
from parl.core.errors import ConfigError

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
RETRY_STATUSES = (408, 409, 429)
"""Statuses below 500 after which the same request may succeed: timeout, conflict, rate limit."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""The wait before a new attempt doubles from the first to the longest."""


class MalformedReply(Exception):
    """A reply that cannot be used."""


def key_of(config: Endpoint, whose: str) -> str:
    """Return the API key of an endpoint.

    Args:
        config: it names the environment variable that holds the key.
        whose: the config's place in the tree, with which the error begins.

    Raises:
        ConfigError: the variable is not set.
    """
    if config.api_key_env is None:
        # The client refuses an empty key; local endpoints ignore whatever it is.
        return "none"
    key = os.environ.get(config.api_key_env, "")
    if not key:
        raise ConfigError(
            f"{whose}.api_key_env is {config.api_key_env}, a variable that is not set. "
            f"Type: export {config.api_key_env}=KEY "
            "(with rollout.backend: ray, where the workers start)."
        )
    return key


async def ask(
    client: openai.AsyncOpenAI,
    config: Endpoint,
    read: Callable[[Any], T],
    failure: Callable[[str, str], Exception],
    **body: Any,
) -> T:
    """Request a chat completion until `read` accepts one.

    Args:
        client: a client that does not try again by itself (`max_retries=0`).
        config: the model's name, the deadline of a request, the number of new attempts.
        read: turns a completion into the result, or raises MalformedReply.
        failure: (`unavailable` or `malformed`, detail) -> the exception after the last attempt.
        body: the request without the model.

    Returns:
        The result of `read`.
    """
    import openai

    kind, detail = "", ""
    requested_wait_s = 0.0
    for attempt in range(config.max_retries + 1):
        if attempt:
            backoff_s = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
            await asyncio.sleep(max(requested_wait_s, backoff_s))
        try:
            completion = await client.chat.completions.create(
                model=config.model, timeout=config.deadline_s, **body
            )
            # The client hands on whatever a reply with status 200 holds.
            if not getattr(completion, "choices", None):
                raise MalformedReply(f"not a chat completion: {str(completion)[:200]!r}")
            return read(completion)
        except MalformedReply as error:
            kind, detail = "malformed", str(error)
        except openai.APIStatusError as error:
            kind = "unavailable"
            detail = f"{error.status_code}: {error.message} (code {error.code}, type {error.type})"
            requested_wait_s = _retry_after(error)
            if error.status_code < 500 and error.status_code not in RETRY_STATUSES:
                # Asked again, the endpoint would refuse again.
                break
        except openai.APIError as error:
            # No connection, or an answer that is not of the API.
            kind, detail = "unavailable", repr(error)
    raise failure(kind, detail[:500])


def _retry_after(error: openai.APIStatusError) -> float:
    """Return the seconds that the endpoint asks to wait, 0 where it does not say."""
    try:
        return float(error.response.headers.get("retry-after", 0))
    except ValueError:
        # The header may be a date as well; then our own backoff decides.
        return 0.0
