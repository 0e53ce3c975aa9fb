"""Old import paths: each is answered by an error that names the new one."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import parl
from parl.core import moved
from parl.core.errors import ConfigError
from parl.core.public import PUBLIC
from parl.env import registry

NEEDS_VLLM = ("parl.policy.engines.vllm", "parl.policy.engines.vllm_worker")
NAMES = [
    (module, name, path) for module, names in moved.NAMES.items() for name, path in names.items()
]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a plugin can be installed into; the registry looks for plugins again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_loaded", set())
    yield tmp_path
    sys.modules.pop("old_plugin", None)


def install_plugin(site: Path, code: str) -> None:
    """Install `code` as the plugin `old_plugin`, as pip does."""
    (site / "old_plugin.py").write_text(code)
    info = site / "old_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: old-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[parl.envs]\nold = old_plugin\n")


@pytest.mark.parametrize("old_module", moved.MODULES)
def test_an_old_module_is_answered_with_the_new_one(old_module: str) -> None:
    with pytest.raises(ImportError) as error:
        importlib.import_module(old_module)
    message = str(error.value)
    new_module = moved.MODULES[old_module]
    parent = old_module.rpartition(".")[0]
    if parent in moved.MODULES:  # Python imports it first, and it is gone as well
        assert message.startswith(f"There is no module {parent} any more: it is ")
        assert f"\n    import {new_module}  (was {old_module})" in message
    else:
        assert message.startswith(
            f"There is no module {old_module} any more: it is {new_module} now."
        )


@pytest.mark.parametrize("new_module", sorted(set(moved.MODULES.values())))
def test_the_new_module_exists(new_module: str) -> None:
    assert find_spec(new_module) is not None


@pytest.mark.parametrize("old_module, name, path", NAMES)
def test_a_name_that_went_elsewhere_is_answered_with_its_new_home(
    old_module: str, name: str, path: str
) -> None:
    with pytest.raises(moved.OldPathError) as error:
        getattr(importlib.import_module(old_module), name)
    lines = re.findall(r"from [\w.]+ import .*", str(error.value))
    new_home, _, new_name = path.rpartition(".")
    line = f"from {'parl' if PUBLIC.get(new_name) == new_home else new_home} import {new_name}"
    if new_name != name:
        line += f"  (was {name})"
    assert line in lines


@pytest.mark.parametrize("path", sorted({path for _, _, path in NAMES}))
def test_the_new_home_has_the_name(path: str) -> None:
    module, _, name = path.rpartition(".")
    if module not in NEEDS_VLLM:
        assert hasattr(importlib.import_module(module), name)


def test_the_public_name_comes_first() -> None:
    with pytest.raises(ImportError, match=r"\n    from parl import reward(\n|$)"):
        importlib.import_module("parl.scoring")
    with pytest.raises(ImportError, match=r"\n    from parl import Task(\n|$)"):
        importlib.import_module("parl.types")


def test_a_name_that_never_was_gets_the_error_of_python() -> None:
    with pytest.raises(AttributeError, match=r"module 'parl\.env' has no attribute 'Nothing'"):
        importlib.import_module("parl.env").Nothing  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'parl\.nothing'"):
        importlib.import_module("parl.nothing")


def test_the_finder_is_installed_once() -> None:
    num_finders = len(sys.meta_path)
    moved.install()
    assert len(sys.meta_path) == num_finders


@pytest.mark.parametrize(
    "code, new_line",
    [
        ("from parl.env import AgentEnv", "from parl import AgentEnv"),
        ("from parl.env import Said", "from parl import Segment  (was Said)"),
        ("from parl.scoring import reward", "from parl import reward"),
        ("from parl.types import Task", "from parl import Task"),
        ("import parl.judge", "parl.env.judge"),
        ("from parl.tools.sql import SqlTool", "parl.env.toolsets.sql"),
    ],
)
def test_a_plugin_with_an_old_path_is_one_error_that_names_the_new_one(
    site: Path, code: str, new_line: str
) -> None:
    install_plugin(site, code + "\n")
    with pytest.raises(ConfigError) as error:
        registry.load()
    message = str(error.value)
    assert "The plugin 'old' (parl.envs) of old-plugin 1.0 cannot be imported" in message
    assert new_line in message
    assert "If it is yours, change that import" in message


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_the_one_of_its_module(name: str) -> None:
    home = importlib.import_module(PUBLIC[name])
    assert getattr(parl, name) is getattr(home, "load" if name == "load_config" else name)
    assert name in dir(parl)


def test_all_names_are_exported() -> None:
    assert set(parl.__all__) == {*PUBLIC, "__version__"}


def test_type_checkers_are_shown_every_public_name() -> None:
    source = Path(parl.__file__).read_text("utf-8")
    for name, home in PUBLIC.items():
        assert re.search(rf"^    from {re.escape(home)} import (\w+ as )?{name}\b", source, re.M)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'parl' has no attribute 'Nothing'"):
        parl.Nothing  # type: ignore[attr-defined]  # noqa: B018
