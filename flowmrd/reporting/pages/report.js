// Behaviour of the report's pages: theme, drawing plots when they come into view, enlarging one, sorting tables, and in
// the single-file form showing one page at a time. No network, no inline handlers; data come from JSON blocks of the page.
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
  let showTargets = true;
  let settings = null;
  const theme = () => (printing ? "light" : root.dataset.theme || (prefersDark.matches ? "dark" : "light"));

  // ---- figures ------------------------------------------------------------------------------------------------
  const figures = new Map();
  const figureOf = (id) => {
    if (!figures.has(id)) figures.set(id, JSON.parse(document.getElementById(id).textContent));
    return figures.get(id);
  };

  const scale = (colours) => {
    const first = 1 / 255;
    const steps = colours.map((colour, i) => [first + ((1 - first) * i) / (colours.length - 1), colour]);
    return [[0, "rgba(0,0,0,0)"], [first * 0.99, "rgba(0,0,0,0)"], ...steps];
  };

  // A figure carries roles (trace.meta, shape.name, annotation.name); a theme gives each role its colours.
  const themed = (figure) => {
    const look = settings.themes[theme()];
    const data = figure.data.map((trace) => {
      const role = trace.meta;
      const visible = showTargets || !String(role).startsWith("target");
      if (role === "density") return { ...trace, colorscale: scale(look.density) };
      if (role === "target-raster") return { ...trace, visible, colorscale: scale(look.raster) };
      if (role === "target") {
        const line = { ...trace.marker.line, color: look.targetEdge };
        return { ...trace, visible, marker: { ...trace.marker, color: look.target, line } };
      }
      if (role === "normals") return { ...trace, colorscale: scale(look.normals) };
      const [, status, raster] = /^(?:target|group)-(accepted|review|rejected)(-raster)?$/.exec(role) || [];
      if (raster) return { ...trace, visible, colorscale: scale(look.groupRaster[status]) };
      if (status) {
        const colour = look.groups[status];
        const edge = status === "accepted" ? look.targetEdge : colour;
        return { ...trace, visible, marker: { ...trace.marker, color: colour, line: { ...trace.marker.line, color: edge } } };
      }
      if (role === "slope") return { ...trace, line: { ...trace.line, color: look.ink } };
      const own = look.timeline[String(role).replace(/-mark$/, "")];
      if (own && trace.marker) {
        const marker = { ...trace.marker, color: own, line: { ...trace.marker.line, color: own } };
        return { ...trace, marker, error_y: trace.error_y && { ...trace.error_y, color: own } };
      }
      return { ...trace, line: { ...trace.line, color: own || look.series } };
    });
    const layout = { ...figure.layout, plot_bgcolor: look.plot, font: { ...figure.layout.font, color: look.ink } };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) layout[key] = { ...layout[key], linecolor: look.line, tickcolor: look.line };
    }
    layout.shapes = (layout.shapes || []).map((shape) => {
      if (shape.name === "flag") return { ...shape, fillcolor: look.flag };
      if (shape.name === "band" || shape.name === "window") return { ...shape, fillcolor: look.timeline[shape.name] };
      if (shape.name === "limit") return { ...shape, line: { ...shape.line, color: look.muted } };
      if (shape.name === "level" || shape.name === "event") return { ...shape, line: { ...shape.line, color: look.ink } };
      if (shape.name === "leader") return { ...shape, line: { ...shape.line, color: look.muted } };
      const colour = shape.name.startsWith("gate-target") ? look.target : look.gate;
      if (shape.name.endsWith("-area")) return { ...shape, fillcolor: colour };
      return { ...shape, line: { ...shape.line, color: colour } };
    });
    layout.annotations = (layout.annotations || []).map((note) => {
      const next = { ...note, font: { ...note.font, color: ["note", "key", "level"].includes(note.name) ? look.muted : look.ink } };
      if (note.name === "group") Object.assign(next, { bgcolor: look.label, bordercolor: look.muted, arrowcolor: look.ink });
      if (note.name === "label" || note.name === "label-target") {
        next.bgcolor = look.label;
        if (note.name === "label-target") next.bordercolor = look.target;
        if (printing) next.font.size = 9;  // plots on paper are smaller than the labels were laid out for
      }
      return next;
    });
    return { data, layout };
  };

  const draw = (plot) => {
    if (!window.Plotly) { plot.textContent = "The plotting library (assets/plotly.min.js) is missing."; return; }
    const { data, layout } = themed(figureOf(plot.dataset.figure));
    // A page is laid out for paper only after this event: what spans the page gets the width of a sheet here.
    if (printing && plot.classList.contains("course-plot")) Object.assign(layout, { autosize: false, width: 690, height: 560 });
    plot.dataset.state = "drawing";
    Plotly.react(plot, data, layout, { ...settings.config, staticPlot: true }).then(() => { plot.dataset.state = "drawn"; });
  };

  // One plot a frame: scrolling stays smooth while a page of twenty is being drawn.
  const queue = new Set();
  let busy = false;
  const step = () => {
    const [plot] = queue;
    if (!plot) { busy = false; return; }
    queue.delete(plot);
    draw(plot);
    requestAnimationFrame(step);
  };
  const enqueue = (plot) => {
    queue.add(plot);
    if (!busy) { busy = true; requestAnimationFrame(step); }
  };
  const drawn = () => document.querySelectorAll(".plot[data-state]");
  const redraw = () => {
    drawn().forEach(enqueue);
    const open = document.querySelector("dialog.enlarged[open] .enlarged-plot");
    if (open) drawEnlarged(open);
  };

  // ---- enlarged plot ------------------------------------------------------------------------------------------
  const drawEnlarged = (plot) => {
    const { data, layout } = themed(figureOf(plot.dataset.figure));
    const look = settings.themes[theme()];
    const big = {
      ...layout,
      font: { ...layout.font, size: 13 },
      margin: { ...layout.margin, t: Math.max(34, layout.margin.t) },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: look.muted, activecolor: look.ink },
    };
    big.annotations = layout.annotations.map((note) => ({ ...note, font: { ...note.font, size: 13 } }));
    Plotly.react(plot, data, big, settings.config);
  };
  const enlarge = (id) => {
    const dialog = document.querySelector("dialog.enlarged");
    const panel = document.getElementById(`${id}-plot`).closest(".panel");
    const plot = dialog.querySelector(".enlarged-plot");
    dialog.querySelector("h2").textContent = panel.querySelector("h3").textContent;
    dialog.querySelector(".enlarged-path").textContent = (panel.querySelector(".path") || {}).textContent || "";
    plot.classList.toggle("square", Boolean(panel.closest(".panels")));
    plot.dataset.figure = id;
    dialog.showModal();
    drawEnlarged(plot);
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
      if (heading.dataset.sort === "none") return;
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
    const rows = [...document.querySelectorAll(".acquisitions tbody tr")];
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    document.querySelector(".filter-count").textContent = wanted.length ? `${shown} of ${rows.length} shown` : "";
  };

  // ---- pages of the single file -------------------------------------------------------------------------------
  const showPage = (focus) => {
    const pages = [...document.querySelectorAll("section.page")];
    if (pages.length < 2) return;
    const goal = document.getElementById(decodeURIComponent(location.hash.slice(1)) || "index");
    const page = (goal && goal.closest("section.page")) || (goal && goal.id === "main" ? null : pages[0]);
    if (!page) return;
    pages.forEach((other) => { other.hidden = other !== page; });
    document.title = page.dataset.title;
    if (goal && goal !== page) goal.scrollIntoView();
    else if (focus) { scrollTo(0, 0); page.querySelector("h1").focus({ preventScroll: true }); }
  };

  // ---- wiring -------------------------------------------------------------------------------------------------
  const themeButton = () => document.querySelector('[data-action="theme"]');
  const nameTheme = () => { themeButton().textContent = theme() === "dark" ? "Light theme" : "Dark theme"; };
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
    const plot = event.target.closest(".panels .plot");
    if (plot) enlarge(plot.dataset.figure);
  });
  document.addEventListener("change", (event) => {
    if (!event.target.matches('[data-action="targets"]')) return;
    showTargets = event.target.checked;
    document.querySelectorAll('[data-action="targets"]').forEach((box) => { box.checked = showTargets; });
    redraw();
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches('[data-action="filter"]')) filterRows(event.target.value);
  });
  document.addEventListener("DOMContentLoaded", () => {
    settings = JSON.parse(document.getElementById("report-settings").textContent);
    document.querySelectorAll("button[data-action][hidden], .switch[hidden], .filter[hidden]").forEach((control) => { control.hidden = false; });
    document.querySelectorAll("table.sortable").forEach(makeSortable);
    nameTheme();
    showPage(false);
    const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (!entry.isIntersecting) return;
      seen.unobserve(entry.target);
      enqueue(entry.target);
    }), { rootMargin: "300px" });
    document.querySelectorAll(".plot[data-figure]").forEach((plot) => seen.observe(plot));
    prefersDark.addEventListener("change", () => { nameTheme(); redraw(); });
    addEventListener("hashchange", () => showPage(true));
    document.querySelector("dialog.enlarged").addEventListener("close", (event) => {
      Plotly.purge(event.target.querySelector(".enlarged-plot"));
    });
    addEventListener("beforeprint", () => {
      printing = true;
      document.querySelectorAll("section.page:not([hidden]) .plot[data-figure]").forEach(draw);
    });
    addEventListener("afterprint", () => { printing = false; redraw(); });
  });
})();
