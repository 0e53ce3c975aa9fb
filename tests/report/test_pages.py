"""The pages without a browser: which episodes are chosen and found, what is escaped, what the server refuses."""

from __future__ import annotations

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from parl.config import parse
from parl.core.errors import ConfigError
from parl.core.net import own_names
from parl.core.types import RewardBreakdown, ScoredEpisode
from parl.report.curves import curves
from parl.report.episode import decoder, observation
from parl.report.overview import evaluations, roles, terms
from parl.report.pages import choose, evenly, report_html, write_report
from parl.report.server import PAGE, listing, make_app, serve
from parl.report.text import visible
from parl.runs.folder import RunFolder
from parl.runs.reader import RunReader
from tests.support.helpers import ROOT, call, run, script

HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m\x00\u2028<img src=http://x/ onerror=alert(1)>"


def row(step: int, number: int = 0, **more: Any) -> dict[str, Any]:
    base = {
        "id": f"{step}-{number}",
        "step": step,
        "status": "completed",
        "reward": 0.5,
        "width": 0,
        "failure": None,
    }
    other = {
        "score": 0.5,
        "num_subagents": 0,
        "critical_steps": 3,
        "latency_s": 1.0,
        "tokens": 9,
        "task": "t",
    }
    return {**base, **other, **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run whose one episode holds hostile text wherever a policy or an environment can put it."""
    raw = {"name": "a <b>run</b>", "env": {"id": "parl/WideSearch-v0"}}
    folder = RunFolder.create(tmp_path / "r", parse(raw))
    episode = run(script([call("peek", at=HOSTILE), HOSTILE]))
    rewards = {"0": RewardBreakdown({"outcome": 0.0}, {"outcome": 1.0})}
    folder.write_episodes(0, [ScoredEpisode(episode, rewards)], [])
    folder.log(
        {
            "step": 0,
            "reward/total": 0.0,
            "reward/</script><b>x</b>": 1.0,
            "policy/main/entropy": 0.5,
        }
    )
    folder.close()
    return folder.path


# --- which episodes ----------------------------------------------------------------------------------------------


def test_the_choice_shows_the_range() -> None:
    rows = [row(step, k) for step in range(20) for k in range(5)]
    special: dict[int, dict[str, Any]] = {
        7: {"reward": 2.0},
        33: {"reward": -1.0},
        41: {"width": 12},
        52: {"status": "failed", "reward": None, "failure": "timeout"},
        63: {"status": "truncated"},
    }
    for at, values in special.items():
        rows[at] |= values
    shown = choose(rows, 24)
    why = {r["id"]: r["why"] for r in shown}
    assert len(shown) == 24
    assert [r["step"] for r in shown] == sorted(r["step"] for r in shown)
    names = ("best reward", "worst reward", "widest", "failed", "truncated")
    assert {why[rows[at]["id"]] for at in special} == set(names)
    assert {"first step", "last step"} <= set(why.values())
    assert shown[0]["step"] == 0
    assert shown[-1]["step"] == 19
    steps = [r["step"] for r in shown if r["why"] == "spread over training"]
    assert max(b - a for a, b in pairwise(steps)) <= 2


@pytest.mark.parametrize("num", [0, 1, 3, 24, 1000])
def test_the_choice_keeps_its_bound(num: int) -> None:
    rows = [row(step) for step in range(30)]
    assert len(choose(rows, num)) == min(num, 30)
    assert choose([], num) == []
    assert len({id(r) for r in evenly(rows, num)}) == min(num, 30)


def test_only_failed_episodes_can_be_chosen_from() -> None:
    shown = choose([row(0, status="failed", reward=None)], 24)
    assert [r["why"] for r in shown] == ["failed"]


def test_the_list_is_filtered_sorted_and_paged() -> None:
    rows = [row(step, width=step % 7, reward=step / 100) for step in range(300)]
    rows[5] |= {"status": "failed", "reward": None}
    found = listing(
        rows, {"step_min": "10", "step_max": "290", "width_min": "3", "width_max": "4", "page": "1"}
    )
    wanted = [r for r in rows if 10 <= r["step"] <= 290 and r["width"] in (3, 4)]
    assert (found["found"], found["total"]) == (len(wanted), 300)
    assert found["rows"] == wanted[::-1][:PAGE]
    assert listing(rows, {"status": "failed"})["rows"] == [rows[5]]
    assert rows[5] not in listing(rows, {"reward_min": "-1"})["rows"]  # it has no reward
    ascending = listing(rows, {"sort": "reward", "order": "asc"})
    assert [r["step"] for r in ascending["rows"][:3]] == [0, 1, 2]
    assert (
        listing(rows, {"sort": "reward", "page": "99"})["rows"][-1] is rows[5]
    )  # no value: last, whatever the order
    assert len(listing(rows, {"page": "3"})["rows"]) == 100
    assert listing(rows, {"page": "-1", "sort": "__class__"})["page"] == 1
    with pytest.raises(ValueError, match="step_min must be a number"):
        listing(rows, {"step_min": "<b>"})


# --- what is shown -----------------------------------------------------------------------------------------------


def test_hidden_characters_become_visible() -> None:
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\x00\x1b[31m\r\x7f\x85") == "␀␛[31m␍␡\\x85"
    assert (
        visible("\u202eabc\u2066\u200f\ufeff\u2028\ud800")
        == "\\u202eabc\\u2066\\u200f\\ufeff\\u2028\\ud800"
    )
    assert visible("\U000e0041") == "\\U000e0041"
    assert visible("مرحبا 你好 ünï 👩\u200d🚀") == "مرحبا 你好 ünï 👩\u200d🚀"


def test_nothing_hostile_is_left_as_markup(path: Path) -> None:
    html = report_html(RunReader(path))
    assert "<script>alert" not in html
    assert "<img src=http" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e␛[31m␀\\u2028" in html
    assert "a &lt;b&gt;run&lt;/b&gt;" in html
    assert not re.search("[\x00-\x08\x0b\x0e-\x1f\u202e\u2028]", html.split("<script>")[0])
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert len(blocks) == 2  # curves, the orchestrator's tokens
    names = [s["name"] for g in json.loads(blocks[0]) for c in g["charts"] for s in c["series"]]
    assert "</script><b>x</b>" in names
    assert not [b for b in blocks if "<" in b]


def test_the_file_loads_nothing_and_runs_its_own_scripts_only(path: Path) -> None:
    html = report_html(RunReader(path))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert not re.search("script-src[^;]*unsafe", policy[1])
    page = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href|action)=["'](?!data:|#)""", page)


def test_images_in_an_observation_are_data_only() -> None:
    png = "data:image/png;base64,iVBORw0KGgo="
    assert observation(f"see {png} here") == {"text": "see [image] here", "images": [png]}
    for other in (
        "data:image/svg+xml;base64,PHN2Zz4=",
        "data:text/html;base64,PGI+",
        "https://x/y.png",
    ):
        assert observation(other)["images"] == []


def test_tokens_without_a_tokenizer_are_their_numbers(tmp_path: Path) -> None:
    assert decoder(lambda policy: None)("main", [5, 7]) == ["5", "7"]
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{")
    assert decoder(lambda policy: broken)("main", [5]) == ["5"]


def test_tokens_are_decoded_with_the_policy_s_own(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"blue": 0, "?": 1}, "?")).save(str(tmp_path / "tokenizer.json"))
    assert decoder(lambda policy: tmp_path / "tokenizer.json")("main", [0, 1, 99]) == [
        "blue",
        "?",
        "99",
    ]


def test_curves_are_grouped_and_empty_ones_left_out() -> None:
    rows = [
        {
            "step": s,
            "reward/total": 1.0,
            "reward/parallel": 0.5,
            "policy/a/lr": 1.0,
            "policy/b/lr": 2.0,
        }
        for s in (0, 1)
    ]
    baseline = [{"step": 0, "outcome/score": 0.25}]
    charts = {c["title"]: c for g in curves(rows, baseline) for c in g["charts"]}
    assert set(charts) == {"Outcome", "Reward by role", "Reward terms", "Learning rate"}
    assert [s["name"] for s in charts["Learning rate"]["series"]] == ["a", "b"]
    assert charts["Outcome"]["series"] == [
        {"name": "single agent (baseline)", "metric": "outcome/score", "x": [0], "y": [0.25]}
    ]
    assert curves([]) == []


def test_evaluations_of_any_nesting_are_one_table() -> None:
    flat, deep = (
        {"score": 0.5, "num_tasks": 2.0},
        {"swarm": {"greedy": {"score": 0.75, "num_tasks": 4.0}}},
    )
    table = evaluations({"step_000002": flat, "cold_start": deep, "note": {"text": "x"}})
    assert table["titles"] == ["score", "tasks"]
    assert table["rows"] == [
        ["step_000002", "0.500", "2"],
        ["cold_start, swarm, greedy", "0.750", "4"],
    ]


def test_adapters_skills_and_turns_in_words() -> None:
    gate = {"metric": "outcome/subtask", "value": 0.8, "max_steps": 30}
    turns = {"value": {"steps": 5, "first": False}}
    raw = {
        "name": "r",
        "env": {"id": "parl/WideSearch-v0"},
        "policies": {
            "main": {},
            "orchestrator": {"adapter": {"base": "main"}},
            "subagent": {"adapter": {"base": "main"}},
        },
        "roles": {
            "orchestrator": {
                "policy": "orchestrator",
                "trainable": [{"until": gate, "value": False}, turns],
            },
            "subagent": {
                "policy": "subagent",
                "trainable": [{"until": 4, "value": True}, {"until": gate, "value": False}, turns],
            },
        },
    }
    found = roles(parse(raw).model_dump(mode="json"))
    assert [r["model"] for r in found] == ["adapter on main"] * 2
    skill = "until outcome/subtask reaches 0.8, at most 30 steps"
    assert [r["trainable"] for r in found] == [
        f"frozen from step 0 {skill}, by turns of 5 (frozen first) from then on",
        f"learns steps 0 to 3, frozen from step 4 {skill}, by turns of 5 (frozen first) from then on",
    ]


def test_roles_and_weights_in_words() -> None:
    schedule = [{"until": 20, "value": False}, {"value": True}]
    raw = {
        "name": "r",
        "env": {"id": "parl/WideSearch-v0"},
        "roles": {"subagent": {"trainable": schedule}},
        "reward": {
            "terms": {
                "outcome": {},
                "parallel": {"weight": {"start": 0.3, "end": 0, "to_step": 9}, "cap": 4},
            }
        },
    }
    config = parse(raw).model_dump(mode="json")
    assert [r["trainable"] for r in roles(config)] == [
        "learns",
        "frozen steps 0 to 19, learns from step 20",
    ]
    assert [(t["name"], t["weight"], t["knobs"]) for t in terms(config)] == [
        ("outcome", "1", ""),
        ("parallel", "0.3 → 0 over steps 0 to 9", "(cap: 4)"),
    ]


def test_the_report_goes_where_it_is_told(path: Path, tmp_path: Path) -> None:
    assert write_report(path) == path / "report.html"
    assert write_report(path, tmp_path / "x.html", 0).read_text().count('class="view"') == 2
    with pytest.raises(ConfigError, match=r"cannot be written.*-o FILE\.html"):
        write_report(path, tmp_path / "no" / "x.html")


@pytest.mark.parametrize(
    "recorded, shown", [("faulty/no-shaping-0", True), ("healthy/weak-0", False)]
)
def test_alarms_are_on_the_overview(path: Path, recorded: str, shown: bool) -> None:
    rows = gzip.decompress(
        (ROOT / "tests" / "runs" / "data" / "alarms" / f"{recorded}.jsonl.gz").read_bytes()
    )
    (path / "metrics.jsonl").write_bytes(rows)
    page = report_html(RunReader(path), 0)
    assert ("serial_collapse" in page) == shown
    assert ("<h2>Alarms</h2>" in page) == shown


# --- the live view -----------------------------------------------------------------------------------------------


@pytest.fixture
def client(path: Path) -> TestClient:
    return TestClient(make_app(RunReader(path)), base_url="http://127.0.0.1:8000")


def test_the_pages_of_a_run(client: TestClient) -> None:
    for url in ("/", "/episodes", "/episode/0/e"):
        answer = client.get(url)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
    assert "/episode/0/e" in client.get("/episodes").text
    assert client.get("/static/style.css").headers["content-type"].startswith("text/css")


@pytest.mark.parametrize(
    "url",
    [
        "/episode/0/nothing",
        "/episode/1/e",
        "/episode/-1/e",
        "/episode/0/..%2F..%2Fsummary.json",
        "/static/..%2Fpages.py",
        "/static/base.html",
        "/config.resolved.yaml",
    ],
)
def test_what_is_not_a_page_is_not_found(client: TestClient, url: str) -> None:
    assert client.get(url).status_code == 404


def test_other_methods_and_other_hosts_are_refused(client: TestClient) -> None:
    assert client.post("/").status_code == 405
    assert client.get("/", headers={"host": "evil.example:8000"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:9"}).status_code == 200
    assert client.get("/episodes?reward_min=x").status_code == 400
    assert "evil.example" not in own_names("0.0.0.0")


def test_a_port_in_use_is_told(path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} cannot be used.*--port"):
            serve(path, "127.0.0.1", port, browser=False)
