"""Every name that changed before the first release is refused with the new one, and no other name is."""

from typing import Any

import pytest

from parl.config import parse
from parl.config.renamed import CREDIT_TYPES, KEYS, KNOBS, METRICS, refuse_old_names
from parl.core.errors import ConfigError

SHIPPED_ENV = {"id": "parl/WideSearch-v0"}
PLUGIN_ENV = {"id": "acme/Maze-v0"}


def tree(path: str, value: Any) -> dict[str, Any]:
    """A config with one value at a path; `*` becomes a list's first entry below `stages`, else a name."""
    keys = path.split(".")
    for i in reversed(range(len(keys))):
        if keys[i] != "*":
            value = {keys[i]: value}
        elif keys[i - 1] == "stages":
            value = [value]
        else:
            value = {"main": value}
    assert isinstance(value, dict)
    return value


def with_env(env: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    return {"name": "run", "env": env, **raw}


@pytest.mark.parametrize("path, new_key", KEYS.items())
def test_an_old_key_names_the_new_one(path: str, new_key: str) -> None:
    raw = with_env(SHIPPED_ENV, tree(path, {}))
    with pytest.raises(ConfigError) as error:
        parse(raw, source="run.yaml")
    old_path = path.replace("stages.*", "stages.0").replace("*", "main")
    new_path = f"{old_path.rpartition('.')[0]}.{new_key}".removeprefix(".")
    assert str(error.value) == f"run.yaml: {old_path} is called {new_path} now. Rename it."


KNOB_PATHS = [
    "cold_start.demonstrator",
    "cold_start.demonstrator.search",  # of a mix, by ability
    "cold_start.stages.*.demonstrator",
]


@pytest.mark.parametrize("path", KNOB_PATHS)
@pytest.mark.parametrize("old_knob, new_knob", KNOBS.items())
def test_an_old_knob_names_the_new_one(path: str, old_knob: str, new_knob: str) -> None:
    raw = tree(f"{path}.{old_knob}", 0.5)
    with pytest.raises(ConfigError, match=rf"\.{old_knob} is called .*\.{new_knob} now"):
        refuse_old_names(with_env(SHIPPED_ENV, raw), "config")


@pytest.mark.parametrize("path", KNOB_PATHS)
@pytest.mark.parametrize("knob", KNOBS)
def test_the_knobs_of_a_plugin_have_any_name(path: str, knob: str) -> None:
    refuse_old_names(with_env(PLUGIN_ENV, tree(f"{path}.{knob}", 0.5)), "config")


@pytest.mark.parametrize("old_type, new_type", CREDIT_TYPES.items())
def test_an_old_credit_rule_names_the_new_one(old_type: str, new_type: str) -> None:
    raw = with_env(SHIPPED_ENV, {"credit": {"type": old_type}})
    with pytest.raises(ConfigError, match=f"credit.type {old_type} is called {new_type} now"):
        parse(raw)


@pytest.mark.parametrize("old_metric, new_metric", METRICS.items())
def test_an_old_metric_of_a_gate_names_the_new_one(old_metric: str, new_metric: str) -> None:
    gate = {"metric": old_metric, "value": 1, "max_steps": 3}
    phases = [{"until": gate, "value": True}, {"value": False}]
    for raw in (
        tree("cold_start.stages.*.until", gate),
        {"roles": {"subagent": {"trainable": phases}}},
    ):
        with pytest.raises(
            ConfigError, match=f"the metric {old_metric} is called {new_metric} now"
        ):
            parse(with_env(SHIPPED_ENV, raw))


def test_old_words_elsewhere_are_no_old_names() -> None:
    """`lazy` may be a policy, `control` an argument of an environment, `kwargs` a section of it."""
    env = {**SHIPPED_ENV, "kwargs": {"control": 1, "lazy": 2}}
    refuse_old_names(with_env(env, {"policies": {"lazy": {}, "control": {}}}), "config")
