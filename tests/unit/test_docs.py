"""What the documentation promises and a file can show: links, metric names, configs that load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parl.config import load
from tests.helpers import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/template/README.md")]
)
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

# The names in metrics.jsonl of a smoke run and of one that trains, recorded. `main` is the name of the policy.
RECORDED = {
    "": "step",
    "reward": "total outcome parallel finish subagent",
    "outcome": "score item_f1 item_f1_nonkey row_f1 item_recall success subtask "
    "accuracy_answered abstention_precision abstention_recall",
    "swarm": "critical_steps total_steps num_subagents num_assigned num_refused num_duplicates spawn_rate width "
    "average_parallelism truncated_rate tokens_per_episode finish_rate contradictions",
    "tokens": "orchestrator subagent",
    "failures": "num_failed environment timeout",
    "policy/main": "loss grad_norm entropy lr weight_version clipped_fraction logp_mismatch_mean logp_mismatch_p50 "
    "logp_mismatch_p99 logp_mismatch_max sync_mismatch router_agreement",
    "rollout": "tokens_per_s episodes_per_s staleness_mean staleness_max",
    "learner": "tokens_per_s",
    "system": "rss_mb",
    "time": "step_s rollout_s learn_s sync_s",
    "eval": "score item_f1 item_f1_nonkey row_f1 item_recall success critical_steps total_steps "
    "virtual_latency_s tokens_per_episode spawn_rate num_subagents subtask_score finish_rate "
    "num_truncated num_failed num_tasks accuracy_answered abstention_precision abstention_recall contradictions",
}
METRICS = [
    f"{group}/{name}".strip("/") for group, names in RECORDED.items() for name in names.split()
]


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
        assert not anchor or anchor in anchors(target), (
            f"{name_of(page)}: {link} has no such heading"
        )


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_documented(metric: str) -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    assert f"`{metric.replace('/main/', '/NAME/')}`" in page


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_every_shipped_config_parses(config: Path) -> None:
    assert load(config).name
