"use strict";
// Elements of the views. Strings are always set as text, so that a run's name is never parsed as HTML.

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

function element(tag, attributes, ...children) {
  const found = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) found.addEventListener(key.slice(2), value);
    else found.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) found.append(child);
  return found;
}

// An SVG from this server, parsed as XML; anything else is left out.
function drawing(text) {
  const root = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  return root.nodeName === "svg" ? document.importNode(root, true) : element("p", { class: "soft" }, "the drawing cannot be read");
}

function badge(place) {
  return element("span", { class: `badge ${place < 7 ? `c${place}` : "rest"}` }, LETTERS[place]);
}

function status(word) {
  return element("span", { class: `status ${String(word).replace(/\W/g, "")}` }, word);
}

function charts(found) {
  if (!found.length) return element("p", { class: "soft" }, "No step was logged, so there is nothing to draw.");
  return element("div", { class: "charts" }, found.map((one) => element("figure", { class: one.name }, drawing(one.svg))));
}

// The beginning and the end of a long name, where runs differ.
function shortened(text, most) {
  const letters = Array.from(text), half = Math.floor((most - 1) / 2);
  return letters.length > most ? `${letters.slice(0, half).join("")}…${letters.slice(-half).join("")}` : text;
}

function number(value) {
  return value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString();
}

// Bars of ‖ΔW‖ for one or two adapters, a row per module.
function bars(rows, widest) {
  const body = rows.map((row) => {
    const cells = row.norms.map((norm, place) => {
      const bar = element("meter", { min: 0, max: widest || 1, value: norm || 0, class: `c${place}`, title: number(norm) });
      return element("td", { class: "bar" }, bar, element("span", { class: "n" }, number(norm)));
    });
    const alike = row.norms.length > 1 ? element("td", { class: "n" }, number(row.cosine)) : null;
    return element("tr", {}, element("td", { class: "mono" }, row.module), cells, alike);
  });
  const heads = rows[0].norms.length > 1 ? [badge(0), badge(1), "cosine"] : ["‖ΔW‖"];
  const head = element("tr", {}, element("th", {}, "module"), heads.map((one) => element("th", { class: one === "cosine" ? "n" : null }, one === "‖ΔW‖" || one === "cosine" ? one : [one, " ‖ΔW‖"])));
  return element("div", { class: "scroll tall", tabindex: 0 }, element("table", { class: "modules" }, element("thead", {}, head), element("tbody", {}, body)));
}
