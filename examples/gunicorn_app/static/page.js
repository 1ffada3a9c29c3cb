"use strict";
// Every picture is fetched by hand, for the headers that say how it was answered and by which worker.

const TILE = 200; // CSS pixels; a tile has 256, for sharper screens
const MAX_ZOOM = 40;
const HOWS = ["hit", "stale", "load", "wait"];
const REFRESH = 1000; // ms after which a picture that is being refreshed is asked for again
const $ = (id) => document.getElementById(id);

// ---- Pictures

const times = { hit: [], stale: [], load: [], wait: [] };
const workers = new Map();

function duration(milliseconds) {
  if (milliseconds >= 10) return `${milliseconds.toFixed(0)} ms`;
  return milliseconds >= 1 ? `${milliseconds.toFixed(1)} ms` : `${(milliseconds * 1000).toFixed(milliseconds < 0.01 ? 1 : 0)} µs`;
}

function note({ how, milliseconds, worker }) {
  times[how].push(milliseconds);
  if (!workers.has(worker)) workers.set(worker, { hit: 0, stale: 0, load: 0, wait: 0 });
  workers.get(worker)[how] += 1;
}

function makePicture(path) {
  const figure = document.createElement("figure");
  const age = document.createElement("span");
  age.className = "age";
  const button = document.createElement("button");
  [button.className, button.title, button.textContent] = ["remove", "remove from the cache", "×"];
  button.onclick = () => remove(figure);
  figure.append(new Image(), document.createElement("figcaption"), age, button);
  figure.path = path;
  ask(figure);
  return figure;
}

async function ask(figure) {
  clearTimeout(figure.askingAgain);
  figure.classList.add("asking");
  figure.leave = new AbortController();
  try {
    const response = await fetch(figure.path, { signal: figure.leave.signal });
    const [, how, milliseconds] = response.headers.get("Server-Timing").match(/desc=(\w+);dur=([\d.]+)/);
    const answer = { how, milliseconds: Number(milliseconds), worker: response.headers.get("X-Worker") };
    show(figure, answer, await response.blob());
    setAge(figure, response.headers);
    note(answer);
    drawOwn();
  } catch (error) {
    if (error.name !== "AbortError") [figure.className, figure.refreshing] = ["failed", false];
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

// ---- Their ages

let ages = { ttl: Infinity, stale: Infinity }; // s, until the server has told

function setAge(figure, headers) {
  const left = headers.has("X-Fresh-For") ? Number(headers.get("X-Fresh-For")) : Infinity;
  const version = headers.get("ETag");
  figure.classList.toggle("renewed", Boolean(figure.version) && version !== figure.version);
  figure.version = version;
  figure.freshUntil = performance.now() / 1000 + left;
  figure.refreshing = left <= 0; // to ask for what is stale begins that
  if (figure.refreshing) figure.askingAgain = setTimeout(ask, REFRESH, figure);
  drawAge(figure);
}

function drawAge(figure) {
  if (figure.freshUntil === undefined) return;
  const left = figure.freshUntil - performance.now() / 1000;
  const age = left > 0 ? "fresh" : left > -ages.stale ? "stale" : "dead";
  figure.dataset.age = age;
  figure.querySelector(".age").textContent =
    left === Infinity ? "" :
    age === "fresh" ? `fresh ${Math.round(left)} s` :
    figure.refreshing ? "being refreshed" :
    age === "stale" ? `stale ${Math.round(left + ages.stale)} s` : "dead";
}

function drawAges() {
  document.querySelectorAll("figure").forEach(drawAge);
}

function leave(figure) {
  clearTimeout(figure.askingAgain);
  figure.leave.abort(); // a load that has begun goes on: the next one who asks finds its result
  figure.remove();
}

// ---- Changes

async function change(path, describe) {
  try {
    const response = await fetch(path, { method: "POST" });
    $("changed").textContent = response.ok ? describe(await response.json()) : `${path} failed: ${response.status} ${response.statusText}`;
  } catch (error) {
    $("changed").textContent = `${path} failed: ${error.message}`;
  }
}

async function remove(figure) {
  await change(`remove/${figure.path}`, ({ removed }) => `${figure.path} ${removed ? "was removed" : "was not there"}.`);
  ask(figure);
}

async function clear({ target: { value: kind } }) {
  await change(`clear/${kind}`, ({ cleared }) => `All ${cleared}s were removed.`);
  document.querySelectorAll("figure").forEach((figure) => figure.path.startsWith(kind) && ask(figure));
}

document.querySelectorAll(".clear").forEach((button) => (button.onclick = clear));

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
      leave(figure);
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

const isButton = (event) => event.target.matches("button");
map.addEventListener("dblclick", (event) => isButton(event) || zoom(event.shiftKey ? -1 : 1, event));
map.addEventListener("pointerdown", (event) => isButton(event) || map.setPointerCapture(event.pointerId));
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
  const stats = await (await fetch("stats")).json();
  const { groups, thumbnails } = stats;
  ({ ages } = stats);
  $("ages").textContent = `It is fresh for ${ages.ttl} s, then stale for ${ages.stale} s, then dead.`;
  if (!$("thumbnails").children.length) $("thumbnails").append(...thumbnails.map((name) => makePicture(`thumbnail/${name}.jpg`)));
  const both = [groups.tile, groups.thumbnail];
  const number = (n) => n.toLocaleString("en");
  const bytes = (n) => (n < 1 << 20 ? `${(n / 1024).toFixed(0)} KiB` : `${(n / 1048576).toFixed(1)} MiB`);
  const row = (how, text, value) => [how, text, ...both.map(value)];
  fill("totals", [
    row("", "gets", (g) => number(g.gets)),
    row("hit", "fresh hits", (g) => number(g.cache_hits - g.stale_hits)),
    row("stale", "stale hits", (g) => number(g.stale_hits)),
    row("load", "loads", (g) => number(g.local_loads)),
    row("", "of them refreshes", (g) => number(g.refreshes)),
    row("wait", "deduplicated waits", (g) => number(g.loads_deduped)),
    row("", "removed", (g) => number(g.removals)),
    row("", "expired", (g) => number(g.expired)),
    row("", "pictures held", (g) => number(g.main_items)),
    row("", "bytes held", (g) => bytes(g.main_bytes)),
    row("", "of a budget of", (g) => bytes(g.budget)),
    row("", "evicted", (g) => number(g.main_evictions)),
  ]);
  const sum = (name) => both.reduce((total, group) => total + group[name], 0);
  const shares = [sum("cache_hits") - sum("stale_hits"), sum("stale_hits"), sum("loads") - sum("loads_deduped"), sum("loads_deduped")];
  shares.forEach((share, at) => ($("share").children[at].style.flexGrow = share));
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
setInterval(drawAges, 500);
