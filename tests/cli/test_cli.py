"""Commands: what they hand on, what they print, and the exit codes."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest

import parl
from parl.cli import doctor
from parl.cli import main as cli
from parl.config import load
from parl.core import finding
from parl.core.errors import CheckpointError, ConfigError
from parl.core.types import Task
from parl.env import registry as plugins
from parl.env.base import AgentEnv
from parl.env.tools import tool
from tests.support.helpers import ROOT

Run = Callable[..., tuple[int, str, str]]
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


class ShopEnv(AgentEnv):
    """Find a price.

    Args:
        num: how many articles.
    """

    def __init__(self, *, num: int = 2) -> None:
        super().__init__()
        self.num = num

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return [Task(f"{split}{i}", "test/Shop-v0", f"{split} {seed} {i}", {}) for i in range(num)]

    def score(self, answer: str) -> dict[str, float]:
        return {"score": float(answer == "7")}

    @tool
    def price(self, article: str) -> str:
        """Tell the price of an article."""
        return "7"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`parl ARGS` in this process: (exit code, stdout, stderr)."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parl", *map(str, args)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit_info.value.code or 0), out, err

    return call


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A valid config, and its environment."""
    gymnasium.register(id="test/Shop-v0", entry_point=ShopEnv)  # type: ignore[arg-type]
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: r\nenv: {id: test/Shop-v0}\ntrain: {num_steps: 10, tasks_per_step: 3, group_size: 4}\n"
    )
    yield path
    del gymnasium.registry["test/Shop-v0"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the commands hand to the modules that do the work."""
    seen: Calls = []

    def record(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))

    monkeypatch.setitem(sys.modules, "parl.training.trainer", SimpleNamespace(train=record))
    monkeypatch.setitem(sys.modules, "parl.cli.eval", SimpleNamespace(evaluate_command=record))
    monkeypatch.setitem(
        sys.modules,
        "parl.training.trainer",
        SimpleNamespace(train=record, run_cold_start_alone=record),
    )
    monkeypatch.setitem(sys.modules, "parl.cli.ablate", SimpleNamespace(ablate=record))
    return seen


# --- handing on ----------------------------------------------------------------------------------------------


def test_train_hands_on_config_resume_and_dry_run(run: Run, path: Path, calls: Calls) -> None:
    assert run("train", path, "seed=3", "loss.tau=0.5", "--resume", "runs/r", "--dry-run") == (
        0,
        "",
        "",
    )
    assert run("train", path)[0] == 0
    loaded = load(path, ["seed=3", "loss.tau=0.5"])
    assert calls == [((loaded, Path("runs/r"), True), {}), ((load(path), None, False), {})]


def test_eval_hands_on_its_options(run: Run, path: Path, calls: Calls) -> None:
    options = "--checkpoint best --mode single --tasks 5 --trials 4 --split test --json"
    assert run("eval", path, *options.split())[0] == 0
    assert run("eval", "runs/r", "runs/s")[0] == 0
    given = {
        "checkpoint": "best",
        "mode": "single",
        "tasks": 5,
        "trials": 4,
        "split": "test",
        "as_json": True,
    }
    absent = {
        "checkpoint": None,
        "mode": None,
        "tasks": None,
        "trials": 1,
        "split": None,
        "as_json": False,
    }
    assert calls == [(([path],), given), (([Path("runs/r"), Path("runs/s")],), absent)]


@pytest.mark.parametrize(
    "options, why",
    [
        ("--role subagent", "--role needs --episodes sft or --episodes preferences"),
        ("--min-margin 0.5", "--min-margin needs --episodes preferences"),
        ("--episodes sft --min-margin 0.5", "--min-margin needs --episodes preferences"),
        ("--episodes sft --policy main", "--policy is about a model"),
        ("--episodes preferences --merged", "--merged is about a model"),
    ],
)
def test_export_refuses_options_of_the_other_kind(
    run: Run, tmp_path: Path, options: str, why: str
) -> None:
    code, _, err = run("export", tmp_path, "-o", tmp_path / "out", *options.split())
    assert code == 2
    assert why in err


def test_sft_hands_on_the_config(run: Run, path: Path, calls: Calls) -> None:
    assert run("sft", path, "seed=3")[0] == 0
    assert calls == [((load(path, ["seed=3"]),), {})]


@pytest.mark.parametrize(
    "args, vary, configs",
    [
        ("--vary seed=1,2", ["seed=1,2"], []),
        ("--vary seed=1,2 loss.tau=0,1", ["seed=1,2", "loss.tau=0,1"], []),
        ("--vary seed=1,2 --vary loss.tau=0,1", ["seed=1,2", "loss.tau=0,1"], []),
        ("--configs a.yaml b.yaml c.yaml", [], ["a.yaml", "b.yaml", "c.yaml"]),
    ],
)
def test_ablate_takes_several_values_after_one_option(
    run: Run, path: Path, calls: Calls, args: str, vary: list[str], configs: list[str]
) -> None:
    assert run("ablate", path, *args.split(), "--seeds", 5)[0] == 0
    assert calls == [((path,), {"vary": vary, "configs": [Path(c) for c in configs], "seeds": 5})]


@pytest.mark.parametrize("args", ["", "--vary seed=1,2 --configs a.yaml"])
def test_ablate_wants_either_values_or_configs(
    run: Run, path: Path, calls: Calls, args: str
) -> None:
    code, _, err = run("ablate", path, *args.split())
    assert (code, calls) == (2, [])
    assert "either --vary key.path=v1,v2" in err


# --- exit codes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, code",
    [(ConfigError("no such thing"), 2), (CheckpointError("damaged"), 2), (KeyboardInterrupt(), 1)],
)
def test_errors_become_exit_codes_without_traceback(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "parl.training.trainer", SimpleNamespace(train=fail))
    found, out, err = run("train", path)
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    assert str(error) in err


def test_a_bug_keeps_its_traceback(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "parl.training.trainer", SimpleNamespace(train=lambda *_: 1 / 0)
    )
    monkeypatch.setattr(sys, "argv", ["parl", "train", str(path)])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize(
    "args, message",
    [
        (["train"], "Missing argument 'CONFIG'"),
        (["train", "no.yaml"], "There is no config file"),
        (["trian"], "No such command 'trian'"),
        (["eval", "x", "--mode", "duo"], "'swarm'"),
        (["eval", "x", "--tasks", "0"], "greater than or equal to 1"),
        (["envs", "show", "test/Nope-v0"], "No environment 'test/Nope-v0'"),
        (["envs", "show", "CartPole-v1"], "CartPole-v1 is not an AgentEnv"),
        (["envs", "check", "test/Nope-v0", "num"], "write name=value"),
        (["seeds", str(ROOT / "configs/smoke.yaml"), "3"], "'3' is neither a seed nor an override"),
        (["seeds", str(ROOT / "configs/smoke.yaml"), "train.num_stps=1"], "Did you mean"),
        (["figures", "no-run", "--only", "pie"], "There is no picture 'pie'"),
        (["figures", "no-run"], "no-run has no summary.json"),
        (["figures", "no-run", "--only", "width"], "There is no no-run-single/eval/"),
        (["rewards", "show", "nope"], "no such reward term"),
        (["rescore", "no-run", str(ROOT / "configs/smoke.yaml")], "no-run is no run folder"),
        (
            ["rescore", "no-run", str(ROOT / "configs/smoke.yaml"), "-o", "no-folder/x.json"],
            "there is no folder no-folder",
        ),
    ],
)
def test_wrong_usage_is_exit_code_2(run: Run, args: list[str], message: str) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "eval",
        "ablate",
        "seeds",
        "figures",
        "rescore",
        "sft",
        "config check",
        "envs check",
        "envs new",
        "rewards show",
    ],
)
def test_help_holds_an_example(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"parl {command} " in out.split("Example", 1)[1]


# --- config --------------------------------------------------------------------------------------------------


def test_config_explain_prints_docs_values_and_derived_numbers(run: Run, path: Path) -> None:
    weight = "reward.terms.tokens.weight={start: 1, to_step: 9}"
    code, out, _ = run("config", "explain", path, weight, "reward.terms.tokens.per=7")
    lines = out.splitlines()
    assert code == 0
    at = lines.index("train.group_size: 4")
    assert lines[at + 1] == "    K: episodes per task."
    assert {
        "reward.terms.tokens.per: 7",
        "swarm.max_concurrency: null",
        'policies.main.dtype: "float32"',
    } <= set(lines)
    derived = dict(re.split(r"  +", line.strip()) for line in lines[lines.index("derived") + 1 :])
    assert derived["episodes per step"] == "12"
    assert derived["episodes in all"] == "120"
    assert derived["tokens of one orchestrator, at most"] == "2048"
    assert derived["weight of tokens"] == "1 -> 0 in the last step"


def test_config_check_makes_the_environment_and_checks_the_rewards(run: Run, path: Path) -> None:
    code, out, _ = run("config", "check", path)
    assert code == 0
    assert "test/Shop-v0 (tools: price), rewards: outcome" in out
    for override, message in [
        ("env.kwargs.nmu=3", "no argument 'nmu'. Did you mean 'num'"),
        ("env.id=test/Shp-v0", "Did you mean 'test/Shop-v0'"),
        ("reward.terms.outcom.weight=1", "Did you mean 'outcome'"),
        ("reward.terms.outcome.metrc=x", "Did you mean 'metric'"),
    ]:
        code, out, err = run("config", "check", path, override)
        assert (code, out) == (2, "")
        assert message in err


# --- envs, rewards, doctor -----------------------------------------------------------------------------------


def test_envs_list_and_show(run: Run, path: Path) -> None:
    listed = run("envs", "list")[1].splitlines()
    assert [line.split(maxsplit=1)[1] for line in listed if line.startswith("test/Shop-v0")] == [
        "Find a price."
    ]
    shown = run("envs", "show", "test/Shop-v0")[1]
    assert "env.kwargs: num: int = 2" in shown
    assert "tool price\n    Tell the price of an article.\n" in shown


def test_envs_check_prints_schemas_and_results(run: Run) -> None:
    code, out, _ = run("envs", "check", "tests.support.broken_envs:broken/Good-v0", "most=3")
    assert code == 0
    assert '"text": {"description": "A text.", "type": "string"}' in out
    assert "\nok   forks are isolated\n" in out
    assert "BAD" not in out


def test_envs_check_exits_with_2_when_a_promise_is_broken(run: Run) -> None:
    code, out, err = run("envs", "check", "tests.support.broken_envs:broken/ScoreOfTwo-v0")
    assert code == 2
    assert "\nBAD  score is in 0..1\n         score('42') gave" in out
    assert "\n--   speed (not checked; correct the above first)\n" in out
    assert "broken/ScoreOfTwo-v0 does not keep 1 of its promises" in err


def test_envs_new_writes_a_package_and_says_what_is_next(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "my dice"
    code, out, _ = run("envs", "new", "dice", "--dir", folder)
    assert code == 0
    assert [line.strip() for line in out.splitlines()[1:]] == [
        f"pip install -e '{folder}'",
        "parl envs check dice/Dice-v0",
        f"parl train '{folder}/smoke.yaml'",
    ]
    assert (folder / "smoke.yaml").is_file()
    assert run("envs", "new", "dice", "--dir", folder)[0] == 2
    assert run("rewards", "new", "kind-words", "--dir", tmp_path / "words")[1].splitlines()[1:] == [
        f"    pip install -e {tmp_path / 'words'}",
        "    parl rewards show kind_words",
    ]


def test_rewards_list_and_show(run: Run) -> None:
    listed = [line.split()[0] for line in run("rewards", "list")[1].splitlines()]
    assert listed == sorted(listed)
    assert "outcome" in listed
    shown = run("rewards", "show", "outcome")[1]
    assert (
        "knobs:\n    metric: str = 'score'\nroles: orchestrator, subagent\nkind: outcome" in shown
    )
    assert 'outcome: {weight: 1.0, metric: "score"}' in shown
    shown = run("rewards", "show", "parallel")[1]
    assert "    cap: PositiveInt = 8  (above 0)\n" in shown
    assert "kind: shaping" in shown
    assert "knobs: (none)" in run("rewards", "show", "finish")[1]


@pytest.mark.parametrize("ok, code, mark", [(True, 0, "ok "), (None, 0, "-  "), (False, 1, "FIX")])
def test_doctor_prints_a_line_and_a_fix(
    run: Run, monkeypatch: pytest.MonkeyPatch, ok: bool | None, code: int, mark: str
) -> None:
    monkeypatch.setattr(
        doctor, "findings", lambda: [finding.Finding("disk", "1 GB", ok, "free some")]
    )
    found, out, _ = run("doctor")
    assert found == code
    assert out.startswith(f"{mark}  disk")
    assert ("-> free some" in out) == (ok is not True)


def test_doctor_names_a_library_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(f"{name}: a binary for another machine")

    monkeypatch.setattr(importlib, "import_module", fail)
    finding = doctor.ray()
    assert finding.ok is False
    assert "cannot be imported: OSError: ray: a binary" in finding.value
    assert "make install" in finding.fix


def test_doctor_knows_the_light_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "ray"):
        monkeypatch.setitem(sys.modules, module, None)
    finding = doctor.torch()
    assert (finding.ok, finding.value) == (None, "not installed")
    assert finding.fix == "pip install 'parl-swarm[train]'"
    extras = doctor.extras()
    assert extras.ok is None
    assert extras.fix.startswith("pip install 'parl-swarm[train,ray")


def test_a_plugin_adds_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    line = finding.Finding("browser", "none", None, "install one")
    monkeypatch.setattr(
        plugins, "modules", lambda: [SimpleNamespace(doctor=lambda: [line]), SimpleNamespace()]
    )
    assert doctor.plugin_findings() == [line]


def test_doctor_looks_at_this_machine() -> None:
    light = [doctor.python(), doctor.packages(), doctor.cpus(), doctor.memory(), doctor.disk()]
    assert [finding.name for finding in light] == ["python", "packages", "cpus", "memory", "disk"]
    assert light[0].ok
    assert "usable" in light[2].value


# --- version, configs that ship, missing extras ---------------------------------------------------------------


def test_the_version_has_one_home(run: Run) -> None:
    assert run("--version") == (0, f"{parl.__version__}\n", "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"] == {"path": "parl/__init__.py"}


def test_configs_list_has_every_file_with_its_purpose(run: Run) -> None:
    lines = run("configs", "list")[1].splitlines()
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    names = [path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in files]
    assert [line.split()[0] for line in lines] == sorted(names)
    assert all(len(line.split()) > 1 for line in lines)


@pytest.mark.parametrize("name", ["smoke", "ablations/grpo", "ablations/rigid", "visual_single"])
def test_a_copied_config_is_the_same_config(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("configs", "copy", name)
    file = Path(name).name + ".yaml"
    assert (code, out) == (0, f"wrote {file}; next: parl train {file}\n")
    assert load(file) == load(name)


def test_configs_copy_writes_over_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "smoke.yaml").write_text("mine")
    for target, message in [
        (tmp_path, "exists already"),
        (tmp_path / "no" / "x.yaml", "there is no folder"),
        (tmp_path / "x.json", "ending in .yaml"),
    ]:
        code, _, err = run("configs", "copy", "smoke", "--to", target)
        assert code == 2
        assert message in err
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
    code, _, err = run("configs", "copy", "smke", "--to", tmp_path)
    assert code == 2
    assert "Did you mean 'smoke'?" in err


@pytest.mark.parametrize(
    "args, needed_by, extra",
    [
        ("train PATH", "parl train needs torch", "train"),
        ("sft PATH", "parl sft needs torch", "train"),
        ("eval PATH", "parl eval needs torch", "train"),
        ("seeds PATH", "parl seeds needs torch", "train"),
        ("ablate PATH --vary loss.tau=0,1", "parl ablate needs torch", "train"),
        ("export runs/r -o x", "parl export needs torch", "train"),
        ("serve runs/r", "parl serve needs torch", "train"),
        ("figures runs/r", "parl figures needs torch", "train"),
        ("view runs/r", "parl view needs starlette", "view"),
        ("report runs/r", "parl report needs zstandard", "view"),
        ("rescore runs/r PATH", "parl rescore needs zstandard", "view"),
    ],
)
def test_a_missing_extra_is_one_error_with_the_line_to_type(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, args: str, needed_by: str, extra: str
) -> None:
    module = needed_by.split()[-1]
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = run(*args.replace("PATH", str(path)).split())
    assert (code, out) == (2, "")
    assert err == (
        f"error: {needed_by}, which is not installed. Type: pip install 'parl-swarm[{extra}]'\n"
    )


@pytest.mark.parametrize(
    "module, override, message",
    [
        ("wandb", "tracking.wandb.mode=online", "tracking.wandb.mode: online needs wandb"),
        ("ray", "rollout.backend=ray", "rollout.backend: ray needs ray"),
    ],
)
def test_an_extra_that_a_config_needs_is_missed_before_the_run(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, module: str, override: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run("train", path, override)
    assert code == 2
    assert message in err
    assert f"pip install 'parl-swarm[{module}]' or set {override.partition('=')[0]}=" in err


def test_a_failed_import_of_an_extra_is_told_too(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'ray'", name="ray.rllib")

    monkeypatch.setitem(sys.modules, "parl.training.trainer", SimpleNamespace(train=fail))
    code, _, err = run("train", path)
    assert code == 2
    assert "parl train needs ray, which is not installed" in err


# --- start-up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["--version"],
        ["config", "show"],
        ["config", "check"],
        ["configs", "list"],
        ["envs", "list"],
        ["rewards", "list"],
    ],
)
def test_light_commands_load_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: r\nenv: {id: CartPole-v1}\n")
    argv = ["parl", *command, *([str(path)] if command[:1] == ["config"] else [])]
    code = (
        f"import json, sys; sys.argv = {argv!r}\n"
        "import parl.cli.main\n"
        "try:\n    parl.cli.main.main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'ray', 'transformers', 'datasets', 'pandas', 'scipy', 'plotly')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout.splitlines()[-1]) == []
