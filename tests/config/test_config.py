"""From YAML to a Config, and what a user is told when the YAML is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from parl.cli import config as config_commands
from parl.cli import main as cli
from parl.config import load, load_raw, phases
from parl.core.errors import ConfigError
from tests.support.helpers import ROOT, env_section

BASE = "name: base\nenv: {id: parl/X-v0}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_load_gives_values_and_defaults(folder: Path) -> None:
    config = load(write(folder, "name: mine\nenv: {id: parl/X-v0}\ntrain: {num_steps: 7}"))
    assert (config.name, config.train.num_steps, config.train.group_size) == ("mine", 7, 8)
    assert config.run_path == Path("runs/mine")


def test_a_config_is_frozen(folder: Path) -> None:
    config = load(folder / "base.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_extends_merges_deeply_and_the_nearest_file_wins(folder: Path) -> None:
    (folder / "sub").mkdir()
    write(
        folder, "extends: base.yaml\nseed: 1\ntrain: {num_steps: 7, group_size: 2}", "middle.yaml"
    )
    config = load(write(folder / "sub", "extends: ../middle.yaml\ntrain: {num_steps: 9}"))
    assert (config.name, config.seed) == ("base", 1)
    assert (config.train.num_steps, config.train.group_size) == (9, 2)


def test_a_null_term_removes_it_in_a_file_and_in_an_override(folder: Path) -> None:
    text = "extends: base.yaml\nreward: {terms: {outcome: {}, finish: {}, tokens: {}}}"
    path = write(folder, text, "terms.yaml")
    assert set(load(path, ["reward.terms.tokens=null"]).reward.terms) == {"outcome", "finish"}
    child = write(folder, "extends: terms.yaml\nreward: {terms: {finish: null}}")
    assert set(load(child).reward.terms) == {"outcome", "tokens"}


def test_a_null_knob_of_the_demonstrations_removes_it(folder: Path) -> None:
    until = "{metric: score, value: 0.5, max_steps: 9}"
    stage = (
        f"{{name: demonstrations, data: {{episode: 1.0}}, tokens_per_step: 100, until: {until}}}"
    )
    text = f"extends: base.yaml\ncold_start: {{demonstrator: {{give_up_prob: 0.1, train_decision_prob: 0.2}}, stages: [{stage}]}}"
    write(folder, text, "knobs.yaml")
    child = write(folder, "extends: knobs.yaml\ncold_start: {demonstrator: {give_up_prob: null}}")
    cold_start = load(child, ["cold_start.demonstrator.delegate_prob=0"]).cold_start
    assert cold_start is not None
    assert cold_start.demonstrator == {"train_decision_prob": 0.2, "delegate_prob": 0}


def test_overrides_are_yaml_and_create_what_is_not_there(folder: Path) -> None:
    config = load(
        folder / "base.yaml",
        [
            "loss.tau=1e-3",
            "reward.terms.finish.weight=0.5",
            "reward.terms.finish.per=3",
            "roles.subagent.trainable=[{until: 20, value: false}, {value: true}]",
        ],
    )
    assert config.loss.tau == 0.001
    assert (config.reward.terms["finish"].weight, config.reward.terms["finish"].knobs) == (
        0.5,
        {"per": 3},
    )
    assert [
        phases.trainable_at(config.roles.subagent.trainable, step) for step in (0, 19, 20, 99)
    ] == [
        False,
        False,
        True,
        True,
    ]


def test_overrides_win_over_files(folder: Path) -> None:
    path = write(folder, "extends: base.yaml\ntrain: {num_steps: 7, group_size: 4}")
    config = load(path, ["train.num_steps=3"])
    assert (config.train.num_steps, config.train.group_size) == (3, 4)


def test_paths_are_relative_to_the_file_that_names_them(folder: Path) -> None:
    (folder / "sub").mkdir()
    tasks = "env: {tasks: {test: {path: data/test.jsonl}}}"
    write(folder / "sub", f"extends: ../base.yaml\n{tasks}\nbaseline: single.yaml", "middle.yaml")
    config = load(write(folder, "extends: sub/middle.yaml"))
    assert env_section(config).tasks.test.path == folder / "sub" / "data" / "test.jsonl"
    assert config.baseline == folder / "sub" / "single.yaml"


def test_a_schedule_moves_linearly_and_stays(folder: Path) -> None:
    path = write(
        folder, "extends: base.yaml\nreward: {terms: {finish: {weight: {start: 1, to_step: 10}}}}"
    )
    weight = load(path, ["reward.terms.finish.weight.from_step=2"]).reward.terms["finish"].weight_at
    assert [weight(step) for step in (0, 2, 6, 10, 99)] == [1, 1, 0.5, 0, 0]


def test_gspo_has_clips_of_its_own(folder: Path) -> None:
    loss = load(folder / "base.yaml", ["loss.type=gspo"]).loss
    assert (loss.clip_low, loss.clip_high) == (3e-4, 4e-4)
    loss = load(folder / "base.yaml", ["loss.type=gspo", "loss.clip_high=0.01"]).loss
    assert (loss.clip_low, loss.clip_high) == (3e-4, 0.01)
    assert load(folder / "base.yaml", ["loss.type=dapo"]).loss.clip_high == 0.28


def test_what_is_shown_loads_again_to_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        folder,
        "extends: base.yaml\nreward: {terms: {finish: {weight: {start: 1, to_step: 9}, per: 2}}}",
    )
    config_commands.config_show(path, ["seed=5"])
    again = write(folder, capsys.readouterr().out, "again.yaml")
    assert load(again) == load(path, ["seed=5"])
    assert yaml.safe_load(again.read_text())["train"]["num_steps"] == 40


def test_load_raw_keeps_only_what_was_written(folder: Path) -> None:
    assert load_raw(write(folder, "extends: base.yaml\nseed: 3")) == {
        "name": "base",
        "seed": 3,
        "env": {"id": "parl/X-v0"},
    }


WRONG = {
    "unknown key": (
        "extends: base.yaml\ntrain: {num_step: 3}",
        [],
        r"train\.num_step: .*Did you mean 'num_steps'",
    ),
    "unknown key, top": (
        "extends: base.yaml\nrols: {}",
        [],
        r"rols: unknown key\. Did you mean 'roles'",
    ),
    "unknown key, below a name": (
        "extends: base.yaml",
        ["policies.main.optimiser.lr=1"],
        r"policies\.main\.optimiser: unknown key\. Did you mean 'optimizer'",
    ),
    "truncated sampling": (
        "extends: base.yaml\nroles: {orchestrator: {sampling: {top_p: 0.9}}}",
        [],
        r"roles\.orchestrator\.sampling\.top_p: unknown key",
    ),
    "unknown key, in a list": (
        "extends: base.yaml",
        ["roles.subagent.trainable=[{valu: true}]"],
        r"roles\.subagent\.trainable\.0\.valu: unknown key\. Did you mean 'value'",
    ),
    "wrong type": (
        "extends: base.yaml\ntrain: {num_steps: many}",
        [],
        r"train\.num_steps: .*integer.*given: 'many'",
    ),
    "wrong type, union": (
        "extends: base.yaml",
        ["reward.terms.finish.weight=much"],
        r"config:\n  reward\.terms\.finish\.weight: .*number.*given: 'much'\)$",
    ),
    "out of range": (
        "extends: base.yaml\ntrain: {num_steps: 0}",
        [],
        r"train\.num_steps: .*greater than 0",
    ),
    "wrong choice": (
        "extends: base.yaml\nswarm: {mode: duo}",
        [],
        r"swarm\.mode: .*'swarm' or 'single'.*'duo'",
    ),
    "not a section": (
        "extends: base.yaml\nreward: 3",
        [],
        r"reward: a section with keys below it: terms, modifiers",
    ),
    "schedule backwards": (
        "extends: base.yaml\nreward: {terms: {finish: {weight: {start: 1, from_step: 5, to_step: 3}}}}",
        [],
        r"config:\n  reward\.terms\.finish\.weight: .*\(to_step=3\).*\(from_step=5\); give a to_step larger",
    ),
    "a floor of nothing": (
        "extends: base.yaml",
        ["loss.entropy_floor=0.5"],
        r"loss: .*entropy_floor without entropy_bonus does nothing; set loss\.entropy_bonus",
    ),
    "no such knob of a shipped rule": (
        "extends: base.yaml\ncredit: {type: per_turn, discont: 0.9}",
        [],
        r"credit: unknown key 'discont'\. Did you mean .discount.",
    ),
    "no such knob of a shipped loss": (
        "extends: base.yaml\nloss: {tua: 0.1}",
        [],
        r"loss: unknown key 'tua'\. Did you mean .tau.",
    ),
    "no such policy": (
        "extends: base.yaml",
        ["roles.subagent.policy=big"],
        r"has \['main'\]; add policies\.big",
    ),
    "greedy training": (
        "extends: base.yaml",
        ["roles.subagent.sampling.temperature=0"],
        r"roles\.subagent is trainable with temperature 0.*trainable: false",
    ),
    "missing": ("name: mine", [], r"env: missing\. Add it"),
    "extends nothing": (
        "extends: bse.yaml",
        [],
        r"no config file .*bse\.yaml\. Did you mean 'base\.yaml'",
    ),
    "extends itself": ("extends: run.yaml", [], r"circle: run\.yaml -> run\.yaml"),
    "extends two": ("extends: [base.yaml, run.yaml]", [], r"`extends` names one file"),
    "not YAML": ("train: [", [], r"run\.yaml cannot be read as YAML"),
    "a key twice": (
        "extends: base.yaml\nseed: 1\nseed: 2",
        [],
        r"the key 'seed' is given twice(?s:.*)line 3",
    ),
    "not a mapping": ("- 1", [], r"holds list; a config is a mapping"),
    "empty": ("", [], r"holds NoneType; a config is a mapping"),
    "override without value": (
        "extends: base.yaml",
        ["train"],
        r"'train' is not an override; write key\.path=value",
    ),
    "override below a value": (
        "extends: base.yaml\nseed: 3",
        ["seed.x=3"],
        r"'seed\.x=3': seed is 3, not a mapping",
    ),
    "override not YAML": (
        "extends: base.yaml",
        ["seed=[1"],
        r"The value in 'seed=\[1' is not YAML",
    ),
}


@pytest.mark.parametrize("text, overrides, message", WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_clear_error_and_exit_code_2(
    text: str,
    overrides: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(folder, text)
    with pytest.raises(ConfigError, match=message):
        load(path, overrides)
    monkeypatch.setattr(sys, "argv", ["parl", "config", "show", str(path), *overrides])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    out, err = capsys.readouterr()
    assert (exit_info.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_longer_circle_is_named(folder: Path) -> None:
    write(folder, "extends: b.yaml", "a.yaml")
    write(folder, "extends: c.yaml", "b.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml -> b\.yaml -> c\.yaml -> a\.yaml"):
        load(write(folder, "extends: a.yaml", "c.yaml").parent / "a.yaml")


def test_several_problems_are_listed_together(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(folder, "extends: base.yaml\nsed: 1\ntrain: {num_steps: x, gruop_size: 2}"))
    assert len(str(error.value).splitlines()) == 4


# --- configs that ship -----------------------------------------------------------------------------------------


def test_a_shipped_config_is_loaded_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("ablations/grpo") == load(ROOT / "configs" / "ablations" / "grpo.yaml")


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").write_text("name: mine\nenv: {id: CartPole-v1}\n")
    assert load("smoke").name == "mine"


def test_a_file_extends_a_shipped_config(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: smoke\nname: mine\nbaseline: smoke-single\n")
    loaded = load(path)
    smoke = load("smoke")
    assert loaded == smoke.model_copy(update={"name": "mine"})
    assert loaded.baseline is not None
    assert load(loaded.baseline).name == "smoke-single"


@pytest.mark.parametrize(
    "path, message",
    [
        ("quickstrat", r"Did you mean 'quickstart'\? `parl configs list`"),
        ("grpo", r"PARL ships a config of this name; type: ablations/grpo"),
        ("configs/quickstart.yaml", r"PARL ships a config of this name; type: quickstart"),
        ("nothing.yaml", r"Allowed: mine\.yaml"),
        ("../smoke", r"There is no config file"),
    ],
)
def test_a_config_that_is_not_there_is_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(ConfigError, match=message):
        load(path)
