"""The reward registry, the scorer, Toggle, and the shipped terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from parl import scoring
from parl.calibration import Question, tally
from parl.config import parse
from parl.config.base import PositiveInt
from parl.config.objective import Modifiers, Reward, Schedule, Term, Toggle
from parl.errors import ConfigError
from parl.scoring import Scorer, finished, reward, validate
from parl.types import AgentTrace, Clock, Episode, Status, Task, Turn
from parl_rewards.calibration import calibration
from parl_rewards.outcome import outcome
from parl_rewards.parallelism import contradictions, critical_steps, finish, parallel, total_steps
from parl_rewards.tokens import overlong, tokens

# --- episodes by hand ------------------------------------------------------------------------------------------------


def child(
    agent: str, tokens: int = 4, score: float | None = None, status: Status = "completed", result: str = "x"
) -> AgentTrace:
    return trace(agent, tokens, "subagent", score, status, result)


def trace(
    agent: str,
    tokens: int,
    role: Literal["orchestrator", "subagent"] = "orchestrator",
    score: float | None = None,
    status: Status = "completed",
    result: str = "x",
) -> AgentTrace:
    sub = role == "subagent"
    return AgentTrace(
        id=agent,
        role=role,
        parent="0" if sub else None,
        spawned_at=0 if sub else None,
        name=agent,
        prompt="",
        policy="main",
        turns=(Turn("", (), (), 1, 1 + tokens, 0),),
        status=status,
        stop_reason="",
        result=result,
        token_ids=(0,) * (1 + tokens),
        mask=(0,) + (1,) * tokens,
        logprobs=(0.0,) * (1 + tokens),
        score=score,
    )


def episode(
    score: float = 1.0,
    tokens: int = 10,
    children: Sequence[AgentTrace] = (),
    *,
    name: str = "e",
    task: str = "t",
    status: Status = "completed",
    refused: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Episode:
    return Episode(
        id=name,
        task=Task(task, "parl/Test-v0", "", {}),
        group=task,
        step=0,
        status=status,
        answer="",
        outcome={"score": score, "item_f1": score / 2},
        facts=facts or {},
        traces=(trace("0", tokens), *children),
        num_assigned=len(children),
        num_refused=refused,
        clock=Clock(0.0, 0.0, ()),
    )


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with two terms, `solved` (an outcome of both roles) and `width` (the orchestrator's)."""
    monkeypatch.setattr(scoring, "_REGISTRY", {})

    @reward(roles=("orchestrator", "subagent"), outcome=True)
    def solved(episode: Episode) -> dict[str, float]:
        shared = episode.outcome["score"]
        return {t.id: shared if t.score is None else t.score for t in episode.traces}

    @reward
    def width(episode: Episode, *, cap: PositiveInt = 8, form: Literal["a", "b"] = "a") -> float:
        return episode.num_assigned / cap


def terms(**by_name: Any) -> Reward:
    return Reward(terms={k: v if isinstance(v, Term) else Term(weight=v) for k, v in by_name.items()})


# --- registry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config,message",
    [
        (
            terms(sloved=1.0),
            r"reward\.terms\.sloved: no such reward term\. Did you mean 'solved'\? Allowed: solved, width",
        ),
        (terms(width=Term(weight=1.0, cpa=3)), r"width\.cpa: unknown knob\. Did you mean 'cap'\?"),
        (terms(width=Term(weight=1.0, cap="eight")), r"width\.cap: .*integer.*given: 'eight'"),
        (terms(width=Term(weight=1.0, cap=0)), r"width\.cap: .*greater than 0"),
        (terms(width=Term(weight=1.0, form="c")), r"width\.form: .*'a' or 'b'"),
        (terms(), "reward.terms is empty"),
        (Reward(terms={"width": Term()}, modifiers=Modifiers(toggle=Toggle())), "Add one of: solved"),
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
        validate(terms(ramp=1.0))
    validate(terms(ramp=Term(weight=1.0, over=3)))


def test_knobs_reach_the_term_with_the_type_of_its_hint() -> None:
    validate(terms(width=Term(weight=1.0, cap="4")))
    (scored,), _ = Scorer(terms(width=Term(weight=1.0, cap="4"))).score([episode(children=[child("1")])], 0, {})
    assert scored.rewards["0"].total == 0.25


def test_two_terms_of_one_name_are_refused_but_a_reload_is_not() -> None:
    def make() -> Any:
        def width(episode: Episode) -> float:
            return 0.0

        return width

    with pytest.raises(ConfigError, match="Two reward terms are named 'width'"):
        reward(make())
    reward(scoring.get("width").function)


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
        reward(roles=("judge",))(lambda episode: 0.0)  # type: ignore[call-overload]


def test_the_episodes_hint_need_not_exist_at_run_time() -> None:
    @reward
    def lazy(episode: ImportedForTypeCheckingOnly, *, per: int = 2) -> float:  # type: ignore[name-defined]  # noqa: F821
        return 1 / per

    assert scoring.get("lazy").defaults == {"per": 2}


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_weights_follow_their_schedule_and_are_not_renormalised() -> None:
    config = terms(solved=1.0, width=Schedule(start=0.8, end=0.0, from_step=10, to_step=20))
    group = [episode(0.5, children=[child(str(i)) for i in range(1, 5)])]
    totals = [Scorer(config).score(group, step, {})[0][0].rewards["0"].total for step in (0, 10, 15, 20, 99)]
    assert totals == pytest.approx([0.5 + 0.4, 0.5 + 0.4, 0.5 + 0.2, 0.5, 0.5])


def test_a_schedule_that_ends_before_it_starts_is_refused() -> None:
    weight = {"start": 0.5, "from_step": 20, "to_step": 10}
    with pytest.raises(ConfigError, match=r"ends \(to_step=10\) before it starts \(from_step=20\)"):
        parse({"name": "x", "env": {"id": "e"}, "reward": {"terms": {"width": {"weight": weight}}}})


def test_a_float_is_the_orchestrators_alone() -> None:
    (scored,), _ = Scorer(terms(solved=1.0, width=1.0)).score([episode(children=[child("1", score=0.3)])], 0, {})
    assert set(scored.rewards["0"].terms) == {"solved", "width"}
    assert scored.rewards["1"].terms == {"solved": 0.3}
    assert scored.rewards["1"].total == 0.3


def test_failed_episodes_are_left_out_never_scored_zero() -> None:
    group = [episode(name="a"), episode(name="b", status="failed"), episode(name="c", status="truncated")]
    scored, _ = Scorer(terms(solved=1.0)).score(group, 0, {})
    assert [s.episode.id for s in scored] == ["a", "c"]


@pytest.mark.parametrize(
    "value,message",
    [
        ({"1": 1.0}, r"agent '1', whose role is subagent.*@reward\(roles=\('orchestrator', 'subagent'\)\)"),
        ({"7": 1.0}, "names agent '7'"),
        (float("nan"), "is nan for agent '0'"),
    ],
)
def test_a_term_that_breaks_its_contract_is_named(value: Any, message: str) -> None:
    @reward
    def broken(episode: Episode) -> float | Mapping[str, float]:
        return value

    with pytest.raises(ConfigError, match=message):
        Scorer(terms(broken=1.0)).score([episode(children=[child("1")])], 0, {})


def test_an_error_inside_a_term_names_term_and_episode() -> None:
    @reward
    def crash(episode: Episode) -> float:
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as info:
        Scorer(terms(crash=1.0)).score([episode(name="e7")], 0, {})
    assert info.value.__notes__ == ["in reward term 'crash', episode e7"]


# --- Toggle ----------------------------------------------------------------------------------------------------------


def toggled(**knobs: Any) -> Scorer:
    toggle = Toggle(**{"period": 4, "accuracy_threshold": 0.5, "start_step": 4, **knobs})
    return Scorer(Reward(terms={"solved": Term(), "width": Term()}, modifiers=Modifiers(toggle=toggle)))


def factors(scorer: Scorer, group: Sequence[Episode], step: int, budgets: Mapping[str, float]) -> list[float]:
    """What the orchestrators' outcome was multiplied by."""
    scored, _ = scorer.score(group, step, budgets)
    return [s.rewards["0"].factors.get("solved", 1.0) for s in scored]


SHORT_AND_LONG = [episode(tokens=10), episode(tokens=30)]


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
    group = [episode(1.0, tokens=30), episode(0.0, tokens=30), episode(0.4, tokens=30)]  # mean .467
    assert factors(toggled(), group, 4, {"t": 20.0}) == [1.0, 1.0, 1.0]
    assert factors(toggled(accuracy_threshold=0.46), group, 4, {"t": 20.0}) == [0.0, 0.0, 0.0]


def test_the_gate_reads_the_outcome_before_shaping() -> None:
    wide = [episode(0.2, 30, [child(str(i)) for i in range(1, 9)]) for _ in range(2)]  # width adds 1.0
    assert factors(toggled(), wide, 4, {"t": 20.0}) == [1.0, 1.0]


def test_only_outcome_terms_are_multiplied() -> None:
    (scored,), _ = toggled().score([episode(1.0, 30, [child("1", score=0.7)])], 4, {"t": 20.0})
    assert scored.rewards["0"].terms == {"solved": 1.0, "width": 0.125}
    assert scored.rewards["0"].total == 0.125


def test_a_budget_is_taken_once_from_correct_responses_after_the_start() -> None:
    scorer = toggled(percentile=0.25)
    correct = [episode(tokens=n) for n in (10, 20, 30, 40, 50)]
    group = [*correct, episode(0.9, tokens=1), episode(tokens=1, status="failed")]
    assert scorer.score(group, 3, {})[1] == {}
    budgets = scorer.score(group, 4, {})[1]
    assert budgets == {"t": 20.0}
    assert factors(scorer, group, 4, {}) == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert scorer.score([episode(tokens=3), episode(tokens=4)], 5, budgets)[1] == budgets
    assert scorer.score([episode(tokens=3, task="u"), episode(tokens=5, task="u")], 5, budgets)[1] == {
        "t": 20.0,
        "u": 3.5,
    }


def test_the_budgets_passed_in_are_not_changed() -> None:
    budgets: dict[str, float] = {}
    toggled().score(SHORT_AND_LONG, 4, budgets)
    assert budgets == {}


def test_without_enough_correct_responses_there_is_no_budget_yet() -> None:
    group = [episode(1.0, tokens=10), episode(0.98, tokens=90)]
    scored, budgets = toggled().score(group, 4, {})
    assert budgets == {}
    assert all(not s.rewards["0"].factors for s in scored)


def test_subagents_have_a_budget_of_their_own() -> None:
    kids = [child("1", 4, score=1.0), child("2", 8), child("3", 2, score=0.5), child("4", 2, result=" ")]
    group = [episode(tokens=10, children=kids), episode(tokens=10)]
    scored, budgets = toggled().score(group, 4, {})
    assert budgets == {"t": 10.0, "t/subagent": 6.0}  # correct: 1 by its score, 2 because it finished
    assert {k: b.factors.get("solved", 1.0) for k, b in scored[0].rewards.items()} == {
        "0": 1.0,
        "1": 1.0,
        "2": 0.0,
        "3": 1.0,
        "4": 1.0,
    }


def test_the_whole_tree_can_be_the_response() -> None:
    wide = episode(tokens=10, children=[child("1", 30, score=1.0), child("2", 40, score=1.0)])
    scored, budgets = toggled(scope="tree").score([wide, episode(tokens=20)], 4, {})
    assert budgets == {"t": 50.0}  # the median of 80 and 20
    assert {k: b.factors for k, b in scored[0].rewards.items()} == {a: {"solved": 0.0} for a in "012"}
    assert scored[1].rewards["0"].factors == {}


# --- the shipped terms -----------------------------------------------------------------------------------------------


def swarm(refused: int = 0, facts: Mapping[str, Any] | None = None) -> Episode:
    kids = [child("1"), child("2", status="truncated"), child("3", result=" "), child("4", score=0.25)]
    return episode(0.6, 10, kids, refused=refused, facts=facts)


def test_finished_is_what_the_episode_counts() -> None:
    e = swarm()
    assert [finished(t) for t in e.subagents] == [True, False, False, True]
    assert e.num_finished == 2


def test_outcomes_reach_both_roles() -> None:
    e = swarm()
    assert outcome(e) == pytest.approx({"0": 0.6, "1": 0.8, "2": 0.3, "3": 0.3, "4": 0.25})
    assert outcome(e, metric="item_f1")["0"] == 0.3
    with pytest.raises(ConfigError, match="Did you mean 'item_f1'"):
        outcome(e, metric="item_f")


def test_parallelism_terms() -> None:
    e = swarm(refused=3, facts={"num_parts": 5})
    assert parallel(e) == 4 / 8
    assert parallel(e, cap=3) == 1.0
    assert parallel(e, cap=3, count="raw") == 7 / 3
    assert parallel(e, form="parts") == 4 / 5
    assert parallel(swarm(facts={"num_parts": 2}), form="parts") == 1.0
    assert finish(e) == 0.5
    assert finish(episode()) == 0.0
    assert critical_steps(e) == -2 / 100
    assert total_steps(e, per=10) == -0.5
    with pytest.raises(ConfigError, match="form: cap"):
        parallel(swarm(), form="parts")


def test_contradictions_cost() -> None:
    found = [contradictions(swarm(facts={"contradictions": ["a"] * n})) for n in (0, 1, 4, 9)]
    assert found == [0.0, -0.25, -1.0, -1.0]
    assert contradictions(swarm(facts={"contradictions": ["a"]}), per=2) == -0.5
    with pytest.raises(ConfigError, match="parl/Test-v0 does not say what messages of subagents state"):
        contradictions(swarm())


RIGHT, WRONG, OUT = Question(True, "answer", 1.0), Question(True, "answer"), Question(True, "nothing")
HONEST, NEEDLESS, INVENTED = Question(False, "unknown"), Question(True, "unknown"), Question(False, "answer")


@pytest.mark.parametrize(
    "questions, knobs, value",
    [
        # by default x = 1, -1, 0.5, 0 and the term is the mean of (x + 1) / 2
        ([RIGHT], {}, 1.0),
        ([WRONG], {}, 0.0),
        ([INVENTED], {}, 0.0),
        ([HONEST], {}, 0.75),
        ([NEEDLESS], {}, 0.5),
        ([OUT], {}, 0.0),
        ([RIGHT, WRONG, HONEST, NEEDLESS, OUT], {}, (1 + 0 + 0.75 + 0.5 + 0) / 5),
        ([Question(True, "answer", 0.25), HONEST], {}, (0.25 + 0.75) / 2),
        # x = 1, -3, 1, 0 and (x + 3) / 4
        ([RIGHT, WRONG, HONEST, NEEDLESS], {"abstention": 1.0, "wrong": 3.0}, (1 + 0 + 1 + 0.75) / 4),
        ([], {}, 0.0),
    ],
)
def test_calibration_pays_for_answers_and_honest_abstentions(
    questions: list[Question], knobs: dict[str, float], value: float
) -> None:
    assert calibration(episode(facts={"calibration": tally(questions)}), **knobs) == pytest.approx(value)


def test_the_laziest_policies_earn_less_than_an_honest_one() -> None:
    """One of four questions has no answer. To abstain always, or to guess, or to say nothing, is not the best."""

    def term(*questions: Question) -> float:
        return calibration(episode(facts={"calibration": tally(questions)}))

    honest = term(RIGHT, RIGHT, RIGHT, HONEST)
    assert honest > term(RIGHT, RIGHT, RIGHT, INVENTED) > term(NEEDLESS, NEEDLESS, NEEDLESS, HONEST)
    assert term(WRONG, WRONG, WRONG, INVENTED) == term(OUT, OUT, OUT, OUT) == 0.0


def test_calibration_needs_an_environment_that_counts() -> None:
    with pytest.raises(ConfigError, match=r"parl/Test-v0 leaves no counts of abstentions.*env\.kwargs\.unanswerable"):
        calibration(episode())


def test_token_terms() -> None:
    e = swarm()  # 10 tokens of the orchestrator, 4 x 4 of its subagents
    assert tokens(e) == -0.01
    assert tokens(e, tree=True) == -0.026
    ramp = [overlong(episode(tokens=n), max_tokens=100, ramp=40) for n in (60, 70, 90, 100, 500)]
    assert ramp == [0.0, -0.25, -0.75, -1.0, -1.0]
    assert overlong(e, max_tokens=26, ramp=13, tree=True) == -1.0


def test_the_shipped_terms_are_registered_with_their_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real registry
    shipped = {n: t for n, t in scoring.registered().items() if t.function.__module__.startswith("parl_rewards.")}
    assert set(shipped) >= {
        *("outcome", "parallel", "finish", "critical_steps", "total_steps", "contradictions"),
        *("tokens", "overlong", "judge", "calibration"),
    }
    assert {n for n, t in shipped.items() if "subagent" in t.roles} == {"outcome"}
    assert {n for n, t in shipped.items() if t.outcome} == {"outcome", "judge", "calibration"}
