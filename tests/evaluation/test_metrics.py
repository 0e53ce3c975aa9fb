"""Metrics of a step that other tests do not see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parl.config.roles import Swarm
from parl.core.abstention import Question, tally
from parl.evaluation.metrics import heldout_metrics, outcome_metrics, swarm_metrics
from tests.support.helpers import assign, create, run, script, turns


@pytest.mark.parametrize("refuse, refused, duplicates", [(True, 2, 0), (False, 0, 2)])
def test_repeated_prompts(refuse: bool, refused: int, duplicates: int) -> None:
    first = turns(create("a"), assign("a", "red"), assign("a", " Red"), assign("a", "green"))
    play = script([first, assign("a", "green"), "blue"], other=["DONE"])
    metrics = swarm_metrics([run(play, Swarm(refuse_duplicates=refuse))])
    assert (metrics["swarm/num_refused"], metrics["swarm/num_duplicates"]) == (refused, duplicates)


def test_siblings_cost_tokens_and_no_steps() -> None:
    one = run(script([turns(create("a"), assign("a", "red")), "blue"], red=["RED"]))
    more = replace(
        one, siblings=(replace(one.subagents[0], id="1.1"), replace(one.subagents[0], id="1.2"))
    )
    before, after = swarm_metrics([one, one]), swarm_metrics([more, one])
    written = len("RED") + 1
    assert after.pop("tokens/siblings") == written  # two in one of two episodes
    assert after.pop("swarm/tokens_per_episode") == before.pop("swarm/tokens_per_episode") + written
    assert after == before


def test_rates_of_abstentions_are_pooled_over_the_episodes_that_count() -> None:
    one = run(script(["blue"]))
    right, honest = Question(True, "answer", 1.0), Question(False, "unknown")
    asked = ([right, honest], [honest, Question(True, "unknown")])
    counted = [replace(one, facts={"calibration": tally(questions)}) for questions in asked]
    step, held_out = outcome_metrics([*counted, one]), heldout_metrics([*counted, one])
    expected = {"accuracy_answered": 1.0, "abstention_precision": 2 / 3, "abstention_recall": 1.0}
    assert {k: step[f"outcome/{k}"] for k in expected} == pytest.approx(expected)
    assert {k: held_out[k] for k in expected} == pytest.approx(expected)
    assert not {
        k
        for k in {*outcome_metrics([one]), *heldout_metrics([one])}
        if "abst" in k or "answered" in k
    }


def test_contradictions_are_a_mean_over_the_episodes_that_tell() -> None:
    one = run(script(["blue"]))
    told = [replace(one, facts={"contradictions": keys}) for keys in (["a", "b"], [])]
    assert swarm_metrics([*told, one])["swarm/contradictions"] == 1.0
    assert heldout_metrics([*told, one])["contradictions"] == 1.0
    assert "swarm/contradictions" not in swarm_metrics([one])
