"""Advantages and loss weights per role."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from parl.config.credit import Credit
from parl.config.loss import Loss
from parl.config.roles import Phase, RoleConfig, Roles
from parl.core.errors import ConfigError
from parl.core.types import AgentTrace, Sample, ScoredEpisode, Turn
from parl.learner.loss import weighting_of
from parl.rewards.credit import assign, build_samples, token_mass
from tests.support.factories import make_scored, make_trace

BOTH = Roles()


def advantages(samples: Sequence[Sample]) -> dict[tuple[str, str], float]:
    return {(s.episode, s.agent): s.advantage for s in samples}


def test_orchestrators_are_compared_with_their_group_only() -> None:
    first = [make_scored("a", 1.0), make_scored("b", 0.0)]
    second = [make_scored("c", 5.0), make_scored("d", 3.0)]
    got = advantages(assign([first, second], Credit(), BOTH, 0))
    assert got == {("a", "0"): 0.5, ("b", "0"): -0.5, ("c", "0"): 1.0, ("d", "0"): -1.0}


def test_a_failed_episode_is_in_no_mean_and_no_sample() -> None:
    group = [
        make_scored("a", 1.0),
        make_scored("b", 0.5),
        make_scored("x", 0.0, [0.0], status="failed"),
    ]
    got = advantages(assign([group], Credit(), BOTH, 0))
    assert got == {("a", "0"): 0.25, ("b", "0"): -0.25}


def test_a_truncated_episode_is_trained() -> None:
    group = [make_scored("a", 1.0), make_scored("b", 0.0, status="truncated")]
    assert advantages(assign([group], Credit(), BOTH, 0))["b", "0"] == -0.5


def test_a_wide_episode_does_not_set_the_subagents_baseline() -> None:
    group = [
        make_scored("wide", 0.0, [1.0] * 9),
        make_scored("narrow", 0.0, [0.0]),
        make_scored("serial", 0.0),
    ]
    got = advantages(assign([group], Credit(), BOTH, 0))
    assert got["wide", "3"] == 0.5  # against .1 with a mean over all ten subagents
    assert got["narrow", "1"] == -0.5


def test_subagents_compared_within_their_episode() -> None:
    group = [make_scored("a", 0.0, [1.0, 0.5]), make_scored("b", 0.0, [0.0, 0.0])]
    got = advantages(assign([group], Credit(subagent_group="episode"), BOTH, 0))
    assert got == {("a", "1"): 0.25, ("a", "2"): -0.25}


def test_a_failed_child_is_left_out_and_not_counted() -> None:
    group = [make_scored("a", 0.0, [1.0, 0.5, None]), make_scored("b", 0.0, [0.0])]
    samples = assign([group], Credit(), BOTH, 0)
    assert advantages(samples) == {("a", "1"): 0.625, ("a", "2"): 0.125, ("b", "1"): -0.375}
    assert {s.weight for s in samples if s.episode == "a"} == {0.5}


def test_normalised_by_the_deviation_within_role() -> None:
    group = [make_scored("a", 1.0, [3.0, 1.0]), make_scored("b", 0.0, [0.0])]
    got = advantages(assign([group], Credit(normalize_std=True, std_floor=0.05), BOTH, 0))
    assert got["a", "0"] == pytest.approx(0.5 / 0.55)
    # subagents: mean (2 + 0)/2 = 1, variance ((4 + 0)/2 + 1)/2 = 1.5
    assert got["a", "1"] == pytest.approx(2.0 / (math.sqrt(1.5) + 0.05))
    assert got["b", "1"] == pytest.approx(-1.0 / (math.sqrt(1.5) + 0.05))


def test_width_adds_no_gradient_mass() -> None:
    group = [make_scored("wide", 1.0, [1.0] * 8), make_scored("narrow", 0.0, [0.0])]
    samples = assign([group], Credit(), BOTH, 0)
    mass = {
        name: sum(
            s.weight * sum(s.mask) for s in samples if s.episode == name and s.role == "subagent"
        )
        for name in ("wide", "narrow")
    }
    assert mass == {"wide": 2.0, "narrow": 2.0}
    assert all(s.weight == 1.0 for s in samples if s.role == "orchestrator")


def test_a_frozen_role_gives_no_samples_until_its_phase() -> None:
    schedule = (Phase(until=10, value=False), Phase(value=True))
    roles = Roles(subagent=RoleConfig(trainable=schedule))
    group = [make_scored("a", 1.0, [1.0]), make_scored("b", 0.0, [0.0])]
    assert {s.role for s in assign([group], Credit(), roles, 9)} == {"orchestrator"}
    assert {s.role for s in assign([group], Credit(), roles, 10)} == {"orchestrator", "subagent"}
    assert token_mass([group], roles, 9) == [{"main": 6.0}]


def test_equal_rewards_give_no_samples_but_count_in_the_denominator() -> None:
    group = [make_scored("a", 0.3, [0.1, 0.1]), make_scored("b", 0.3, [0.1])]
    assert assign([group], Credit(), BOTH, 0) == []
    assert token_mass([group], BOTH, 0) == [{"main": 3 + 3 + (2 + 2) / 2 + 2}]


def test_a_sample_is_its_trace() -> None:
    sample = assign([[make_scored("a", 1.0), make_scored("b", 0.0)]], Credit(), BOTH, 0)[0]
    assert sample == Sample(
        episode="a",
        agent="0",
        role="orchestrator",
        policy="main",
        token_ids=(5, 5, 5, 5),
        mask=(0, 1, 1, 1),
        logprobs=(0.0, -1.0, -1.0, -1.0),
        advantage=0.5,
        weight=1.0,
        policy_versions=(0,),
    )


def test_nothing_in_nothing_out() -> None:
    assert assign([[], [make_scored("x", 0.0, status="failed")]], Credit(), BOTH, 0) == []
    assert token_mass([[]], BOTH, 0) == [{}]


# --- the other rules: the example of docs/explain/credit.md ------------------------------------------------------------------

A = [make_scored("a", 0.9, [1.0, 0.0]), make_scored("b", 0.3, [0.5]), make_scored("c", 0.0)]
"""Orchestrators: mean .4, so .5, -.1, -.4. Subagents: mean of (.5, .5) = .5, so .5, -.5; 0."""


def test_trajectory_gives_every_agent_its_orchestrators_advantage() -> None:
    got = advantages(assign([A], Credit(type="trajectory"), BOTH, 0))
    assert got == {
        ("a", "0"): pytest.approx(0.5),
        ("a", "1"): pytest.approx(0.5),
        ("a", "2"): pytest.approx(0.5),  # although its own reward is 0
        ("b", "0"): pytest.approx(-0.1),
        ("b", "1"): pytest.approx(-0.1),
        ("c", "0"): pytest.approx(-0.4),
    }
    # z-scored, as WideSeek-R1 does: variance (.25 + .01 + .16)/3 = .14
    z = advantages(assign([A], Credit(type="trajectory", normalize_std=True), BOTH, 0))
    assert z["a", "2"] == pytest.approx(0.5 / (math.sqrt(0.14) + 0.05))


def test_role_normalized_counts_every_agent_once() -> None:
    group = [make_scored("a", 1.0, [1.0, 1.0, 0.5, 0.5]), make_scored("b", 0.0, [0.0])]
    got = advantages(assign([group], Credit(type="role_normalized", std_floor=0.1), BOTH, 0))
    assert got["a", "0"] == pytest.approx(0.5 / 0.6)
    # five subagents: mean 3/5, variance (.16 + .16 + .01 + .01 + .36)/5 = .14
    scale = math.sqrt(0.14) + 0.1
    assert got["a", "1"] == pytest.approx(0.4 / scale)
    assert got["a", "3"] == pytest.approx(-0.1 / scale)
    assert got["b", "1"] == pytest.approx(-0.6 / scale)


def test_hierarchical_adds_a_share_of_the_episode() -> None:
    got = advantages(assign([A], Credit(type="hierarchical", episode_share=0.5), BOTH, 0))
    assert got == {
        ("a", "0"): pytest.approx(0.5),
        ("a", "1"): pytest.approx(0.5 + 0.25),
        ("a", "2"): pytest.approx(-0.5 + 0.25),
        ("b", "0"): pytest.approx(-0.1),
        ("b", "1"): pytest.approx(-0.05),
        ("c", "0"): pytest.approx(-0.4),
    }
    without = advantages(assign([A], Credit(type="hierarchical", episode_share=0.0), BOTH, 0))
    assert without == advantages(assign([A], Credit(), BOTH, 0))


def with_turns(episode: ScoredEpisode, agent: str, *texts: tuple[int, ...]) -> ScoredEpisode:
    """The agent speaks these tokens turn by turn, after a prompt (5,), with an observation (9,) between turns."""
    ids, mask, turns = [5], [0], []
    for i, text in enumerate(texts):
        ids, mask = (ids, mask) if i == 0 else ([*ids, 9], [*mask, 0])
        turns.append(Turn("x", (), (), len(ids), len(ids) + len(text), policy_versions=(0,)))
        ids, mask = [*ids, *text], [*mask, *[1] * len(text)]
    made = {"token_ids": tuple(ids), "mask": tuple(mask), "logprobs": tuple(-1.0 * m for m in mask)}
    traces = tuple(
        replace(t, turns=tuple(turns), **made) if t.id == agent else t  # type: ignore[arg-type]
        for t in episode.episode.traces
    )
    return replace(episode, episode=replace(episode.episode, traces=traces))


def test_per_turn_compares_turns_that_were_taken_in_the_same_state() -> None:
    """Discount .5. Returns: a (1) .25 .5 1; b (.8) .4 .8; c (0) 0 0. Base: 1, .8, 0 less .6.

    Turn 0 is one state: .25, .4, 0 less .65/3. a and b both said 1 first, so turn 1 is another: .5, .8 less .65.
    c said 2, so its turn 1 is alone, as is a's turn 2: nothing is added.
    """
    group = [
        with_turns(make_scored("a", 1.0), "0", (1,), (3, 3), (4,)),
        with_turns(make_scored("b", 0.8), "0", (1,), (4,)),
        with_turns(make_scored("c", 0.0), "0", (2,), (4,)),
    ]
    samples = assign([group], Credit(type="per_turn", discount=0.5, turn_weight=2.0), BOTH, 0)
    a, b, c = (s.advantages for s in samples)
    first = 0.65 / 3
    assert a == pytest.approx((0, 0.4 + 2 * (0.25 - first), 0, *[0.4 - 2 * 0.15] * 2, 0, 0.4))
    assert b == pytest.approx((0, 0.2 + 2 * (0.4 - first), 0, 0.2 + 2 * 0.15))
    assert c == pytest.approx((0, -0.6 - 2 * first, 0, -0.6))
    assert samples[0].advantage == pytest.approx(sum(a) / 4)
    flat = assign([group], Credit(type="per_turn", turn_weight=0.0), BOTH, 0)
    assert [s.advantages for s in flat] == [
        s.advantages for s in assign([group], Credit(), BOTH, 0)
    ]


def test_per_turn_compares_subagents_with_those_of_the_same_prompt() -> None:
    group = [
        with_turns(make_scored("a", 0.0, [1.0]), "1", (1,)),
        with_turns(make_scored("b", 0.0, [0.0]), "1", (2,)),
    ]
    got = {s.episode: s.advantages for s in assign([group], Credit(type="per_turn"), BOTH, 0)}
    assert got == {"a": (0.0, 1.0), "b": (0.0, -1.0)}  # .5 among all, and .5 more in the same state


def worth(episode: ScoredEpisode, *values: float | None) -> ScoredEpisode:
    root, *kids = episode.episode.traces
    kids = [replace(t, contribution=v) for t, v in zip(kids, values, strict=True)]
    return replace(episode, episode=replace(episode.episode, traces=(root, *kids)))


def test_drop_one_compares_what_the_answer_would_have_lost() -> None:
    group = [worth(A[0], 0.6, 0.0), worth(A[1], 0.1), A[2]]
    got = advantages(assign([group], Credit(type="leave_one_out"), BOTH, 0))
    # baseline of the subagents: ((.6 + 0)/2 + .1)/2 = .2
    assert got == {
        ("a", "0"): pytest.approx(0.5),
        ("a", "1"): pytest.approx(0.4),
        ("a", "2"): pytest.approx(-0.2),
        ("b", "0"): pytest.approx(-0.1),
        ("b", "1"): pytest.approx(-0.1),
        ("c", "0"): pytest.approx(-0.4),
    }


def test_drop_one_needs_the_environments_word() -> None:
    with pytest.raises(
        ConfigError, match=r"episode a does not say what its subagent 1 contributed.*group_mean"
    ):
        assign([[make_scored("a", 1.0, [1.0])]], Credit(type="leave_one_out"), BOTH, 0)


def test_siblings_are_compared_with_each_other() -> None:
    """a's first subagent (1) has the siblings 0 and .5, b's (.5) has none; a's second failed to be of use."""

    def sibling(agent: str, score: float | None) -> AgentTrace:
        return replace(make_trace(agent), role="subagent", score=score)

    a, b = make_scored("a", 1.0, [1.0, 0.25]), make_scored("b", 0.0, [0.5])
    kids = (a.episode.traces[0], replace(a.episode.traces[1], score=1.0), a.episode.traces[2])
    a = replace(
        a,
        episode=replace(
            a.episode, traces=kids, siblings=(sibling("1.1", 0.0), sibling("1.2", 0.5))
        ),
    )
    samples = assign([[a, b]], Credit(type="resample"), BOTH, 0)
    assert advantages(samples) == {
        ("a", "0"): 0.5,
        ("a", "1"): 0.5,  # 1 less the mean of 1, 0 and .5
        ("a", "2"): pytest.approx(0.25 - 0.5625),  # as group_mean: ((1 + .25)/2 + .5)/2
        ("a", "1.1"): -0.5,  # ("a", "1.2") is the mean itself
        ("b", "0"): -0.5,
        ("b", "1"): pytest.approx(0.5 - 0.5625),
    }
    weights = {(s.episode, s.agent): s.weight for s in samples if s.role == "subagent"}
    assert weights == {("a", "1"): 1 / 6, ("a", "1.1"): 1 / 6, ("a", "2"): 1 / 2, ("b", "1"): 1.0}
    assert token_mass([[a, b]], BOTH, 0) == [
        {"main": pytest.approx(3 + 3 + 2 + 2)}
    ]  # as without siblings
    # where nobody can tell, a message that is finished has succeeded
    unknown = (sibling("2.1", None), replace(sibling("2.2", None), result=" "))
    mute = replace(a, episode=replace(a.episode, siblings=unknown))
    got = advantages(assign([[mute, b]], Credit(type="resample"), BOTH, 0))
    assert (got["a", "2"], got["a", "2.1"], got["a", "2.2"]) == pytest.approx(
        (1 / 3, 1 / 3, -2 / 3)
    )
    assert ("a", "1.1") not in advantages(
        assign([[a, b]], Credit(), BOTH, 0)
    )  # no other rule knows them


# --- what the loss wants ---------------------------------------------------------------------------------------------


def test_dapo_leaves_out_groups_without_variance() -> None:
    even = [make_scored("a", 0.3, [0.1]), make_scored("b", 0.3, [0.1])]
    odd = [make_scored("c", 1.0), make_scored("d", 0.0)]
    samples, mass = build_samples([even, odd], Credit(), weighting_of(Loss(type="dapo")), BOTH, 0)
    assert [s.episode for s in samples] == ["c", "d"]
    assert mass == {"main": 6.0}
    assert build_samples([even, odd], Credit(), weighting_of(Loss(type="grpo")), BOTH, 0)[1] == {
        "main": 16.0
    }
    assert build_samples([even], Credit(), weighting_of(Loss(type="dapo")), BOTH, 0) == ([], {})
    per_problem, _ = build_samples(
        [even, odd], Credit(), weighting_of(Loss(type="dapo", denominator="problem")), BOTH, 0
    )
    assert {s.weight for s in per_problem} == {1.0}  # the only problem that is left


def test_gspo_counts_traces() -> None:
    group = [make_scored("a", 1.0, [1.0, 0.0]), make_scored("b", 0.0)]
    samples, mass = build_samples([group], Credit(), weighting_of(Loss(type="gspo")), BOTH, 0)
    assert mass == {"main": 3.0}  # two orchestrators, and two subagents of one half each
    weights = {(s.episode, s.agent): s.weight * sum(s.mask) for s in samples}
    assert weights == pytest.approx(
        {("a", "0"): 1.0, ("a", "1"): 0.5, ("a", "2"): 0.5, ("b", "0"): 1.0}
    )


def test_each_problem_has_the_same_part_of_the_denominator() -> None:
    small, large = (
        [make_scored("a", 1.0), make_scored("b", 0.0)],
        [make_scored(n, float(n == "c"), [0.5]) for n in "cdef"],
    )
    samples, mass = build_samples(
        [small, large], Credit(), weighting_of(Loss(denominator="problem")), BOTH, 0
    )
    assert mass == {"main": 6.0 + 20.0}
    parts = [
        sum(s.weight * sum(s.mask) for s in samples if s.episode in names)
        for names in ("ab", "cdef")
    ]
    assert parts == pytest.approx(
        [13.0, 13.0 * 12 / 20]
    )  # of the large one only the orchestrators have advantages
