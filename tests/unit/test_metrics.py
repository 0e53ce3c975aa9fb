"""Metrics of a step that other tests do not see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parl.config.schema import Swarm
from parl.metrics import swarm_metrics
from tests.helpers import assign, create, run, script, turns


@pytest.mark.parametrize("refuse, refused, duplicates", [(True, 2, 0), (False, 0, 2)])
def test_repeated_prompts(refuse: bool, refused: int, duplicates: int) -> None:
    first = turns(create("a"), assign("a", "red"), assign("a", " Red"), assign("a", "green"))
    play = script([first, assign("a", "green"), "blue"], other=["DONE"])
    metrics = swarm_metrics([run(play, Swarm(refuse_duplicates=refuse))])
    assert (metrics["swarm/num_refused"], metrics["swarm/num_duplicates"]) == (refused, duplicates)


def test_siblings_cost_tokens_and_no_steps() -> None:
    one = run(script([turns(create("a"), assign("a", "red")), "blue"], red=["RED"]))
    more = replace(one, siblings=(replace(one.subagents[0], id="1.1"), replace(one.subagents[0], id="1.2")))
    before, after = swarm_metrics([one, one]), swarm_metrics([more, one])
    written = len("RED") + 1
    assert after.pop("tokens/siblings") == written  # two in one of two episodes
    assert after.pop("tokens/episode") == before.pop("tokens/episode") + written
    assert after == before
