"""The virtual clock: how long an episode would take on a server with given rates and slots.

Nothing here looks at the wall clock: the same traces give the same seconds on every machine.

A turn holds one decode slot while it reads the tokens that are new in its context (prefill) and
writes its tokens (decode). Then its environment calls start together, each in one tool slot, and
the subagents that it launched become ready, at most `max_concurrency` of them at a time in order of
assignment. The agent's next turn is ready when all of these are done. Whoever was ready first goes
first; ties go by agent order in `traces`, then by turn. A span runs from the start of the prefill
to the end of the turn's environment calls (the turns of subagents have their own spans).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from parl.config.roles import ClockConfig
from parl.core.types import AgentTrace, Clock, Span, Turn
from parl.env.swarm_tools import ASSIGN, CREATE

Step = tuple[int, int]
"""(index of the agent in the traces, index of its turn)."""
Event = tuple[float, int, int, bool]
"""(time in seconds, index of the agent, index of its turn, whether a tool call ended)."""


def schedule(
    traces: Sequence[AgentTrace], config: ClockConfig, max_concurrency: int | None = None
) -> Clock:
    """Schedule the turns and calls of one episode.

    Args:
        traces: the orchestrator's first, then its subagents in order of assignment.
        config: rates, slots and latencies.
        max_concurrency: subagents that run at once; None = all.
    Returns:
        the latency of the episode, its total work, and one span per turn.
    """
    simulation = _Simulation(traces, config, max_concurrency)
    simulation.run()
    spans: list[Span] = []
    for agent, trace in enumerate(traces):
        for turn in range(len(trace.turns)):
            start, end = simulation.spans[agent, turn]
            spans.append(Span(trace.id, turn, start, end))
    return Clock(simulation.now, simulation.serial_s, tuple(spans))


def generation_s(trace: AgentTrace, turn: int, config: ClockConfig) -> float:
    """Return the seconds of a turn's prefill and decoding.

    Prefill reads what is new in the context since the agent's last turn: a server keeps the rest.
    """
    this = trace.turns[turn]
    num_known = trace.turns[turn - 1].end if turn else 0
    prefill_s = (this.start - num_known) / config.prefill_tokens_per_s
    decode_s = (this.end - this.start) / config.decode_tokens_per_s
    return prefill_s + decode_s


def tool_seconds(turn: Turn, config: ClockConfig) -> list[float]:
    """Return the latency of each environment call of a turn that ran."""
    # The runtime answers the swarm's tools itself: they cost no time.
    names = []
    for call in turn.tool_calls:
        if call.error is None and call.name not in (CREATE, ASSIGN):
            names.append(call.name)
    # A limit of calls per turn lets the first ones run.
    names = names[: turn.env_calls]
    return [config.tool_latency_s.get(name, config.default_tool_latency_s) for name in names]


@dataclass
class _Slots:
    """Jobs that wait for one of `num` slots (None = unlimited), earliest ready first."""

    num: int | None
    num_used: int = 0
    waiting: list[tuple[float, int, int, int, float]] = field(default_factory=list)
    """Heap of (ready, agent, turn, index within the turn, seconds)."""

    def pop(self) -> tuple[Step, float] | None:
        """Give a slot to the next job, and return its step and seconds.

        None if nothing may start.
        """
        is_full = self.num is not None and self.num_used >= self.num
        if is_full or not self.waiting:
            return None
        _, agent, turn, _, seconds = heapq.heappop(self.waiting)
        self.num_used += 1
        return (agent, turn), seconds


class _Simulation:
    """An event simulation of one episode."""

    def __init__(
        self, traces: Sequence[AgentTrace], config: ClockConfig, max_concurrency: int | None
    ) -> None:
        self.traces = traces
        self.config = config
        self.max_concurrency = max_concurrency
        self.now = 0.0
        self.serial_s = 0.0
        self.spans: dict[Step, tuple[float, float]] = {}
        self._decode = _Slots(config.decode_slots)
        self._tools = _Slots(config.tool_slots)
        # A heap of tuples: at equal times the first agent goes first, then the first turn.
        self._events: list[Event] = []
        self._num_pending: dict[Step, int] = {}
        """Tool calls and subagents that a decoded turn still waits for."""
        self._queue: list[int] = []
        """Assigned subagents that do not run yet."""
        self._num_running = 0
        """Subagents that run."""
        self._children: dict[Step, list[int]] = {}
        self._parent: dict[int, Step] = {}
        self._link_parents()

    def run(self) -> None:
        """Play all events."""
        for agent in range(len(self.traces)):
            if agent not in self._parent:
                self._make_ready(agent, 0)
        self._fill_slots()
        while self._events:
            self.now = self._events[0][0]
            # All that happens at one instant is booked before the free slots are given away: the
            # order of equal times must not matter.
            while self._events and self._events[0][0] == self.now:
                _, agent, turn, is_tool = heapq.heappop(self._events)
                if is_tool:
                    self._end_tool((agent, turn))
                else:
                    self._end_decode((agent, turn))
            self._fill_slots()

    def _link_parents(self) -> None:
        index_of = {trace.id: index for index, trace in enumerate(self.traces)}
        for child, trace in enumerate(self.traces):
            if trace.parent is not None:
                assert trace.spawned_at is not None
                step = (index_of[trace.parent], trace.spawned_at)
                self._parent[child] = step
                self._children.setdefault(step, []).append(child)

    def _fill_slots(self) -> None:
        """Give free slots to waiting jobs."""
        for slots, is_tool in ((self._decode, False), (self._tools, True)):
            while (job := slots.pop()) is not None:
                (agent, turn), seconds = job
                # Total work: what the episode would take one job after the other.
                self.serial_s += seconds
                if not is_tool:
                    self.spans[agent, turn] = (self.now, self.now)
                heapq.heappush(self._events, (self.now + seconds, agent, turn, is_tool))

    def _make_ready(self, agent: int, turn: int) -> None:
        """Let an agent take a turn. One that has no such turn is finished."""
        trace = self.traces[agent]
        if turn < len(trace.turns):
            seconds = generation_s(trace, turn, self.config)
            heapq.heappush(self._decode.waiting, (self.now, agent, turn, 0, seconds))
        # A subagent has ended: its place and its parent's turn are free of it. The orchestrator's
        # end is the end of the simulation.
        elif agent in self._parent:
            self._num_running -= 1
            self._admit()
            self._finish_one(self._parent[agent])

    def _end_decode(self, step: Step) -> None:
        agent, turn = step
        self._decode.num_used -= 1
        self.spans[step] = (self.spans[step][0], self.now)
        latencies = tool_seconds(self.traces[agent].turns[turn], self.config)
        children = self._children.get(step, [])
        for i, latency in enumerate(latencies):
            heapq.heappush(self._tools.waiting, (self.now, agent, turn, i, latency))
        # One for the turn itself, so that a subagent without turns cannot end the step before all
        # of its jobs are booked.
        self._num_pending[step] = len(latencies) + len(children) + 1
        self._queue.extend(children)
        self._admit()
        self._finish_one(step)

    def _end_tool(self, step: Step) -> None:
        self._tools.num_used -= 1
        self.spans[step] = (self.spans[step][0], self.now)
        self._finish_one(step)

    def _finish_one(self, step: Step) -> None:
        """Count down what a turn waits for; after the last, the agent's next turn is ready."""
        self._num_pending[step] -= 1
        if not self._num_pending[step]:
            agent, turn = step
            self._make_ready(agent, turn + 1)

    def _admit(self) -> None:
        """Start assigned subagents, in order, while the limit has room."""
        limit = self.max_concurrency
        while self._queue and (limit is None or self._num_running < limit):
            self._num_running += 1
            self._make_ready(self._queue.pop(0), 0)
