"""The pages: one template set for the single file (`parl report`) and for the live view (`parl view`).

In: a `RunReader`. Out: HTML. All text passes `visible` and the templates' escaping; scripts run only if the page's
Content-Security-Policy knows them, and it forbids every request to elsewhere.
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
"""Episodes that a report embeds unless told otherwise."""
STATUSES = ("", "completed", "truncated", "failed")
NO_QUERY: Mapping[str, str] = dict.fromkeys(
    (
        "step_min",
        "step_max",
        "reward_min",
        "reward_max",
        "width_min",
        "width_max",
        "status",
        "sort",
        "order",
    ),
    "",
)
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    key: str
    title: str
    says: str = ""
    form: str = ""
    """How a number is shown; empty for a text."""


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
    """Where the parts of the page are: anchors in the single file, paths in the live view."""

    overview: str
    episodes: str
    episode: Callable[[Row], str]


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Escapes every value, and makes its hidden characters visible first."""

    def show(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    env = Environment(
        loader=PackageLoader("parl.report"), autoescape=True, finalize=show, trim_blocks=False
    )
    env.globals.update(statuses=STATUSES, columns=COLUMNS)
    return env


def asset(name: str) -> str:
    """A file beside the templates: style.css or app.js."""
    return (files("parl.report") / "templates" / name).read_text(encoding="utf-8")


def plotly_js() -> str:
    """The chart library, as the installed plotly brings it."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def common(reader: RunReader, links: Links) -> dict[str, Any]:
    """What every page shows around its own part."""
    return {"run": reader.name, "config": reader.config, "state": reader.state(), "to": links}


def overview_part(reader: RunReader) -> dict[str, Any]:
    """What `overview.html` needs."""
    groups = curves(reader.metrics(), reader.baseline_metrics())
    for group in groups:
        for chart in group["charts"]:
            for series in chart["series"]:
                series["name"] = visible(series["name"])
    return {"o": overview(reader), "curves": groups}


# --- the single file ---------------------------------------------------------------------------------------------


def write_report(run: Path, target: Path | None = None, num_episodes: int = NUM_EPISODES) -> Path:
    """Write the run's report to `target` (default: RUN/report.html), and return where it is.

    Raises CheckpointError: no run there. ConfigError: the target cannot be written.
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
    """The whole report as one file that needs no other and loads nothing."""
    decode = decoder(reader.tokenizer)
    rows = reader.rows()
    shown = choose(rows, num_episodes)
    views = []
    for row in shown:
        record = reader.episode(row["step"], row["id"])
        assert record is not None, f"{row['id']} is in the index only"
        views.append(episode_view(record, decode) | {"why": row["why"]})
    places = {(row["step"], row["id"]): f"#e{k}" for k, row in enumerate(shown)}
    links = Links("#overview", "#episodes", lambda row: places[row["step"], row["id"]])
    scripts = {"plotly": plotly_js(), "script": asset("app.js")}
    context = {
        **common(reader, links),
        **overview_part(reader),
        **{name: Markup(text) for name, text in scripts.items()},
        "style": Markup(asset("style.css")),
        "csp": _policy(scripts.values()),
        "made": time.strftime("%Y-%m-%d"),
        "rows": shown,
        "total": len(rows),
        "views": views,
        "query": NO_QUERY,
    }
    return environment().get_template("report.html").render(context)


def panel_html(reader: RunReader) -> str | None:
    """The timeline of one episode alone: the widest of the last stored step. None while there is none."""
    rows = [row for row in reader.rows() if row["reward"] is not None]
    if not rows:
        return None
    row = max((r for r in rows if r["step"] == rows[-1]["step"]), key=lambda r: r["width"])
    record = reader.episode(row["step"], row["id"])
    assert record is not None, f"{row['id']} is in the index only"
    view = episode_view(record, lambda policy, ids: [])
    return (
        environment().get_template("panel.html").render(view=view, style=Markup(asset("style.css")))
    )


def choose(rows: Sequence[Row], num: int) -> list[dict[str, Any]]:
    """A bounded choice of episodes that shows the range, in order of training, each with `why` it was taken."""
    scored = [row for row in rows if row["reward"] is not None]
    picks: list[tuple[Row, str]] = []
    if scored:
        last = scored[-1]["step"]
        picks = [
            (scored[0], "first step"),
            (max((r for r in scored if r["step"] == last), key=lambda r: r["width"]), "last step"),
            (max(scored, key=lambda r: (r["reward"], r["step"])), "best reward"),
            (min(scored, key=lambda r: (r["reward"], -r["step"])), "worst reward"),
            (max(scored, key=lambda r: (r["width"], r["step"])), "widest"),
        ]
    for status in ("failed", "truncated"):
        picks += [(row, status) for row in [r for r in rows if r["status"] == status][-1:]]
    spread = max(num - len({_key(row) for row, _ in picks}), 0)
    picks += [(row, "spread over training") for row in evenly(rows, spread + len(picks))]
    why: dict[tuple[Any, ...], list[str]] = {}
    for row, reason in picks:
        if _key(row) in why or len(why) < num:
            reasons = why.setdefault(_key(row), [])
            if not reasons or reason != "spread over training":
                reasons.append(reason)
    return [{**row, "why": ", ".join(why[_key(row)])} for row in rows if _key(row) in why]


def evenly(rows: Sequence[Row], num: int) -> list[Row]:
    """At most `num` of the rows, at equal distances."""
    num = min(num, len(rows))
    return [rows[(2 * k + 1) * len(rows) // (2 * num)] for k in range(num)]


def _key(row: Row) -> tuple[Any, ...]:
    return row["step"], row["id"]


def _policy(scripts: Any) -> str:
    """Content-Security-Policy of the single file: these very scripts, its own styles, images that are data."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def episode_html(reader: RunReader, links: Links, record: Mapping[str, Any], decode: Decode) -> str:
    """The live view's page of one episode."""
    view = episode_view(record, decode)
    return live_html(
        reader, links, "episode.html", key="e0", view=view, view_title=f"episode {record['id']}"
    )


def live_html(reader: RunReader, links: Links, part: str, **context: Any) -> str:
    """A page of the live view around one part."""
    page = environment().get_template("live.html")
    return page.render({**common(reader, links), "live": True, "part": part, **context})
