"""One agent in one environment, until it answers or reaches a limit.

Its tokens go to one tape, as they were fed or sampled, and are never rendered again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from parl.config.roles import Limits, Sampling
from parl.core.messages import Message
from parl.core.seeds import seed_for
from parl.core.types import AgentTrace, Role, Status, ToolCall, Turn
from parl.env.base import ANSWER_NOW
from parl.env.tools import ToolSpec
from parl.policy.base import Generation, PolicyHandle, Request, WindowFull
from parl.policy.tape import Tape, images_in

ANSWER_RESERVE = 0.25
"""Share of the window kept free for the answer when `on_overflow: answer`."""


@dataclass(frozen=True, slots=True)
class ToolResults:
    """How the tool calls of a turn were answered."""

    observations: tuple[str, ...]
    """One text per call."""
    env_calls: int
    """How many of them ran in the environment."""
    stop: str | None = None
    """A reason to end the agent as truncated after this turn (a budget of the episode)."""


Dispatch = Callable[[Sequence[ToolCall], int, int], Awaitable[ToolResults]]
"""(calls of a turn, index of the turn, tokens that the agent has written, this turn's included) ->
their results."""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """Who the agent is and what its task is."""

    id: str
    role: Role
    parent: str | None
    spawned_at: int | None
    name: str
    system: str
    prompt: str
    session: str
    """Unique over all episodes that share the engine."""
    seed: str
    """Its random stream is (seed, turn)."""
    forced_prefix: str = ""
    """Text that the first turn must begin with (a diagnostic: what if it had decided to spawn?)."""


@dataclass(frozen=True, slots=True)
class _Ending:
    status: Status
    reason: str
    result: str = ""


async def run_agent(
    spec: AgentSpec,
    policy: PolicyHandle,
    tools: Sequence[ToolSpec],
    limits: Limits,
    sampling: Sampling,
    dispatch: Dispatch,
) -> AgentTrace:
    """Generate turns until an answer or a limit.

    Args:
        dispatch: answers the tool calls of a turn.
    Returns:
        a trace that is completed, or truncated with the limit's name as `stop_reason`.
    """
    agent = _Agent(spec, policy, tools, limits, sampling, dispatch)
    try:
        return await agent.run()
    finally:
        # Also when a deadline or a failure ends it: the engine keeps a state per session.
        policy.engine.release(spec.session)


class _Agent:
    """The state of one running agent."""

    def __init__(
        self,
        spec: AgentSpec,
        policy: PolicyHandle,
        tools: Sequence[ToolSpec],
        limits: Limits,
        sampling: Sampling,
        dispatch: Dispatch,
    ) -> None:
        self.spec = spec
        self.policy = policy
        self.tools = tools
        self.limits = limits
        self.sampling = sampling
        self.dispatch = dispatch
        renderer = policy.renderer
        # An endpoint is given the tools as data, and its server writes them into the prompt.
        prompt_tools = tools if policy.tools_in_prompt else ()
        prompt = renderer.start(spec.system, prompt_tools, spec.prompt)
        self.tape = Tape(prompt, images_in(renderer, (spec.system, spec.prompt)))
        # Endpoints read messages and not ids, so both forms of the context grow together.
        self.messages = _opening_messages(spec)
        self.turns: list[Turn] = []
        self.was_told_to_answer = False

    async def run(self) -> AgentTrace:
        while True:
            ending = await self._take_turn()
            if ending is not None:
                return trace_of(
                    self.spec,
                    self.policy,
                    self.tape,
                    self.turns,
                    ending.status,
                    ending.reason,
                    ending.result,
                )

    async def _take_turn(self) -> _Ending | None:
        """Sample a turn, run its calls, and feed what they returned. None: the agent goes on."""
        start = len(self.tape.ids)
        num_written = num_generated(self.turns)
        prefix: list[int] = []
        if self.spec.forced_prefix and not self.turns:
            prefix = self.policy.renderer.encode(self.spec.forced_prefix)
        num_context = start + len(prefix)
        room, limit = room_for_turn(self.limits, self.sampling.max_tokens, num_context, num_written)
        if room <= 0:
            return _Ending("truncated", limit)
        # Fed, not sampled: it is part of the turn's text but carries no loss.
        self.tape.feed(prefix)
        try:
            generation = await self.policy.engine.generate(self._request(room))
        except WindowFull:
            # An endpoint's window may be smaller than the role's limit.
            return _Ending("truncated", "context_tokens")
        start, text, calls = self._record(start, generation)
        is_cut = generation.finish == "length"
        results = ToolResults((), 0)
        # A cut turn may end in the middle of a call, so none of its calls runs.
        if calls and not is_cut:
            num_written += len(self.tape.ids) - start
            results = await self.dispatch(calls, len(self.turns), num_written)
        turn = Turn(
            text,
            calls,
            results.observations,
            start,
            len(self.tape.ids),
            generation.versions,
            results.env_calls,
        )
        self.turns.append(turn)
        if is_cut:
            return _Ending("truncated", limit, "" if calls else text)
        if not calls:
            return _Ending("completed", "answer", text)
        return self._limit_reached(results) or self._feed(turn)

    def _request(self, max_tokens: int) -> Request:
        # A seed per (agent, turn): what is drawn does not depend on the other agents in a batch.
        return Request(
            self.spec.session,
            tuple(self.tape.ids),
            tuple(self.messages),
            max_tokens,
            self.sampling.temperature,
            seed_for(self.spec.seed, len(self.turns)),
            self.policy.adapter,
            tuple(self.tools),
            tuple(self.tape.images),
        )

    def _record(self, start: int, generation: Generation) -> tuple[int, str, tuple[ToolCall, ...]]:
        """Put a turn on the tape, and return its start, its text and its calls."""
        as_text = generation.as_text
        if as_text is not None:
            # An endpoint counts the context in its own way, so the turn may start elsewhere.
            num_known = self.turns[-1].end if self.turns else 0
            start = self.tape.feed_counted(as_text.num_prompt, num_known)
        self.tape.add_sampled(generation.token_ids, generation.logprobs, generation.mask)
        if as_text is not None:
            return start, as_text.text, as_text.calls
        text, calls = self.policy.renderer.parse(self.tape.ids[start:])
        return start, text, calls

    def _limit_reached(self, results: ToolResults) -> _Ending | None:
        # A budget of the episode comes first: it holds even where the agent's limits have room.
        if results.stop:
            return _Ending("truncated", results.stop)
        if len(self.turns) >= self.limits.turns:
            return _Ending("truncated", "turns")
        # It was told to answer and has called tools instead.
        if self.was_told_to_answer:
            return _Ending("truncated", "context_tokens")
        return None

    def _feed(self, turn: Turn) -> _Ending | None:
        """Feed the observations of a turn, if the window has room for them."""
        renderer = self.policy.renderer
        sampled = self.tape.ids[turn.start :]
        observations = turn.observations
        ids = renderer.observe(observations, sampled)
        usable = self.limits.context_tokens * (1 - ANSWER_RESERVE)
        if self.limits.on_overflow == "answer" and len(self.tape.ids) + len(ids) > usable:
            self.was_told_to_answer = True
            observations = (ANSWER_NOW,)
            # A turn records what the agent read, and this one's results are never fed.
            self.turns[-1] = replace(turn, observations=observations)
            ids = renderer.observe(observations, sampled)
        # A window that is full has no room for the next turn.
        if len(self.tape.ids) + len(ids) >= self.limits.context_tokens:
            return _Ending("truncated", "context_tokens")
        self.tape.feed(ids, images_in(renderer, observations))
        self.messages += _exchange(turn.text, turn.tool_calls, observations)
        return None


def num_generated(turns: Sequence[Turn]) -> int:
    """Count the tokens that an agent has written in its turns."""
    return sum(turn.end - turn.start for turn in turns)


def room_for_turn(
    limits: Limits, max_tokens: int, num_context: int, num_written: int
) -> tuple[int, str]:
    """Return how many tokens the next turn may have, and the limit that says so.

    Args:
        max_tokens: of one turn.
        num_context: tokens of the context before the turn.
        num_written: tokens that the agent has written before it.
    """
    rooms = {"max_tokens": max_tokens, "context_tokens": limits.context_tokens - num_context}
    if limits.tokens is not None:
        rooms["tokens"] = limits.tokens - num_written
    # Of equal rooms, the first name in the alphabet: any fixed order would do.
    return min((room, name) for name, room in rooms.items())


def trace_of(
    spec: AgentSpec,
    policy: PolicyHandle,
    tape: Tape,
    turns: Sequence[Turn],
    status: Status,
    reason: str,
    result: str,
) -> AgentTrace:
    """Return an agent's trace: the tape as it was fed and sampled."""
    return AgentTrace(
        id=spec.id,
        role=spec.role,
        parent=spec.parent,
        spawned_at=spec.spawned_at,
        name=spec.name,
        prompt=spec.prompt,
        policy=policy.name,
        turns=tuple(turns),
        status=status,
        stop_reason=reason,
        result=result,
        token_ids=tuple(tape.ids),
        mask=tuple(tape.mask),
        logprobs=tuple(tape.logprobs),
        images=tuple(tape.images),
    )


def _opening_messages(spec: AgentSpec) -> list[Message]:
    messages: list[Message] = []
    if spec.system:
        messages.append({"role": "system", "content": spec.system, "tool_calls": []})
    messages.append({"role": "user", "content": spec.prompt, "tool_calls": []})
    return messages


def _exchange(text: str, calls: Sequence[ToolCall], observations: Sequence[str]) -> list[Message]:
    """Return a turn and its observations as messages, for engines that do not read tokens."""
    tool_calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    messages: list[Message] = [{"role": "assistant", "content": text, "tool_calls": tool_calls}]
    for observation in observations:
        messages.append({"role": "tool", "content": observation, "tool_calls": []})
    return messages
