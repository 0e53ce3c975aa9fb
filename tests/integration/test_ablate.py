"""`parl ablate` end to end: two variants of the smoke config, one cold start, one comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parl.ablate import ablate
from parl.learner import checkpoint as checkpoints

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


@pytest.mark.integration
@pytest.mark.slow
def test_variants_share_a_cold_start_and_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(f"extends: {SMOKE}\nname: r\nrun_dir: {tmp_path}/r\nseed: 3\ntrain: {{num_steps: 1}}\n")
    vary = ["reward.terms.parallel.weight=0,0.3"]
    ablate(base, vary=vary, configs=[], seeds=1)
    folder = tmp_path / "ablate-r"
    first, other = (folder / f"reward.terms.parallel.weight={w}" / "seed_3" for w in ("0", "0.3"))
    for run in (first, other):
        checkpoints.verify(run / "checkpoints" / "cold_start")
    for name in ("checkpoints/cold_start/manifest.json", "eval/cold_start.json"):
        assert (first / name).read_bytes() == (other / name).read_bytes()
    assert "cold start, demonstrations" not in other.with_name("seed_3.log").read_text()
    result = json.loads((folder / "ablation.json").read_text())
    assert [v["seeds_done"] for v in result["variants"]] == [[3], [3]]
    assert result["results"]["score"]["greedy"][1]["difference"]["num"] == 1
    assert (folder / "ablation.md").is_file()
    capsys.readouterr()
    ablate(base, vary=vary, configs=[], seeds=1)
    assert "2 runs, 2 done before" in capsys.readouterr().err
