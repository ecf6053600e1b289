// A card for every series: chart, what is said about the chosen point, details, table. Text of the
// history only ever becomes text.

const DATA = JSON.parse(document.getElementById("data").textContent);
const cards = [];

// With the digits of the metric; zeros at the end say nothing where values are exact.
function number(series, value) {
  if (value === null) return "nothing measured";
  const whole = Math.trunc(Math.abs(value));
  const text = value.toFixed(Math.max(0, series.digits - (whole ? String(whole).length : 0)));
  return series.kind === "counted" ? String(Number(text)) : text;
}

function withUnit(series, value) {
  return value === null || !series.unit ? number(series, value) : `${number(series, value)} ${series.unit}`;
}

function interval(series, i) {
  if (series.lo[i] === null) return "";
  return `${number(series, series.lo[i])} to ${number(series, series.hi[i])}`;
}

const changeAt = (series, i) => series.changes.find((change) => change.at === i);
const runAt = (series, i) => DATA.runs[series.run[i]];

// ---- what is said about a point

function sentence(series, i) {
  const run = runAt(series, i);
  const change = changeAt(series, i);
  const range = interval(series, i);
  const parts = [
    `run ${i + 1} of ${series.value.length}`,
    withUnit(series, series.value[i]) + (range ? `, interval ${range}` : ""),
    `commit ${run.short}: ${run.subject}`,
    run.date,
  ];
  if (change) parts.push(`change: ${change.text}`);
  return parts.join("; ");
}

function readout(series, i) {
  const run = runAt(series, i);
  const change = changeAt(series, i);
  const range = interval(series, i);
  const parts = [
    make("strong", {}, withUnit(series, series.value[i])),
    `${range ? ` [${range}]` : ""} · ${run.date}`,
    make("br"),
    make("code", {}, run.short),
    ` ${run.subject}`,
  ];
  if (change) parts.push(make("br"), make("span", { class: change.verdict }, change.text));
  return parts;
}

function openDetails(series, i) {
  const dialog = document.getElementById("details");
  const run = runAt(series, i);
  const change = changeAt(series, i);
  const lines = {
    Value: withUnit(series, series.value[i]),
    Interval: interval(series, i) || "none",
    Processes: series.n[i] === null ? "" : String(series.n[i]),
    Change: change ? change.text : "",
    Commit: run.commit,
    Subject: run.subject,
    Date: run.date,
    System: `${series.system}: ${DATA.systems[series.system].text}`,
    Metric: `${series.title}${series.unit ? ` (${series.unit})` : ""}`,
    Protocol: series.protocol,
    ...run.more,
  };
  const list = dialog.querySelector("dl");
  list.replaceChildren();
  for (const [name, text] of Object.entries(lines)) {
    if (text) list.append(make("dt", {}, name), make("dd", {}, text));
  }
  dialog.querySelector("h2").textContent = `${series.row} · ${series.arm} · run ${i + 1}`;
  dialog.showModal();
}

function pointsTable(series, label) {
  const heads = ["Run", "Date", "Commit", "Value", "Interval", "Processes", "Change", "Subject"];
  const body = make("tbody");
  for (let i = series.value.length - 1; i >= 0; i -= 1) {
    const run = runAt(series, i);
    const change = changeAt(series, i);
    const cells = [
      [run.date, ""],
      [run.short, ""],
      [number(series, series.value[i]), "number"],
      [interval(series, i), "number"],
      [series.n[i] === null ? "" : String(series.n[i]), "number"],
      [change ? change.text : "", change ? change.verdict : ""],
      [run.subject, "free"],
    ];
    const line = make("tr", {}, make("th", { scope: "row" }, String(i + 1)));
    for (const [text, kind] of cells) line.append(make("td", kind ? { class: kind } : {}, text));
    body.append(line);
  }
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const table = make("table", {}, make("thead", {}, head), body);
  return make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": label }, table);
}

// ---- cards

function button(text, label, action) {
  const node = make("button", { type: "button", "aria-label": label }, text);
  node.addEventListener("click", action);
  return node;
}

function tableButton(series, card, name) {
  let table = null;
  const toggle = button("Table", `Table: ${name}`, () => {
    if (table === null) {
      table = pointsTable(series, `Points: ${name}`);
      card.append(table);
    } else {
      table.hidden = !table.hidden;
    }
    toggle.setAttribute("aria-expanded", String(!table.hidden));
  });
  toggle.setAttribute("aria-expanded", "false");
  return toggle;
}

function makeCard(series, index) {
  const name = `${series.row} · ${series.arm} · ${series.title}`;
  const card = make("article", { class: "card", id: `s${index}`, "aria-labelledby": `s${index}-title` });
  const about = make("p", { class: "about" }, `${series.protocol} on ${DATA.systems[series.system].name}`);
  if (series.functional) about.append(" ", make("span", { class: "badge" }, "functional, not evidence"));
  const plot = make("div", { class: "plot" });
  const said = make("p", { class: "readout" });
  const onChoose = (i) => {
    said.replaceChildren(...readout(series, i));
    return sentence(series, i);
  };
  const chart = new Chart(plot, series, name, onChoose, (i) => openDetails(series, i));
  const middle = () => (chart.from + chart.to) / 2;
  const tools = make(
    "div",
    { class: "tools" },
    button("−", `Zoom out: ${name}`, () => chart.zoom(2, middle())),
    button("+", `Zoom in: ${name}`, () => chart.zoom(0.5, middle())),
    button("All", `All runs: ${name}`, () => chart.show(0, chart.length)),
    button("‹", `Previous run: ${name}`, () => chart.choose(chart.chosen - 1)),
    button("›", `Next run: ${name}`, () => chart.choose(chart.chosen + 1)),
    button("Details", `Details of the run: ${name}`, () => openDetails(series, chart.chosen)),
    tableButton(series, card, name),
  );
  card.append(make("h3", { id: `s${index}-title` }, name), about, plot, said, tools);
  document.querySelector(`#${series.kind} .grid`).append(card);
  chart.announce();
  cards.push({ card, chart, series, line: document.querySelector(`#summary tr[data-series="${index}"]`) });
  return chart;
}
