"""The virtual clock: how long an episode would take on a server with given rates and slots.

In: the finished traces of one episode and the rates. Out: a `Clock` (latency, total work, one span per turn).
Nothing here looks at the wall clock: the same traces give the same seconds on every machine.

A turn holds one decode slot while it reads the tokens that are new in its context (prefill) and writes its
own (decode). Then its environment calls start together, each in one tool slot, and the subagents that it
launched become ready, at most `max_concurrency` of them at a time in order of assignment. The agent's next
turn is ready when all of these are done. Whoever was ready first goes first; ties go by agent order in
`traces`, then by turn. A span runs from the start of the prefill to the end of the turn's environment calls
(subagents have spans of their own).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from parl.config.roles import ClockConfig
from parl.core.types import AgentTrace, Clock, Span, Turn

SWARM_TOOLS = frozenset({"create_subagent", "assign_task"})
"""Answered by the runtime itself: they cost no time."""


def schedule(
    traces: Sequence[AgentTrace], config: ClockConfig, max_concurrency: int | None = None
) -> Clock:
    """Deterministic list scheduling of one episode.

    Args:
        traces: the orchestrator's first, then its subagents in order of assignment.
        config: rates, slots and latencies.
        max_concurrency: subagents that run at once; None = all.
    """
    simulation = _Simulation(traces, config, max_concurrency)
    simulation.run()
    spans = tuple(
        Span(trace.id, turn, *simulation.spans[agent, turn])
        for agent, trace in enumerate(traces)
        for turn in range(len(trace.turns))
    )
    return Clock(simulation.now, simulation.serial_s, spans)


def generation_s(trace: AgentTrace, turn: int, config: ClockConfig) -> float:
    """Prefill of what is new in the context since the agent's last turn, and decoding of the turn."""
    this = trace.turns[turn]
    known = trace.turns[turn - 1].end if turn else 0
    return (this.start - known) / config.prefill_tokens_per_s + (
        this.end - this.start
    ) / config.decode_tokens_per_s


def tool_seconds(turn: Turn, config: ClockConfig) -> list[float]:
    """Latency of each call that ran: the first `env_calls` well-formed ones that are not the swarm's."""
    ran = [c.name for c in turn.tool_calls if c.error is None and c.name not in SWARM_TOOLS][
        : turn.env_calls
    ]
    return [config.tool_latency_s.get(name, config.default_tool_latency_s) for name in ran]


Step = tuple[int, int]
"""(index of the agent in the traces, index of its turn)."""


@dataclass
class _Slots:
    """Jobs that wait for one of `num` slots (None = unlimited), earliest ready first."""

    num: int | None
    used: int = 0
    waiting: list[tuple[float, int, int, int, float]] = field(default_factory=list)
    """Heap of (ready, agent, turn, index within the turn, seconds)."""

    def pop(self) -> tuple[Step, float] | None:
        """The next job that may start now, with its duration; it takes a slot."""
        if not self.waiting or (self.num is not None and self.used >= self.num):
            return None
        _, agent, turn, _, seconds = heapq.heappop(self.waiting)
        self.used += 1
        return (agent, turn), seconds


class _Simulation:
    """Event simulation. All that happens at one instant is booked before the free slots are given away."""

    def __init__(
        self, traces: Sequence[AgentTrace], config: ClockConfig, max_concurrency: int | None
    ) -> None:
        self.traces, self.config, self.max_concurrency = traces, config, max_concurrency
        self.now = 0.0
        self.serial_s = 0.0
        self.spans: dict[Step, tuple[float, float]] = {}
        self._decode, self._tools = _Slots(config.decode_slots), _Slots(config.tool_slots)
        self._events: list[
            tuple[float, int, int, bool]
        ] = []  # heap of (time, agent, turn, is_tool)
        self._pending: dict[
            Step, int
        ] = {}  # tool calls and subagents that a decoded turn still waits for
        self._queue: list[int] = []  # assigned subagents that have not been admitted
        self._running = 0
        self._children: dict[Step, list[int]] = {}
        index = {trace.id: i for i, trace in enumerate(traces)}
        self._parent: dict[int, Step] = {}
        for child, trace in enumerate(traces):
            if trace.parent is not None:
                assert trace.spawned_at is not None
                step = (index[trace.parent], trace.spawned_at)
                self._parent[child] = step
                self._children.setdefault(step, []).append(child)

    def run(self) -> None:
        for agent in range(len(self.traces)):
            if agent not in self._parent:
                self._ready(agent, 0)
        self._dispatch()
        while self._events:
            self.now = self._events[0][0]
            while self._events and self._events[0][0] == self.now:
                _, agent, turn, is_tool = heapq.heappop(self._events)
                (self._tool_done if is_tool else self._decoded)((agent, turn))
            self._dispatch()

    def _dispatch(self) -> None:
        """Give free slots to waiting jobs."""
        for slots, is_tool in ((self._decode, False), (self._tools, True)):
            while (job := slots.pop()) is not None:
                (agent, turn), seconds = job
                self.serial_s += seconds
                if not is_tool:
                    self.spans[agent, turn] = (self.now, self.now)
                heapq.heappush(self._events, (self.now + seconds, agent, turn, is_tool))

    def _ready(self, agent: int, turn: int) -> None:
        """The agent may take its next turn; without one it has finished."""
        trace = self.traces[agent]
        if turn < len(trace.turns):
            seconds = generation_s(trace, turn, self.config)
            heapq.heappush(self._decode.waiting, (self.now, agent, turn, 0, seconds))
        elif agent in self._parent:
            self._running -= 1
            self._admit()
            self._one_done(self._parent[agent])

    def _decoded(self, step: Step) -> None:
        agent, turn = step
        self._decode.used -= 1
        self.spans[step] = (self.spans[step][0], self.now)
        seconds = tool_seconds(self.traces[agent].turns[turn], self.config)
        children = self._children.get(step, [])
        for i, latency in enumerate(seconds):
            heapq.heappush(self._tools.waiting, (self.now, agent, turn, i, latency))
        self._pending[step] = len(seconds) + len(children) + 1  # one for the turn itself
        self._queue.extend(children)
        self._admit()
        self._one_done(step)

    def _tool_done(self, step: Step) -> None:
        self._tools.used -= 1
        self.spans[step] = (self.spans[step][0], self.now)
        self._one_done(step)

    def _one_done(self, step: Step) -> None:
        self._pending[step] -= 1
        if not self._pending[step]:
            self._ready(step[0], step[1] + 1)

    def _admit(self) -> None:
        while self._queue and (
            self.max_concurrency is None or self._running < self.max_concurrency
        ):
            self._running += 1
            self._ready(self._queue.pop(0), 0)
