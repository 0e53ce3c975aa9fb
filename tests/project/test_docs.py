"""What the documentation promises and a file can show: links, metric names, configs that load."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import parl
from parl.config import load, renamed
from parl.core import moved
from parl.core.public import PUBLIC
from tests.support.helpers import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/template/README.md")]
)
SITE_PAGES = sorted((ROOT / "docs").rglob("*.md"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
CURRENT_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *SITE_PAGES]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TEST_FILE = re.compile(r"\btests/(?:\w+/)+\w+\.py(?:::\w+)?")
CODE_FILE = re.compile(r"`([\w.-]+/[\w/.-]+\.(?:py|yaml|sh|ipynb))`")
MODULE = re.compile(r"`((?:parl|parl_envs|parl_rewards)(?:\.\w+)+)")
SHOWN_FILE = re.compile(r"^`([\w./-]+\.\w+)`:$", re.MULTILINE)  # a page shows the file itself
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
MAX_WORDS = 2000  # a page answers one question; a longer one answered several
MAX_COLUMNS = 105  # pages are wrapped at about 100

# The names in metrics.jsonl of a smoke run and of one that trains, recorded.
# `main` is the name of the policy.
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


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """scripts/docs_site.py, the hook of `mkdocs build`."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts/docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", SITE_PAGES, ids=name_of)
def test_a_page_has_a_length_that_one_question_needs(page: Path) -> None:
    assert len(page.read_text().split()) <= MAX_WORDS


def test_each_page_is_linked_from_the_index_in_the_group_of_its_folder(site: ModuleType) -> None:
    folders = {
        "Start": "start",
        "How to": "how-to",
        "Reference": "reference",
        "Explain": "explain",
        "Results": "results",
    }
    listed = {}
    for heading, pages in site.groups(ROOT / "docs/index.md"):
        for _, path in pages:
            assert path.startswith(f"{folders[heading]}/"), f"{path} is listed under {heading}"
            listed[path] = heading
    decisions = (ROOT / "docs/explain/adr/index.md").read_text()
    for page in SITE_PAGES:
        path = page.relative_to(ROOT / "docs").as_posix()
        if page.parent.name == "adr" and page.name != "index.md":
            assert f"({page.name})" in decisions
        elif path != "index.md":
            assert path in listed


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_wrapped(page: Path) -> None:
    """Tables, links and code have the length that they need."""
    for line in FENCE.sub("", page.read_text()).splitlines():
        has_free_length = line.startswith(("|", "#", "    ", "![")) or "](" in line
        assert has_free_length or len(line) <= MAX_COLUMNS, f"{name_of(page)}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for test in TEST_FILE.findall(page.read_text()):
        path, _, function = test.partition("::")
        assert (ROOT / path).is_file(), f"{name_of(page)} names {test}"
        assert not function or f"def {function}(" in (ROOT / path).read_text(), test


def test_the_list_for_language_models_has_every_page(site: ModuleType) -> None:
    text = site.llms_txt("https://example.org/")
    assert text.startswith("# PARL\n\n> ")
    assert "- [Metrics](https://example.org/reference/metrics/)" in text
    for _, pages in site.groups(ROOT / "docs/index.md"):
        for title, _ in pages:
            assert f"- [{title}](" in text


def test_the_generated_references_have_every_key_and_command(site: ModuleType) -> None:
    configuration = site.configuration()
    assert "`train_decision_prob`" not in configuration  # an environment's own, not the schema's
    for key in ("max_off_policy_steps", "critical_step_budget", "hang_timeout_s", "decay_start"):
        assert f"| `{key}` |" in configuration
    commands = site.commands()
    for command in ("train", "eval", "ablate", "envs check", "config explain", "seeds", "figures"):
        assert f"## parl {command}\n" in commands


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=name_of)
def test_every_file_and_module_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    shown = {name for other in PAGES for name in SHOWN_FILE.findall(other.read_text())}
    roots = [ROOT / folder for folder in ("", "parl", "envs", "envs/parl_envs", "rewards")]
    for file in CODE_FILE.findall(text):
        assert file in shown or any((root / file).exists() for root in roots), file
    for name in set(MODULE.findall(text)) - {"parl.envs", "parl.rewards"}:  # entry points
        assert _exists(name), name


def _exists(name: str) -> bool:
    """Tell whether a dotted name is a module, or is in one."""
    module, _, attribute = name.rpartition(".")
    try:
        if importlib.util.find_spec(name) is not None:
            return True
    except ModuleNotFoundError:  # the parent is a class
        return _exists(module)
    return hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/explain/adr/0008-rooms.md"])
def test_pages_show_the_folders_in_the_order_that_is_checked(page: str) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    assert "```text\n" + "\n".join(layers) + "\n```" in (ROOT / page).read_text()


def test_the_python_page_has_every_public_name() -> None:
    page = (ROOT / "docs/reference/python.md").read_text()
    documented = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, re.MULTILINE))
    described = {"Config", "Message", "load_config"}
    assert set(PUBLIC) - documented <= described


def test_the_changelog_lists_every_old_name() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    renamed_keys = []
    for old, new in renamed.KEYS.items():
        parent = old.rpartition(".")[0]
        renamed_keys.append((old, f"{parent}.{new}".lstrip(".")))
    renamed_credit = [
        (f"credit.type: {o}", f"credit.type: {n}") for o, n in renamed.CREDIT_TYPES.items()
    ]
    tables = (moved.MODULES, renamed.METRICS, renamed.KNOBS)
    pairs = [pair for table in tables for pair in table.items()]
    for old, new in [*renamed_keys, *renamed_credit, *pairs]:
        assert f"| `{old}` | `{new}` |" in changelog


def test_the_readme_shows_the_environment_of_the_first_page() -> None:
    """Its block is a part of the file that tests/integration/test_docs.py trains."""
    [block] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    page = (ROOT / "docs/start/your-first-environment.md").read_text()
    assert block.startswith("import parl\n\n")
    assert block in page.replace("import gymnasium\n\n", "")


def test_the_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == parl.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()


@pytest.mark.integration
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'parl-swarm[docs]'")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site/llms.txt").is_file()
    page = (tmp_path / "site/reference/python/index.html").read_text()
    assert "AgentEnv" in page
    for name in ("start/install", "reference/configuration", "explain/architecture"):
        html = (tmp_path / "site" / name / "index.html").read_text()
        loaded = re.findall(r'<(?:script|img)[^>]+src="(https?:[^"]+)"', html)
        loaded += re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(https?:[^"]+)"', html)
        assert loaded == [], f"{name} loads from the network: {loaded}"


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_documented(metric: str) -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    assert f"`{metric.replace('/main/', '/NAME/')}`" in page


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_every_shipped_config_parses(config: Path) -> None:
    assert load(config).name
