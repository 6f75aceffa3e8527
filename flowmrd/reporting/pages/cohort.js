// The cohort page's charts: each comes in both themes, is drawn when it comes into view, and again when the theme changes.
"use strict";
(() => {
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const theme = () => (printing ? "light" : root.dataset.theme || (prefersDark.matches ? "dark" : "light"));
  const parsed = new Map();
  const figureOf = (id) => {
    if (!parsed.has(id)) parsed.set(id, JSON.parse(document.getElementById(id).textContent));
    return parsed.get(id);
  };
  const config = () => ({ ...JSON.parse(document.getElementById("report-settings").textContent).config, displayModeBar: false });
  const draw = (chart) => {
    const figure = figureOf(chart.dataset.chart)[theme()];
    chart.dataset.state = "drawing";
    return Plotly.react(chart, figure.data, figure.layout, config()).then(() => { chart.dataset.state = "drawn"; });
  };
  const drawn = () => document.querySelectorAll(".chart[data-state]");
  const redraw = () => drawn().forEach(draw);
  document.addEventListener("DOMContentLoaded", () => {
    const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (!entry.isIntersecting) return;
      seen.unobserve(entry.target);
      draw(entry.target);
    }), { rootMargin: "300px" });
    document.querySelectorAll(".chart[data-chart]").forEach((chart) => seen.observe(chart));
    new MutationObserver(redraw).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
    prefersDark.addEventListener("change", redraw);
    addEventListener("beforeprint", () => {
      printing = true;
      document.querySelectorAll(".chart[data-chart]").forEach((chart) => { if (chart.checkVisibility()) draw(chart); });
    });
    addEventListener("afterprint", () => { printing = false; redraw(); });
  });
})();
