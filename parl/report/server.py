"""`parl view`: the pages of a run from this machine to its own browser, read anew at each request.

Only GET, only these routes; nothing outside of the run's folder is opened, and no path is made from what was asked:
an episode is looked up in the index. Requests under another host's name are refused (DNS rebinding).
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
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LINKS = Links(
    "/", "/episodes", lambda row: f"/episode/{row['step']}/{quote(str(row['id']), safe='')}"
)


def serve(run: Path, host: str, port: int | None, browser: bool) -> None:
    """Show a run until Ctrl-C. Raises CheckpointError: no run there. ConfigError: the port or host is not to be had."""
    import uvicorn

    app = make_app(RunReader(run), host)
    with listen(host, port) as listening:
        address = f"{url(host, listening)}/"
        print(f"{run} is shown at {address} (Ctrl-C ends it)", flush=True)
        if browser and (
            sys.platform == "darwin"
            or os.environ.get("DISPLAY")
            or os.environ.get("WAYLAND_DISPLAY")
        ):
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        )
        with suppress(KeyboardInterrupt):  # uvicorn has closed everything when it raises it
            server.run(sockets=[listening])


def make_app(reader: RunReader, host: str = "127.0.0.1") -> Starlette:
    """The pages of one run; `host` is the address that it will be asked by, beside this machine's own names."""
    decode = decoder(reader.tokenizer)
    files = {
        "style.css": ("text/css", asset("style.css")),
        "app.js": ("text/javascript", asset("app.js")),
        "plotly.js": ("text/javascript", plotly_js()),
    }

    def home(request: Request) -> Response:
        part = overview_part(reader)
        return _page(
            live_html(reader, LINKS, "overview.html", key="overview", view_title="overview", **part)
        )

    def episodes(request: Request) -> Response:
        try:
            context = listing(reader.rows(), request.query_params)
        except ValueError as error:
            return _refused(str(error))
        return _page(
            live_html(
                reader, LINKS, "episodes.html", key="episodes", view_title="episodes", **context
            )
        )

    def episode(request: Request) -> Response:
        step, episode_id = request.path_params["step"], request.path_params["id"]
        record = reader.episode(step, episode_id) if step in reader.steps() else None
        if record is None:
            return _refused("There is no such episode in this run.", 404)
        return _page(episode_html(reader, LINKS, record, decode))

    def static(request: Request) -> Response:
        if request.path_params["name"] not in files:
            return _refused("There is no such file.", 404)
        kind, text = files[request.path_params["name"]]
        return Response(
            text, media_type=kind, headers={**HEADERS, "Cache-Control": "private, max-age=3600"}
        )

    routes = [
        Route("/", home),
        Route("/episodes", episodes),
        Route("/episode/{step:int}/{id:str}", episode),
        Route("/static/{name:str}", static),
    ]
    return Starlette(
        routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=own_names(host))]
    )


def listing(rows: Sequence[Row], params: Mapping[str, str]) -> dict[str, Any]:
    """The episodes that fit the query, sorted, one page of them. Raises ValueError: a filter that is no number."""
    query = {**NO_QUERY, **{k: v for k, v in params.items() if k in NO_QUERY}}
    found = list(rows)
    for key in ("step", "reward", "width"):
        low, high = _number(query, f"{key}_min"), _number(query, f"{key}_max")
        if low > -math.inf or high < math.inf:
            found = [row for row in found if row[key] is not None and low <= row[key] <= high]
    if query["status"]:
        found = [row for row in found if row["status"] == query["status"]]
    if query["sort"] in {column.key for column in COLUMNS}:
        key = query["sort"]
        known = [row for row in found if row[key] is not None]
        known.sort(key=lambda row: row[key], reverse=query["order"] != "asc")
        found = known + [row for row in found if row[key] is None]
    else:
        found.reverse()  # the newest first
    pages = max(1, math.ceil(len(found) / PAGE))
    asked = params.get("page", "1")
    page = min(max(int(asked) if asked.isdecimal() else 1, 1), pages)

    def link(**changes: Any) -> str:
        return "/episodes?" + urlencode({k: v for k, v in {**query, **changes}.items() if v != ""})

    def sort_link(key: str) -> str:
        return link(
            sort=key, order="asc" if query["sort"] == key and query["order"] != "asc" else "desc"
        )

    return {
        "rows": found[(page - 1) * PAGE : page * PAGE],
        "total": len(rows),
        "found": len(found),
        "query": query,
        "page": page,
        "pages": pages,
        "page_link": lambda number: link(page=number),
        "sort_link": sort_link,
    }


def _number(query: Mapping[str, str], name: str) -> float:
    """A bound of a filter; an empty one bounds nothing."""
    text = query[name]
    if not text:
        return -math.inf if name.endswith("_min") else math.inf
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number") from None


def _page(html: str) -> Response:
    return HTMLResponse(html, headers=HEADERS)


def _refused(text: str, status: int = 400) -> Response:
    return PlainTextResponse(text, status, headers=HEADERS)
