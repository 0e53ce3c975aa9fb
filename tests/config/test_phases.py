"""When a role learns: by steps, by a skill, by turns; and that the place survives a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from parl.config import Config, parse, phases
from parl.core.errors import ConfigError
from tests.support.factories import make_config

GATED = [
    {"until": {"metric": "outcome/subtask", "value": 0.8, "max_steps": 5}, "value": False},
    {"value": True},
]


def config(orchestrator: Any = True, subagent: Any = True) -> Config:
    return make_config(
        policies={"main": {}, "other": {}},
        roles={
            "orchestrator": {"trainable": orchestrator},
            "subagent": {"policy": "other", "trainable": subagent},
        },
    )


def play(settings: Config, metrics: Sequence[Mapping[str, float]]) -> list[tuple[bool, bool]]:
    """(orchestrator, subagent) at each step, the places going through the JSON of a checkpoint."""
    places: dict[str, tuple[int, int]] = {}
    out = []
    for step, measured in enumerate(metrics):
        now = phases.roles_at(settings.roles, places, step)
        assert isinstance(now.orchestrator.trainable, bool)
        out.append(
            (
                phases.trainable_at(now.orchestrator.trainable, step),
                phases.trainable_at(now.subagent.trainable, step),
            )
        )
        places = phases.after_step(settings.roles, places, step, measured)
    return out


def subtask(*values: float | None) -> list[dict[str, float]]:
    return [{} if v is None else {"outcome/subtask": v} for v in values]


def test_a_gate_opens_at_the_skill_and_holds() -> None:
    learning = [s for _, s in play(config(subagent=GATED), subtask(0.1, 0.7, 0.8, 0.0, 0.0))]
    assert learning == [False, False, False, True, True]  # reached in step 2, so from step 3 on


def test_a_gate_opens_after_max_steps_without_the_skill() -> None:
    assert [s for _, s in play(config(subagent=GATED), subtask(*[0.1] * 7))] == [False] * 5 + [
        True
    ] * 2
    assert [s for _, s in play(config(subagent=GATED), subtask(*[None] * 7))] == [False] * 5 + [
        True
    ] * 2


def test_each_gate_is_measured_in_a_step_of_its_own() -> None:
    second = {"until": {"metric": "outcome/score", "value": 0.5, "max_steps": 9}, "value": True}
    chain = [GATED[0], second, {"value": False}]
    high = [{"outcome/subtask": 0.9, "outcome/score": 0.9}] * 4
    assert [s for _, s in play(config(subagent=chain), high)] == [False, True, False, False]


def test_turns_of_two_roles_are_complementary() -> None:
    one, other = ([{"value": {"steps": 2, "first": first}}] for first in (True, False))
    assert (
        play(config(one, other), [{}] * 6)
        == [(True, False)] * 2 + [(False, True)] * 2 + [(True, False)] * 2
    )


def test_turns_are_counted_from_where_their_phase_begins() -> None:
    turns = [GATED[0], {"value": {"steps": 2, "first": True}}]
    learning = [s for _, s in play(config(subagent=turns), subtask(0, 0, 0.9, 0, 0, 0, 0, 0))]
    assert learning == [False, False, False, True, True, False, False, True]


def test_steps_and_skills_in_one_schedule() -> None:
    mixed = [{"until": 2, "value": True}, GATED[0], {"until": 9, "value": True}, {"value": False}]
    learning = [s for _, s in play(config(subagent=mixed), subtask(0.9, 0.9, 0.1, 0.9, *[0.0] * 8))]
    assert learning == [True, True, False, False, *[True] * 5, False, False, False]


@pytest.mark.parametrize(
    "schedule",
    [
        True,
        False,
        [{"until": 3, "value": False}, {"value": True}],
        [{"until": 3, "value": False}, {"until": 5, "value": True}],
        [
            {"until": 5, "value": True},
            {"until": 3, "value": False},
            {"value": {"steps": 2, "first": False}},
        ],
    ],
)
def test_where_steps_alone_decide_the_place_needs_no_memory(schedule: Any) -> None:
    settings = config(subagent=schedule)
    remembered = [s for _, s in play(settings, [{}] * 12)]
    assert remembered == [
        phases.trainable_at(settings.roles.subagent.trainable, step) for step in range(12)
    ]
    assert remembered == [
        phases.roles_at(settings.roles, {}, step).subagent.trainable for step in range(12)
    ]


def test_a_gate_cannot_be_known_without_the_run() -> None:
    role = config(subagent=GATED).roles.subagent
    assert phases.trainable_at(role.trainable, 0) is False
    with pytest.raises(
        ConfigError, match=r"depends on outcome/subtask.*roles\.ROLE\.trainable=true"
    ):
        phases.trainable_at(role.trainable, 3)


def test_ever_trainable() -> None:
    assert config(subagent=GATED).roles.subagent.ever_trainable
    assert config(subagent=[{"value": {"steps": 1, "first": False}}]).roles.subagent.ever_trainable
    assert not config(
        subagent=[{"until": 3, "value": False}, {"value": False}]
    ).roles.subagent.ever_trainable


def test_a_phase_without_an_end_may_only_be_the_last() -> None:
    with pytest.raises(ConfigError, match=r"roles\.subagent\.trainable: phase 0 has no `until`"):
        config(subagent=[{"value": True}, {"value": False}])


def test_roles_by_turns_need_weights_of_their_own() -> None:
    turns = [{"value": {"steps": 2, "first": True}}]
    with pytest.raises(
        ConfigError, match=r"both roles have the policy 'main'.*a policy or an adapter of its own"
    ):
        make_config(roles={"orchestrator": {"trainable": turns}})


@pytest.mark.parametrize(
    "policies, roles, message",
    [
        (
            {"main": {}, "a": {"adapter": {"base": "mian"}}},
            {},
            r"policies\.a\.adapter\.base is 'mian', which is no policy with weights of its own. Those are: main",
        ),
        ({"main": {}, "a": {"adapter": {"base": "a"}}}, {}, r"base is 'a', which is no policy"),
        (
            {"main": {}, "a": {"adapter": {"base": "main"}}},
            {"orchestrator": {"policy": "a"}},
            r"roles\.subagent trains all weights of the policy 'main', on which 'a' is an adapter\. Give the role an",
        ),
        (
            {"main": {}, "a": {"adapter": {"base": "main"}, "dtype": "bfloat16"}},
            {},
            r"policies\.a\.dtype: an adapter takes it from its base; set policies\.main\.dtype",
        ),
        (
            {"main": {}, "a": {"adapter": {"base": "main", "rank": 0}}},
            {},
            r"policies\.a\.adapter\.rank",
        ),
        (
            {"main": {}, "a": {"adapter": {"base": "main", "target_modules": "all"}}},
            {},
            r"policies\.a\.adapter\.target",
        ),
        (
            {"main": {}, "a": {"adapter": {"bas": "main"}}},
            {},
            r"policies\.a\.adapter\.bas: unknown key. Did you mean 'base'",
        ),
    ],
)
def test_adapters_that_do_not_fit(policies: Any, roles: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(policies=policies, roles=roles)


def test_a_frozen_role_may_play_the_base() -> None:
    policies = {"main": {}, "a": {"adapter": {"base": "main"}}}
    roles = {"orchestrator": {"policy": "a"}, "subagent": {"trainable": False}}
    made = make_config(policies=policies, roles=roles)
    assert (made.base_of("a"), made.base_of("main")) == ("main", "main")
    assert parse(made.model_dump(mode="json")) == made


def test_inference_actors_are_of_bases() -> None:
    policies = {"main": {}, "a": {"adapter": {"base": "main"}}}
    rollout = {"backend": "ray", "inference": {"a": {}}}
    roles = {"orchestrator": {"policy": "a"}, "subagent": {"trainable": False}}
    with pytest.raises(
        ConfigError, match=r"rollout\.inference\.a: it is served with its base; say main"
    ):
        make_config(policies=policies, roles=roles, rollout=rollout)
