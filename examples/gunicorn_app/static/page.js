"use strict";
// Every picture is fetched by hand, for the headers that say how it was answered and by which worker.

const TILE = 200; // CSS pixels; a tile has 256, for sharper screens
const MAX_ZOOM = 40;
const HOWS = ["hit", "load", "wait"];
const $ = (id) => document.getElementById(id);

// ---- Pictures

const times = { hit: [], load: [], wait: [] };
const workers = new Map();

function duration(milliseconds) {
  if (milliseconds >= 10) return `${milliseconds.toFixed(0)} ms`;
  return milliseconds >= 1 ? `${milliseconds.toFixed(1)} ms` : `${(milliseconds * 1000).toFixed(milliseconds < 0.01 ? 1 : 0)} µs`;
}

function note({ how, milliseconds, worker }) {
  times[how].push(milliseconds);
  if (!workers.has(worker)) workers.set(worker, { hit: 0, load: 0, wait: 0 });
  workers.get(worker)[how] += 1;
}

function makePicture(path) {
  const figure = document.createElement("figure");
  figure.append(new Image(), document.createElement("figcaption"));
  figure.path = path;
  ask(figure);
  return figure;
}

async function ask(figure) {
  figure.classList.add("asking");
  figure.leave = new AbortController();
  try {
    const response = await fetch(figure.path, { signal: figure.leave.signal });
    const [, how, milliseconds] = response.headers.get("Server-Timing").match(/desc=(\w+);dur=([\d.]+)/);
    const answer = { how, milliseconds: Number(milliseconds), worker: response.headers.get("X-Worker") };
    show(figure, answer, await response.blob());
    note(answer);
    drawOwn();
  } catch (error) {
    if (error.name !== "AbortError") figure.className = "failed";
  }
  figure.classList.remove("asking");
}

function show(figure, { how, milliseconds, worker }, blob) {
  const [image, caption] = figure.children;
  const url = URL.createObjectURL(blob);
  image.onload = () => URL.revokeObjectURL(url);
  image.src = url;
  figure.className = how;
  caption.innerHTML = `${how} ${duration(milliseconds)} <small>by ${worker}</small>`;
}

// ---- The map

const map = $("map");
const tiles = new Map(); // by path
const view = { zoom: 11, x: 974.7, y: 1075.5 }; // the place in the middle, in tiles of this zoom

if (/^#\d+(\/[\d.]+){2}$/.test(location.hash)) {
  [view.zoom, view.x, view.y] = location.hash.slice(1).split("/").map(Number);
}

function drawMap() {
  const { clientWidth: width, clientHeight: height } = map;
  const side = 2 ** view.zoom;
  const left = view.x - width / 2 / TILE, top = view.y - height / 2 / TILE;
  const wanted = new Set();
  for (let y = Math.max(0, Math.floor(top)); y < Math.min(side, top + height / TILE); y++) {
    for (let x = Math.max(0, Math.floor(left)); x < Math.min(side, left + width / TILE); x++) {
      const path = `tile/${view.zoom}/${x}/${y}.jpg`;
      wanted.add(path);
      if (!tiles.has(path)) {
        tiles.set(path, makePicture(path));
        map.append(tiles.get(path));
      }
      const { style } = tiles.get(path);
      style.left = `${Math.round((x - left) * TILE)}px`;
      style.top = `${Math.round((y - top) * TILE)}px`;
    }
  }
  for (const [path, figure] of tiles) {
    if (!wanted.has(path)) {
      figure.leave.abort(); // a load that has begun goes on: the next one who asks finds its result
      figure.remove();
      tiles.delete(path);
    }
  }
  $("place").textContent = `zoom ${view.zoom}`;
  history.replaceState(null, "", `#${view.zoom}/${view.x.toFixed(3)}/${view.y.toFixed(3)}`);
}

function zoom(step, event) {
  if (view.zoom + step < 1 || view.zoom + step > MAX_ZOOM) return;
  const box = map.getBoundingClientRect();
  // What is under the pointer stays there.
  const dx = event ? (event.clientX - box.left - box.width / 2) / TILE : 0;
  const dy = event ? (event.clientY - box.top - box.height / 2) / TILE : 0;
  const factor = 2 ** step;
  view.zoom += step;
  view.x = (view.x + dx) * factor - dx;
  view.y = (view.y + dy) * factor - dy;
  drawMap();
}

map.addEventListener("dblclick", (event) => zoom(event.shiftKey ? -1 : 1, event));
map.addEventListener("pointerdown", (event) => map.setPointerCapture(event.pointerId));
map.addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  view.x -= event.movementX / TILE;
  view.y -= event.movementY / TILE;
  drawMap();
});
map.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (steps) {
    view.x += steps[0];
    view.y += steps[1];
    drawMap();
  } else if (event.key === "+" || event.key === "-") {
    zoom(event.key === "+" ? 1 : -1);
  } else {
    return;
  }
  event.preventDefault();
});
window.addEventListener("resize", drawMap);
$("in").onclick = () => zoom(1);
$("out").onclick = () => zoom(-1);
$("again").onclick = () => document.querySelectorAll("figure").forEach(ask);

// ---- Figures

function fill(table, rows) {
  const body = $(table).tBodies[0];
  body.replaceChildren(...rows.map(([how, ...cells]) => {
    const row = document.createElement("tr");
    for (const [at, cell] of cells.entries()) {
      const element = document.createElement(at ? "td" : "th");
      [element.textContent, element.className] = Array.isArray(cell) ? cell : [cell, how];
      row.append(element);
    }
    return row;
  }));
}

function drawOwn() {
  fill("times", HOWS.map((how) => {
    const sorted = times[how].toSorted((a, b) => a - b);
    const middle = sorted.length ? duration(sorted[sorted.length >> 1]) : "";
    return [how, how, sorted.length, middle, sorted.length ? duration(sorted.at(-1)) : ""];
  }));
  fill("workers", [...workers].toSorted().map(([pid, counts]) => ["", `pid ${pid}`, ...HOWS.map((how) => [counts[how], how])]));
}

async function drawTotals() {
  if (document.hidden) return;
  const { groups, thumbnails } = await (await fetch("stats")).json();
  if (!$("thumbnails").children.length) $("thumbnails").append(...thumbnails.map((name) => makePicture(`thumbnail/${name}.jpg`)));
  const both = [groups.tile, groups.thumbnail];
  const number = (n) => n.toLocaleString("en");
  const bytes = (n) => (n < 1 << 20 ? `${(n / 1024).toFixed(0)} KiB` : `${(n / 1048576).toFixed(1)} MiB`);
  const row = (how, text, value) => [how, text, ...both.map(value)];
  fill("totals", [
    row("", "gets", (g) => number(g.gets)),
    row("hit", "hits", (g) => number(g.cache_hits)),
    row("load", "loads", (g) => number(g.local_loads)),
    row("wait", "deduplicated waits", (g) => number(g.loads_deduped)),
    row("", "pictures held", (g) => number(g.main_items)),
    row("", "bytes held", (g) => bytes(g.main_bytes)),
    row("", "of a budget of", (g) => bytes(g.budget)),
    row("", "evicted", (g) => number(g.main_evictions)),
  ]);
  const sum = (name) => both.reduce((total, group) => total + group[name], 0);
  ["cache_hits", "local_loads", "loads_deduped"].forEach((name, at) => ($("share").children[at].style.flexGrow = sum(name)));
}

// ---- The storm

$("start-storm").onclick = async ({ target }) => {
  target.disabled = true;
  try {
    const { path, requests } = await (await fetch("storm", { method: "POST" })).json();
    requests.forEach(note);
    $("storm-requests").replaceChildren(...requests.map(({ how, milliseconds, worker }) => {
      const square = document.createElement("i");
      square.className = how;
      square.title = `${how}, ${duration(milliseconds)}, by ${worker}`;
      return square;
    }));
    const count = (how) => requests.filter((request) => request.how === how).length;
    const pids = new Set(requests.map((request) => request.worker)).size;
    $("storm-result").textContent =
      `${requests.length} requests to ${pids} workers: rendered ${count("load") === 1 ? "once" : `${count("load")} times`}, ` +
      `${count("wait")} waited for that, ${count("hit")} came later and hit.`;
    $("storm-picture").src = path.slice(1);
    drawOwn();
    await drawTotals();
  } finally {
    target.disabled = false;
  }
};
$("storm-requests").append(...Array.from({ length: 20 }, () => document.createElement("i")));

drawMap();
drawOwn();
drawTotals();
setInterval(drawTotals, 1000);
