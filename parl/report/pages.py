"""The pages of a run, for the single file (`parl report`) and the live view (`parl view`).

Both use the same templates.
All text passes `parl.report.text.visible` and the templates' escaping. Scripts run only if the page's
Content-Security-Policy knows them, and it forbids every request to another place.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from parl.core.errors import ConfigError
from parl.report.curves import curves
from parl.report.episode import Decode, decoder, episode_view
from parl.report.overview import overview
from parl.report.text import visible
from parl.runs.folder import write_atomic
from parl.runs.reader import RunReader

NUM_EPISODES = 24
"""Episodes in a report unless another number is given. More make the file large."""
STATUSES = ("", "completed", "truncated", "failed")
"""Choices of the status filter; empty = any."""
FILTERS = (
    "step_min",
    "step_max",
    "reward_min",
    "reward_max",
    "width_min",
    "width_max",
    "status",
    "sort",
    "order",
)
NO_QUERY: Mapping[str, str] = dict.fromkeys(FILTERS, "")
"""The list of episodes without a filter."""
SPREAD = "spread over training"
"""The reason for an episode that stands out in nothing."""
Row = Mapping[str, Any]
"""A row of the list of episodes, see `parl.runs.folder.index_row`."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the list of episodes."""

    key: str
    """Key of the row."""
    title: str
    description: str = ""
    """Shown when the pointer rests on the title."""
    form: str = ""
    """How a number is written; empty for a text."""


COLUMNS = (
    Column("id", "episode", "step-task-attempt"),
    Column("step", "step", "", "{}"),
    Column("status", "status"),
    Column("reward", "reward", "the orchestrator's, shaped", "{:.3f}"),
    Column("score", "outcome", "unshaped", "{:.3f}"),
    Column("width", "width", "most subagents that one turn launched", "{}"),
    Column("num_subagents", "subagents", "", "{}"),
    Column(
        "critical_steps", "critical steps", "turns that could not have run at the same time", "{}"
    ),
    Column("latency_s", "latency", "virtual seconds", "{:.2f}"),
    Column("tokens", "tokens", "written by all agents", "{}"),
    Column("task", "task"),
)


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses of the parts of a page: anchors in the single file, paths in the live view."""

    overview: str
    episodes: str
    episode: Callable[[Row], str]


# --- templates ---------------------------------------------------------------------------


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the templates. They escape every value and make its hidden characters visible."""

    def show(value: Any) -> Any:
        # Markup is this package's own (scripts, styles). Everything else comes from a run.
        if isinstance(value, str) and not isinstance(value, Markup):
            return visible(value)
        return value

    env = Environment(
        loader=PackageLoader("parl.report"), autoescape=True, finalize=show, trim_blocks=False
    )
    env.globals.update(statuses=STATUSES, columns=COLUMNS)
    return env


def asset(name: str) -> str:
    """Return the text of style.css or app.js."""
    return (files("parl.report") / "templates" / name).read_text(encoding="utf-8")


def plotly_js() -> str:
    """Return the chart library, as the installed plotly has it."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def common(reader: RunReader, links: Links) -> dict[str, Any]:
    """Return the context that every page needs."""
    return {"run": reader.name, "config": reader.config, "state": reader.state(), "to": links}


def overview_part(reader: RunReader) -> dict[str, Any]:
    """Return the context of `overview.html`."""
    groups = curves(reader.metrics(), reader.baseline_metrics())
    # Names of metrics reach the page as JSON, which does not pass the templates' `show`.
    for group in groups:
        for chart in group["charts"]:
            for series in chart["series"]:
                series["name"] = visible(series["name"])
    return {"o": overview(reader), "curves": groups}


# --- the single file ---------------------------------------------------------------------


def write_report(run: Path, target: Path | None = None, num_episodes: int = NUM_EPISODES) -> Path:
    """Write the report of a run.

    Args:
        run: the run folder.
        target: the file; None = RUN/report.html.
        num_episodes: episodes in it, at most.
    Returns:
        Where the report is.
    Raises:
        CheckpointError: there is no run.
        ConfigError: the file cannot be written.
    """
    reader = RunReader(run)
    path = target or run / "report.html"
    try:
        write_atomic(path, report_html(reader, num_episodes))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. Choose another file: -o FILE.html"
        ) from None
    return path


def report_html(reader: RunReader, num_episodes: int = NUM_EPISODES) -> str:
    """Return the report: one file that needs no other and loads nothing."""
    decode = decoder(reader.tokenizer)
    rows = reader.rows()
    shown_rows = choose(rows, num_episodes)
    views: list[dict[str, Any]] = []
    anchors: dict[tuple[Any, ...], str] = {}
    for index, row in enumerate(shown_rows):
        view = episode_view(_record(reader, row), decode)
        views.append(view | {"why": row["why"]})
        anchors[_key(row)] = f"#e{index}"
    links = Links("#overview", "#episodes", lambda row: anchors[_key(row)])

    plotly = plotly_js()
    script = asset("app.js")
    context = {
        **common(reader, links),
        **overview_part(reader),
        "plotly": Markup(plotly),
        "script": Markup(script),
        "style": Markup(asset("style.css")),
        "csp": _content_security_policy([plotly, script]),
        "made": time.strftime("%Y-%m-%d"),
        "rows": shown_rows,
        "total": len(rows),
        "views": views,
        "query": NO_QUERY,
    }
    return environment().get_template("report.html").render(context)


def panel_html(reader: RunReader) -> str | None:
    """Return the timeline of one episode, for Weights & Biases.

    It is the widest episode of the last stored step; None while no episode has a reward.
    """
    rows = [row for row in reader.rows() if row["reward"] is not None]
    if not rows:
        return None
    last_step = rows[-1]["step"]
    widest = max((row for row in rows if row["step"] == last_step), key=lambda row: row["width"])
    # The panel has no tokens, so nothing needs to be decoded.
    view = episode_view(_record(reader, widest), lambda policy, ids: [])
    template = environment().get_template("panel.html")
    return template.render(view=view, style=Markup(asset("style.css")))


def _record(reader: RunReader, row: Row) -> Mapping[str, Any]:
    record = reader.episode(row["step"], row["id"])
    assert record is not None, f"{row['id']} is in the index only"
    return record


def _content_security_policy(scripts: Sequence[str]) -> str:
    """Return the policy of the single file: these very scripts, its own styles, images as data."""
    hashes: list[str] = []
    for text in scripts:
        digest = hashlib.sha256(text.encode()).digest()
        hashes.append(f"'sha256-{base64.b64encode(digest).decode()}'")
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


# --- the choice of episodes --------------------------------------------------------------


def choose(rows: Sequence[Row], num: int) -> list[dict[str, Any]]:
    """Choose episodes that show the range of a run.

    Args:
        rows: all stored episodes, in order of training.
        num: how many to choose, at most.
    Returns:
        The chosen rows in order of training, each with `why`, the reasons.
    """
    candidates = _notable(rows)
    num_notable = len({_key(row) for row, _ in candidates})
    num_missing = max(num - num_notable, 0)
    # Some of those at equal distances are candidates already, so ask for more than are missing.
    for row in evenly(rows, num_missing + len(candidates)):
        candidates.append((row, SPREAD))

    reasons: dict[tuple[Any, ...], list[str]] = {}
    for row, reason in candidates:
        key = _key(row)
        if key not in reasons:
            if len(reasons) >= num:
                continue
            reasons[key] = [reason]
        elif reason != SPREAD:
            # An episode that stands out needs no further reason to be there.
            reasons[key].append(reason)

    shown_rows: list[dict[str, Any]] = []
    for row in rows:
        if _key(row) in reasons:
            shown_rows.append({**row, "why": ", ".join(reasons[_key(row)])})
    return shown_rows


def _notable(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Return the episodes that stand out, with the reason, the most important first."""
    notable: list[tuple[Row, str]] = []
    scored = [row for row in rows if row["reward"] is not None]
    if scored:
        last_step = scored[-1]["step"]
        in_last_step = [row for row in scored if row["step"] == last_step]
        # Among equals the later one: it shows more of what was learned.
        best = max(scored, key=lambda row: (row["reward"], row["step"]))
        worst = min(scored, key=lambda row: (row["reward"], -row["step"]))
        widest = max(scored, key=lambda row: (row["width"], row["step"]))
        notable.append((scored[0], "first step"))
        notable.append((max(in_last_step, key=lambda row: row["width"]), "last step"))
        notable.append((best, "best reward"))
        notable.append((worst, "worst reward"))
        notable.append((widest, "widest"))
    for status in ("failed", "truncated"):
        with_status = [row for row in rows if row["status"] == status]
        if with_status:
            notable.append((with_status[-1], status))
    return notable


def evenly(rows: Sequence[Row], num: int) -> list[Row]:
    """Return at most `num` of the rows, at equal distances."""
    num = min(num, len(rows))
    # The middle of each of num equal parts.
    return [rows[(2 * k + 1) * len(rows) // (2 * num)] for k in range(num)]


def _key(row: Row) -> tuple[Any, ...]:
    return row["step"], row["id"]


# --- the live view -----------------------------------------------------------------------


def episode_html(reader: RunReader, links: Links, record: Mapping[str, Any], decode: Decode) -> str:
    """Return the page of one episode."""
    view = episode_view(record, decode)
    title = f"episode {record['id']}"
    return live_html(reader, links, "episode.html", key="e0", view=view, view_title=title)


def live_html(reader: RunReader, links: Links, part: str, **context: Any) -> str:
    """Return a page around one part.

    Args:
        reader: of the run.
        links: addresses of the other pages.
        part: file name of the part's template.
        **context: what the part needs.
    """
    page = environment().get_template("live.html")
    return page.render({**common(reader, links), "live": True, "part": part, **context})
