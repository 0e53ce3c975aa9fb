"""Where roles meet: an orchestrator, the subagents that it creates, and the episode's budgets.

`create_subagent` and `assign_task` are answered here; every other call goes to the environment
(Kimi K2.5, section 3 and appendix E.8). A subagent has a separate context: only its last message
comes back to the orchestrator, as an observation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from parl.config.credit import Credit
from parl.config.roles import ClockConfig, Limits, RoleConfig, Roles, Swarm
from parl.core.errors import EndpointFailure
from parl.core.seeds import seed_for
from parl.core.text import normalize_text
from parl.core.types import ORCHESTRATOR_ID, AgentTrace, Clock, Episode, Role, Task, ToolCall
from parl.env.base import AgentEnv
from parl.env.mixture import env_of
from parl.env.swarm_tools import ASSIGN, CREATE, SWARM_TOOLS
from parl.env.tools import ToolSpec
from parl.gateway.live import Gateway
from parl.policy.base import PolicyHandle
from parl.rewards.credit import rule as credit_rules
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
"""The observation of an assignment for which the episode's critical steps do not suffice."""
Decoding = Literal["train", "greedy", "sampled"]


@dataclass(frozen=True, slots=True)
class SwarmRunner:
    """Runs episodes. It holds no state of any of them, so one runner serves many at once."""

    policies: Mapping[str, PolicyHandle]
    """Role -> policy. A frozen role may be played by a snapshot of the policy that another role
    trains."""
    roles: Roles
    swarm: Swarm
    clock: ClockConfig
    decoding: Decoding = "train"
    """`train` samples as the roles say; `greedy` and `sampled` (T=1) are for evaluation."""
    forced_prefix: str = ""
    """Text that the orchestrator's first turn must begin with, in mode swarm."""
    credit: Credit = field(default_factory=Credit)
    """Some rules need more of a rollout: what each subagent contributed, or siblings."""
    gateway: Gateway = field(default_factory=Gateway, compare=False)
    """Where agents of other frameworks ask their policy (`external_agent`)."""

    def with_policies(self, policies: Mapping[str, PolicyHandle]) -> SwarmRunner:
        """Return the same runner over other engines, such as those of a worker."""
        return replace(self, policies=policies)

    async def run(
        self, env: AgentEnv, task: Task, *, episode_id: str, group: str, step: int, seed: str
    ) -> Episode:
        """Make one attempt at a task.

        Failures inside it do not raise: they are the episode's status.

        Args:
            group: episodes of one group are compared with each other.
            step: of the run.
            seed: fixes everything random in the episode.
        Returns:
            the episode, with flat traces, the orchestrator's first.
        """
        # In a mix, the environment of the task's ability.
        env = env_of(env, task)
        episode = _LiveEpisode(self, env, episode_id, seed)
        try:
            await reset_env(env, task)
            trace = await episode.orchestrate(task)
            outcome, facts = await score_env(env, trace.result)
            messages = [read_message(child) for child in episode.children]
            facts = {**facts, **await contradictions(env, messages)}
            children: Sequence[AgentTrace] = episode.children
            # Asked only where the rule needs it: an environment may compute a score per subagent.
            if credit_rules.get(self.credit.type).needs_contributions:
                children = await _with_contributions(env, trace.result, episode.children)
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
            num_assigned=len(episode.children),
            num_refused=episode.num_refused,
            # Without siblings: they take no part in the episode's time.
            clock=schedule(traces, self.clock, self.swarm.max_concurrency),
            siblings=tuple(episode.siblings),
        )

    def role(self, name: Role) -> RoleConfig:
        """Return a role's settings, at the temperature of `decoding`."""
        role = self.roles.of(name)
        if self.decoding == "train":
            return role
        temperature = 0.0 if self.decoding == "greedy" else 1.0
        return role.replace(sampling=role.sampling.replace(temperature=temperature))


async def _with_contributions(
    env: AgentEnv, answer: str, children: Sequence[AgentTrace]
) -> Sequence[AgentTrace]:
    """Add to each subagent what it contributed to the answer, where the environment can tell."""
    messages = [read_message(child) for child in children]
    values = await contributions(env, answer, messages)
    if values is None:
        return children
    return [
        replace(child, contribution=value) for child, value in zip(children, values, strict=True)
    ]


def failed_episode(
    episode_id: str, task: Task, group: str, step: int, failure: EpisodeFailure | EndpointFailure
) -> Episode:
    """Return an episode without turns, whose status says what failed."""
    # What was sampled before the failure is dropped: it gives no sample and has no reward.
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
    return Episode(
        id=episode_id,
        task=task,
        group=group,
        step=step,
        status="failed",
        answer="",
        outcome={},
        facts={},
        traces=(trace,),
        num_assigned=0,
        num_refused=0,
        clock=Clock(0.0, 0.0, ()),
        failure=failure.kind,
    )


@dataclass(frozen=True, slots=True)
class _Assignment:
    """A call of `assign_task` that may be launched."""

    index: int
    """Of the call among those of its turn."""
    agent: str
    prompt: str


class _LiveEpisode:
    """The state of one running episode."""

    def __init__(self, runner: SwarmRunner, env: AgentEnv, episode_id: str, seed: str) -> None:
        self.runner = runner
        self.env = env
        self.id = episode_id
        self.seed = seed
        self.system_prompts: dict[str, str] = {}
        """Name of a created subagent -> its system prompt."""
        self.assigned_prompts: set[str] = set()
        """Normalised, to recognise duplicates."""
        self.children: list[AgentTrace] = []
        self.siblings: list[AgentTrace] = []
        """Further attempts at some assignments, of which the orchestrator knows nothing."""
        self.num_launched = 0
        self.num_refused = 0
        self.critical_steps = 0
        """The orchestrator's turns with calls, and for each the turns of its longest child."""
        self.num_child_tokens = 0
        """Tokens that subagents have written."""

    async def orchestrate(self, task: Task) -> AgentTrace:
        """Run the orchestrator, and with it the episode."""
        role = self.runner.role("orchestrator")
        swarm = self.runner.swarm
        is_swarm = swarm.mode == "swarm"
        limits = role.limits
        # The budget holds for an orchestrator that never delegates as well.
        if swarm.critical_step_budget is not None:
            limits = limits.replace(turns=min(limits.turns, swarm.critical_step_budget))
        tools = list(self.env.tool_specs())
        # In mode single a call of these goes to the environment, which does not know it.
        if is_swarm:
            tools += SWARM_TOOLS
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
            forced_prefix=self.runner.forced_prefix if is_swarm else "",
        )
        if role.external_agent is not None:
            return await self._run_external(role, spec, self.env, limits, swarm.token_budget, task)
        return await self._run_own(role, spec, tools, limits, self.dispatch)

    async def _run_own(
        self,
        role: RoleConfig,
        spec: AgentSpec,
        tools: Sequence[ToolSpec],
        limits: Limits,
        dispatch: Dispatch,
    ) -> AgentTrace:
        """Run an agent in PARL's loop."""
        policy = self.runner.policies[spec.role]
        trace = await run_agent(spec, policy, tools, limits, role.sampling, dispatch)
        return _name_limit_of_turns(trace, limits, role)

    async def _run_external(
        self,
        role: RoleConfig,
        spec: AgentSpec,
        env: AgentEnv,
        limits: Limits,
        token_budget: int | None,
        task: Task,
    ) -> AgentTrace:
        """Run an agent of another framework (`roles.ROLE.external_agent`)."""
        assert role.external_agent is not None
        trace = await run_external_agent(
            spec,
            self.runner.policies[spec.role],
            env,
            limits,
            role.sampling,
            token_budget,
            task,
            self.runner.gateway,
            load_external_agent(spec.role, role.external_agent),
        )
        return _name_limit_of_turns(trace, limits, role)

    # --- the orchestrator's calls

    async def dispatch(self, calls: Sequence[ToolCall], turn: int, num_written: int) -> ToolResults:
        """Answer the calls of one orchestrator turn, in their order. Assignments run concurrently.

        Args:
            turn: its index.
            num_written: tokens that the orchestrator has written.
        """
        self.critical_steps += 1
        is_swarm = self.runner.swarm.mode == "swarm"
        limit = self.runner.roles.orchestrator.limits.env_calls_per_turn
        observations = [""] * len(calls)
        env_indices: list[int] = []
        assignments: list[_Assignment] = []
        for i, call in enumerate(calls):
            is_assignment = call.name == ASSIGN and is_swarm
            if call.error is not None:
                observations[i] = call.error
                # A malformed assignment is one that was refused, too.
                self.num_refused += is_assignment
            elif call.name == CREATE and is_swarm:
                observations[i] = self._create(call)
            elif is_assignment:
                refusal = self._refusal(call)
                if refusal is not None:
                    observations[i] = refusal
                    self.num_refused += 1
                else:
                    agent, prompt = call.arguments["agent"], call.arguments["prompt"]
                    assignments.append(_Assignment(i, agent, prompt))
                    # Counted at once: the next call of this turn must see it.
                    self.num_launched += 1
                    self.assigned_prompts.add(normalize_text(prompt))
            elif limit is not None and len(env_indices) >= limit:
                observations[i] = f"error: at most {limit} environment call(s) per turn"
            else:
                env_indices.append(i)
        # Before the launch: forks have what these calls changed.
        texts = await env_calls(self.env, [calls[i] for i in env_indices])
        for i, text in zip(env_indices, texts, strict=True):
            observations[i] = text
        if assignments:
            reports = await self._launch(assignments, turn)
            for assignment, report in zip(assignments, reports, strict=True):
                observations[assignment.index] = report
        return ToolResults(tuple(observations), len(env_indices), self._over_budget(num_written))

    def _over_budget(self, num_written: int) -> str | None:
        """Return the budget that the episode has reached, if it has reached one."""
        swarm = self.runner.swarm
        step_budget = swarm.critical_step_budget
        if step_budget is not None and self.critical_steps >= step_budget:
            return "critical_step_budget"
        token_budget = swarm.token_budget
        if token_budget is not None and num_written + self.num_child_tokens >= token_budget:
            return "token_budget"
        return None

    def _create(self, call: ToolCall) -> str:
        name = call.arguments.get("name")
        system_prompt = call.arguments.get("system_prompt")
        if not isinstance(name, str) or not name or not isinstance(system_prompt, str):
            return f"error: {CREATE} needs name and system_prompt, both texts"
        # A name that is created again gets the new prompt for later assignments.
        self.system_prompts[name] = system_prompt
        return "ok"

    def _refusal(self, call: ToolCall) -> str | None:
        """Return why an assignment is refused, as an observation; None if it may be launched."""
        swarm = self.runner.swarm
        agent, prompt = call.arguments.get("agent"), call.arguments.get("prompt")
        if not isinstance(agent, str) or not isinstance(prompt, str) or not prompt:
            return f"error: {ASSIGN} needs agent and prompt, both texts"
        if agent not in self.system_prompts:
            return f"error: no subagent '{agent}'; create it first"
        if self.num_launched >= swarm.max_subagents:
            return f"error: at most {swarm.max_subagents} subagents per episode"
        if swarm.refuse_duplicates and normalize_text(prompt) in self.assigned_prompts:
            return "error: duplicate task"
        # With no turn left, a child would only cost its prompt.
        if self._turns_left() <= 0:
            return BUDGET_EXHAUSTED
        return None

    def _turns_left(self) -> int:
        """Return how many turns a child may take."""
        limit = self.runner.roles.subagent.limits.turns
        budget = self.runner.swarm.critical_step_budget
        if budget is None:
            return limit
        # One step stays for the orchestrator's last turn.
        return min(limit, budget - self.critical_steps - 1)

    # --- subagents

    async def _launch(self, assignments: Sequence[_Assignment], turn: int) -> list[str]:
        """Run the assignments of a turn, and return what the orchestrator reads of each."""
        # The same for all: they run at once, and only the longest is on the critical path.
        turns_left = self._turns_left()
        first_number = len(self.children) + 1
        coroutines = []
        for number, assignment in enumerate(assignments, first_number):
            coroutines.append(self._run_child(f"{number}", assignment, turn, turns_left))
        coroutines += self._sibling_runs(first_number, assignments, turn, turns_left)
        traces = await _gather(coroutines)
        children = traces[: len(assignments)]
        self.children += children
        # Siblings are sampled for credit alone, and cost the episode neither steps nor tokens.
        self.siblings += traces[len(assignments) :]
        # Children run at the same time: the longest is on the critical path.
        self.critical_steps += max(len(child.turns) for child in children)
        self.num_child_tokens += sum(child.num_generated for child in children)
        return [_report(child) for child in children]

    def _sibling_runs(
        self, first_number: int, assignments: Sequence[_Assignment], turn: int, turns_left: int
    ) -> list[Coroutine[Any, Any, AgentTrace]]:
        """Return further attempts at the assignments that are drawn.

        Each has its own fork of the environment and its own random stream.
        """
        credit = self.runner.credit
        if not credit_rules.get(credit.type).resamples:
            return []
        coroutines = []
        for number, assignment in enumerate(assignments, first_number):
            # Drawn by the seed and the number, so that a retry of the episode draws the same ones.
            is_drawn = seed_for(self.seed, number, "siblings") < credit.sibling_share * 2**63
            if not is_drawn:
                continue
            for k in range(1, credit.siblings + 1):
                run = self._run_child(f"{number}.{k}", assignment, turn, turns_left)
                coroutines.append(run)
        return coroutines

    async def _run_child(
        self, agent_id: str, assignment: _Assignment, turn: int, turns_left: int
    ) -> AgentTrace:
        role = self.runner.role("subagent")
        # Each has its own copy of the environment: subagents never see each other's changes.
        try:
            env = await call_env(self.env, self.env.fork, assignment.prompt)
        except Exception as error:
            raise failure_of(error, f"fork: {error!r}") from error
        system_prompt = self.system_prompts[assignment.agent]
        spec = AgentSpec(
            id=agent_id,
            role="subagent",
            parent=ORCHESTRATOR_ID,
            spawned_at=turn,
            name=assignment.agent,
            system=system_prompt,
            prompt=assignment.prompt,
            session=f"{self.id}/{agent_id}",
            seed=f"{self.seed}/{agent_id}",
        )
        limits = role.limits.replace(turns=min(role.limits.turns, turns_left))
        if role.external_agent is not None:
            # The task's data hold the gold answer, so the subtask has none of them.
            data = {"name": assignment.agent, "system_prompt": system_prompt}
            parent = self.env.task
            subtask = Task(f"{parent.id}/{agent_id}", parent.env, assignment.prompt, data)
            # Without the episode's budget of tokens: the orchestrator is held to it.
            trace = await self._run_external(role, spec, env, limits, None, subtask)
            # An agent that a limit ended may have answered, but gives nothing back.
            trace = replace(trace, result=read_message(trace))
        else:
            dispatch = _subagent_dispatch(env, role.limits.env_calls_per_turn)
            trace = await self._run_own(role, spec, self.env.tool_specs(), limits, dispatch)
        return await _judge_result(env, trace)


def _name_limit_of_turns(trace: AgentTrace, limits: Limits, role: RoleConfig) -> AgentTrace:
    """Name the budget where it, and not the role's own limit, has ended an agent."""
    if trace.stop_reason == "turns" and limits.turns < role.limits.turns:
        return replace(trace, stop_reason="critical_step_budget")
    return trace


def _subagent_dispatch(env: AgentEnv, limit: int | None) -> Dispatch:
    """Answer the calls of a subagent, at most `limit` of a turn."""

    async def dispatch(calls: Sequence[ToolCall], turn: int, num_written: int) -> ToolResults:
        # Malformed calls are answered by their error, and use up nothing of the limit.
        well_formed = [call for call in calls if call.error is None]
        to_run = well_formed[:limit]
        texts = await env_calls(env, to_run)
        observations: list[str] = []
        num_ran = 0
        for call in calls:
            if call.error is not None:
                observations.append(call.error)
            elif num_ran < len(to_run):
                observations.append(texts[num_ran])
                num_ran += 1
            else:
                observations.append(f"error: at most {limit} environment call(s) per turn")
        return ToolResults(tuple(observations), num_ran)

    return dispatch


async def _judge_result(env: AgentEnv, trace: AgentTrace) -> AgentTrace:
    """Ask a subagent's environment whether it accepts the message, and for its score.

    Raises:
        EpisodeFailure: the environment raised, or gave a score that is not finite.
    """
    try:
        accepted = await call_env(env, env.check_result, trace.result)
        score = await call_env(env, env.subtask_score, trace.result)
        if score is not None:
            score = require_finite(score, "subtask_score")
        return replace(trace, accepted=bool(accepted), score=score)
    except Exception as error:
        raise failure_of(error, f"result of a subagent: {error!r}") from error


async def _gather(coroutines: Sequence[Coroutine[Any, Any, AgentTrace]]) -> list[AgentTrace]:
    """Run subagents at once. If one fails, the others are cancelled before the failure goes on."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        # They end before the episode does: its environments and sessions are used again.
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def read_message(trace: AgentTrace) -> str:
    """Return the text of a subagent that the orchestrator read; "" if a limit ended it."""
    return trace.result if trace.status == "completed" else ""


def _report(trace: AgentTrace) -> str:
    """Return the observation of an assignment."""
    if trace.status == "completed":
        return trace.result
    if trace.stop_reason == "critical_step_budget":
        return BUDGET_EXHAUSTED
    return f"error: stopped ({trace.stop_reason})"
