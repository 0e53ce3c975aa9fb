"""An agent that is written with somebody else's framework, in place of our agent loop.

In: the task, and a function `async def run(task, base_url, api_key, env) -> answer` that the config names. It asks the
policy at `base_url`, as any OpenAI-compatible endpoint, and the environment by `env`. Out: the same
`AgentTrace` as our own loop makes, with the ids that were sampled.
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
from parl.rollout.agent import AgentSpec, trace_of
from parl.rollout.env_calls import EpisodeFailure, env_calls

REWRITTEN = (
    "it has sent another history than its agent's: trained tokens would not be the sampled ones. An agent has one "
    "conversation, which only grows: send the messages back as they came, with the same tools, one request at a time"
)


class Tools:
    """The environment as a harness sees it (its `env`)."""

    def __init__(
        self, specs: Sequence[ToolSpec], call: Callable[[ToolCall], Awaitable[str]]
    ) -> None:
        self._call = call
        self.tools: list[dict[str, Any]] = [
            {"type": "function", "function": s.model_dump()} for s in specs
        ]
        """What the `tools` of a request may be."""
        self.failure: Exception | None = None
        """What the environment raised, whatever the harness made of it."""

    async def call(self, name: str, arguments: str | Mapping[str, Any]) -> str:
        """Run a tool. `arguments`: a mapping, or the JSON text of a tool call. Bad calls get an error text."""
        try:
            parsed = (
                json.loads(arguments or "{}") if isinstance(arguments, str) else dict(arguments)
            )
        except ValueError as error:
            return f"error: {name}: arguments are not JSON: {error}"
        if not isinstance(parsed, dict):
            return f"error: {name}: arguments must be a JSON object"
        try:
            return await self._call(ToolCall(name, parsed))
        except Exception as error:
            self.failure = error
            raise


Harness = Callable[[Task, str, str, Tools], Awaitable[str]]


def _failed(why: str) -> EpisodeFailure:
    return EpisodeFailure("external_agent", why)


def load_external_agent(role: Role, name: str) -> Harness:
    """The function of `module:function`. Raises ConfigError."""
    module, _, function = name.partition(":")
    where = f"roles.{role}.external_agent is '{name}'"
    try:
        found: Harness = getattr(importlib.import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{where}, which cannot be imported: {error}. Write module:function, of a module that is installed or on "
            "PYTHONPATH."
        ) from error
    if not inspect.iscoroutinefunction(found):
        raise ConfigError(
            f"{where}, which is no coroutine function; write `async def {function}(task, base_url, api_key, env)`."
        )
    return found


class _Agent:
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
        self._spec, self._policy, self._limits, self._sampling = spec, policy, limits, sampling
        self._token_budget = token_budget
        self._known = ""
        self._running: asyncio.Future[Reply] | None = None
        self.conversation: Conversation | None = None
        self.env_calls = 0
        """Environment calls since the last turn."""
        self.stop: str | None = None
        """The limit that has ended the agent, if one has."""
        self.failure: Exception | None = None

    async def chat(self, request: ChatRequest) -> Reply:
        """The next turn. Raises ApiError: a limit is reached, or the history is not the agent's."""
        if (
            self.failure is not None
        ):  # asked again, as clients do after a failure: the episode is lost
            raise ApiError(400, "episode_failed", f"The episode has failed: {self.failure}")
        if self._running is not None:
            raise self._fail(REWRITTEN)
        self._running = asyncio.ensure_future(self._next(request))
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
        """The agent has ended, also in the middle of a turn."""
        if self._running is not None:
            self._running.cancel()
        self._policy.engine.release(self._spec.session)

    async def _next(self, request: ChatRequest) -> Reply:
        said, spec = request.history_length, self._spec
        check_images(self._policy, request)
        if self.conversation is None:
            if said:
                raise self._fail(REWRITTEN)
            self.conversation = Conversation.begin(spec.id, spec.session, self._policy, request)
        else:
            if history_key("", request.tools, request.messages[:said]) != self._known:
                raise self._fail(REWRITTEN)
            self._hear(self.conversation, request.messages[said:])
        talk = self.conversation
        room, bound = self._room(talk, request.max_tokens)
        if room <= 0:
            raise self._end(bound)
        reply = await talk.sample_turn(
            room, self._sampling.temperature, seed_for(spec.seed, len(talk.turns))
        )
        self.stop = bound if reply.finish == "length" else None
        self._known = history_key("", request.tools, (*request.messages, reply.message))
        return reply

    def _hear(self, talk: Conversation, news: Sequence[Message]) -> None:
        """Feed what answers the last turn, if there may be another one."""
        texts, ids = talk.render_observations(news)
        talk.record_observations(texts, self.env_calls)
        self.env_calls = 0
        spent = sum(t.end - t.start for t in talk.turns)
        if self._token_budget is not None and spent >= self._token_budget:
            raise self._end("token_budget")
        if len(talk.turns) >= self._limits.turns:
            raise self._end("turns")
        if len(talk.tape.ids) + len(ids) >= self._limits.context_tokens:
            raise self._end("context_tokens")
        talk.feed(news, ids)

    def _room(self, talk: Conversation, asked: int | None) -> tuple[int, str]:
        """Tokens that the next turn may have, and the limit that says so: as in our own loop."""
        limits = self._limits
        rooms = {"max_tokens": min(self._sampling.max_tokens, asked or self._sampling.max_tokens)}
        rooms["context_tokens"] = limits.context_tokens - len(talk.tape.ids)
        if limits.tokens is not None:
            rooms["tokens"] = limits.tokens - sum(t.end - t.start for t in talk.turns)
        return min((most, name) for name, most in rooms.items())

    def _end(self, limit: str) -> ApiError:
        self.stop = limit
        code = "context_length_exceeded" if limit == "context_tokens" else "limit_reached"
        return ApiError(
            400, code, f"The agent has reached its limit `{limit}`: answer with what there is."
        )

    def _fail(self, why: str) -> ApiError:
        self.failure = _failed(why)
        return ApiError(400, "history_rewritten", f"The episode has failed: {why}.", "messages")


async def run_external_agent(
    spec: AgentSpec,
    policy: PolicyHandle,
    world: AgentEnv,
    limits: Limits,
    sampling: Sampling,
    token_budget: int | None,
    task: Task,
    gateway: Gateway,
    external_agent: Harness,
) -> AgentTrace:
    """Let the harness work on the task until it answers (completed) or has met a limit (truncated, as in `run_agent`).

    A harness that meets a limit may still answer with what it has. Raises what environment and engine raised, and
    EpisodeFailure `external_agent` for what it did wrong itself.
    """
    agent = _Agent(spec, policy, limits, sampling, token_budget)

    async def counted(one: ToolCall) -> str:
        if limits.env_calls_per_turn is not None and agent.env_calls >= limits.env_calls_per_turn:
            return f"error: at most {limits.env_calls_per_turn} environment call(s) per turn"
        agent.env_calls += 1
        return (await env_calls(world, [one]))[0]

    env = Tools(world.tool_specs(), counted)
    answer, error = "", None
    async with gateway.open(spec.session.rpartition("/")[0], spec.id, agent) as address:
        try:
            answer = await external_agent(task, address.base_url, address.api_key, env)
        except Exception as raised:
            error = raised
        finally:
            agent.close()
    failure = env.failure or agent.failure
    if failure is not None:
        raise failure
    if error is not None and agent.stop is None:
        raise _failed(repr(error)) from error
    if not isinstance(answer, str):
        raise _failed(f"it returned {type(answer).__name__}, not its answer as a text")
    if agent.conversation is None or not agent.conversation.turns:
        raise _failed("it has never asked the policy at its base_url")
    if agent.env_calls:  # it answered by itself after these
        agent.conversation.record_observations((), agent.env_calls)
    talk = agent.conversation
    status: Status = "completed" if agent.stop is None else "truncated"
    return trace_of(spec, policy, talk.tape, talk.turns, status, agent.stop or "answer", answer)
