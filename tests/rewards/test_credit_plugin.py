"""Credit rules and losses of plugins: registered by name, knobs checked, used by a loaded config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import parl
from parl.config import load
from parl.config.roles import Roles
from parl.core.errors import ConfigError
from parl.env import registry as plugins
from parl.learner import loss as losses
from parl.learner.loss import registry as loss_registry
from parl.rewards import credit
from parl.rewards.credit import LossWeighting, build_samples
from parl.rewards.credit import rule as credit_registry
from parl.training.light_parts import build_light_parts
from tests.support.factories import make_config, make_scored
from tests.support.helpers import ROOT


@pytest.fixture(autouse=True)
def restored_registries() -> Iterator[None]:
    rules, loss_functions = dict(credit.registered()), dict(losses.registered())
    yield
    credit_registry._REGISTRY.clear()
    credit_registry._REGISTRY.update(rules)
    loss_registry._REGISTRY.clear()
    loss_registry._REGISTRY.update(loss_functions)


def test_a_rule_of_a_plugin_gives_the_advantages() -> None:
    @parl.credit_rule
    def below_best(group: Any, *, scale: float = 1.0) -> Mapping[tuple[str, str], float]:
        best = max(s.rewards["0"].total for s in group)
        return {(s.episode.id, "0"): scale * (s.rewards["0"].total - best) for s in group}

    section = make_config(credit={"type": "below_best", "scale": 2.0}).credit
    group = [make_scored("a", 1.0), make_scored("b", 0.25)]
    samples, mass = build_samples([group], section, LossWeighting(), Roles(), 0)
    assert [(s.episode, s.advantage) for s in samples] == [("b", -1.5)]
    assert mass == {"main": 6.0}  # two orchestrators with three tokens each


@pytest.mark.parametrize(
    "section, message",
    [
        ({"type": "shapley"}, r"no credit rule 'shapley'.*leave_one_out"),
        ({"type": "below_best", "scael": 1}, r"credit\.scael: unknown knob\. Did you mean 'scale'"),
        ({"type": "below_best", "scale": "x"}, r"credit\.scale: .* \(given: 'x'\)"),
    ],
)
def test_a_wrong_section_is_refused(section: Mapping[str, Any], message: str) -> None:
    @parl.credit_rule
    def below_best(group: Any, *, scale: float = 1.0) -> Mapping[tuple[str, str], float]:
        return {}

    parsed = make_config(credit=section).credit
    with pytest.raises(ConfigError, match=message):
        credit.get(parsed.type).bind(parsed)


def test_two_functions_of_one_name_are_refused() -> None:
    def other() -> None:
        @parl.credit_rule
        def group_mean(group: Any) -> Mapping[tuple[str, str], float]:
            return {}

    with pytest.raises(ConfigError, match=r"Two credit rules are named 'group_mean'"):
        other()


def test_a_rule_of_another_form_is_refused() -> None:
    with pytest.raises(TypeError, match=r"knobs after the \*"):

        @parl.credit_rule
        def positional(group: Any, scale: float) -> Mapping[tuple[str, str], float]:
            return {}


def test_what_a_rule_asks_of_the_rollout_is_part_of_its_registration() -> None:
    assert credit.get("leave_one_out").needs_contributions
    assert credit.get("resample").resamples
    assert not credit.get("group_mean").needs_contributions


def test_a_loss_of_a_plugin_is_bound_to_its_knobs() -> None:
    @parl.policy_loss(drops_equal_groups=True)
    def unclipped(
        logp: torch.Tensor,
        old_logp: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        *,
        slope: float = 1.0,
        weights: torch.Tensor | None = None,
        denominator: float | None = None,
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        return -slope * ((logp - old_logp).exp() * advantages).sum(), {}

    section = make_config(loss={"type": "unclipped", "slope": 3.0}).loss
    assert losses.get("unclipped").bind(section) == {"slope": 3.0}
    assert losses.weighting_of(section) == LossWeighting("batch", False, True)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"type": "grop"}, r"no policy loss 'grop'\. Did you mean 'grpo'"),
        ({"type": "unclipped", "slop": 1}, r"loss\.slop: unknown knob\. Did you mean 'slope'"),
    ],
)
def test_a_wrong_loss_section_is_refused(section: Mapping[str, Any], message: str) -> None:
    @parl.policy_loss
    def unclipped(
        logp: torch.Tensor,
        old_logp: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        *,
        slope: float = 1.0,
        weights: torch.Tensor | None = None,
        denominator: float | None = None,
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        return logp.sum(), {}

    with pytest.raises(ConfigError, match=message):
        losses.weighting_of(make_config(loss=section).loss)


def test_a_loss_of_another_form_is_refused() -> None:
    with pytest.raises(TypeError, match=r"write def short\(logp, old_logp"):

        @parl.policy_loss
        def short(logp: torch.Tensor) -> torch.Tensor:
            return logp.sum()


INSTALLED = """
import parl


@parl.credit_rule(needs_contributions=True)
def installed_rule(group, *, bonus: float = 1.0, discount: float):
    best = max(s.rewards["0"].total for s in group)
    return {(s.episode.id, "0"): bonus * discount * (s.rewards["0"].total - best) for s in group}
"""


def test_a_rule_of_an_installed_package_runs_from_a_loaded_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_loaded", set())
    (tmp_path / "installed_rules.py").write_text(INSTALLED)
    info = tmp_path / "installed_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[parl.rewards]\nrules = installed_rules\n")
    overrides = ["credit.type=installed_rule", "credit.bonus=2", "credit.discount=0.5"]
    loaded = load(ROOT / "configs/smoke.yaml", overrides)
    build_light_parts(loaded).close()
    group = [make_scored("a", 1.0), make_scored("b", 0.25)]
    samples = credit.assign([group], loaded.credit, Roles(), 0)
    assert [(s.episode, s.advantage) for s in samples] == [("b", -0.75)]
    assert credit.get(loaded.credit.type).needs_contributions
    wrong = load(ROOT / "configs/smoke.yaml", [*overrides, "credit.bonsu=3"])
    with pytest.raises(ConfigError, match=r"credit\.bonsu: unknown knob\. Did you mean 'bonus'"):
        build_light_parts(wrong)


def test_a_default_that_the_config_would_never_let_hold_is_refused() -> None:
    message = r"'discount' gets the config's value, 0\.95 by default"
    with pytest.raises(TypeError, match=message):

        @parl.credit_rule
        def discounted(group: Any, *, discount: float = 0.5) -> Mapping[tuple[str, str], float]:
            return {}


@pytest.mark.parametrize(
    "advantages, message",
    [
        ({("a", "9"): 1.0}, "not in the group"),
        ({("a", "0"): float("nan")}, "the advantage nan"),
        ({("a", "0"): (1.0, 2.0)}, "2 advantages, but it took 1 turns"),
    ],
)
def test_advantages_that_do_not_fit_the_group_are_refused(
    advantages: Mapping[tuple[str, str], Any], message: str
) -> None:
    @parl.credit_rule
    def careless(group: Any) -> Mapping[tuple[str, str], Any]:
        return advantages

    section = make_config(credit={"type": "careless"}).credit
    with pytest.raises(ConfigError, match=message):
        credit.assign([[make_scored("a", 1.0)]], section, Roles(), 0)


def test_a_whole_number_is_an_advantage() -> None:
    @parl.credit_rule
    def whole(group: Any) -> Mapping[tuple[str, str], int]:
        return {("a", "0"): 1}

    (sample,) = credit.assign(
        [[make_scored("a", 1.0)]], make_config(credit={"type": "whole"}).credit, Roles(), 0
    )
    assert sample.advantage == 1.0
