// The page's own script: which part is shown, curves, the table of the single file, tokens, and the live view's refresh.
// Text from the run reaches the page as text nodes or as data of the chart library, never as HTML.
"use strict";
(() => {
  const live = document.body.hasAttribute("data-live");
  const one = (selector, root) => (root || document).querySelector(selector);
  const all = (selector, root) => [...(root || document).querySelectorAll(selector)];

  // --- which part is shown: #overview, #episodes, #e3, #e3-a1 (an agent), #e3-a1-t2 (a turn) -------------------------
  function route() {
    const hash = decodeURIComponent(location.hash.slice(1));
    const views = all(".view");
    const shown = views.find((view) => view.id === hash.split("-")[0]) || views[0];
    views.forEach((view) => view.classList.toggle("on", view === shown));
    all(".top nav a").forEach((a, i) => a.classList.toggle("here", shown.id === "overview" ? i === 0 : i === 1));
    const target = hash.includes("-") && document.getElementById(hash);
    if (target) {
      for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
      target.scrollIntoView();
    } else {
      window.scrollTo(0, 0);
    }
    draw();
  }

  // --- curves --------------------------------------------------------------------------------------------------------
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;"); // the chart library reads some markup
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function mean(values, window) {
    let sum = 0;
    return values.map((value, i) => {
      sum += value - (i >= window ? values[i - window] : 0);
      return sum / Math.min(i + 1, window);
    });
  }

  function draw() {
    const data = one("#curves");
    if (!data || !window.Plotly || !one(".plot") || !one("#overview.on")) return;
    const charts = JSON.parse(data.textContent).flatMap((group) => group.charts);
    const window_ = Number(one("#smoothing").value);
    const [text, soft, line] = ["--text", "--soft", "--line"].map(color);
    one("#window").textContent = window_;
    all(".plot").forEach((place, i) => {
      const chart = charts[i];
      const traces = [];
      const legend = document.createElement("ul");
      legend.className = "legend";
      chart.series.forEach((series, k) => {
        const base = { x: series.x, type: "scatter", name: plain(series.name) };
        const baseline = series.name.endsWith("(baseline)");
        const paint = color(baseline ? "--soft" : "--s" + (k % 6));
        const sparse = series.metric.startsWith("eval/") || series.x.length < 3;
        const few = sparse ? "lines+markers" : "lines";
        const stroke = { color: paint, width: 2, dash: baseline ? "dash" : k > 3 ? "dot" : "solid" };
        const entry = legend.appendChild(document.createElement("li"));
        entry.appendChild(document.createElement("i")).style.borderTop = `3px ${baseline ? "dashed" : k > 3 ? "dotted" : "solid"} ${paint}`;
        entry.append(series.name);
        if (window_ > 1 && !sparse) {
          traces.push({ ...base, y: series.y, mode: "lines", line: { color: paint, width: 1 }, opacity: 0.25, hoverinfo: "skip" });
        }
        const y = sparse ? series.y : mean(series.y, window_);
        traces.push({ ...base, y, mode: few, line: stroke, marker: { color: paint, size: 6, symbol: k } });
      });
      const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickfont: { color: soft, size: 11 }, automargin: true };
      const layout = {
        margin: { l: 8, r: 8, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: text, size: 12, family: "system-ui, sans-serif" }, hovermode: "x unified",
        hoverlabel: { bgcolor: color("--panel"), bordercolor: line, font: { color: text } },
        showlegend: false,
        xaxis: { ...axis, title: { text: "RL step", font: { size: 11, color: soft }, standoff: 2 }, rangemode: "tozero" },
        yaxis: { ...axis, title: { text: plain(chart.unit), font: { size: 11, color: soft }, standoff: 4 }, type: chart.log ? "log" : "linear", rangemode: "tozero", exponentformat: "power", nticks: 5 },
      };
      Plotly.react(place, traces, layout, { displayModeBar: false, responsive: true });
      place.nextElementSibling.replaceWith(legend);
    });
  }

  // --- the table of the single file: filter and sort here (the live view asks its server) -----------------------------
  function filterRows(form, table) {
    const query = new FormData(form);
    const number = (name) => (query.get(name) === "" ? null : Number(query.get(name)));
    let left = 0;
    all("tbody tr", table).forEach((row) => {
      const within = ["step", "reward", "width"].every((key) => {
        const [min, max] = [number(key + "_min"), number(key + "_max")];
        if (min === null && max === null) return true;
        const value = row.getAttribute("data-" + key);
        return value !== "" && (min === null || Number(value) >= min) && (max === null || Number(value) <= max);
      });
      const status = query.get("status");
      row.hidden = !(within && (!status || row.getAttribute("data-status") === status));
      left += row.hidden ? 0 : 1;
    });
    one("#none-left").hidden = left > 0;
  }

  function sortRows(table, head) {
    const down = head.getAttribute("aria-sort") !== "descending";
    all("th", table).forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = "data-" + head.getAttribute("data-sort");
    const body = one("tbody", table);
    const compare = (a, b) => {
      const [x, y] = [a.getAttribute(key), b.getAttribute(key)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : Number(x) - Number(y);
      return down ? -order : order;
    };
    body.append(...all("tr", body).sort(compare));
  }

  // --- tokens: built when they are first opened, PORTION at a time ------------------------------------------------------
  const PORTION = 3000;
  const KEYS = {
    mask: "Green: the agent wrote it, so it may be trained. Grey: it was told or read it (mask 0).",
    logprob: "The stronger the colour, the less likely the token was when it was sampled. Grey: not sampled.",
    advantage: "Blue: the update makes it more likely. Orange: less likely. The stronger, the more. Grey: no update.",
  };

  function openTokens(panel) {
    const box = one(".token-box", panel);
    if (box.childElementCount) return;
    const data = JSON.parse(document.getElementById(panel.dataset.tokens).textContent);
    const most = Math.max(...data.advantage.map(Math.abs), 1e-9);
    const more = document.createElement("button");
    more.type = "button";
    let next = 0;
    const add = () => {
      const end = Math.min(next + PORTION, data.text.length);
      for (; next < end; next++) {
        const token = document.createElement("span");
        const advantage = data.advantage[next];
        token.className = "token" + (data.mask[next] ? " own" : "") + (advantage > 0 ? " up" : advantage < 0 ? " down" : "");
        token.style.setProperty("--unlikely", (1 - Math.exp(data.logprob[next])).toFixed(3));
        token.style.setProperty("--size", (0.12 + (0.6 * Math.abs(advantage)) / most).toFixed(3));
        token.textContent = data.text[next].replace(/\n/g, "⏎") || "∅";
        token.dataset.at = next;
        box.append(token, " ");
      }
      more.textContent = `${data.text.length - next} more tokens`;
      if (next < data.text.length) box.append(more);
      else more.remove();
    };
    more.addEventListener("click", add);
    box.addEventListener("click", (event) => {
      const at = event.target.dataset.at;
      if (at === undefined) return;
      all(".chosen", box).forEach((token) => token.classList.remove("chosen"));
      event.target.classList.add("chosen");
      const numbers = data.mask[at] ? `log-prob ${data.logprob[at]}, advantage ${data.advantage[at]}` : "not written by the agent";
      one("output", panel).textContent = `Token ${Number(at) + 1} of ${data.text.length}: id ${data.id[at]}, mask ${data.mask[at]}, ${numbers}`;
    });
    add();
    colourTokens(panel);
  }

  function colourTokens(panel) {
    const by = one("input[type=radio]:checked", panel).value;
    panel.dataset.by = by;
    one(".key", panel).textContent = KEYS[by];
  }

  // --- the live view: every few seconds the same page again, and its changing parts are taken over ---------------------
  async function refresh() {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.pathname + location.search, { cache: "no-store" });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      all("[data-refresh]").forEach((old) => {
        const same = one(`[data-refresh="${old.dataset.refresh}"]`, fresh);
        if (!same || same.outerHTML === old.outerHTML) return;
        old.replaceWith(document.importNode(same, true));
        if (old.id === "curves") {
          const charts = one("#charts", fresh);
          const shown = one("#charts");
          if (!shown || !charts || all("figure", charts).length !== all("figure", shown).length) location.reload();
          else draw();
        }
      });
    } catch {
      one(".state").textContent = "parl view has ended";
    }
  }

  // --- start -------------------------------------------------------------------------------------------------------------
  document.documentElement.classList.add("js");
  window.addEventListener("hashchange", route);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.addEventListener("toggle", (event) => {
    if (event.target.matches && event.target.matches(".tokens") && event.target.open) openTokens(event.target);
  }, true);
  document.addEventListener("change", (event) => {
    const panel = event.target.closest(".tokens");
    if (panel) colourTokens(panel);
  });
  const smoothing = one("#smoothing");
  if (smoothing) smoothing.addEventListener("input", draw);
  const table = one("#episode-table");
  if (table && !live) {
    const form = one(".filters");
    form.addEventListener("input", () => filterRows(form, table));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => filterRows(form, table)));
    all("th[data-sort]", table).forEach((th) => one("button", th).addEventListener("click", () => sortRows(table, th)));
  }
  route();
  if (live && !one("#e0")) setInterval(refresh, 4000);
})();
