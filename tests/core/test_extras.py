"""The extras of the package: the table in the code and pyproject.toml name the same packages."""

from __future__ import annotations

import pickle
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

import parl
from parl.core.errors import ConfigError, MissingExtra
from parl.core.extras import DISTRIBUTIONS, EXTRAS, missing_extra, require
from tests.support.helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIGHT = {"bm25s", "gymnasium", "jsonschema", "numpy", "pydantic", "pyyaml", "rich", "typer"}


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in requirements}


def test_the_light_core_stays_light() -> None:
    assert names_of(PROJECT["dependencies"]) == LIGHT


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "vllm"])
def test_the_table_names_the_modules_of_an_extra(extra: str) -> None:
    packages = {DISTRIBUTIONS.get(module, module) for module in EXTRAS[extra]}
    assert packages == names_of(PROJECT["optional-dependencies"][extra])


def test_every_package_of_the_table_brings_its_module() -> None:
    installed = packages_distributions()
    for module, package in DISTRIBUTIONS.items():
        assert package in [name.lower() for name in installed[module]]


def test_all_is_what_a_checkout_installs() -> None:
    assert PROJECT["optional-dependencies"]["all"] == ["parl-swarm[train,ray,view,envs,wandb]"]
    assert "-e '.[all,dev]'" in (ROOT / "Makefile").read_text()


def test_an_error_names_few_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in EXTRAS["train"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as error:
        require("train", needed_by="parl train")
    assert str(error.value) == (
        "parl train needs torch, transformers, trl and 12 more packages, which are not installed. "
        "Type: pip install 'parl-swarm[train]'"
    )


def test_the_error_is_what_callers_expect() -> None:
    error = missing_extra(ModuleNotFoundError(name="PIL.Image"), needed_by="parl/VisualTools-v0")
    assert isinstance(error, ConfigError)
    assert isinstance(error, ImportError)
    assert "needs pillow, which is not installed. Type: pip install 'parl-swarm[envs]'" in str(
        error
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert missing_extra(ModuleNotFoundError(name="somebody"), needed_by="x") is None


def test_python_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"parl\.train needs torch.*parl-swarm\[train\]"):
        parl.train("smoke")
