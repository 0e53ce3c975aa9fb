"""Demonstrations of the cold start as token sequences.

An episode is played by a scripted expert through the swarm runtime, so that its tokens are those of
a rollout; a practice text is encoded piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parl.config import Config
from parl.config.training import Stage
from parl.core import images
from parl.core.coroutines import run_coroutine
from parl.core.errors import ConfigError
from parl.core.types import AgentTrace
from parl.env.base import AgentEnv, Demonstration
from parl.env.demonstrations import Segment
from parl.policy.base import PolicyHandle, Renderer
from parl.policy.engines.scripted import ScriptedEngine
from parl.policy.tape import Tape
from parl.rollout.swarm import SwarmRunner

SUBAGENTS_PER_EPISODE = 3
"""Subagents of one demonstration that are trained on: they are many, short and alike."""


@dataclass(frozen=True, slots=True)
class SftExample:
    """A token sequence and which of its tokens carry loss."""

    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    kind: str
    images: tuple[str, ...] = ()
    """The images among the tokens, in order, as data URIs."""


class Demonstrator:
    """Draws examples of a stage's mixture. The same seed gives the same examples.

    Args:
        lists_tools: whether the prompt lists the tools, as in rollouts of the policy.
    """

    def __init__(
        self,
        env: AgentEnv,
        renderer: Renderer,
        config: Config,
        seed: int,
        lists_tools: bool = False,
    ) -> None:
        self._env = env
        self._renderer = renderer
        self._config = config
        self._lists_tools = lists_tools
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._num_episodes = 0

    def draw(self, stage: Stage) -> list[SftExample]:
        """Draw one item of the mixture: a practice text, or the traces of one episode."""
        kinds = sorted(stage.data)
        shares = np.array([stage.data[kind] for kind in kinds])
        # Sorted above: the order of a mapping in YAML must not change what is drawn.
        index = self._rng.choice(len(kinds), p=shares / shares.sum())
        kind = kinds[int(index)]
        return self.item(kind, knobs_of(kind, stage.demonstrator))

    def item(self, kind: str, knobs: Mapping[str, Any]) -> list[SftExample]:
        """Draw one item of a kind.

        Raises:
            ConfigError: the environment does not know the kind, or its expert does not finish
                within the limits.
        """
        demonstration = self._env.demonstrate(kind, self._rng, **knobs)
        if isinstance(demonstration, Demonstration):
            return self._play(demonstration, kind)
        return [self._encode(demonstration, kind)]

    def _encode(self, segments: Sequence[Segment], kind: str) -> SftExample:
        tape = Tape(())
        for segment in segments:
            # A policy never writes images, so only what it reads is searched for them.
            parts = (segment.text,) if segment.train else images.split(segment.text)
            for part in parts:
                if images.is_image(part) and not segment.train:
                    tape.feed(self._renderer.show(part), self._renderer.images(part))
                    continue
                token_ids = self._renderer.encode(part)
                tape.ids += token_ids
                tape.mask += [int(segment.train)] * len(token_ids)
        return SftExample(tuple(tape.ids), tuple(tape.mask), kind, tuple(tape.images))

    def _play(self, demonstration: Demonstration, kind: str) -> list[SftExample]:
        self._num_episodes += 1
        engine = ScriptedEngine(demonstration.script, self._renderer)
        expert = PolicyHandle("expert", self._renderer, engine, self._lists_tools)
        # The step budget is there to teach speed; an expert that is cut off teaches nothing.
        swarm = self._config.swarm.replace(critical_step_budget=None)
        runner = SwarmRunner(
            {"orchestrator": expert, "subagent": expert},
            self._config.roles,
            swarm,
            self._config.clock,
        )
        name = f"demo-{self._seed}-{self._num_episodes}"
        episode = run_coroutine(
            runner.run(
                demonstration.env,
                demonstration.task,
                episode_id=name,
                group=name,
                step=0,
                seed=name,
            )
        )
        if episode.status != "completed":
            raise ConfigError(
                f"The expert's episode on {demonstration.task.id} ended as {episode.status}, not complete "
                f"({episode.orchestrator.stop_reason}). Raise that limit in roles.orchestrator, or correct the "
                "demonstrator."
            )
        # The runtime recorded these tokens as it records a rollout's, so demonstrations and
        # rollouts differ in nothing but who wrote them.
        traces = [episode.orchestrator, *self._some_subagents(episode.subagents)]
        return [SftExample(t.token_ids, t.mask, f"{kind}/{t.role}", t.images) for t in traces]

    def _some_subagents(self, subagents: Sequence[AgentTrace]) -> Iterator[AgentTrace]:
        if len(subagents) <= SUBAGENTS_PER_EPISODE:
            yield from subagents
            return
        for index in self._rng.permutation(len(subagents))[:SUBAGENTS_PER_EPISODE]:
            yield subagents[index]


def knobs_of(kind: str, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the knobs of a kind: those of `episode` (of any ability); practice texts have none."""
    return knobs if kind.rpartition("/")[2] == "episode" else {}
