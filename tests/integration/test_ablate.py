"""`parl ablate` end to end: two variants of the smoke config, one cold start, one comparison."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parl.cli.ablate import ablate
from parl.config import load
from parl.core import manifest

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


@pytest.mark.integration
@pytest.mark.slow
def test_variants_share_a_cold_start_and_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(
        f"extends: {SMOKE}\nname: r\nrun_dir: {tmp_path}/r\nseed: 3\ntrain: {{num_steps: 1}}\n"
    )
    vary = ["reward.terms.parallel.weight=0,0.3"]
    ablate(base, vary=vary, configs=[], seeds=1)
    folder = tmp_path / "ablate-r"
    first, other = (folder / f"reward.terms.parallel.weight={w}" / "seed_3" for w in ("0", "0.3"))
    for run in (first, other):
        manifest.verify(run / "checkpoints" / "cold_start")
    for name in ("checkpoints/cold_start/manifest.json", "eval/cold_start.json"):
        assert (first / name).read_bytes() == (other / name).read_bytes()
    assert "cold start, demonstrations" not in other.with_name("seed_3.log").read_text()
    result = json.loads((folder / "ablation.json").read_text())
    assert [v["seeds_done"] for v in result["variants"]] == [[3], [3]]
    assert result["results"]["score"]["greedy"][1]["difference"]["num"] == 1
    assert (folder / "ablation.md").is_file()
    assert "score (0 to 1), training episodes" in (folder / "ablation.html").read_text()
    for run, label in ((first, "weight=0"), (other, "weight=0.3")):
        own = load(run / "config.resolved.yaml")
        assert (own.name, own.tracking.wandb.group) == (f"{label} seed 3", "ablate-r")
    script = SMOKE.parents[1] / "examples" / "plot_ablation.py"
    picture = tmp_path / "curves.png"
    subprocess.run([sys.executable, script, folder, "-o", picture], check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    ablate(base, vary=vary, configs=[], seeds=1)
    assert "2 runs, 2 done before" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.slow
def test_an_ablation_killed_with_its_runs_alive_comes_to_the_same_result(tmp_path: Path) -> None:
    """SIGKILL leaves no time to stop the runs: they go on alone, and the same command waits for them."""
    base = tmp_path / "base.yaml"
    few = "train: {num_steps: 8, checkpoint_every: 1}\neval: {decoding: [greedy]}\n"
    base.write_text(f"extends: {SMOKE}\nname: r\nrun_dir: {tmp_path}/r\ncold_start: null\n{few}")
    vary = "reward.terms.parallel.weight=0,0.3"
    command = [
        sys.executable,
        "-m",
        "parl.cli.main",
        "ablate",
        str(base),
        "--vary",
        vary,
        "--seeds",
        "1",
    ]
    folder = tmp_path / "ablate-r"
    runs = [folder / f"reward.terms.parallel.weight={w}" / "seed_0" for w in ("0", "0.3")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 600
            started, begun = 0, 0
            while not started or begun < started:  # all of its runs hold their folders
                begun = sum((run / "config.resolved.yaml").is_file() for run in runs)
                started = (tmp_path / "log").read_text().count("started: ")
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    assert not (folder / "ablation.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert again.returncode == 0, again.stderr
    assert "is still running from an earlier start" in again.stderr
    result = json.loads((folder / "ablation.json").read_text())
    assert [v["seeds_done"] for v in result["variants"]] == [[0], [0]]
    for run in runs:
        assert [
            json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()
        ] == list(range(8))
