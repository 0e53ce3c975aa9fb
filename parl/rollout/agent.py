"""One agent in one environment until it is done.

In: its prompt, a policy, its limits, and `dispatch`, which answers tool calls. Out: an `AgentTrace`. Tokens are
appended to one list, as they were sampled or fed, and never rendered again.
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
    """How tool calls were answered: one text per call, and how many of them ran in the environment."""

    observations: tuple[str, ...]
    env_calls: int
    stop: str | None = None
    """A reason to end the agent as truncated after this turn (a budget of the episode)."""


Dispatch = Callable[[Sequence[ToolCall], int, int], Awaitable[ToolResults]]
"""(calls of the turn, index of the turn, tokens that the agent has written so far, this turn's included) -> answers."""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """Who the agent is and what it was told."""

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


async def run_agent(
    spec: AgentSpec,
    policy: PolicyHandle,
    tools: Sequence[ToolSpec],
    limits: Limits,
    sampling: Sampling,
    dispatch: Dispatch,
) -> AgentTrace:
    """Generate turns until an answer (completed) or a limit (truncated, with the limit's name as `stop_reason`)."""
    try:
        return await _run(spec, policy, tools, limits, sampling, dispatch)
    finally:
        policy.engine.release(spec.session)  # also when a deadline or a failure ends it


async def _run(
    spec: AgentSpec,
    policy: PolicyHandle,
    tools: Sequence[ToolSpec],
    limits: Limits,
    sampling: Sampling,
    dispatch: Dispatch,
) -> AgentTrace:
    renderer = policy.renderer
    prompt = renderer.start(spec.system, tools if policy.tools_in_prompt else (), spec.prompt)
    tape = Tape(prompt, images_in(renderer, (spec.system, spec.prompt)))
    messages = _opening(spec)
    turns: list[Turn] = []
    told_to_answer = False
    status: Status = "truncated"
    result, reason = "", "context_tokens"
    while True:
        start = len(tape.ids)
        prefix = renderer.encode(spec.forced_prefix) if spec.forced_prefix and not turns else []
        spent = sum(t.end - t.start for t in turns)
        rooms = {
            "max_tokens": sampling.max_tokens,
            "context_tokens": limits.context_tokens - start - len(prefix),
        }
        if limits.tokens is not None:
            rooms["tokens"] = limits.tokens - spent
        room, bound = min((most, name) for name, most in rooms.items())
        if room <= 0:
            reason = bound
            break
        tape.feed(prefix)
        request = Request(
            spec.session,
            tuple(tape.ids),
            tuple(messages),
            room,
            sampling.temperature,
            seed_for(spec.seed, len(turns)),
            policy.adapter,
            tuple(tools),
            tuple(tape.images),
        )
        try:
            generation = await policy.engine.generate(request)
        except WindowFull:
            break
        start, text, calls = _record(policy, tape, start, turns, generation)
        said = tape.ids[start:]
        cut = generation.finish == "length"
        answered = ToolResults((), 0)
        if calls and not cut:
            answered = await dispatch(calls, len(turns), spent + len(tape.ids) - start)
        turns.append(
            Turn(
                text,
                calls,
                answered.observations,
                start,
                len(tape.ids),
                generation.versions,
                answered.env_calls,
            )
        )
        if cut or not calls:
            status, reason = ("truncated", bound) if cut else ("completed", "answer")
            result = "" if calls else text
            break
        if answered.stop or len(turns) >= limits.turns or told_to_answer:
            reason = answered.stop or ("turns" if len(turns) >= limits.turns else "context_tokens")
            break
        observations = answered.observations
        fed = renderer.observe(observations, said)
        if limits.on_overflow == "answer" and len(tape.ids) + len(fed) > limits.context_tokens * (
            1 - ANSWER_RESERVE
        ):
            told_to_answer, observations = True, (ANSWER_NOW,)
            turns[-1] = replace(
                turns[-1], observations=observations
            )  # a turn records what the agent read
            fed = renderer.observe(observations, said)
        if len(tape.ids) + len(fed) >= limits.context_tokens:
            reason = "context_tokens"
            break
        tape.feed(fed, images_in(renderer, observations))
        messages += _exchange(text, calls, observations)
    return trace_of(spec, policy, tape, turns, status, reason, result)


def _record(
    policy: PolicyHandle, tape: Tape, start: int, turns: Sequence[Turn], generation: Generation
) -> tuple[int, str, tuple[ToolCall, ...]]:
    """Put a turn on the tape. Returns where it begins, its text and its calls."""
    as_text = generation.as_text
    if as_text is not None:
        start = tape.feed_counted(as_text.num_prompt, turns[-1].end if turns else 0)
    tape.add_sampled(generation.token_ids, generation.logprobs, generation.mask)
    if as_text is not None:
        return start, as_text.text, as_text.calls
    return start, *policy.renderer.parse(tape.ids[start:])


def trace_of(
    spec: AgentSpec,
    policy: PolicyHandle,
    tape: Tape,
    turns: Sequence[Turn],
    status: Status,
    reason: str,
    result: str,
) -> AgentTrace:
    """What an agent did, as it is trained on: the tape as it was fed and sampled."""
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


def _opening(spec: AgentSpec) -> list[Message]:
    system: list[Message] = (
        [{"role": "system", "content": spec.system, "tool_calls": []}] if spec.system else []
    )
    return [*system, {"role": "user", "content": spec.prompt, "tool_calls": []}]


def _exchange(text: str, calls: Sequence[ToolCall], observations: Sequence[str]) -> list[Message]:
    said: Message = {
        "role": "assistant",
        "content": text,
        "tool_calls": [{"name": c.name, "arguments": dict(c.arguments)} for c in calls],
    }
    heard: list[Message] = [{"role": "tool", "content": o, "tool_calls": []} for o in observations]
    return [said, *heard]
