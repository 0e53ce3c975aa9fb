"""New plugin packages: names, and what is refused. integration/test_templates.py uses them."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import gymnasium
import pytest

from parl.cli import scaffold
from parl.core.errors import ConfigError


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(
        gymnasium.registry, "calc/Calc-v0", raising=False
    )  # another test may have used the template
    return tmp_path


def written(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize(
    "name, package, module, env_id, cls",
    [
        ("dice", "dice", "dice", "dice/Dice-v0", "DiceEnv"),
        ("Dice Game", "dice-game", "dice_game", "dice_game/DiceGame-v0", "DiceGameEnv"),
        ("dice_game.2", "dice-game-2", "dice_game_2", "dice_game_2/DiceGame2-v0", "DiceGame2Env"),
        ("my-env", "my-env", "my_env", "my_env/MyEnv-v0", "MyEnv"),
        ("calc", "calc", "calc", "calc/Calc-v0", "CalcEnv"),
    ],
)
def test_an_environment_has_the_name_everywhere(
    name: str, package: str, module: str, env_id: str, cls: str
) -> None:
    made = scaffold.new_plugin("envs", name)
    assert (made.folder, made.plugin) == (Path(package), env_id)
    files = written(made.folder)
    assert set(files) == {
        "README.md",
        "pyproject.toml",
        "smoke.yaml",
        f"{module}/__init__.py",
        f"{module}/env.py",
        "tests/test_env.py",
    }
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["name"] == package
    assert project["project"]["entry-points"]["parl.envs"] == {module: module}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [module]
    assert f"id: {env_id}\n" in files["smoke.yaml"]
    assert f"name: {package}-smoke\n" in files["smoke.yaml"]
    assert f'id="{env_id}", entry_point="{module}.env:{cls}"' in files[f"{module}/__init__.py"]
    assert f"class {cls}(AgentEnv)" in files[f"{module}/env.py"]
    commands = [
        line.split("#")[0].strip()
        for line in files["README.md"].splitlines()
        if line.startswith("    p")
    ]
    assert commands[:3] == [
        "pip install -e .",
        f"parl envs check {env_id}",
        "parl train smoke.yaml",
    ]
    for path in (p for p in files if p.endswith(".py")):
        ast.parse(files[path])
    if name != "calc":
        assert "calc" not in "".join(files.values()).lower()


def test_a_reward_has_the_name_everywhere(empty: Path) -> None:
    made = scaffold.new_plugin("rewards", "short-answers", empty / "a" / "b")
    assert (made.folder, made.plugin) == (empty / "a" / "b", "short_answers")
    files = written(made.folder)
    assert set(files) == {
        "README.md",
        "pyproject.toml",
        "short_answers/__init__.py",
        "tests/test_reward.py",
    }
    assert "def short_answers(episode" in files["short_answers/__init__.py"]
    assert "brevity" not in "".join(files.values()).lower()


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "'' cannot name a package"),
        ("3d", "a letter first"),
        ("-dice", "letters, digits and hyphens between them"),
        ("dice/game", "cannot name a package"),
        ("würfel", "cannot name a package"),
        ("class", "a word of Python's own"),
        ("Json", "'json' is the name of a module of Python"),
        ("tests", "the package's own tests"),
        ("numpy", "The module 'numpy' is installed already"),
        ("parl-swarm", "The package 'parl-swarm' is installed already"),
        ("parl_envs", "The module 'parl_envs' is installed already"),
    ],
)
def test_a_bad_name_is_refused_and_nothing_is_written(empty: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scaffold.new_plugin("envs", name)
    assert list(empty.iterdir()) == []


def test_a_reward_that_is_registered_is_taken(empty: Path) -> None:
    with pytest.raises(
        ConfigError, match="'outcome' is registered already: `parl rewards show outcome`"
    ):
        scaffold.new_plugin("rewards", "outcome")
    assert list(empty.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(empty: Path) -> None:
    (empty / "dice").mkdir()
    (empty / "dice" / "mine.txt").write_text("mine")
    (empty / "file").write_text("mine")
    for folder in (None, empty / "file"):
        with pytest.raises(
            ConfigError, match=r"exists and is not an empty folder. Give another name, or --dir"
        ):
            scaffold.new_plugin("envs", "dice", folder)
    assert written(empty) == {"dice/mine.txt": "mine", "file": "mine"}
    with pytest.raises(ConfigError, match="cannot be written"):
        scaffold.new_plugin("envs", "dice", empty / "file" / "below")


def test_an_empty_folder_will_do(empty: Path) -> None:
    (empty / "dice").mkdir()
    assert scaffold.new_plugin("envs", "dice").folder == Path("dice")
    assert (empty / "dice" / "dice" / "env.py").is_file()
