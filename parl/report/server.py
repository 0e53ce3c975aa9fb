"""`parl view`: the pages of a run, from this machine to its own browser.

Everything is read again at each request, so a running run is shown as it is. The server answers GET
alone and only these routes. No path is made from a request: an episode is looked up in the index, so
nothing outside of the run's folder is opened. Requests under another host's name are refused (DNS
rebinding).
"""

from __future__ import annotations

import math
import os
import sys
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from parl.core.net import listen, own_names, url
from parl.report.episode import decoder
from parl.report.pages import (
    COLUMNS,
    NO_QUERY,
    Links,
    asset,
    episode_html,
    live_html,
    overview_part,
    plotly_js,
)
from parl.runs.reader import Row, RunReader

PAGE = 100
"""Episodes on one page of the list."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def _episode_path(row: Row) -> str:
    return f"/episode/{row['step']}/{quote(str(row['id']), safe='')}"


LINKS = Links(overview="/", episodes="/episodes", episode=_episode_path)


def serve(run: Path, host: str, port: int | None, browser: bool) -> None:
    """Show a run until Ctrl-C.

    Args:
        run: the run folder.
        host: address to listen at.
        port: None = any free one.
        browser: open a browser, where there is a display.
    Raises:
        CheckpointError: there is no run.
        ConfigError: host or port cannot be used.
    """
    import uvicorn

    app = make_app(RunReader(run), host)
    with listen(host, port) as listening:
        address = f"{url(host, listening)}/"
        print(f"{run} is shown at {address} (Ctrl-C ends it)", flush=True)
        if browser and _has_display():
            # In a thread: some browsers return only when their window is closed.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):  # uvicorn has closed everything when it raises it
            server.run(sockets=[listening])


def _has_display() -> bool:
    if sys.platform == "darwin":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def make_app(reader: RunReader, host: str = "127.0.0.1") -> Starlette:
    """Return the web application with the pages of one run.

    Args:
        reader: of the run.
        host: a name that requests may use for this server, as well as this machine's own names.
    """
    decode = decoder(reader.tokenizer)
    static_files = {
        "style.css": ("text/css", asset("style.css")),
        "app.js": ("text/javascript", asset("app.js")),
        "plotly.js": ("text/javascript", plotly_js()),
    }

    def home(request: Request) -> Response:
        context = overview_part(reader)
        html = live_html(
            reader, LINKS, "overview.html", key="overview", view_title="overview", **context
        )
        return _page(html)

    def episodes(request: Request) -> Response:
        try:
            context = listing(reader.rows(), request.query_params)
        except ValueError as error:
            return _refuse(str(error))
        html = live_html(
            reader, LINKS, "episodes.html", key="episodes", view_title="episodes", **context
        )
        return _page(html)

    def episode(request: Request) -> Response:
        step = request.path_params["step"]
        record = None
        if step in reader.steps():
            record = reader.episode(step, request.path_params["id"])
        if record is None:
            return _refuse("There is no such episode in this run.", 404)
        return _page(episode_html(reader, LINKS, record, decode))

    def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in static_files:
            return _refuse("There is no such file.", 404)
        media_type, text = static_files[name]
        # Unlike pages these do not change while the server runs, and plotly.js has megabytes.
        headers = {**HEADERS, "Cache-Control": "private, max-age=3600"}
        return Response(text, media_type=media_type, headers=headers)

    routes = [
        Route("/", home),
        Route("/episodes", episodes),
        Route("/episode/{step:int}/{id:str}", episode),
        Route("/static/{name:str}", static),
    ]
    trusted_hosts = Middleware(TrustedHostMiddleware, allowed_hosts=own_names(host))
    return Starlette(routes=routes, middleware=[trusted_hosts])


# --- the list of episodes ----------------------------------------------------------------


def listing(rows: Sequence[Row], params: Mapping[str, str]) -> dict[str, Any]:
    """Return the context of `episodes.html`: the rows that fit the query, one page of them.

    Args:
        rows: all stored episodes, in order of training.
        params: the query of the request; unknown keys are ignored.
    Raises:
        ValueError: a bound is no number.
    """
    query = dict(NO_QUERY)
    for name, value in params.items():
        if name in NO_QUERY:
            query[name] = value
    matching = _sorted(_filter(rows, query), query)

    num_pages = max(1, math.ceil(len(matching) / PAGE))
    page_text = params.get("page", "1")
    page = int(page_text) if page_text.isdecimal() else 1
    page = min(max(page, 1), num_pages)

    def link(**changes: Any) -> str:
        changed = {**query, **changes}
        return "/episodes?" + urlencode({k: v for k, v in changed.items() if v != ""})

    def page_link(number: int) -> str:
        return link(page=number)

    def sort_link(key: str) -> str:
        # The first click sorts descending, a second one on the same title ascending.
        is_descending = query["sort"] == key and query["order"] != "asc"
        return link(sort=key, order="asc" if is_descending else "desc")

    return {
        "rows": matching[(page - 1) * PAGE : page * PAGE],
        "total": len(rows),
        "found": len(matching),
        "query": query,
        "page": page,
        "pages": num_pages,
        "page_link": page_link,
        "sort_link": sort_link,
    }


def _filter(rows: Sequence[Row], query: Mapping[str, str]) -> list[Row]:
    matching = list(rows)
    for key in ("step", "reward", "width"):
        low = _bound(query, f"{key}_min")
        high = _bound(query, f"{key}_max")
        # An episode without a reward (a failed one) is in no range of rewards.
        if low > -math.inf or high < math.inf:
            matching = [row for row in matching if row[key] is not None and low <= row[key] <= high]
    if query["status"]:
        matching = [row for row in matching if row["status"] == query["status"]]
    return matching


def _sorted(rows: list[Row], query: Mapping[str, str]) -> list[Row]:
    key = query["sort"]
    # The key comes from a request: nothing but a column is ever looked up.
    if key not in {column.key for column in COLUMNS}:
        return rows[::-1]  # the newest first
    with_value: list[Row] = []
    without_value: list[Row] = []
    for row in rows:
        if row[key] is None:
            without_value.append(row)
        else:
            with_value.append(row)
    with_value.sort(key=lambda row: row[key], reverse=query["order"] != "asc")
    return with_value + without_value


def _bound(query: Mapping[str, str], name: str) -> float:
    """Return a bound of a filter; infinite where the field is empty."""
    text = query[name]
    if not text:
        return -math.inf if name.endswith("_min") else math.inf
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number") from None


def _page(html: str) -> Response:
    return HTMLResponse(html, headers=HEADERS)


def _refuse(text: str, status: int = 400) -> Response:
    return PlainTextResponse(text, status, headers=HEADERS)
