"""The reward registry, the scorer and Toggle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from parl.config.base import PositiveInt
from parl.config.reward import Modifiers, Reward, Schedule, Term, Toggle
from parl.core.errors import ConfigError
from parl.core.types import Episode
from parl.rewards import terms
from parl.rewards.scorer import Scorer, validate
from parl.rewards.terms import reward
from tests.support.factories import make_config, make_episode, make_trace


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with two terms, `solved` (an outcome of both roles) and `width` (the orchestrator's)."""
    monkeypatch.setattr(terms, "_REGISTRY", {})

    @reward(roles=("orchestrator", "subagent"), outcome=True)
    def solved(episode: Episode) -> dict[str, float]:
        shared = episode.outcome["score"]
        return {t.id: shared if t.score is None else t.score for t in episode.traces}

    @reward
    def width(episode: Episode, *, cap: PositiveInt = 8, form: Literal["a", "b"] = "a") -> float:
        return episode.num_assigned / cap


def make_reward(**by_name: Any) -> Reward:
    return Reward(
        terms={k: v if isinstance(v, Term) else Term(weight=v) for k, v in by_name.items()}
    )


# --- registry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config,message",
    [
        (
            make_reward(sloved=1.0),
            r"reward\.terms\.sloved: no such reward term\. Did you mean 'solved'\? Allowed: solved, width",
        ),
        (
            make_reward(width=Term(weight=1.0, cpa=3)),
            r"width\.cpa: unknown knob\. Did you mean 'cap'\?",
        ),
        (
            make_reward(width=Term(weight=1.0, cap="eight")),
            r"width\.cap: .*integer.*given: 'eight'",
        ),
        (make_reward(width=Term(weight=1.0, cap=0)), r"width\.cap: .*greater than 0"),
        (make_reward(width=Term(weight=1.0, form="c")), r"width\.form: .*'a' or 'b'"),
        (make_reward(), "reward.terms is empty"),
        (
            Reward(terms={"width": Term()}, modifiers=Modifiers(toggle=Toggle())),
            "Add one of: solved",
        ),
    ],
)
def test_a_wrong_config_is_refused_with_the_way_out(config: Reward, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(config)
    with pytest.raises(ConfigError, match=message):
        Scorer(config)


def test_a_knob_without_default_must_be_given() -> None:
    @reward
    def ramp(episode: Episode, *, over: int) -> float:
        return float(over)

    with pytest.raises(ConfigError, match=r"ramp: missing over\. Add reward\.terms\.ramp\.over"):
        validate(make_reward(ramp=1.0))
    validate(make_reward(ramp=Term(weight=1.0, over=3)))


def test_knobs_reach_the_term_with_the_type_of_its_hint() -> None:
    validate(make_reward(width=Term(weight=1.0, cap="4")))
    (scored,), _ = Scorer(make_reward(width=Term(weight=1.0, cap="4"))).score(
        [make_episode(subagents=[make_trace("1")])], 0, {}
    )
    assert scored.rewards["0"].total == 0.25


def test_two_terms_of_one_name_are_refused_but_a_reload_is_not() -> None:
    def make() -> Any:
        def width(episode: Episode) -> float:
            return 0.0

        return width

    with pytest.raises(ConfigError, match="Two reward terms are named 'width'"):
        reward(make())
    reward(terms.get("width").function)


def test_signatures_that_cannot_be_checked_are_refused() -> None:
    def positional(episode: Episode, cap: int = 3) -> float:
        return 0.0

    def unhinted(episode: Episode, *, cap=3) -> float:  # type: ignore[no-untyped-def]
        return 0.0

    def taken(episode: Episode, *, weight: float = 1.0) -> float:
        return 0.0

    for function, message in (
        (positional, "knobs after the"),
        (unhinted, "no type hint"),
        (taken, "taken by the config"),
    ):
        with pytest.raises(TypeError, match=message):
            reward(function)
    with pytest.raises(TypeError, match="must name some of"):
        reward(roles=("judge",))(lambda episode: 0.0)  # type: ignore[arg-type]


def test_the_episodes_hint_need_not_exist_at_run_time() -> None:
    @reward
    def lazy(episode: ImportedForTypeCheckingOnly, *, per: int = 2) -> float:  # type: ignore[name-defined]  # noqa: F821
        return 1 / per

    assert terms.get("lazy").knobs.defaults == {"per": 2}


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_weights_follow_their_schedule_and_are_not_renormalised() -> None:
    config = make_reward(solved=1.0, width=Schedule(start=0.8, end=0.0, from_step=10, to_step=20))
    group = [make_episode(0.5, subagents=[make_trace(str(i)) for i in range(1, 5)])]
    totals = [
        Scorer(config).score(group, step, {})[0][0].rewards["0"].total
        for step in (0, 10, 15, 20, 99)
    ]
    assert totals == pytest.approx([0.5 + 0.4, 0.5 + 0.4, 0.5 + 0.2, 0.5, 0.5])


def test_a_schedule_that_ends_before_it_starts_is_refused() -> None:
    weight = {"start": 0.5, "from_step": 20, "to_step": 10}
    with pytest.raises(ConfigError, match=r"ends \(to_step=10\) before it starts \(from_step=20\)"):
        make_config(reward={"terms": {"width": {"weight": weight}}})


def test_a_float_is_the_orchestrators_alone() -> None:
    (scored,), _ = Scorer(make_reward(solved=1.0, width=1.0)).score(
        [make_episode(subagents=[make_trace("1", score=0.3)])], 0, {}
    )
    assert set(scored.rewards["0"].terms) == {"solved", "width"}
    assert scored.rewards["1"].terms == {"solved": 0.3}
    assert scored.rewards["1"].total == 0.3


def test_failed_episodes_are_left_out_never_scored_zero() -> None:
    group = [
        make_episode(name="a"),
        make_episode(name="b", status="failed"),
        make_episode(name="c", status="truncated"),
    ]
    scored, _ = Scorer(make_reward(solved=1.0)).score(group, 0, {})
    assert [s.episode.id for s in scored] == ["a", "c"]


@pytest.mark.parametrize(
    "value,message",
    [
        (
            {"1": 1.0},
            r"agent '1', whose role is subagent.*@reward\(roles=\('orchestrator', 'subagent'\)\)",
        ),
        ({"7": 1.0}, "names agent '7'"),
        (float("nan"), "is nan for agent '0'"),
    ],
)
def test_a_term_that_breaks_its_contract_is_named(value: Any, message: str) -> None:
    @reward
    def broken(episode: Episode) -> float | Mapping[str, float]:
        return value

    with pytest.raises(ConfigError, match=message):
        Scorer(make_reward(broken=1.0)).score([make_episode(subagents=[make_trace("1")])], 0, {})


def test_an_error_inside_a_term_names_term_and_episode() -> None:
    @reward
    def crash(episode: Episode) -> float:
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as info:
        Scorer(make_reward(crash=1.0)).score([make_episode(name="e7")], 0, {})
    assert info.value.__notes__ == ["in reward term 'crash', episode e7"]


# --- Toggle ----------------------------------------------------------------------------------------------------------


def toggled(**knobs: Any) -> Scorer:
    toggle = Toggle(**{"period": 4, "accuracy_threshold": 0.5, "start_step": 4, **knobs})
    return Scorer(
        Reward(terms={"solved": Term(), "width": Term()}, modifiers=Modifiers(toggle=toggle))
    )


def factors(
    scorer: Scorer, group: Sequence[Episode], step: int, budgets: Mapping[str, float]
) -> list[float]:
    """What the orchestrators' outcome was multiplied by."""
    scored, _ = scorer.score(group, step, budgets)
    return [s.rewards["0"].factors.get("solved", 1.0) for s in scored]


SHORT_AND_LONG = [make_episode(tokens=10), make_episode(tokens=30)]


def test_even_phases_hold_to_the_budget_odd_ones_do_not() -> None:
    by_step = {step: factors(toggled(), SHORT_AND_LONG, step, {"t": 20.0}) for step in range(16)}
    free, held = [1.0, 1.0], [1.0, 0.0]
    assert by_step == {
        **dict.fromkeys((0, 1, 2, 3), free),  # before start_step
        **dict.fromkeys((4, 5, 6, 7), held),
        **dict.fromkeys((8, 9, 10, 11), free),
        **dict.fromkeys((12, 13, 14, 15), held),
    }


def test_rigid_holds_in_every_phase() -> None:
    assert [factors(toggled(rigid=True), SHORT_AND_LONG, s, {"t": 20.0}) for s in (3, 4, 6, 8)] == [
        [1.0, 1.0],
        [1.0, 0.0],
        [1.0, 0.0],
        [1.0, 0.0],
    ]


def test_a_group_below_the_threshold_is_not_gated() -> None:
    group = [
        make_episode(1.0, tokens=30),
        make_episode(0.0, tokens=30),
        make_episode(0.4, tokens=30),
    ]  # mean .467
    assert factors(toggled(), group, 4, {"t": 20.0}) == [1.0, 1.0, 1.0]
    assert factors(toggled(accuracy_threshold=0.46), group, 4, {"t": 20.0}) == [0.0, 0.0, 0.0]


def test_the_gate_reads_the_outcome_before_shaping() -> None:
    wide = [
        make_episode(0.2, 30, [make_trace(str(i)) for i in range(1, 9)]) for _ in range(2)
    ]  # width adds 1.0
    assert factors(toggled(), wide, 4, {"t": 20.0}) == [1.0, 1.0]


def test_only_outcome_terms_are_multiplied() -> None:
    (scored,), _ = toggled().score(
        [make_episode(1.0, 30, [make_trace("1", score=0.7)])], 4, {"t": 20.0}
    )
    assert scored.rewards["0"].terms == {"solved": 1.0, "width": 0.125}
    assert scored.rewards["0"].total == 0.125


def test_a_budget_is_taken_once_from_correct_responses_after_the_start() -> None:
    scorer = toggled(percentile=0.25)
    correct = [make_episode(tokens=n) for n in (10, 20, 30, 40, 50)]
    group = [*correct, make_episode(0.9, tokens=1), make_episode(tokens=1, status="failed")]
    assert scorer.score(group, 3, {})[1] == {}
    budgets = scorer.score(group, 4, {})[1]
    assert budgets == {"t": 20.0}
    assert factors(scorer, group, 4, {}) == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert scorer.score([make_episode(tokens=3), make_episode(tokens=4)], 5, budgets)[1] == budgets
    assert scorer.score(
        [make_episode(tokens=3, task="u"), make_episode(tokens=5, task="u")], 5, budgets
    )[1] == {
        "t": 20.0,
        "u": 3.5,
    }


def test_the_budgets_passed_in_are_not_changed() -> None:
    budgets: dict[str, float] = {}
    toggled().score(SHORT_AND_LONG, 4, budgets)
    assert budgets == {}


def test_without_enough_correct_responses_there_is_no_budget_yet() -> None:
    group = [make_episode(1.0, tokens=10), make_episode(0.98, tokens=90)]
    scored, budgets = toggled().score(group, 4, {})
    assert budgets == {}
    assert all(not s.rewards["0"].factors for s in scored)


def test_subagents_have_a_budget_of_their_own() -> None:
    kids = [
        make_trace("1", 4, score=1.0),
        make_trace("2", 8),
        make_trace("3", 2, score=0.5),
        make_trace("4", 2, result=" "),
    ]
    group = [make_episode(tokens=10, subagents=kids), make_episode(tokens=10)]
    scored, budgets = toggled().score(group, 4, {})
    assert budgets == {
        "t": 10.0,
        "t/subagent": 6.0,
    }  # correct: 1 by its score, 2 because it finished
    assert {k: b.factors.get("solved", 1.0) for k, b in scored[0].rewards.items()} == {
        "0": 1.0,
        "1": 1.0,
        "2": 0.0,
        "3": 1.0,
        "4": 1.0,
    }


def test_the_whole_tree_can_be_the_response() -> None:
    wide = make_episode(
        tokens=10, subagents=[make_trace("1", 30, score=1.0), make_trace("2", 40, score=1.0)]
    )
    scored, budgets = toggled(scope="tree").score([wide, make_episode(tokens=20)], 4, {})
    assert budgets == {"t": 50.0}  # the median of 80 and 20
    assert {k: b.factors for k, b in scored[0].rewards.items()} == {
        a: {"solved": 0.0} for a in "012"
    }
    assert scored[1].rewards["0"].factors == {}
