// One series as an SVG that is drawn again whenever its window moves. The x axis counts runs, in the
// order of the history: equal distances, and no trouble with clocks that went backwards.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 58, right: 12, top: 46, bottom: 38 };
const NARROWEST = 5; // points in the window
const ROOM = 5; // pixels a point needs to get a dot and whiskers of its own
const PAPER = { width: 480, height: 220 }; // of a printed chart, in its own pixels
const DATE = 70; // pixels that a date takes
const LETTER = 7.2; // pixels that a letter of a note takes
const REACH = 4; // pixels a pointer moves before it drags

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(parent, tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  parent.append(node);
  return node;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function niceStep(range, wanted) {
  const raw = range / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
}

function ticks(low, high, wanted) {
  const step = niceStep(high - low, wanted);
  const places = clamp(-Math.floor(Math.log10(step) + 1e-9), 0, 12);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at += 1) {
    found.push({ value: at * step, text: (at * step).toFixed(places) });
  }
  return found;
}

// The points between two indices as [x, low, high, first, last] per pixel column, so that a thousand
// points cost no more than the chart is wide; nothing that sticks out is lost.
function columns(values, begin, end, x) {
  const found = [];
  let last = null;
  for (let i = begin; i < end; i += 1) {
    const value = values[i];
    if (value === null) {
      last = null;
      continue;
    }
    const at = Math.round(x(i));
    if (last !== null && last.x === at) {
      last.low = Math.min(last.low, value);
      last.high = Math.max(last.high, value);
      last.last = value;
    } else {
      const joined = last !== null;
      last = { x: at, low: value, high: value, first: value, last: value, joined };
      found.push(last);
    }
  }
  return found;
}

function linePath(found, y, stepped) {
  let path = "";
  for (const one of found) {
    if (one.joined) path += stepped ? `H${one.x}V${y(one.first)}` : `L${one.x} ${y(one.first)}`;
    else path += `M${one.x} ${y(one.first)}`;
    if (one.low !== one.high) path += `V${y(one.low)}V${y(one.high)}V${y(one.last)}`;
  }
  return path;
}

function bandPath(low, high, y) {
  if (low.length < 2) return "";
  const there = high.map((one) => `${one.x} ${y(one.high)}`);
  const back = low.map((one) => `${one.x} ${y(one.low)}`).reverse();
  return `M${there.concat(back).join("L")}Z`;
}

class Chart {
  constructor(plot, series, label, onChoose, onOpen) {
    this.series = series;
    this.length = series.value.length;
    this.from = 0;
    this.to = this.length;
    this.chosen = this.length - 1;
    this.plot = plot;
    this.onChoose = onChoose;
    this.onOpen = onOpen;
    this.label = label;
    this.size = { width: 0, height: 0 };
    this.seen = false;
    this.stale = true;
    this.waiting = false;
    this.pointers = new Map();
    this.build();
    this.listen();
  }

  build() {
    const plot = this.plot;
    plot.tabIndex = 0;
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-label", this.label);
    plot.setAttribute("aria-orientation", "horizontal");
    plot.setAttribute("aria-valuemin", 1);
    plot.setAttribute("aria-valuemax", this.length);
    this.svg = draw(plot, "svg", { "aria-hidden": "true" });
    this.part = {};
    for (const name of ["rules", "band", "axis", "line", "level", "whiskers", "dots", "missing"]) {
      this.part[name] = draw(this.svg, "path", { class: name });
    }
    for (const name of ["texts", "changes"]) this.part[name] = draw(this.svg, "g", { class: name });
    this.part.cursor = draw(this.svg, "path", { class: "cursor" });
    this.part.point = draw(this.svg, "circle", { class: "chosen", r: 4.5 });
    this.part.window = draw(this.svg, "rect", { class: "window", height: 3, rx: 1.5 });
  }

  // ---- the window

  show(from, to) {
    const span = clamp(to - from, Math.min(NARROWEST, this.length), this.length);
    const begin = clamp(from, 0, this.length - span);
    if (begin === this.from && begin + span === this.to) return;
    this.from = begin;
    this.to = begin + span;
    this.later();
  }

  zoom(factor, around) {
    const span = (this.to - this.from) * factor;
    const share = (around - this.from) / (this.to - this.from);
    this.show(around - share * span, around + (1 - share) * span);
  }

  pan(points) {
    const span = this.to - this.from;
    const begin = clamp(this.from + points, 0, this.length - span);
    this.show(begin, begin + span);
  }

  choose(index) {
    this.chosen = clamp(index, 0, this.length - 1);
    const span = this.to - this.from;
    if (this.chosen < this.from) this.show(this.chosen, this.chosen + span);
    if (this.chosen + 1 > this.to) this.show(this.chosen + 1 - span, this.chosen + 1);
    this.announce();
    if (this.size.width && !this.waiting) this.drawCursor();
  }

  announce() {
    this.plot.setAttribute("aria-valuenow", this.chosen + 1);
    this.plot.setAttribute("aria-valuetext", this.onChoose(this.chosen));
  }

  step(direction) {
    const places = this.series.changes.map((change) => change.at);
    const ahead = places.filter((at) => (at - this.chosen) * direction > 0);
    if (ahead.length) this.choose(direction > 0 ? Math.min(...ahead) : Math.max(...ahead));
  }

  // ---- drawing

  later() {
    this.stale = true;
    if (this.waiting || !this.seen) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.redraw(this.size);
    });
  }

  resize(width, height) {
    if (width === this.size.width && height === this.size.height) return;
    this.size = { width, height };
    this.later();
  }

  redraw(size) {
    if (!size.width || !size.height) return;
    this.stale = false;
    this.drawn = size;
    this.inner = {
      width: Math.max(10, size.width - MARGIN.left - MARGIN.right),
      height: Math.max(10, size.height - MARGIN.top - MARGIN.bottom),
    };
    this.svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    this.begin = Math.floor(this.from);
    this.end = Math.min(this.length, Math.ceil(this.to));
    const [low, high] = this.extent();
    this.x = (i) => MARGIN.left + ((i + 0.5 - this.from) / (this.to - this.from)) * this.inner.width;
    this.y = (v) =>
      Math.round(10 * (MARGIN.top + this.inner.height * (1 - (v - low) / (high - low)))) / 10;
    this.drawAxes(low, high);
    this.drawPoints();
    this.drawLevels();
    this.drawChanges();
    this.drawCursor();
  }

  // What the window has to hold, intervals too, and a little room.
  extent() {
    let low = Infinity;
    let high = -Infinity;
    const { value, lo, hi } = this.series;
    for (let i = this.begin; i < this.end; i += 1) {
      if (value[i] === null) continue;
      low = Math.min(low, lo[i] ?? value[i]);
      high = Math.max(high, hi[i] ?? value[i]);
    }
    if (low > high) return [0, 1];
    const pad = 0.08 * (high - low) || 0.01 * Math.abs(high) || 1;
    return [low - pad, high + pad];
  }

  drawAxes(low, high) {
    const { width, height } = this.inner;
    const right = MARGIN.left + width;
    const bottom = MARGIN.top + height;
    const texts = [];
    let rules = "";
    for (const tick of ticks(low, high, height / 32)) {
      const y = this.y(tick.value);
      rules += `M${MARGIN.left} ${y}H${right}`;
      texts.push({ x: MARGIN.left - 6, y: y + 4, "text-anchor": "end", text: tick.text });
    }
    let axis = `M${MARGIN.left} ${MARGIN.top}V${bottom}H${right}`;
    let taken = -Infinity;
    for (const { value: i } of ticks(this.from, this.to - 0.5, width / (DATE + 12))) {
      if (!Number.isInteger(i) || i < this.from || i >= this.end) continue;
      const x = Math.round(this.x(i));
      axis += `M${x} ${bottom}v4`;
      const left = clamp(x - DATE / 2, 0, right - DATE);
      if (left < taken + 12) continue;
      taken = left + DATE;
      texts.push({ x: left, y: bottom + 16, text: this.series.dates[i].slice(0, 10) });
    }
    texts.push({ x: 4, y: 12, class: "title", text: this.series.axis });
    const title = `runs ${this.begin + 1} to ${this.end} of ${this.length}, oldest first`;
    texts.push({ x: right, y: bottom + 33, "text-anchor": "end", class: "title", text: title });
    this.part.rules.setAttribute("d", rules);
    this.part.axis.setAttribute("d", axis);
    this.write(this.part.texts, texts);
    const whole = this.to - this.from >= this.length;
    const bar = this.part.window;
    bar.setAttribute("visibility", whole ? "hidden" : "visible");
    bar.setAttribute("x", MARGIN.left + (this.from / this.length) * width);
    bar.setAttribute("y", bottom - 1.5);
    bar.setAttribute("width", Math.max(6, ((this.to - this.from) / this.length) * width));
  }

  // Labels are kept and changed: making new ones at every frame costs more than all the paths.
  write(group, texts) {
    while (group.childElementCount > texts.length) group.lastElementChild.remove();
    while (group.childElementCount < texts.length) draw(group, "text");
    texts.forEach(({ text, ...attributes }, i) => {
      const node = group.children[i];
      for (const name of ["class", "text-anchor"]) {
        if (attributes[name] === undefined) node.removeAttribute(name);
      }
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      if (node.textContent !== text) node.textContent = text;
    });
  }

  drawPoints() {
    const { value, lo, hi, kind } = this.series;
    const room = this.inner.width / (this.to - this.from);
    const found = columns(value, this.begin, this.end, this.x);
    this.part.line.setAttribute("d", linePath(found, this.y, kind === "counted"));
    let dots = "";
    let whiskers = "";
    let missing = "";
    const bottom = MARGIN.top + this.inner.height;
    for (let i = this.begin; i < this.end; i += 1) {
      if (value[i] !== null && room < ROOM) continue;
      const x = Math.round(10 * this.x(i)) / 10;
      if (value[i] === null) {
        missing += `M${x - 3} ${bottom - 9}l6 6m0 -6l-6 6`;
      } else {
        dots += `M${x - 2.5} ${this.y(value[i])}a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0`;
        if (lo[i] !== null) {
          const [top, end] = [this.y(hi[i]), this.y(lo[i])];
          whiskers += `M${x} ${top}V${end}M${x - 2} ${top}h4M${x - 2} ${end}h4`;
        }
      }
    }
    const dense = room < ROOM && lo.some((one) => one !== null);
    const band = dense
      ? bandPath(
          columns(lo, this.begin, this.end, this.x),
          columns(hi, this.begin, this.end, this.x),
          this.y,
        )
      : "";
    this.part.band.setAttribute("d", band);
    this.part.dots.setAttribute("d", dots);
    this.part.whiskers.setAttribute("d", whiskers);
    this.part.missing.setAttribute("d", missing);
  }

  drawLevels() {
    const half = (this.x(1) - this.x(0)) / 2;
    const right = MARGIN.left + this.inner.width;
    let path = "";
    for (const [begin, end, level] of this.series.levels) {
      if (end <= this.from || begin >= this.to) continue;
      const from = clamp(this.x(begin) - half, MARGIN.left, right);
      path += `M${from} ${this.y(level)}H${clamp(this.x(end - 1) + half, MARGIN.left, right)}`;
    }
    this.part.level.setAttribute("d", path);
  }

  drawChanges() {
    const half = (this.x(1) - this.x(0)) / 2;
    const shown = this.series.changes.filter((c) => c.at >= this.from && c.at < this.to);
    const group = this.part.changes;
    group.replaceChildren();
    for (const change of shown) {
      const x = Math.round(this.x(change.at) - half);
      const one = draw(group, "g", { class: change.verdict });
      draw(one, "path", { class: "cut", d: `M${x} ${MARGIN.top}V${MARGIN.top + this.inner.height}` });
      const [tip, base] = change.rose ? [-10, 0] : [0, -10];
      const d = `M${x - 5} ${MARGIN.top + base}h10L${x} ${MARGIN.top + tip}Z`;
      draw(one, "path", { class: "mark", d });
    }
    this.drawNotes(shown, half);
  }

  // In words where all have room, otherwise the numbers that have; readout and table say the rest.
  drawNotes(shown, half) {
    const placed = (text) => {
      const right = MARGIN.left + this.inner.width;
      let taken = -Infinity;
      return shown.map((change) => {
        const wide = LETTER * text(change).length;
        const at = this.x(change.at) - half - wide / 2;
        const left = Math.round(clamp(at, MARGIN.left, right - wide));
        if (left < taken + 6) return null;
        taken = left + wide;
        return { left, text: text(change) };
      });
    };
    const words = placed((change) => `${change.percent} ${change.verdict}`);
    const notes = words.includes(null) ? placed((change) => change.percent) : words;
    notes.forEach((note, i) => {
      if (!note) return;
      const place = { class: "note", x: note.left, y: MARGIN.top - 14 };
      draw(this.part.changes.children[i], "text", place).textContent = note.text;
    });
  }

  drawCursor() {
    const inside = this.chosen + 1 > this.from && this.chosen < this.to;
    const value = this.series.value[this.chosen];
    const x = this.x(this.chosen);
    const bottom = MARGIN.top + this.inner.height;
    this.part.cursor.setAttribute("d", inside ? `M${x} ${MARGIN.top}V${bottom}` : "");
    this.part.point.setAttribute("visibility", inside && value !== null ? "visible" : "hidden");
    this.part.point.setAttribute("cx", x);
    this.part.point.setAttribute("cy", value === null ? 0 : this.y(value));
  }

  // ---- keyboard, mouse, touch

  listen() {
    const plot = this.plot;
    plot.addEventListener("keydown", (event) => this.key(event));
    plot.addEventListener("pointerdown", (event) => this.press(event));
    plot.addEventListener("pointermove", (event) => this.move(event));
    plot.addEventListener("pointerup", (event) => this.release(event));
    plot.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    plot.addEventListener("dblclick", () => this.onOpen(this.chosen));
    plot.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const actions = {
      ArrowLeft: () => this.choose(this.chosen - 1),
      ArrowDown: () => this.choose(this.chosen - 1),
      ArrowRight: () => this.choose(this.chosen + 1),
      ArrowUp: () => this.choose(this.chosen + 1),
      PageUp: () => this.choose(this.chosen - 10),
      PageDown: () => this.choose(this.chosen + 10),
      Home: () => this.choose(0),
      End: () => this.choose(this.length - 1),
      n: () => this.step(1),
      p: () => this.step(-1),
      "+": () => this.zoom(0.5, this.chosen + 0.5),
      "=": () => this.zoom(0.5, this.chosen + 0.5),
      "-": () => this.zoom(2, this.chosen + 0.5),
      0: () => this.show(0, this.length),
      Enter: () => this.onOpen(this.chosen),
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // The index under a place on the screen, in points, with its fraction.
  under(event) {
    const x = event.clientX - this.plot.getBoundingClientRect().left - MARGIN.left;
    return this.from + (x / this.inner.width) * (this.to - this.from);
  }

  press(event) {
    if (!this.inner || event.button) return;
    this.plot.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, far: false });
  }

  move(event) {
    if (!this.inner) return;
    const held = this.pointers.get(event.pointerId);
    if (!held) {
      if (event.pointerType === "mouse") this.choose(Math.floor(this.under(event)));
      return;
    }
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    const perPixel = (this.to - this.from) / this.inner.width;
    const moved = event.clientX - held.x;
    held.far = held.far || Math.abs(moved) > REACH;
    if (!held.far) return;
    if (others.length) {
      const other = others[0][1];
      const before = Math.max(10, Math.abs(held.x - other.x));
      const after = Math.max(10, Math.abs(event.clientX - other.x));
      this.zoom(before / after, this.under({ clientX: (held.x + other.x) / 2 }));
      this.pan((-moved / 2) * perPixel);
    } else if (this.to - this.from < this.length) {
      this.pan(-moved * perPixel);
    } else {
      this.choose(Math.floor(this.under(event))); // there is nowhere to pan to
    }
    held.x = event.clientX;
  }

  release(event) {
    const held = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (held && !held.far) this.choose(Math.floor(this.under(event)));
  }

  wheel(event) {
    if (!event.ctrlKey || !this.inner) return;
    event.preventDefault();
    this.zoom(2 ** (event.deltaY / 240), this.under(event));
  }
}
