"""Where roles meet: an orchestrator, the subagents that it creates, and the budgets of the whole episode.

In: an environment, a task, the policies of the roles. Out: one `Episode` (flat traces, the orchestrator's first).
`create_subagent` and `assign_task` are answered here; every other call goes to the environment (Kimi K2.5, section 3
and appendix E.8). A subagent's context is its own: only its last message comes back, as an observation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from parl.config.credit import Credit
from parl.config.roles import ClockConfig, Limits, RoleConfig, Roles, Sampling, Swarm
from parl.core.errors import EndpointFailure
from parl.core.seeds import seed_for
from parl.core.text import normalize_text
from parl.core.types import ORCHESTRATOR_ID, AgentTrace, Clock, Episode, Task, ToolCall
from parl.env.base import AgentEnv
from parl.env.mixture import env_of
from parl.env.swarm_tools import ASSIGN, CREATE, SWARM_TOOLS
from parl.gateway.live import Gateway
from parl.policy.base import PolicyHandle
from parl.rewards.credit import rule as rules
from parl.rollout.agent import AgentSpec, Dispatch, ToolResults, run_agent
from parl.rollout.clock import schedule
from parl.rollout.env_calls import (
    EpisodeFailure,
    call_env,
    contradictions,
    contributions,
    env_calls,
    failure_of,
    require_finite,
    reset_env,
    score_env,
)
from parl.rollout.external_agent import load_external_agent, run_external_agent

BUDGET_EXHAUSTED = "budget exhausted"
Decoding = Literal["train", "greedy", "sampled"]


@dataclass(frozen=True, slots=True)
class SwarmRunner:
    """Runs episodes. One runner serves many concurrent episodes: it holds no state of any of them."""

    policies: Mapping[str, PolicyHandle]
    """By role: a frozen role may be played by a snapshot of the policy that another role trains."""
    roles: Roles
    swarm: Swarm
    clock: ClockConfig
    decoding: Decoding = "train"
    """`train` samples as the roles say; `greedy` and `sampled` (T=1) are for evaluation."""
    forced_prefix: str = ""
    credit: Credit = field(default_factory=Credit)
    """Two rules need more of a rollout: what each subagent contributed, or siblings of subagents."""
    gateway: Gateway = field(default_factory=Gateway, compare=False)
    """Where agents of other frameworks ask their policy (`external_agent`)."""

    def with_policies(self, policies: Mapping[str, PolicyHandle]) -> SwarmRunner:
        """The same runner over other engines (a worker's own, say)."""
        return replace(self, policies=policies)

    async def run(
        self, env: AgentEnv, task: Task, *, episode_id: str, group: str, step: int, seed: str
    ) -> Episode:
        """One attempt at one task. Never raises for what happens inside: a failure is an episode's status."""
        env = env_of(env, task)
        live = _LiveEpisode(self, env, episode_id, seed)
        try:
            await reset_env(env, task)
            trace = await live.orchestrate(task)
            outcome, facts = await score_env(env, trace.result)
            facts = {**facts, **await contradictions(env, [read_message(t) for t in live.children])}
            counted = rules.get(self.credit.type).needs_contributions
            children = (
                await _with_contributions(env, trace.result, live.children)
                if counted
                else live.children
            )
        except (EpisodeFailure, EndpointFailure) as failure:
            return failed_episode(episode_id, task, group, step, failure)
        traces = (trace, *children)
        return Episode(
            id=episode_id,
            task=task,
            group=group,
            step=step,
            status=trace.status,
            answer=trace.result,
            outcome=outcome,
            facts=facts,
            traces=traces,
            num_assigned=len(live.children),
            num_refused=live.num_refused,
            clock=schedule(traces, self.clock, self.swarm.max_concurrency),
            siblings=tuple(live.siblings),
        )

    def role(self, name: Literal["orchestrator", "subagent"]) -> RoleConfig:
        role = self.roles.of(name)
        if self.decoding == "train":
            return role
        temperature = 0.0 if self.decoding == "greedy" else 1.0
        sampling: Sampling = role.sampling.replace(temperature=temperature)
        return role.replace(sampling=sampling)


async def _with_contributions(
    env: AgentEnv, answer: str, children: Sequence[AgentTrace]
) -> Sequence[AgentTrace]:
    """The subagents with what each of them is worth to the answer; as they were where the environment cannot tell."""
    worth = await contributions(env, answer, [read_message(t) for t in children])
    if worth is None:
        return children
    return [replace(t, contribution=v) for t, v in zip(children, worth, strict=True)]


def failed_episode(
    episode_id: str, task: Task, group: str, step: int, failure: EpisodeFailure | EndpointFailure
) -> Episode:
    trace = AgentTrace(
        id=ORCHESTRATOR_ID,
        role="orchestrator",
        parent=None,
        spawned_at=None,
        name="orchestrator",
        prompt=task.prompt,
        policy="",
        turns=(),
        status="failed",
        stop_reason=f"{failure.kind}: {failure}",
        result="",
        token_ids=(),
        mask=(),
        logprobs=(),
    )
    clock = Clock(0.0, 0.0, ())
    return Episode(
        episode_id, task, group, step, "failed", "", {}, {}, (trace,), 0, 0, clock, failure.kind
    )


class _LiveEpisode:
    """The state of one running episode."""

    def __init__(self, runner: SwarmRunner, env: AgentEnv, episode_id: str, seed: str) -> None:
        self.runner, self.env, self.id, self.seed = runner, env, episode_id, seed
        self.configs: dict[str, str] = {}
        self.prompts: set[str] = set()
        self.children: list[AgentTrace] = []
        self.siblings: list[AgentTrace] = []
        self.num_launched = 0
        self.num_refused = 0
        self.critical = 0
        self.tokens = 0  # written by subagents

    async def orchestrate(self, task: Task) -> AgentTrace:
        role = self.runner.role("orchestrator")
        swarm = self.runner.swarm
        limits = role.limits
        if swarm.critical_step_budget is not None:
            limits = limits.replace(turns=min(limits.turns, swarm.critical_step_budget))
        tools = [*self.env.tool_specs(), *(SWARM_TOOLS if swarm.mode == "swarm" else ())]
        spec = AgentSpec(
            id=ORCHESTRATOR_ID,
            role="orchestrator",
            parent=None,
            spawned_at=None,
            name="orchestrator",
            system=role.prompt_for(task.ability),
            prompt=task.prompt,
            session=f"{self.id}/{ORCHESTRATOR_ID}",
            seed=f"{self.seed}/{ORCHESTRATOR_ID}",
            forced_prefix=self.runner.forced_prefix if swarm.mode == "swarm" else "",
        )
        policy = self.runner.policies["orchestrator"]
        if role.external_agent is not None:
            return await self._harness(
                role, spec, policy, self.env, limits, swarm.token_budget, task
            )
        return await run_agent(spec, policy, tools, limits, role.sampling, self.dispatch)

    async def _harness(
        self,
        role: RoleConfig,
        spec: AgentSpec,
        policy: PolicyHandle,
        world: AgentEnv,
        limits: Limits,
        token_budget: int | None,
        task: Task,
    ) -> AgentTrace:
        """Somebody else's agent in a role (`roles.ROLE.external_agent`)."""
        assert role.external_agent is not None
        external_agent, gateway = (
            load_external_agent(spec.role, role.external_agent),
            self.runner.gateway,
        )
        trace = await run_external_agent(
            spec, policy, world, limits, role.sampling, token_budget, task, gateway, external_agent
        )
        if trace.stop_reason == "turns" and limits.turns < role.limits.turns:
            trace = replace(trace, stop_reason="critical_step_budget")
        return trace

    async def dispatch(self, calls: Sequence[ToolCall], turn: int, spent: int) -> ToolResults:
        """Answer the calls of one orchestrator turn, in their order; assignments run concurrently."""
        self.critical += 1
        answers: list[str] = [""] * len(calls)
        to_env: list[int] = []
        launches: list[tuple[int, str, str]] = []
        limit = self.runner.roles.orchestrator.limits.env_calls_per_turn
        for i, call in enumerate(calls):
            if call.error is not None:
                answers[i] = call.error
                self.num_refused += call.name == ASSIGN and self.runner.swarm.mode == "swarm"
            elif call.name == CREATE and self.runner.swarm.mode == "swarm":
                answers[i] = self._create(call)
            elif call.name == ASSIGN and self.runner.swarm.mode == "swarm":
                answers[i] = self._check_assignment(call) or ""
                if answers[i]:
                    self.num_refused += 1
                else:
                    launches.append((i, call.arguments["agent"], call.arguments["prompt"]))
                    self.num_launched += 1
                    self.prompts.add(normalize_text(call.arguments["prompt"]))
            elif limit is not None and len(to_env) >= limit:
                answers[i] = f"error: at most {limit} environment call(s) per turn"
            else:
                to_env.append(i)
        texts = await env_calls(self.env, [calls[i] for i in to_env])
        for i, text in zip(to_env, texts, strict=True):
            answers[i] = text
        if launches:
            for (i, _, _), text in zip(launches, await self._launch(launches, turn), strict=True):
                answers[i] = text
        return ToolResults(tuple(answers), len(to_env), self._over_budget(spent))

    def _over_budget(self, spent: int) -> str | None:
        """The budget that the episode has reached. `spent`: the orchestrator's own tokens so far."""
        budget, tokens = self.runner.swarm.critical_step_budget, self.runner.swarm.token_budget
        if budget is not None and self.critical >= budget:
            return "critical_step_budget"
        if tokens is not None and spent + self.tokens >= tokens:
            return "token_budget"
        return None

    def _create(self, call: ToolCall) -> str:
        name, prompt = call.arguments.get("name"), call.arguments.get("system_prompt")
        if not isinstance(name, str) or not name or not isinstance(prompt, str):
            return f"error: {CREATE} needs name and system_prompt, both texts"
        self.configs[name] = prompt
        return "ok"

    def _check_assignment(self, call: ToolCall) -> str | None:
        """An error text, or None when the assignment may be launched."""
        swarm = self.runner.swarm
        agent, prompt = call.arguments.get("agent"), call.arguments.get("prompt")
        if not isinstance(agent, str) or not isinstance(prompt, str) or not prompt:
            return f"error: {ASSIGN} needs agent and prompt, both texts"
        if agent not in self.configs:
            return f"error: no subagent '{agent}'; create it first"
        if self.num_launched >= swarm.max_subagents:
            return f"error: at most {swarm.max_subagents} subagents per episode"
        if swarm.refuse_duplicates and normalize_text(prompt) in self.prompts:
            return "error: duplicate task"
        if self._turns_left() <= 0:
            return BUDGET_EXHAUSTED
        return None

    def _turns_left(self) -> int:
        """Turns that a child may take: its own limit, and what the budget leaves beside one last orchestrator turn."""
        own = self.runner.roles.subagent.limits.turns
        budget = self.runner.swarm.critical_step_budget
        return own if budget is None else min(own, budget - self.critical - 1)

    async def _launch(self, launches: Sequence[tuple[int, str, str]], turn: int) -> list[str]:
        left = self._turns_left()
        first = len(self.children) + 1
        coroutines = [
            self._child(f"{first + k}", agent, prompt, turn, left)
            for k, (_, agent, prompt) in enumerate(launches)
        ]
        finished = await _all([*coroutines, *self._siblings(first, launches, turn, left)])
        traces = finished[: len(launches)]
        self.siblings += finished[len(launches) :]
        self.children += traces
        self.critical += max(len(t.turns) for t in traces)
        self.tokens += sum(t.num_generated for t in traces)
        return [_report(t) for t in traces]

    def _siblings(
        self, first: int, launches: Sequence[tuple[int, str, str]], turn: int, turns_left: int
    ) -> list[Coroutine[Any, Any, AgentTrace]]:
        """Further attempts at the assignments that are drawn, each in a world and with a random stream of its own."""
        credit = self.runner.credit
        if not rules.get(credit.type).resamples:
            return []
        assignments = [(first + k, agent, prompt) for k, (_, agent, prompt) in enumerate(launches)]
        drawn = [
            a
            for a in assignments
            if seed_for(self.seed, a[0], "siblings") < credit.sibling_share * 2**63
        ]
        return [
            self._child(f"{number}.{k}", agent, prompt, turn, turns_left)
            for number, agent, prompt in drawn
            for k in range(1, credit.siblings + 1)
        ]

    async def _child(
        self, agent_id: str, name: str, prompt: str, turn: int, turns_left: int
    ) -> AgentTrace:
        role = self.runner.role("subagent")
        try:
            world = await call_env(self.env, self.env.fork, prompt)
        except Exception as error:
            raise failure_of(error, f"fork: {error!r}") from error
        spec = AgentSpec(
            id=agent_id,
            role="subagent",
            parent=ORCHESTRATOR_ID,
            spawned_at=turn,
            name=name,
            system=self.configs[name],
            prompt=prompt,
            session=f"{self.id}/{agent_id}",
            seed=f"{self.seed}/{agent_id}",
        )
        limits = role.limits.replace(turns=min(role.limits.turns, turns_left))
        policy = self.runner.policies["subagent"]
        if role.external_agent is not None:
            data = {
                "name": name,
                "system_prompt": spec.system,
            }  # and nothing of the task's own: it holds the gold
            subtask = Task(f"{self.env.task.id}/{agent_id}", self.env.task.env, prompt, data)
            trace = await self._harness(role, spec, policy, world, limits, None, subtask)
            trace = replace(
                trace, result=read_message(trace)
            )  # an agent that a limit ended gives nothing back
        else:
            dispatch = _in_world(world, role.limits.env_calls_per_turn)
            trace = await run_agent(
                spec, policy, self.env.tool_specs(), limits, role.sampling, dispatch
            )
            if trace.stop_reason == "turns" and turns_left < role.limits.turns:
                trace = replace(trace, stop_reason="critical_step_budget")
        try:
            accepted = await call_env(world, world.check_result, trace.result)
            score = await call_env(world, world.subtask_score, trace.result)
            score = None if score is None else require_finite(score, "subtask_score")
            return replace(trace, accepted=bool(accepted), score=score)
        except Exception as error:
            raise failure_of(error, f"result of a subagent: {error!r}") from error


def _in_world(world: AgentEnv, limit: int | None) -> Dispatch:
    """Answers the calls of a subagent, at most `limit` of a turn."""

    async def dispatch(calls: Sequence[ToolCall], _turn: int, _spent: int) -> ToolResults:
        good = [c for c in calls if c.error is None][:limit]
        texts = iter(await env_calls(world, good))
        answers, ran = [], 0
        for call in calls:
            if call.error is not None:
                answers.append(call.error)
            elif ran < len(good):
                answers.append(next(texts))
                ran += 1
            else:
                answers.append(f"error: at most {limit} environment call(s) per turn")
        return ToolResults(tuple(answers), ran)

    return dispatch


async def _all(coroutines: Sequence[object]) -> list[AgentTrace]:
    """Gather; on a failure the siblings are cancelled before the failure goes on."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]  # type: ignore[call-overload]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # they end before the episode does
        raise


def read_message(trace: AgentTrace) -> str:
    """What the orchestrator read of a subagent's own words."""
    return trace.result if trace.status == "completed" else ""


def _report(trace: AgentTrace) -> str:
    if trace.status == "completed":
        return trace.result
    return (
        BUDGET_EXHAUSTED
        if trace.stop_reason == "critical_step_budget"
        else f"error: stopped ({trace.stop_reason})"
    )
