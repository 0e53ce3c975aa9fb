"""An agent written with another framework, in the place of PARL's agent loop.

The config names a function `async def run(task, base_url, api_key, env) -> answer`. It asks the
policy at `base_url`, as any OpenAI-compatible endpoint, and the environment by `env`. Its trace is
the one that PARL's loop would make, with the ids that were sampled.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from parl.config.roles import Limits, Sampling
from parl.core.errors import ConfigError
from parl.core.messages import Message
from parl.core.seeds import seed_for
from parl.core.types import AgentTrace, Role, Status, Task, ToolCall
from parl.env.base import AgentEnv
from parl.env.tools import ToolSpec
from parl.gateway.chat import ApiError, ChatRequest, Reply
from parl.gateway.conversation import Conversation, check_images, history_key
from parl.gateway.live import Gateway
from parl.policy.base import PolicyHandle
from parl.rollout.agent import AgentSpec, num_generated, room_for_turn, trace_of
from parl.rollout.env_calls import EpisodeFailure, env_calls

REWRITTEN = (
    "it has sent another history than its agent's: trained tokens would not be the sampled ones. "
    "An agent has one conversation, which only grows: send the messages back as they came, with "
    "the same tools, one request at a time"
)


class ExternalTools:
    """The environment as an external agent sees it: its argument `env`."""

    def __init__(
        self, specs: Sequence[ToolSpec], call: Callable[[ToolCall], Awaitable[str]]
    ) -> None:
        self._call = call
        self.tools: list[dict[str, Any]] = [
            {"type": "function", "function": spec.model_dump()} for spec in specs
        ]
        """Its tools in OpenAI's form, for the `tools` of a request."""
        self.failure: Exception | None = None
        """The environment's error, even if the agent has caught it."""

    async def call(self, name: str, arguments: str | Mapping[str, Any]) -> str:
        """Run a tool, and return its observation. A call that cannot be run gets an error text.

        Args:
            arguments: a mapping, or the JSON text of a tool call.
        """
        try:
            if isinstance(arguments, str):
                parsed = json.loads(arguments or "{}")
            else:
                parsed = dict(arguments)
        except ValueError as error:
            return f"error: {name}: arguments are not JSON: {error}"
        if not isinstance(parsed, dict):
            return f"error: {name}: arguments must be a JSON object"
        try:
            return await self._call(ToolCall(name, parsed))
        except Exception as error:
            # Frameworks turn errors of tools into text for the model. The episode is lost all the
            # same.
            self.failure = error
            raise


ExternalAgent = Callable[[Task, str, str, ExternalTools], Awaitable[str]]
"""(task, base_url, api_key, env) -> answer."""


def load_external_agent(role: Role, name: str) -> ExternalAgent:
    """Import the function that `roles.ROLE.external_agent` names.

    Args:
        name: module:function.
    Raises:
        ConfigError: it cannot be imported, or is no coroutine function.
    """
    module, _, function_name = name.partition(":")
    where = f"roles.{role}.external_agent is '{name}'"
    try:
        function: ExternalAgent = getattr(importlib.import_module(module), function_name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{where}, which cannot be imported: {error}. Write module:function, of a module that "
            "is installed or on PYTHONPATH."
        ) from error
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"{where}, which is no coroutine function; write "
            f"`async def {function_name}(task, base_url, api_key, env)`."
        )
    return function


async def run_external_agent(
    spec: AgentSpec,
    policy: PolicyHandle,
    env: AgentEnv,
    limits: Limits,
    sampling: Sampling,
    token_budget: int | None,
    task: Task,
    gateway: Gateway,
    external_agent: ExternalAgent,
) -> AgentTrace:
    """Let an external agent work on a task until it answers.

    One that reaches a limit may still answer with what it has; its trace is truncated, as that of
    `run_agent`.

    Args:
        env: of this agent.
        token_budget: of the episode; an orchestrator's alone.
        gateway: where the agent asks its policy.
    Raises:
        EpisodeFailure: of the kind `external_agent` for an error of the agent; else the
            environment's or the engine's.
    """
    backend = _PolicyBackend(spec, policy, limits, sampling, token_budget)

    async def call_tool(call: ToolCall) -> str:
        limit = limits.env_calls_per_turn
        if limit is not None and backend.env_calls >= limit:
            return f"error: at most {limit} environment call(s) per turn"
        backend.env_calls += 1
        observations = await env_calls(env, [call])
        return observations[0]

    tools = ExternalTools(env.tool_specs(), call_tool)
    episode_id = spec.session.rpartition("/")[0]
    answer: object = ""
    error = None
    # An address and a key for this agent alone, for as long as it lives: whoever asks there speaks
    # for it.
    async with gateway.open(episode_id, spec.id, backend) as address:
        try:
            answer = await external_agent(task, address.base_url, address.api_key, tools)
        except Exception as raised:
            error = raised
        finally:
            backend.close()
    # First whatever the agent was told: frameworks wrap errors, or go on after them.
    failure = tools.failure or backend.failure
    if failure is not None:
        raise failure
    # An agent that raises at a limit has been ended by it, and is no failure.
    if error is not None and backend.stop is None:
        raise _failure(repr(error)) from error
    if not isinstance(answer, str):
        raise _failure(f"it returned {type(answer).__name__}, not its answer as a text")
    conversation = backend.conversation
    if conversation is None or not conversation.turns:
        raise _failure("it has never asked the policy at its base_url")
    # Calls since the last turn: it has answered without asking the policy again.
    if backend.env_calls:
        conversation.record_observations((), backend.env_calls)
    status: Status = "completed" if backend.stop is None else "truncated"
    reason = backend.stop or "answer"
    return trace_of(spec, policy, conversation.tape, conversation.turns, status, reason, answer)


class _PolicyBackend:
    """Answers the requests of one agent within its limits, and records its conversation."""

    models = ("policy",)

    def __init__(
        self,
        spec: AgentSpec,
        policy: PolicyHandle,
        limits: Limits,
        sampling: Sampling,
        token_budget: int | None,
    ) -> None:
        self._spec = spec
        self._policy = policy
        self._limits = limits
        self._sampling = sampling
        self._token_budget = token_budget
        self._last_history = ""
        """Key of the history up to the last turn, which the next request must begin with."""
        self._running: asyncio.Future[Reply] | None = None
        self.conversation: Conversation | None = None
        self.env_calls = 0
        """Environment calls since the last turn."""
        self.stop: str | None = None
        """The limit that has ended the agent, if one has."""
        self.failure: Exception | None = None

    async def chat(self, request: ChatRequest) -> Reply:
        """Sample the next turn.

        Raises:
            ApiError: a limit is reached, or the history is not the agent's.
        """
        # Clients ask again after a failure. The episode is lost.
        if self.failure is not None:
            raise ApiError(400, "episode_failed", f"The episode has failed: {self.failure}")
        if self._running is not None:
            raise self._fail(REWRITTEN)
        self._running = asyncio.ensure_future(self._next_turn(request))
        try:
            return await asyncio.shield(self._running)
        except asyncio.CancelledError:
            raise ApiError(410, "agent_ended", "The agent has ended.") from None
        except ApiError:
            raise
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._running = None

    def close(self) -> None:
        """End the agent, also in the middle of a turn."""
        if self._running is not None:
            self._running.cancel()
        self._policy.engine.release(self._spec.session)

    async def _next_turn(self, request: ChatRequest) -> Reply:
        check_images(self._policy, request)
        num_old = request.history_length
        if self.conversation is None:
            # A history of before the first turn: somebody else's words in the policy's mouth.
            if num_old:
                raise self._fail(REWRITTEN)
            self.conversation = Conversation.begin(
                self._spec.id, self._spec.session, self._policy, request
            )
        else:
            old = request.messages[:num_old]
            if history_key("", request.tools, old) != self._last_history:
                raise self._fail(REWRITTEN)
            self._read(self.conversation, request.messages[num_old:])
        conversation = self.conversation
        room, limit = self._room(conversation, request.max_tokens)
        if room <= 0:
            raise self._end(limit)
        # The role's temperature, whatever the client asks for: the loss takes log-probs at it.
        seed = seed_for(self._spec.seed, len(conversation.turns))
        reply = await conversation.sample_turn(room, self._sampling.temperature, seed)
        self.stop = limit if reply.finish == "length" else None
        messages = (*request.messages, reply.message)
        self._last_history = history_key("", request.tools, messages)
        return reply

    def _read(self, conversation: Conversation, news: Sequence[Message]) -> None:
        """Feed the messages that answer the last turn, if there may be another one."""
        texts, ids = conversation.render_observations(news)
        conversation.record_observations(texts, self.env_calls)
        self.env_calls = 0
        # In the order of PARL's loop, so that both end with the same reason.
        budget = self._token_budget
        if budget is not None and num_generated(conversation.turns) >= budget:
            raise self._end("token_budget")
        if len(conversation.turns) >= self._limits.turns:
            raise self._end("turns")
        if len(conversation.tape.ids) + len(ids) >= self._limits.context_tokens:
            raise self._end("context_tokens")
        conversation.feed(news, ids)

    def _room(self, conversation: Conversation, requested: int | None) -> tuple[int, str]:
        """Return the tokens that the next turn may have, and the limit that says so."""
        max_tokens = self._sampling.max_tokens
        if requested:
            max_tokens = min(max_tokens, requested)
        num_written = num_generated(conversation.turns)
        return room_for_turn(self._limits, max_tokens, len(conversation.tape.ids), num_written)

    def _end(self, limit: str) -> ApiError:
        self.stop = limit
        # Clients know this code, and shorten their history or give up.
        code = "context_length_exceeded" if limit == "context_tokens" else "limit_reached"
        return ApiError(
            400, code, f"The agent has reached its limit `{limit}`: answer with what there is."
        )

    def _fail(self, why: str) -> ApiError:
        self.failure = _failure(why)
        return ApiError(400, "history_rewritten", f"The episode has failed: {why}.", "messages")


def _failure(why: str) -> EpisodeFailure:
    return EpisodeFailure("external_agent", why)
