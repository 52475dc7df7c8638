"use strict";
// The screen's page: a map of pairs, effects, one condition's population, and a paged table. Names only ever become text nodes.
const data = JSON.parse(document.getElementById("data").textContent);
const columns = Object.fromEntries(data.columns.map((column) => [column.key, column]));
const byId = (id) => document.getElementById(id);
const PAGE = 50;
const INK = "#1f2933", MUTED = "#5b6671", RULE = "#dfe3e8", BLUE = "#0072b2", ORANGE = "#b84f00", GREY = "#9aa3ac";
let selected = -1;
const redraws = [];

const written = (value) => (value === null || value === undefined ? "–" : String(value).replace("-", "−"));
function element(tag, text, options = {}) {
  const made = Object.assign(document.createElement(tag), options);
  if (text !== undefined) made.textContent = text;
  return made;
}
function canvasOf(id, width, height) {
  const canvas = byId(id), ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.font = "12px system-ui, sans-serif";
  return pen;
}
const at = (event) => {
  const box = event.currentTarget.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
const space = (id) => Math.max(240, byId(id).parentElement.clientWidth - 28);
function limits(values) {
  const known = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (!known.length) return [0, 1];
  return [known[0], Math.max(known[Math.floor(0.99 * (known.length - 1))], known[0] + 1e-9)];
}

// ---- the map
function drawMap() {
  const { targets, pairs } = data.map, values = columns[byId("map-column").value].values;
  const width = space("map-canvas");
  const size = Math.max(3, Math.min(28, Math.floor((width - 90) / targets.length)));
  const margin = size >= 9 ? 90 : 4;
  const pen = canvasOf("map-canvas", margin + size * targets.length, margin + size * targets.length);
  const [low, high] = limits(pairs.map(([row]) => values[row]));
  const cells = new Map();
  for (const [row, i, j] of pairs) {
    const value = values[row];
    const share = value === null ? null : Math.max(0, Math.min(1, (value - low) / (high - low)));
    pen.fillStyle = share === null ? "#eef1f4" : `hsl(${205 - 15 * share} 90% ${96 - 68 * share}%)`;
    for (const [x, y] of [[i, j], [j, i]]) {
      pen.fillRect(margin + x * size, margin + y * size, size - (size > 5), size - (size > 5));
      cells.set(x * targets.length + y, row);
    }
  }
  pen.fillStyle = INK;
  pen.font = `${Math.min(12, size)}px system-ui, sans-serif`;
  targets.forEach((name, place) => {
    if (size < 9) return;
    const shown = name.length > 12 ? `${name.slice(0, 11)}…` : name;
    pen.textAlign = "right";
    pen.fillText(shown, margin - 4, margin + (place + 0.75) * size);
    pen.save();
    pen.translate(margin + (place + 0.75) * size, margin - 4);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "left";
    pen.fillText(shown, 0, 0);
    pen.restore();
  });
  byId("map-legend").textContent = `Light: ${written(Number(low.toFixed(2)))}, dark: ${written(Number(high.toFixed(2)))} and above.`;
  const canvas = byId("map-canvas");
  canvas.rowAt = ([x, y]) => cells.get(Math.floor((x - margin) / size) * targets.length + Math.floor((y - margin) / size));
  canvas.placeOf = (row) => {
    const [, i, j] = pairs.find(([other]) => other === row);
    return [margin + (i + 0.5) * size, margin + (j + 0.5) * size];
  };
}

// ---- effect against uncertainty
function drawEffects() {
  const width = space("effects-canvas"), height = Math.min(460, Math.max(260, width * 0.5)), left = 60, below = 40;
  const pen = canvasOf("effects-canvas", width, height);
  const effect = columns.energy.values, doubt = columns.uncertainty.values;
  const root = (value) => Math.sqrt(Math.max(0, value));
  const reach = (values, low) => {
    const known = values.filter((value) => value !== null);
    const top = known.reduce((a, b) => Math.max(a, b), 0), bottom = low ?? known.reduce((a, b) => Math.min(a, b), Infinity);
    return [bottom, top > bottom ? top : bottom + 1];
  };
  const [x0, x1] = reach(effect.map((value) => (value === null ? null : root(value))), 0), [y0, y1] = reach(doubt);
  const x = (value) => left + ((root(value) - x0) / (x1 - x0)) * (width - left - 16);
  const y = (value) => height - below - ((value - y0) / (y1 - y0)) * (height - below - 16);
  pen.strokeStyle = RULE;
  pen.fillStyle = MUTED;
  for (let step = 0; step <= 4; step++) {
    const across = (x0 + ((x1 - x0) * step) / 4) ** 2, up = y0 + ((y1 - y0) * step) / 4;
    pen.textAlign = "center";
    pen.fillText(Number(across.toPrecision(2)), x(across), height - below + 16);
    pen.textAlign = "right";
    pen.fillText(Number(up.toPrecision(3)), left - 6, y(up) + 4);
    pen.beginPath();
    pen.moveTo(left, y(up));
    pen.lineTo(width - 16, y(up));
    pen.stroke();
  }
  pen.textAlign = "center";
  pen.fillText("effect (energy distance to control, square-root scale)", left + (width - left) / 2, height - 6);
  pen.save();
  pen.translate(14, (height - below) / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText("uncertainty", 0, 0);
  pen.restore();
  const dots = data.names.map((_, row) => (effect[row] === null || doubt[row] === null ? null : [x(effect[row]), y(doubt[row])]));
  dots.forEach((dot, row) => {
    if (!dot) return;
    pen.globalAlpha = row === selected ? 1 : 0.55;
    pen.fillStyle = row === selected ? ORANGE : data.single[row] ? GREY : BLUE;
    pen.beginPath();
    pen.arc(dot[0], dot[1], row === selected ? 6 : 3, 0, 2 * Math.PI);
    pen.fill();
    if (columns.proposed && columns.proposed.values[row]) {
      pen.globalAlpha = 1;
      pen.strokeStyle = INK;
      pen.beginPath();
      pen.arc(dot[0], dot[1], 6, 0, 2 * Math.PI);
      pen.stroke();
    }
  });
  pen.globalAlpha = 1;
  const canvas = byId("effects-canvas");
  canvas.placeOf = (row) => dots[row];
  canvas.rowAt = ([px, py]) => {
    let best, nearest = 100;
    dots.forEach((dot, row) => {
      const gap = dot ? (dot[0] - px) ** 2 + (dot[1] - py) ** 2 : Infinity;
      if (gap < nearest) [best, nearest] = [row, gap];
    });
    return best;
  };
}

// ---- one condition
const packed = Uint8Array.from(atob(data.points.cells), (letter) => letter.charCodeAt(0));
const numbers = new DataView(packed.buffer);
function pointsOf(row) {
  const found = [];
  for (let cell = 0; cell < data.points.n; cell++) {
    const place = (row * data.points.n + cell) * 4, x = numbers.getInt16(place, true), y = numbers.getInt16(place + 2, true);
    if (x !== -32768) found.push([x * data.points.scale, y * data.points.scale]);
  }
  return found;
}
function drawCells() {
  const width = space("cells-canvas"), height = Math.min(360, width), cells = pointsOf(selected), { control } = data.points;
  const pen = canvasOf("cells-canvas", width, height), all = [...cells, ...control];
  const ends = (axis) => all.reduce(([low, high], point) => [Math.min(low, point[axis]), Math.max(high, point[axis])], [Infinity, -Infinity]);
  const [x0, x1] = ends(0), [y0, y1] = ends(1);
  const dot = (points, colour) => {
    pen.fillStyle = colour;
    for (const [px, py] of points) {
      pen.beginPath();
      pen.arc(10 + ((px - x0) / (x1 - x0 || 1)) * (width - 20), height - 10 - ((py - y0) / (y1 - y0 || 1)) * (height - 20), 3.5, 0, 2 * Math.PI);
      pen.fill();
    }
  };
  dot(control, "#c6ccd2");
  dot(cells, BLUE);
}
function select(row, scroll = false) {
  selected = row;
  byId("condition-h").textContent = data.names[row];
  const bars = element("div", undefined, { className: "bars" });
  const largest = Math.max(...data.top[row].map(([, shift]) => Math.abs(shift)), 1e-9);
  for (const [gene, shift] of data.top[row]) {
    const bar = element("i", undefined, { className: shift < 0 ? "down" : "up" });
    bar.style.width = `${(100 * Math.abs(shift)) / largest}%`;
    bars.append(element("span", data.genes[gene]), bar, element("span", written(shift)));
  }
  byId("condition-genes").replaceChildren(bars);
  const list = byId("condition-numbers");
  list.replaceChildren();
  const texts = { class: data.texts.kind, "measured class": data.texts.measured_kind, measured: data.texts.part, nearest: data.texts.nearest, extrapolation: data.texts.because };
  for (const [title, values] of Object.entries(texts)) {
    if (values && values[row]) list.append(element("dt", title), element("dd", values[row]));
  }
  for (const column of data.columns) list.append(element("dt", column.title), element("dd", written(column.values[row])));
  for (const shown of byId("rows").tBodies[0].rows) shown.setAttribute("aria-selected", String(Number(shown.dataset.row) === row));
  drawCells();
  drawEffects();
  if (scroll) byId("condition").scrollIntoView({ block: "start" });
}

// ---- the table
const searched = data.names.map((name, row) => `${name}\n${data.texts.kind ? data.texts.kind[row] : ""}`.toLowerCase());
let order = data.names.map((_, row) => row), kept = order, page = 0;
const byName = (a, b) => data.names[a].localeCompare(data.names[b], "en", { numeric: true });
function showRows() {
  const pages = Math.max(1, Math.ceil(kept.length / PAGE));
  page = Math.max(0, Math.min(page, pages - 1));
  const body = byId("rows").tBodies[0];
  body.replaceChildren(
    ...kept.slice(page * PAGE, (page + 1) * PAGE).map((row) => {
      const line = element("tr");
      line.dataset.row = row;
      line.setAttribute("aria-selected", String(row === selected));
      const head = element("th", undefined, { scope: "row" });
      head.append(element("button", data.names[row], { type: "button" }));
      line.append(head);
      if (data.texts.kind) line.append(element("td", data.texts.kind[row] || "–"));
      for (const column of data.columns) line.append(element("td", written(column.values[row])));
      return line;
    }),
  );
  byId("found").textContent = `${kept.length} of ${data.names.length} conditions, page ${page + 1} of ${pages}`;
  byId("earlier").disabled = page === 0;
  byId("later").disabled = page === pages - 1;
}
function search() {
  const wanted = byId("search").value.trim().toLowerCase();
  kept = wanted ? order.filter((row) => searched[row].includes(wanted)) : order;
  page = 0;
  showRows();
}
function sortBy(head, compare, known) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of byId("rows").querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = data.names.map((_, row) => row);
  order = [...rows.filter(known).sort((a, b) => (descending ? -1 : 1) * compare(a, b)), ...rows.filter((row) => !known(row))];
  search();
}
function buildHead() {
  const line = element("tr");
  const add = (title, compare, known, meaning) => {
    const head = element("th", undefined, { scope: "col", title: meaning });
    const button = element("button", title, { type: "button" });
    button.addEventListener("click", () => sortBy(head, compare, known));
    head.append(button);
    line.append(head);
  };
  add("condition", byName, () => true, "Targets joined by +");
  if (data.texts.kind) {
    const { kind } = data.texts;
    add("class", (a, b) => kind[a].localeCompare(kind[b]) || a - b, (row) => kind[row] !== "", "Class of the interaction");
  }
  for (const { title, values, meaning } of data.columns) add(title, (a, b) => values[a] - values[b], (row) => values[row] !== null, meaning);
  byId("rows").tHead.append(line);
}

// ---- start
function clickable(id, hover) {
  const canvas = byId(id);
  canvas.addEventListener("click", (event) => {
    const row = canvas.rowAt(at(event));
    if (row !== undefined) select(row, true);
  });
  canvas.addEventListener("mousemove", (event) => {
    const row = canvas.rowAt(at(event));
    byId(hover).textContent = row === undefined ? "" : `${data.names[row]}${data.texts.kind && data.texts.kind[row] ? `, ${data.texts.kind[row]}` : ""}`;
  });
}
data.single = columns.departure ? data.names.map((_, row) => columns.departure.values[row] === null) : data.names.map(() => true);
if (byId("map-canvas")) {
  for (const key of ["departure", "magnitude", "dominance", "dcor_fit", "dcor_singles", "energy", "uncertainty"]) {
    if (columns[key]) byId("map-column").append(element("option", columns[key].title, { value: key }));
  }
  byId("map-column").addEventListener("change", drawMap);
  redraws.push(drawMap);
  clickable("map-canvas", "map-hover");
}
clickable("effects-canvas", "effects-hover");
buildHead();
byId("search").addEventListener("input", search);
byId("earlier").addEventListener("click", () => { page -= 1; showRows(); });
byId("later").addEventListener("click", () => { page += 1; showRows(); });
byId("rows").tBodies[0].addEventListener("click", (event) => {
  const line = event.target.closest("tr");
  if (line) select(Number(line.dataset.row), true);
});
for (const { title, meaning } of data.columns) byId("meanings").append(element("dt", title), element("dd", meaning));
redraws.push(drawEffects, drawCells);
showRows();
if (data.names.length) select(0);
if (byId("map-canvas")) drawMap();
let waiting;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => redraws.forEach((draw) => draw()), 150);
});
