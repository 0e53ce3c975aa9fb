"""The report and the live view in a real browser: what is drawn, what can be done, and what hostile text cannot do.

The run is a smoke run with one more stored step, written by hand: a swarm, an episode of hostile text, a failed one.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parl.core.types import Episode, RewardBreakdown, ScoredEpisode
from parl.rollout.env_calls import EpisodeFailure
from parl.rollout.swarm import failed_episode
from parl.runs.folder import RunFolder, read_episodes
from tests.support.helpers import ROOT, TASK, assign, call, create, run, script, turns

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install -e '.[dev]'"
)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no chromium on the PATH; type: scripts/install_chromium.sh install",
    ),
]

STEP = 3  # after the three that the smoke run trains
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE = (
    "<script>window.pwned = 1</script></script></pre><img src=x onerror='window.pwned = 1'>"
    '"\'><a href="javascript:window.pwned=1">click</a> [link](javascript:window.pwned=1) # head **bold** {{ 7 * 7 }}'
    " \u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd \x1b[31m\x00\u2028 \ud83d\ude80 data:image/png;base64,"
    f"{PNG} "
)
LONG = "x" * 100_000


def swarm() -> Episode:
    """Two stages: the subagent that ends last is another one than the first, and not the one with the most turns."""
    first = turns(create("a"), assign("a", "red"), assign("a", "green"))
    second = turns(assign("a", "slow"), assign("a", "quick"))
    return run(
        script(
            [first, call("peek", at="here"), "@broken", second, "blue"],
            red=["RED"],
            green=[call("peek", at="y"), "GREEN"],
            slow=["S" * 400],  # more seconds in one turn
            quick=[call("peek", at="z"), call("peek", at="z"), "QUICK"],
        )
    )


def hostile() -> Episode:
    first = turns(
        create(HOSTILE), assign(HOSTILE, "red"), call(HOSTILE, **{"<b>": HOSTILE}), "@" + HOSTILE
    )
    episode = run(script([first, call("peek", at=HOSTILE + LONG), HOSTILE + LONG], red=[HOSTILE]))
    return replace(episode, id="hostile", task=replace(TASK, prompt=HOSTILE, id=HOSTILE))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "run"
    parl("train", ROOT / "configs" / "smoke.yaml", f"run_dir={path}", "baseline=null")
    folder = RunFolder.resume(path)
    rewards = {
        "0": RewardBreakdown({"outcome": 1.0, "parallel": 0.5}, {"outcome": 1.0, "parallel": 0.2})
    }
    episodes = [
        ScoredEpisode(replace(swarm(), id="swarm", step=STEP), rewards),
        ScoredEpisode(replace(hostile(), step=STEP), rewards),
        ScoredEpisode(
            failed_episode("failed", TASK, "g", STEP, EpisodeFailure("timeout", HOSTILE)), {}
        ),
    ]
    folder.write_episodes(STEP, episodes, [])
    folder.close()
    return path


def parl(*args: object) -> None:
    command = [sys.executable, "-m", "parl.cli", *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def report(stored: Path) -> str:
    file = stored.with_name("report of <a> run.html")
    parl("report", stored, "-o", file)
    return file.as_uri()


@pytest.fixture(scope="module")
def server(stored: Path) -> Iterator[str]:
    with view(stored) as url:
        yield url


@contextmanager
def view(path: Path) -> Iterator[str]:
    """`parl view` on a free port; Ctrl-C must end it with exit code 0 and without a traceback."""
    command = [sys.executable, "-u", "-m", "parl.cli", "view", str(path), "--no-browser"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().partition(" at ")[2].partition(" ")[0].rstrip("/")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser(stored: Path) -> Iterator[Any]:
    """After `stored`: while there is a browser, this thread's event loop is its own, and scripted episodes need one."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, own: str, **options: Any) -> Iterator[Any]:
    """A page; afterwards: no message on its console, no request but to `own`, nothing hostile has run."""
    context = browser.new_context(**options)
    page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    yield page
    assert page.evaluate("window.pwned") is None
    assert messages == []
    assert [r for r in requests if not r.startswith((own, "data:"))] == []
    context.close()


def until(page: Any, expression: str, seconds: float = 15.0) -> None:
    """Wait for it. (Playwright's own `wait_for_function` needs eval, which the pages' policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"{expression} is not true after {seconds} s"
        page.wait_for_timeout(100)


def path_of(record: dict[str, Any]) -> set[tuple[str, str]]:
    """The critical path once more: an agent's turns are on it if nobody launched by the same turn ended later."""
    root, *others = record["traces"]
    found = {("0", str(k)) for k in range(len(root["turns"]))}
    for at in range(len(root["turns"])):
        launched = [t for t in others if t["spawned_at"] == at and t["turns"]]
        ends = [t["turns"][-1]["t_end"] for t in launched]
        if launched:
            chosen = launched[ends.index(max(ends))]
            found |= {(chosen["id"], str(k)) for k in range(len(chosen["turns"]))}
    return found


def shown_path(page: Any) -> set[tuple[str, str]]:
    """The bars that are marked as critical, of the episode that is shown."""
    bars = page.locator(".view.on .tl-plot rect[data-critical=true]")
    return {(bar.get_attribute("data-agent"), bar.get_attribute("data-turn")) for bar in bars.all()}


def record_of(stored: Path, episode_id: str) -> dict[str, Any]:
    episodes = read_episodes(stored / "episodes" / f"step_{STEP:06d}.jsonl.zst")
    return next(e for e in episodes if e["id"] == episode_id)


def visible_rows(page: Any) -> list[str]:
    return [
        row.locator("td").first.inner_text()
        for row in page.locator("#episode-table tbody tr:visible").all()
    ]


def check_curves(page: Any) -> None:
    """Every chart is drawn, with as many points as it was given."""
    until(
        page,
        "document.querySelectorAll('.plot .main-svg').length >= document.querySelectorAll('.plot').length",
    )
    groups = json.loads(page.locator("#curves").text_content())
    charts = [chart for group in groups for chart in group["charts"]]
    assert len(charts) > 8
    assert page.locator(".plot").count() == len(charts)
    drawn = page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.data.map(t => t.y))")
    for chart, traces in zip(charts, drawn, strict=True):
        assert [len(y) for y in traces] == [len(s["y"]) for s in chart["series"]]
    assert page.locator(".plot .scatterlayer path.js-line").count() >= len(charts)


def check_hostile(page: Any) -> None:
    """The text is there, as text; nothing that it could make of itself is."""
    view = page.locator(".view.on")
    assert HOSTILE.split("<img")[0] in view.text_content()
    assert "\\u202eright to left\\u202c" in view.text_content()
    assert "␛[31m␀\\u2028" in view.text_content()
    assert "{{ 7 * 7 }}" in view.text_content()
    assert "\u202e" not in page.content()
    assert page.locator("a[href^='javascript']").count() == 0
    assert page.locator(".view.on script:not([type='application/json'])").count() == 0
    images = {image.get_attribute("src") for image in page.locator(".view.on img").all()}
    assert images == {f"data:image/png;base64,{PNG}"}  # of observations, as data
    page.locator(".view.on details").evaluate_all("all => all.forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert (
        page.locator(".view.on .box").evaluate_all(
            "all => Math.max(...all.map(b => b.offsetHeight))"
        )
        < 400
    )


# --- the single file ---------------------------------------------------------------------------------------------


def test_the_report_draws_its_curves_and_smooths_them(browser: Any, report: str) -> None:
    with opened(browser, report, report) as page:
        check_curves(page)
        before = page.evaluate("document.querySelector('.plot').data.length")
        page.locator("#smoothing").fill("3")
        assert page.locator("#window").inner_text() == "3"
        assert (
            page.evaluate("document.querySelector('.plot').data.length") > before
        )  # the raw line, and its mean
        assert "Before and after" in page.locator("#overview").inner_text()


def test_the_report_s_list_is_filtered_and_sorted(browser: Any, report: str) -> None:
    with opened(browser, report + "#episodes", report) as page:
        everything = visible_rows(page)
        assert len(everything) == 3 * 4 + 3
        assert "15 of the run's 15 stored episodes" in page.locator("#episodes .lead").inner_text()
        page.locator("[name=step_min]").fill(str(STEP))
        assert visible_rows(page) == ["swarm", "hostile", "failed"]
        page.locator("[name=width_min]").fill("2")
        assert visible_rows(page) == ["swarm"]
        page.locator("button[type=reset]").click()
        until(page, "!document.querySelector('#episode-table tr[hidden]')")
        page.locator("[name=status]").select_option("failed")
        assert visible_rows(page) == ["failed"]
        page.locator("button[type=reset]").click()
        page.locator("th[data-sort=width] button").click()
        assert visible_rows(page)[0] == "swarm"
        page.locator("th[data-sort=reward] button").click()
        assert visible_rows(page)[-1] == "failed"  # it has no reward


def test_an_episode_of_the_report_is_opened(browser: Any, report: str, stored: Path) -> None:
    with opened(browser, report + "#episodes", report) as page:
        page.locator("#episode-table a", has_text="swarm").click()
        record = record_of(stored, "swarm")
        assert shown_path(page) == path_of(record)
        marked = path_of(record) - {("0", str(k)) for k in range(5)}
        assert {agent for agent, _ in marked} == {
            "2",
            "3",
        }  # green ended last, then slow: no lane is there by chance
        bars = page.locator(".view.on .tl-plot rect")
        assert bars.count() == sum(len(t["turns"]) for t in record["traces"])
        says = page.locator(".view.on .critical-path").inner_text()
        assert "orchestrator, turn 1" in says
        assert "subagent 3 a, turn 1" in says
        text = page.locator(".view.on").inner_text()
        assert f"Critical steps: {record['critical_steps']}" in text
        assert "malformed call" in text
        assert page.locator(".view.on .bar.malformed").count() == 1
        bars.nth(bars.count() - 1).click()  # a bar leads to its turn
        assert page.locator("[id$='-a4-t2']").is_visible()


def test_tokens_are_shown_with_their_numbers(browser: Any, report: str, stored: Path) -> None:
    with opened(browser, report + "#episodes", report) as page:
        page.locator("#episode-table a", has_text="swarm").click()
        page.locator(".view.on .tokens > summary").first.click()
        trace = record_of(stored, "swarm")["traces"][0]
        tokens = page.locator(".view.on .tokens").first.locator(".token")
        tokens.first.wait_for()  # the page makes them when their box is opened
        assert tokens.count() == len(trace["token_ids"])
        assert page.locator(".view.on .tokens").first.locator(".token.own").count() == sum(
            trace["mask"]
        )
        at = trace["mask"].index(1)
        grey, green = (
            tokens.nth(k).evaluate("t => getComputedStyle(t).backgroundColor") for k in (at - 1, at)
        )
        assert grey != green
        tokens.nth(at).click()
        says = page.locator(".view.on .tokens output").first.inner_text()
        assert f"id {trace['token_ids'][at]}, mask 1, log-prob" in says
        page.locator(".view.on .tokens input[value=advantage]").first.check()
        assert "more likely" in page.locator(".view.on .tokens .key").first.inner_text()


def test_a_failed_episode_says_why(browser: Any, report: str) -> None:
    with opened(browser, report + "#episodes", report) as page:
        page.locator("#episode-table a", has_text="failed").click()
        assert "Failed (timeout)" in page.locator(".view.on .warn").inner_text()
        assert page.locator(".view.on .tl-plot").count() == 0


@pytest.mark.parametrize("width", [375, 1280])
def test_hostile_text_is_text(browser: Any, report: str, server: str, width: int) -> None:
    size = {"width": width, "height": 800}
    with opened(browser, report + "#episodes", report, viewport=size) as page:
        page.locator("#episode-table a", has_text="hostile").click()
        check_hostile(page)
    with opened(browser, f"{server}/episode/{STEP}/hostile", server, viewport=size) as page:
        check_hostile(page)


def test_a_phone_scrolls_in_one_direction_only(browser: Any, report: str, server: str) -> None:
    size = {"width": 375, "height": 800}
    urls = [
        (report, report),
        (report + "#episodes", report),
        (server, server),
        (server + "/episodes", server),
    ]
    for url, own in [*urls, (f"{server}/episode/{STEP}/swarm", server)]:
        with opened(browser, url, own, viewport=size) as page:
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") == 375, url


def test_dark_is_dark(browser: Any, report: str, server: str) -> None:
    for url in (report, server):
        shades = []
        for scheme in ("light", "dark"):
            with opened(browser, url, url, color_scheme=scheme) as page:
                check_curves(page)
                paint = "getComputedStyle(document.body)"
                color = page.evaluate(f"[{paint}.backgroundColor, {paint}.color]")
                axis = page.evaluate("document.querySelector('.plot .xtick text').style.fill")
                shades.append([*color, axis])
        assert all(light != dark for light, dark in zip(*shades, strict=True)), url


# --- the live view -----------------------------------------------------------------------------------------------


def test_the_live_view_shows_the_run(browser: Any, server: str, stored: Path) -> None:
    with opened(browser, server, server) as page:
        check_curves(page)
        page.locator("nav a", has_text="Episodes").click()
        assert "15 episodes are stored" in page.locator(".lead").inner_text()
        assert visible_rows(page)[:3] == ["failed", "hostile", "swarm"]  # the newest first
        page.locator("[name=width_min]").fill("2")
        page.locator("form button").click()
        assert visible_rows(page) == ["swarm"]
        page.locator("th[data-sort=reward] a").click()
        assert visible_rows(page) == ["swarm"]  # sorting keeps the filter
        page.locator("#episode-table a", has_text="swarm").click()
        assert shown_path(page) == path_of(record_of(stored, "swarm"))


def test_the_live_view_follows_a_run(browser: Any, stored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "running"
    shutil.copytree(stored, copy)
    (copy / "summary.json").unlink()
    folder = RunFolder.resume(copy)  # holds the lock, as a training run does
    with view(copy) as url, opened(browser, url, url) as page:
        assert page.locator(".state").inner_text().endswith("running")
        assert "3 of 3 steps" in page.locator(".lead").inner_text()
        check_curves(page)
        folder.log({"step": 3, "outcome/score": 0.5, "reward/total": 0.5})
        until(page, "document.querySelector('.lead').innerText.includes('4 of 3')")
        points = "document.querySelector('.plot').data[0].y.length"
        until(page, f"{points} === 4")
        folder.close()
        until(page, "document.querySelector('.state').innerText === 'stopped'")
