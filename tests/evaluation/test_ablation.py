"""`parl ablate`: its statistics, words, tables, variants and the order of its runs. No run is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parl.config import load
from parl.core.errors import ConfigError
from parl.evaluation.ablation import runner as ablate
from parl.evaluation.ablation.runner import VariantRun, cold_start_key, command, run_all
from parl.evaluation.ablation.variants import Variant, vary_configs, vary_values

BASE = """
name: r
env: {id: test/Env-v0}
roles: {subagent: {limits: {turns: 8}}}
cold_start:
  stages: [{name: s, data: {episode: 1}, until: {metric: score, value: 0.9, max_steps: 3}}]
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


# --- variants ------------------------------------------------------------------------------------------------


def test_vary_is_a_product_whose_first_values_are_variant_0(base: Path) -> None:
    found = vary_values(
        base, ["loss.tau=0,0.1", "reward.terms.outcome.weight={start: 1, to_step: 9},2"]
    )
    assert [v.label for v in found] == [
        'tau=0, weight={"start": 1, "to_step": 9}',
        "tau=0, weight=2",
        'tau=0.1, weight={"start": 1, "to_step": 9}',
        "tau=0.1, weight=2",
    ]
    assert [v.config.loss.tau for v in found] == [0, 0, 0.1, 0.1]
    assert found[1].folder == "loss.tau=0,reward.terms.outcome.weight=2"
    assert len({v.folder for v in found}) == 4
    assert not any(set(v.folder) & set('/ "{}:') for v in found)


def test_labels_are_as_long_as_they_have_to_be(base: Path) -> None:
    keys = ["roles.subagent.limits.turns", "roles.orchestrator.limits.turns"]
    found = vary_values(base, [f"{key}=4,8" for key in keys])
    assert found[0].label == "subagent.limits.turns=4, orchestrator.limits.turns=4"


@pytest.mark.parametrize(
    "vary, message",
    [
        (["loss.tau"], "write key.path=v1,v2"),
        (["loss.tau="], "write key.path=v1,v2"),
        (["loss.tau=0.1"], "nothing to compare"),
        (["loss.tau=0.1,0.10"], "a value twice"),
        (["loss.tau=0,1", "loss.tau=2,3"], "given twice"),
        (["seed=0,1"], "use --seeds N"),
        (["name=a,b"], "named after its variant"),
        (["loss.tau={,1"], "not YAML"),
        (["loss.tua=0,1"], "Did you mean 'tau'"),
    ],
)
def test_wrong_values_are_explained(base: Path, vary: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vary_values(base, vary)


def test_configs_are_compared_with_the_base(base: Path) -> None:
    other = base.with_name("other.yaml")
    other.write_text("extends: base.yaml\nloss: {tau: 0.5}\n")
    found = vary_configs(base, [other])
    assert [(v.label, v.folder, v.config.loss.tau) for v in found] == [
        ("base", "base", 0.01),
        ("other", "other", 0.5),
    ]
    with pytest.raises(ConfigError, match="Two configs are named base"):
        vary_configs(base, [base])


def test_a_folder_of_another_config_is_refused(base: Path, tmp_path: Path) -> None:
    ablate.write_config(tmp_path / "v", Variant("v", "v", load(base)))
    ablate.write_config(tmp_path / "v", Variant("v", "v", load(base)))
    with pytest.raises(ConfigError, match=r"another config \(different: loss\)"):
        ablate.write_config(tmp_path / "v", Variant("v", "v", load(base, ["loss.tau=3"])))


# --- runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, shared",
    [
        ("reward.terms.outcome.weight=3", True),
        ("loss.tau=0.5", True),
        ("policies.main.optimizer.lr=0.1", True),
        ("roles.subagent.trainable=false", True),
        ("swarm.critical_step_budget=9", True),
        ("env.kwargs.n=3", False),
        ("policies.main.tiny.ff_size=32", False),
        ("roles.subagent.limits.turns=3", False),
        ("swarm.mode=single", False),
        ("cold_start.max_attempts=1", False),
    ],
)
def test_cold_start_is_shared_where_it_would_come_out_the_same(
    base: Path, override: str, shared: bool
) -> None:
    one, other = (
        load(base, ["policies.main.model=tiny"]),
        load(base, ["policies.main.model=tiny", override]),
    )
    assert (cold_start_key(one, 0) == cold_start_key(other, 0)) == shared
    assert cold_start_key(one, 0) != cold_start_key(one, 1)
    assert cold_start_key(load(base, ["cold_start=null"]), 0) is None


FAKE_RUN = """
import pathlib, sys, time
run, source, fail = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "fail"
(run / "checkpoints" / "cold_start").mkdir(parents=True)
(run / "eval").mkdir()
if fail:
    sys.exit("it broke")
(run / "eval" / "cold_start.json").write_text(source)
(run / "checkpoints" / "cold_start" / "manifest.json").write_text("{}")
time.sleep(0.2)
(run / "summary.json").write_text("{}")
"""


@pytest.fixture
def jobs(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[VariantRun]:
    """Two seeds of three variants; a run is a script that leaves the files of a run. Of seed 1, the first run fails."""
    variants = vary_values(base, ["loss.tau=1,2,3"])
    found = [ablate.make_run(tmp_path, v, seed) for seed in (0, 1) for v in variants]
    for variant in variants:
        (tmp_path / variant.folder).mkdir()

    def fake(job: VariantRun, source: VariantRun | None) -> list[str]:
        end = "fail" if job.seed == 1 and job.variant is variants[0] else "well"
        return [
            sys.executable,
            "-c",
            FAKE_RUN,
            str(job.path),
            source.name if source else "own",
            end,
        ]

    monkeypatch.setattr(ablate, "command", fake)
    monkeypatch.setattr(ablate, "POLL_S", 0.02)
    return found


def test_one_run_of_each_seed_trains_the_cold_start(
    jobs: list[VariantRun], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all(jobs, 4) == [jobs[3]]
    taken = [(j.path / "eval" / "cold_start.json").read_text() for j in jobs if j is not jobs[3]]
    assert taken == ["own", "tau=1 seed 0", "tau=1 seed 0", "own", "tau=2 seed 1"]
    err = capsys.readouterr().err
    assert f"FAILED: tau=1 seed 1, exit code 1, see {jobs[3].log}: it broke" in err


def test_finished_runs_are_not_run_again(
    jobs: list[VariantRun], capsys: pytest.CaptureFixture[str]
) -> None:
    done = [j for j in jobs if j is not jobs[3]]
    for job in done:
        job.path.mkdir(parents=True)
        (job.path / "summary.json").write_text("{}")
    assert run_all(done, 2) == []
    assert "5 runs, 5 done before" in capsys.readouterr().err


RUN_OF_ANOTHER = """
import fcntl, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir(parents=True)
(run / "config.resolved.yaml").write_text("")
lock = (run / ".lock").open("a+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
if sys.argv[2] == "ends":
    (run / "summary.json").write_text("{}")
"""


@pytest.mark.parametrize("how", ["ends", "dies"])
def test_a_run_that_outlived_its_ablation_is_waited_for(
    jobs: list[VariantRun],
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after `kill -9` of the ablation: its runs go on alone, and hold their folders."""
    left = jobs[0]
    started = []

    def fake(job: VariantRun, source: VariantRun | None) -> list[str]:
        started.append(job)
        return [
            sys.executable,
            "-c",
            f"open({str(job.path / 'summary.json')!r}, 'w').write('{{}}')",
        ]

    monkeypatch.setattr(ablate, "command", fake)
    arguments = [sys.executable, "-c", RUN_OF_ANOTHER, str(left.path), how]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert left.in_use
        looked: list[float] = []

        def wait(seconds: float) -> None:
            looked.append(seconds)
            if len(looked) == 5:
                assert started == []  # the run's log, its cold start, nothing is touched
                assert other.stdin is not None
                other.stdin.write("\n")
                other.stdin.flush()
                other.wait()

        monkeypatch.setattr("time.sleep", wait)
        assert run_all([left], 2) == []
    err = capsys.readouterr().err
    assert "tau=1 seed 0 is still running from an earlier start" in err
    assert ("done elsewhere: tau=1 seed 0" in err) == (how == "ends")
    assert started == ([] if how == "ends" else [left])


def test_a_stopped_ablation_stops_its_runs(
    jobs: list[VariantRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    interrupted: list[bool] = []

    def start(job: VariantRun, source: VariantRun | None) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    def steps(_: VariantRun) -> int:
        if len(started) == 2 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(ablate, "_start", start)
    monkeypatch.setattr(ablate.VariantRun, "steps", steps)
    with pytest.raises(SystemExit, match="1"):
        run_all(jobs, 2)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_command_of_a_new_and_of_a_begun_run(base: Path, tmp_path: Path) -> None:
    one, other = (ablate.make_run(tmp_path, v, 3) for v in vary_values(base, ["loss.tau=1,2"]))
    config = tmp_path / "loss.tau=2" / "config.yaml"
    assert command(other, one)[3:] == [
        "train",
        str(config),
        f'run_dir="{other.path}"',
        "seed=3",
        'name="tau=2 seed 3"',
        f'tracking.wandb.group="{tmp_path.name}"',
        f'cold_start.from_run="{one.path}"',
    ]
    ablate.write_config(config.parent, other.variant)
    loaded = load(config, command(other, one)[5:])
    assert (loaded.seed, loaded.run_dir, loaded.baseline) == (3, other.path, None)
    assert (loaded.name, loaded.tracking.wandb.group) == ("tau=2 seed 3", tmp_path.name)
    assert loaded.cold_start is not None
    assert loaded.cold_start.from_run == one.path
    other.path.mkdir()
    (other.path / "config.resolved.yaml").write_text("")
    assert command(other, None)[4:] == [
        str(other.path / "config.resolved.yaml"),
        "--resume",
        str(other.path),
    ]
