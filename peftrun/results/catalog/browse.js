"use strict";
// Three views, selected by the address: #/?where=…&sort=…, #/run/ID and #/beside/ID,ID.

const at = (id) => document.getElementById(id);
const chosen = new Map(); // id → name, in the order of selection
let shown = null; // response that the view shows: an equal one changes nothing
let turn = 0; // number of the latest request: responses to earlier ones are dropped
let timer = 0;
let back = "#/"; // address of the table as last requested

async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" } });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.problem || `the server answers ${answer.status}`);
  return found;
}

function route() {
  const [path, query] = location.hash.replace(/^#/, "").split("?");
  const [, view, ids] = path.split("/");
  return { view: view || "list", ids: (ids || "").split(",").filter(Boolean), query: new URLSearchParams(query || "") };
}

function tell(problem) {
  at("problem").hidden = !problem;
  at("problem").textContent = problem || "";
  at("where").classList.toggle("wrong", Boolean(problem));
}

function put(...parts) {
  at("view").replaceChildren(...parts.flat(Infinity).filter(Boolean));
}

// Fetch the view's data again; redraw only if it has changed.
async function refresh() {
  clearTimeout(timer);
  const mine = ++turn, here = route();
  let running = false;
  try {
    const found = await VIEWS[here.view].ask(here);
    if (mine !== turn) return;
    running = found.running > 0;
    const text = JSON.stringify([location.hash, found]);
    if (text !== shown) {
      const focus = document.activeElement && document.activeElement.id;
      const scrolled = at("view").querySelector(".scroll");
      const place = shown && scrolled ? [scrolled.scrollLeft, scrolled.scrollTop] : null;
      VIEWS[here.view].draw(found, here);
      const again = at("view").querySelector(".scroll");
      if (place && again) [again.scrollLeft, again.scrollTop] = place;
      if (focus && at(focus)) at(focus).focus();
      shown = text;
    }
    tell("");
  } catch (error) {
    if (mine !== turn) return;
    const gone = error instanceof TypeError;
    tell(gone ? "nothing answers any more: the program that serves this page has ended" : error.message);
    if (here.view !== "list") put();
    shown = null;
  }
  timer = setTimeout(refresh, document.hidden ? 30000 : running ? 2000 : 10000);
}

// ---------------------------------------------------------------- the table

function listed(found, here) {
  const sort = here.query.get("sort") || "-date";
  const what = !here.query.get("where") || found.matching === found.total ? `${found.matching} runs` : `${found.matching} of ${found.total} runs`;
  const cut = found.runs.length < found.matching ? `, the first ${found.runs.length} shown` : "";
  at("count").textContent = `${what}${cut} below ${found.roots.join(", ")}${found.running ? `, ${found.running} running` : ""}`;
  if (!found.runs.length) {
    put(element("p", { class: "empty" }, found.total ? "No run meets these conditions." : "There is no run here yet."));
    return;
  }
  const heads = found.columns.map((column) => {
    const by = SORTED[column.name] || column.name;
    const way = sort === by ? "ascending" : sort === `-${by}` ? "descending" : null;
    const turned = sort === `-${by}` ? by : `-${by}`;
    return element("th", { class: column.right ? "n" : null, "aria-sort": way },
      element("button", { type: "button", id: `by-${column.name}`, onclick: () => go({ sort: turned }) }, column.title,
        element("span", { class: "way", "aria-hidden": "true" }, way === "ascending" ? " ▲" : way === "descending" ? " ▼" : "")));
  });
  const rows = found.runs.map((run) => row(run, found.columns));
  put(element("div", { class: "scroll", tabindex: 0 },
    element("table", { id: "runs" }, element("thead", {}, element("tr", {}, element("th", {}, ""), heads)), element("tbody", {}, rows))));
}

const LONGEST = { run: 42, other: 28 }; // characters of a cell
const SORTED = { metric: "after", time: "seconds" };

function row(run, columns) {
  const name = run.cells[columns.findIndex((column) => column.name === "run")];
  const box = element("input", { type: "checkbox", id: `box-${run.id}`, "aria-label": `choose ${name}`, onchange: (event) => choose(run.id, name, event.target.checked) });
  box.checked = chosen.has(run.id);
  const cells = columns.map((column, place) => {
    const text = run.cells[place];
    if (column.name === "run") return element("td", { class: "mono" }, element("a", { href: `#/run/${run.id}`, title: text }, shortened(text, LONGEST.run)),
      run.report ? element("a", { class: "report", href: `/run/${run.id}/report.html`, target: "_blank", rel: "noopener", "aria-label": `report of ${text}` }, "report") : null);
    if (column.name === "status") return element("td", { title: run.error }, status(text));
    if (column.name === "metric") return element("td", { class: "change" }, text === "-" ? element("span", { class: "soft" }, "–") : text);
    return element("td", { class: column.right ? "n" : null, title: text.length > LONGEST.other ? text : null }, text === "-" ? element("span", { class: "soft" }, "–") : shortened(text, LONGEST.other));
  });
  return element("tr", { class: box.checked ? "picked" : null }, element("td", {}, box), cells);
}

function choose(id, name, wanted) {
  if (wanted) chosen.set(id, name);
  else chosen.delete(id);
  const box = at(`box-${id}`);
  if (box) box.closest("tr").classList.toggle("picked", wanted);
  count();
}

function count() {
  at("chosen").hidden = chosen.size === 0 || route().view !== "list";
  at("chosen-count").textContent = `${chosen.size} chosen`;
  at("beside").disabled = chosen.size < 2 || chosen.size > LETTERS.length;
}

function go(changes) {
  const query = route().view === "list" ? route().query : new URLSearchParams();
  for (const [key, value] of Object.entries(changes)) value ? query.set(key, value) : query.delete(key);
  location.hash = `#/${query.size ? `?${query}` : ""}`;
}

// ---------------------------------------------------------------- one run

async function askOne(here) {
  const [run, found] = await Promise.all([ask(`/api/run/${here.ids[0]}`), ask(curvesOf([here.ids[0]]))]);
  return { ...run, charts: found };
}

function curvesOf(ids) {
  return `/api/curves?${ids.map((id) => `id=${encodeURIComponent(id)}`).join("&")}${innerWidth < 700 ? "&narrow=true" : ""}`;
}

function one(run) {
  const tiles = run.metrics.map((metric) => element("li", {}, element("div", { class: "name" }, metric.name),
    element("div", { class: "value" }, metric.after), metric.before ? element("div", { class: "since" }, `${metric.before} before`) : null));
  const norms = run.adapter_norms;
  const rows = norms && norms.modules ? Object.entries(norms.modules).map(([module, norm]) => ({ module, norms: [norm] })) : [];
  put(
    element("p", { class: "back" }, element("a", { href: back }, "← all runs")),
    element("h2", { class: "mono" }, run.run),
    element("p", {}, status(run.status), ...run.files.map((file) => element("a", { class: "file", href: `/run/${run.id}/${file}`, target: "_blank", rel: "noopener" }, FILES[file]))),
    run.error ? element("p", { class: "fault" }, run.error) : null,
    tiles.length ? element("ul", { class: "tiles" }, tiles) : null,
    section("Curves", charts(run.charts)),
    section("About", element("dl", {}, run.cells.filter(([key]) => key !== "status").map(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]))),
    run.command ? section("To get it, type", element("pre", { tabindex: 0 }, run.command)) : null,
    run.adapter ? section("The adapter", element("p", { class: "mono" }, run.adapter),
      rows.length ? [bars(rows, Math.max(...rows.map((row) => row.norms[0]))), element("p", { class: "soft" }, "‖ΔW‖ is the Frobenius norm of what the adapter adds to each weight of the base.")]
        : element("p", { class: "soft" }, norms && norms.problem)) : null,
    Object.keys(run.config).length ? element("details", {}, element("summary", {}, "The whole configuration"),
      element("dl", { class: "mono" }, Object.entries(run.config).map(([key, value]) => [element("dt", {}, key), element("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]))) : null,
  );
}

const FILES = { "report.html": "report ↗", "curves.svg": "curves as SVG ↗" };

function section(title, ...children) {
  return element("section", {}, element("h3", {}, title), children);
}

// ---------------------------------------------------------------- several side by side

async function askBeside(here) {
  const query = here.ids.map((id) => `id=${encodeURIComponent(id)}`).join("&");
  const pair = here.ids.length === 2 ? ask(`/api/adapters/${here.ids[0]}/${here.ids[1]}`) : null;
  const [found, drawn, adapters] = await Promise.all([ask(`/api/compare?${query}`), ask(curvesOf(here.ids)), pair]);
  return { ...found, charts: drawn, adapters };
}

function beside(found, here) {
  const letters = found.runs.map((_, place) => element("th", {}, badge(place)));
  const legend = found.runs.map((name, place) => element("li", {}, badge(place), " ", element("a", { class: "mono", href: `#/run/${here.ids[place]}` }, name)));
  const bodies = Object.entries(found.sections).map(([title, part]) => element("tbody", {},
    element("tr", {}, element("th", { colspan: found.runs.length + 1, class: "title" }, title === "config" ? "what differs in the configuration" : title)),
    Object.entries(part).map(([key, values]) => element("tr", { class: values.every((value) => value === values[0]) ? "same" : null },
      element("td", { class: "mono" }, key), values.map((value) => element("td", {}, value))))));
  put(
    element("p", { class: "back" }, element("a", { href: back }, "← all runs")),
    element("h2", {}, `${found.runs.length} runs side by side`),
    element("ul", { class: "legend" }, legend),
    section("Curves", charts(found.charts)),
    section("What differs, and what came out", element("div", { class: "scroll", tabindex: 0 },
      element("table", { id: "beside-table" }, element("thead", {}, element("tr", {}, element("th", {}, ""), letters)), bodies))),
    Object.keys(found.config).length ? null : element("p", { class: "soft" }, "Nothing differs between their configurations."),
    adaptersBeside(found),
    section("To get them, type", found.commands.map((command, place) => element("div", { class: "command" }, badge(place), element("pre", { tabindex: 0 }, command || "–")))),
  );
}

function adaptersBeside(found) {
  const pair = found.adapters;
  if (!pair) return found.runs.length > 2 ? element("p", { class: "soft" }, "Choose two runs to see their adapters module by module.") : null;
  if (pair.problem) return section("The adapters, module by module", element("p", { class: "soft" }, pair.problem));
  const widest = Math.max(...pair.rows.flatMap((row) => row.norms.map((norm) => norm || 0)));
  return section("The adapters, module by module", bars(pair.rows, widest), element("p", { class: "soft" },
    `‖ΔW‖ is the Frobenius norm of what an adapter adds to each weight; in all ${number(pair.totals[0])} and ${number(pair.totals[1])}. Cosine: 1, the two add the same up to size; 0, they have nothing in common.`));
}

// ---------------------------------------------------------------- input events

const VIEWS = {
  list: { ask: (here) => ask(`/api/runs?${here.query}`), draw: listed },
  run: { ask: askOne, draw: one },
  beside: { ask: askBeside, draw: beside },
};

function moved() {
  const here = route();
  if (!VIEWS[here.view]) { location.replace("#/"); return; }
  document.body.dataset.view = here.view;
  if (here.view === "list") {
    at("where").value = here.query.get("where") || "";
    back = location.hash || "#/";
  } else at("count").textContent = "";
  shown = null;
  count();
  window.scrollTo(0, 0);
  refresh();
}

at("filter").addEventListener("submit", (event) => { event.preventDefault(); go({ where: at("where").value.trim() }); refresh(); });
at("clear").addEventListener("click", () => { at("where").value = ""; go({ where: "" }); refresh(); });
at("none").addEventListener("click", () => { chosen.clear(); shown = null; count(); refresh(); });
at("beside").addEventListener("click", () => { location.hash = `#/beside/${[...chosen.keys()].join(",")}`; });
window.addEventListener("hashchange", moved);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
ask("/api/columns").then((names) => at("columns").append(...names.map((name) => element("option", { value: name }))), () => {});
moved();
