// Filters, and which charts are drawn when. The address keeps the filters, so that a view can be shared.

const FILTERS = ["row", "arm", "protocol", "metric", "system"];

function buildFilters() {
  const form = document.getElementById("filters");
  for (const key of FILTERS) {
    const values = [...new Set(DATA.series.map((series) => series[key]))];
    const select = make("select", { name: key, "data-key": key }, make("option", { value: "" }, "all"));
    const title = key[0].toUpperCase() + key.slice(1);
    for (const value of values) {
      const of = DATA.series.find((series) => series[key] === value);
      const text = { metric: of.title, system: DATA.systems[of.system].name }[key] || value;
      select.append(make("option", { value }, text));
    }
    const label = make("label", {}, title, select);
    label.hidden = values.length < 2;
    form.append(label);
  }
  const box = make("input", { type: "checkbox", name: "changes" });
  form.append(make("label", { class: "check" }, box, "only series with a change"));
  form.hidden = false;
  form.addEventListener("input", () => {
    const wanted = new URLSearchParams();
    for (const [key, value] of new FormData(form)) if (value) wanted.set(key, value);
    history.replaceState(null, "", `#${wanted}`);
    applyFilters();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
}

function readAddress() {
  if (/^#(s\d+|series|timed|counted)?$/.test(location.hash)) return;
  const wanted = new URLSearchParams(location.hash.slice(1));
  const form = document.getElementById("filters");
  for (const key of FILTERS) {
    const select = form.elements[key];
    const value = wanted.get(key) || "";
    select.value = [...select.options].some((option) => option.value === value) ? value : "";
  }
  form.elements.changes.checked = wanted.has("changes");
}

function applyFilters() {
  const form = document.getElementById("filters");
  let count = 0;
  for (const { card, series, line } of cards) {
    const fits = FILTERS.every((key) => !form.elements[key].value || form.elements[key].value === series[key]);
    const shown = fits && (!form.elements.changes.checked || series.changes.length > 0);
    card.hidden = !shown;
    line.hidden = !shown;
    count += shown;
  }
  for (const section of document.querySelectorAll("main > section")) {
    section.hidden = !section.querySelector(".card:not([hidden])");
  }
  document.getElementById("shown").textContent = cards.length ? `${count} of ${cards.length} series shown.` : "";
}

// ---- drawing what is on the screen, and everything for the printer

const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    target.chart.resize(Math.round(contentRect.width), Math.round(contentRect.height));
  }
});

const views = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      target.chart.seen = isIntersecting;
      if (isIntersecting && target.chart.stale) target.chart.later();
    }
  },
  { rootMargin: "200px" },
);

function watch(chart) {
  chart.plot.chart = chart;
  sizes.observe(chart.plot);
  views.observe(chart.plot);
}

addEventListener("beforeprint", () => {
  for (const { card, chart } of cards) if (!card.hidden) chart.redraw(PAPER);
});
addEventListener("afterprint", () => {
  for (const { chart } of cards) {
    chart.stale = true;
    chart.later();
  }
});

buildFilters();
DATA.series.forEach((series, index) => {
  series.dates = series.run.map((run) => DATA.runs[run].date);
  watch(makeCard(series, index));
});
readAddress();
applyFilters();
addEventListener("hashchange", () => {
  readAddress();
  applyFilters();
});
if (/^#s\d+$/.test(location.hash)) document.getElementById(location.hash.slice(1))?.scrollIntoView();
