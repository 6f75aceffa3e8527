// Behaviour of the evaluation page: theme, drawing figures when they come into view, enlarging one, opening a file's
// gates from its point, sorting and filtering the table. No network, no inline handlers; data come from JSON blocks.
"use strict";
(() => {
  const root = document.documentElement;
  const STORE = "flowmrd-theme";
  const remembered = () => { try { return localStorage.getItem(STORE); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem(STORE, theme); } catch { /* private windows refuse */ } };
  const saved = remembered();
  if (saved === "light" || saved === "dark") root.dataset.theme = saved;  // before the first paint

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  let settings = null;
  const theme = () => (printing ? "light" : root.dataset.theme || (prefersDark.matches ? "dark" : "light"));

  // ---- figures ------------------------------------------------------------------------------------------------
  const figures = new Map();
  const figureOf = (id) => {
    if (!figures.has(id)) figures.set(id, JSON.parse(document.getElementById(id).textContent));
    return figures.get(id);
  };
  // A colour is written as the role "@name"; the theme gives it a value.
  const resolved = (node) => {
    if (Array.isArray(node)) return node.map(resolved);
    if (node && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, resolved(value)]));
    }
    if (typeof node === "string" && node.startsWith("@")) return settings.themes[theme()][node.slice(1)];
    return node;
  };
  const paint = (plot, more) => {
    if (!window.Plotly) { plot.textContent = "The plotting library is missing."; return Promise.resolve(); }
    const { data, layout } = resolved(figureOf(plot.dataset.figure));
    const look = settings.themes[theme()];
    const hover = { bgcolor: look.plot, bordercolor: look.line, font: { color: look.ink } };
    const modebar = { bgcolor: "rgba(0,0,0,0)", color: look.muted, activecolor: look.ink };
    const config = { ...settings.config, displayModeBar: Boolean(more) };
    return Plotly.react(plot, data, { ...layout, hoverlabel: hover, modebar, ...more }, config).then(() => {
      if (plot.dataset.listens) return;
      plot.dataset.listens = "yes";
      plot.on("plotly_click", (event) => {
        const address = event.points[0] && event.points[0].customdata;
        if (address) location.href = address;
      });
    });
  };
  const draw = (plot) => {
    plot.dataset.state = "drawing";
    const narrow = plot.closest("dialog") ? {} : null;
    paint(plot, narrow).then(() => { plot.dataset.state = "drawn"; });
  };
  const enlarged = () => document.querySelector("dialog.enlarged .enlarged-plot");
  const drawEnlarged = (plot) => paint(plot, { font: { ...resolved(figureOf(plot.dataset.figure)).layout.font, size: 14 } });
  const redraw = () => {
    document.querySelectorAll(".plot[data-state]").forEach(draw);
    if (document.querySelector("dialog.enlarged[open]")) drawEnlarged(enlarged());
  };
  const enlarge = (id) => {
    const dialog = document.querySelector("dialog.enlarged");
    const panel = document.getElementById(`${id}-plot`).closest(".panel");
    dialog.querySelector("h2").textContent = panel.querySelector("h3").textContent;
    dialog.querySelector(".enlarged-path").textContent = panel.querySelector("figcaption").textContent;
    enlarged().dataset.figure = id;
    dialog.showModal();
    drawEnlarged(enlarged());
  };

  // ---- tables -------------------------------------------------------------------------------------------------
  const cellValue = (row, column, numeric) => {
    const cell = row.children[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return numeric ? Number(text) : text;
  };
  const sortBy = (heading) => {
    const table = heading.closest("table");
    const column = [...heading.parentNode.children].indexOf(heading);
    const numeric = heading.dataset.sort === "number";
    const down = heading.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => {
      const [x, y] = [cellValue(a, column, numeric), cellValue(b, column, numeric)];
      return numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? order(b, a) : order(a, b)));
    table.tBodies[0].append(...rows);
  };
  const makeSortable = (table) => {
    table.querySelectorAll("thead th").forEach((heading) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sorter";
      button.dataset.action = "sort";
      button.append(...heading.childNodes);
      heading.append(button);
    });
  };
  const filterRows = (words) => {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...document.querySelectorAll(".cases tbody tr")];
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    document.querySelector(".filter-count").textContent = wanted.length ? `${shown} of ${rows.length} shown` : "";
  };

  // ---- wiring -------------------------------------------------------------------------------------------------
  const nameTheme = () => {
    document.querySelector('[data-action="theme"]').textContent = theme() === "dark" ? "Light theme" : "Dark theme";
  };
  const actions = {
    theme: () => {
      root.dataset.theme = theme() === "dark" ? "light" : "dark";
      remember(root.dataset.theme);
      nameTheme();
      redraw();
    },
    print: () => print(),
    enlarge: (element) => enlarge(element.dataset.figure),
    close: () => document.querySelector("dialog.enlarged").close(),
    sort: (element) => sortBy(element.closest("th")),
  };
  document.addEventListener("click", (event) => {
    const element = event.target.closest("[data-action]");
    if (element && actions[element.dataset.action]) actions[element.dataset.action](element);
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches('[data-action="filter"]')) filterRows(event.target.value);
  });
  document.addEventListener("DOMContentLoaded", () => {
    settings = JSON.parse(document.getElementById("report-settings").textContent);
    document.querySelectorAll("button[data-action][hidden], .filter[hidden]").forEach((control) => { control.hidden = false; });
    document.querySelectorAll("table.sortable").forEach(makeSortable);
    nameTheme();
    const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (!entry.isIntersecting) return;
      seen.unobserve(entry.target);
      draw(entry.target);
    }), { rootMargin: "300px" });
    document.querySelectorAll(".plot[data-figure]").forEach((plot) => seen.observe(plot));
    prefersDark.addEventListener("change", () => { nameTheme(); redraw(); });
    document.querySelector("dialog.enlarged").addEventListener("close", () => Plotly.purge(enlarged()));
    addEventListener("beforeprint", () => {
      printing = true;
      document.querySelectorAll(".plot[data-figure]").forEach(draw);
    });
    addEventListener("afterprint", () => { printing = false; redraw(); });
  });
})();
