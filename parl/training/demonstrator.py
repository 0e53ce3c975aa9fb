"""Draws demonstrations of the cold start."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np

from parl.config.schema import Config
from parl.config.training import Stage
from parl.core import images
from parl.core.errors import ConfigError
from parl.env.base import AgentEnv, Demonstration
from parl.policy.base import PolicyHandle, Renderer
from parl.policy.engines.scripted import ScriptedEngine
from parl.policy.tape import Tape
from parl.rollout.swarm import SwarmRunner

SUBAGENTS_PER_EPISODE = 3
"""Subagents of one demonstration that are kept: they are many, short and alike."""


@dataclass(frozen=True, slots=True)
class SftExample:
    """A token sequence and which of its tokens carry loss."""

    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    kind: str
    images: tuple[str, ...] = ()
    """Those among the tokens, in order."""


class Demonstrator:
    """Draws texts of a stage's mixture. The same seed gives the same texts."""

    def __init__(
        self,
        env: AgentEnv,
        renderer: Renderer,
        config: Config,
        seed: int,
        lists_tools: bool = False,
    ) -> None:
        self._env, self._renderer, self._config, self._lists_tools = (
            env,
            renderer,
            config,
            lists_tools,
        )
        self._rng = np.random.default_rng(seed)
        self._seed, self._count = seed, 0

    def draw(self, stage: Stage) -> list[SftExample]:
        """One item of the mixture: a practice text, or the traces of one episode."""
        kinds = sorted(stage.data)
        shares = np.array([stage.data[k] for k in kinds])
        kind = kinds[int(self._rng.choice(len(kinds), p=shares / shares.sum()))]
        return self.item(kind, knobs_of(kind, stage.demonstrator))

    def item(self, kind: str, knobs: dict[str, Any]) -> list[SftExample]:
        made = self._env.demonstrate(kind, self._rng, **knobs)
        if isinstance(made, Demonstration):
            return self._play(made, kind)
        tape = Tape(())
        for piece in made:
            for part in (piece.text,) if piece.train else images.split(piece.text):
                if images.is_image(part) and not piece.train:
                    tape.feed(self._renderer.show(part), self._renderer.images(part))
                    continue
                new = self._renderer.encode(part)
                tape.ids += new
                tape.mask += [int(piece.train)] * len(new)
        return [SftExample(tuple(tape.ids), tuple(tape.mask), kind, tuple(tape.images))]

    def _play(self, demo: Demonstration, kind: str) -> list[SftExample]:
        self._count += 1
        handle = PolicyHandle(
            "expert", self._renderer, ScriptedEngine(demo.script, self._renderer), self._lists_tools
        )
        swarm = self._config.swarm.replace(critical_step_budget=None)
        roles = {"orchestrator": handle, "subagent": handle}
        runner = SwarmRunner(roles, self._config.roles, swarm, self._config.clock)
        name = f"demo-{self._seed}-{self._count}"
        episode = asyncio.run(
            runner.run(demo.env, demo.task, episode_id=name, group=name, step=0, seed=name)
        )
        if episode.status != "completed":
            raise ConfigError(
                f"The expert's episode on {demo.task.id} ended as {episode.status}, not complete "
                f"({episode.orchestrator.stop_reason}). Raise that limit in roles.orchestrator, or correct the "
                "demonstrator."
            )
        kept = episode.subagents
        if len(kept) > SUBAGENTS_PER_EPISODE:
            order = self._rng.permutation(len(kept))[:SUBAGENTS_PER_EPISODE]
            kept = tuple(kept[i] for i in order)
        return [
            SftExample(t.token_ids, t.mask, f"{kind}/{t.role}", t.images)
            for t in (episode.orchestrator, *kept)
        ]


def knobs_of(kind: str, knobs: dict[str, Any]) -> dict[str, Any]:
    """The knobs of an episode's demonstrator; the other kinds, of any ability, have none."""
    return knobs if kind.rpartition("/")[2] == "episode" else {}
