"""What the documentation promises and a file can show: links, metric names, configs that load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parl.config import load
from tests.helpers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/template/README.md")])
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

# The names in metrics.jsonl of a smoke run and of one that trains, recorded. `main` is the name of the policy.
RECORDED = """
step reward/total reward/outcome reward/parallel reward/finish reward/subagent
outcome/score outcome/item_f1 outcome/item_f1_nonkey outcome/row_f1 outcome/item_recall outcome/success outcome/subtask
swarm/critical_steps swarm/total_steps swarm/num_subagents swarm/num_assigned swarm/num_refused swarm/spawn_rate
swarm/width swarm/work_over_span swarm/truncated swarm/finish_rate
tokens/orchestrator tokens/subagent tokens/episode failures/total failures/environment failures/timeout
policy/main/loss policy/main/grad_norm policy/main/entropy policy/main/lr policy/main/weight_version
policy/main/clipped_fraction policy/main/logp_mismatch_mean policy/main/logp_mismatch_max policy/main/sync_mismatch
rollout/tokens_per_s rollout/episodes_per_s rollout/staleness_mean rollout/staleness_max learner/tokens_per_s
system/rss_mb time/step_s time/rollout_s time/learn_s time/sync_s
eval/score eval/item_f1 eval/item_f1_nonkey eval/row_f1 eval/item_recall eval/success
eval/critical_steps eval/total_steps eval/virtual_latency_s eval/tokens_per_episode eval/spawn_rate eval/num_subagents
eval/subtask_score eval/finish_rate eval/num_truncated eval/num_failed eval/num_tasks
""".split()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The headings' anchors, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link} has no such heading"


@pytest.mark.parametrize("metric", RECORDED)
def test_every_metric_is_documented(metric: str) -> None:
    page = (ROOT / "docs" / "read-the-metrics.md").read_text()
    assert f"`{metric.replace('/main/', '/NAME/')}`" in page


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_every_shipped_config_parses(config: Path) -> None:
    assert load(config).name
