"""Plugins are found, imported once, and made; whatever is wrong with one is a ConfigError that names it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import gymnasium
import pytest

from parl.config.env import EnvConfig
from parl.core.errors import ConfigError
from parl.core.types import Task
from parl.env import registry as plugins
from parl.env.base import AgentEnv
from parl.env.tools import tool
from parl.rewards import terms


class EchoEnv(AgentEnv):
    """Say what the task says."""

    def __init__(self, *, times: int = 1, path: str | None = None) -> None:
        super().__init__()
        if times < 1:
            raise ValueError(f"times is {times}")
        if path is not None:
            Path(path).read_text()
        self.times = times
        self.notes: list[str] = []

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return [
            Task(f"{split}-{i}", "test/Echo-v0", f"Say {split} {seed} {i}", {}) for i in range(num)
        ]

    def start(self, task: Task) -> None:
        self.notes = []

    def score(self, answer: str) -> Mapping[str, float]:
        return {"score": float(answer == self.task.prompt)}

    @tool
    def note(self, text: str) -> str:
        """Keep a note."""
        self.notes = [*self.notes, text]
        return str(len(self.notes))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """An AgentEnv, registered for one test."""
    gymnasium.register(id="test/Echo-v0", entry_point=EchoEnv, max_episode_steps=3)  # type: ignore[arg-type]
    yield
    del gymnasium.registry["test/Echo-v0"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages can be installed into; what is loaded already is forgotten for one test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_loaded", set())
    return tmp_path


def install(site: Path, module: str, code: str, group: str = "parl.envs") -> None:
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}_dist-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-dist\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{module} = {module}\n")


# --- load ----------------------------------------------------------------------------------------------------


def test_load_imports_a_plugin_once(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = ModuleType("plugin_counter")
    counter.num = 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plugin_counter", counter)
    install(
        site, "counted_plugin", "import plugin_counter\nplugin_counter.num += 1\n", "parl.rewards"
    )
    plugins.load()
    del sys.modules["counted_plugin"]
    plugins.load()
    assert counter.num == 1


def test_a_plugin_that_is_installed_later_is_found_by_the_next_load(site: Path) -> None:
    plugins.load()
    code = (
        "import gymnasium\ngymnasium.register(id='test/Late-v0', entry_point='late_plugin:Late')\n"
    )
    install(
        site,
        "late_plugin",
        f"{code}from parl.env.base import AgentEnv\nclass Late(AgentEnv):\n    'Late.'\n",
    )
    assert "test/Late-v0" in plugins.env_ids()
    del gymnasium.registry["test/Late-v0"], sys.modules["late_plugin"]


@pytest.mark.parametrize(
    "code, reason",
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
    ],
)
def test_a_plugin_that_fails_to_import_is_named_with_the_fix(
    site: Path, code: str, reason: str
) -> None:
    install(site, "broken_plugin", code)
    with pytest.raises(ConfigError) as error:
        plugins.load()
    message = str(error.value)
    assert "'broken_plugin' (parl.envs) of broken_plugin-dist 1.2" in message
    assert reason in message
    assert "pip uninstall broken_plugin-dist" in message


def test_a_name_given_twice_is_not_blamed_on_the_plugin_that_came_second(site: Path) -> None:
    code = "from parl.rewards.terms import reward\n@reward\ndef twice_named(episode):\n    return 0.0\n"
    install(site, "one_plugin", code, "parl.rewards")
    install(site, "two_plugin", code, "parl.rewards")
    with pytest.raises(
        ConfigError, match=r"^Two reward terms are named 'twice_named': .*_plugin.* and .*_plugin"
    ):
        plugins.load()
    del terms._REGISTRY["twice_named"]


def test_a_registration_that_points_nowhere_is_named(site: Path) -> None:
    code = "import gymnasium\ngymnasium.register(id='test/Lost-v0', entry_point='lost_plugin:Nothing')\n"
    install(site, "lost_plugin", code)
    with pytest.raises(
        ConfigError, match=r"test/Lost-v0 .*'lost_plugin:Nothing', which cannot be imported"
    ):
        plugins.make_env(EnvConfig(id="test/Lost-v0"))
    del gymnasium.registry["test/Lost-v0"], sys.modules["lost_plugin"]


# --- make_env ------------------------------------------------------------------------------------------------


def test_env_ids_lists_agent_envs_only() -> None:
    ids = plugins.env_ids()
    assert {"test/Echo-v0", "parl/WideSearch-v0"} <= set(ids)
    assert ids == sorted(ids)
    assert "CartPole-v1" not in ids


def test_make_env_gives_the_environment_without_wrappers() -> None:
    env = plugins.make_env(EnvConfig(id="test/Echo-v0", kwargs={"times": 3}))
    assert type(env) is EchoEnv
    assert env.times == 3
    assert env.spec is not None
    assert env.spec.id == "test/Echo-v0"


def test_make_env_does_not_change_the_registration() -> None:
    plugins.make_env(EnvConfig(id="test/Echo-v0", kwargs={"times": 3}))
    env = plugins.make_env(EnvConfig(id="test/Echo-v0"))
    assert isinstance(env, EchoEnv)
    assert env.times == 1
    assert gymnasium.spec("test/Echo-v0").max_episode_steps == 3


@pytest.mark.parametrize(
    "env_id, kwargs, message",
    [
        (
            "test/Eco-v0",
            {},
            r"No environment 'test/Eco-v0' .*Did you mean 'test/Echo-v0'.*gymnasium\.register",
        ),
        ("test/Echo-v1", {}, r"No environment 'test/Echo-v1' .*Did you mean 'test/Echo-v0'"),
        ("test/Echo", {}, r"No environment 'test/Echo' .*Did you mean 'test/Echo-v0'"),
        ("not an id", {}, r"No environment 'not an id'"),
        ("no_such_module:test/Echo-v0", {}, r"imports no_such_module first, which failed"),
        ("CartPole-v1", {}, r"CartPole-v1 is a CartPoleEnv, not an AgentEnv.*test/Echo-v0"),
        (
            "test/Echo-v0",
            {"tims": 2},
            r"no argument 'tims'\. Did you mean 'times'\? Allowed: path, times",
        ),
        (
            "test/Echo-v0",
            {"times": "two"},
            r"env\.kwargs\.times: .* takes times: int = 1 \(given: 'two'\)",
        ),
        ("test/Echo-v0", {"max_episode_steps": 2}, r"no argument 'max_episode_steps'"),
        (
            "test/Echo-v0",
            {"times": 0},
            r"times is 0\nIts arguments: times: int = 1, path: str \| None = None",
        ),
        ("test/Echo-v0", {"path": "/no/such/file"}, r"No such file"),
    ],
)
def test_a_wrong_environment_is_a_clear_error(
    env_id: str, kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plugins.make_env(EnvConfig(id=env_id, kwargs=kwargs))
