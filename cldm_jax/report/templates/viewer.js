"use strict";
// Three planes of a few volumes on one grid. Plain canvas: no WebGL, no network, nothing but this page.
// What is packed into the page is said in report/viewer.py.
(() => {
const root = document.getElementById("viewer");
const find = selector => root.querySelector(selector);
const meta = JSON.parse(find("[data-meta]").textContent);
// Axes of a plane: across, down (both from high to low index where flipped) and through it.
const PLANES = {
  axial: { across: 0, down: 1, through: 2, flip: false, sides: "LRAP" },
  coronal: { across: 0, down: 2, through: 1, flip: false, sides: "LRSI" },
  sagittal: { across: 1, down: 2, through: 0, flip: true, sides: "APSI" },
};
const state = { at: [...meta.centre], base: 0, over: 1, opacity: 0.5, hidden: false, lines: true,
  radiological: false, windows: meta.layers.map(() => 0), large: "axial" };
const volumes = meta.layers.map(() => null); // Int16Array in steps of the layer's quantum, once decoded

function bytesOf(text) {
  const binary = atob(text.trim()), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function decode(index) {
  const element = find(`[data-volume="${index}"]`);
  const stream = new Blob([bytesOf(element.textContent)]).stream();
  const unzipped = stream.pipeThrough(new DecompressionStream("gzip"));
  const raw = new Uint8Array(await new Response(unzipped).arrayBuffer());
  element.remove();
  const [nx, ny, nz] = meta.layers[index].shape, count = nx * ny * nz, slice = nx * ny;
  if (raw.length !== 2 * count) throw new Error(`volume ${index} is cut short`);
  const out = new Int16Array(count);
  for (let i = 0; i < count; i++) {
    const code = raw[i] | raw[count + i] << 8;
    out[i] = code >>> 1 ^ -(code & 1);
  }
  for (let i = slice; i < count; i++) out[i] += out[i - slice];
  for (let z = 0; z < count; z += slice) for (let i = z + nx; i < z + slice; i++) out[i] += out[i - nx];
  for (let row = 0; row < count; row += nx) for (let i = row + 1; i < row + nx; i++) out[i] += out[i - 1];
  volumes[index] = out;
}

// Where the grid's index along an axis lies in a layer that may be coarser: its nearest voxel.
const offsets = meta.layers.map(layer => {
  const strides = [1, layer.shape[0], layer.shape[0] * layer.shape[1]];
  return meta.shape.map((n, axis) => Int32Array.from({ length: n }, (_, i) =>
    strides[axis] * Math.min(layer.shape[axis] - 1, Math.round(i / layer.step[axis]))));
});
const colours = meta.layers.map(layer => bytesOf(layer.colours));
const windowOf = index => meta.layers[index].windows[state.windows[index]];

function stepsAt(index, [x, y, z]) {
  const [ox, oy, oz] = offsets[index];
  return volumes[index][ox[x] + oy[y] + oz[z]];
}

const flipped = plane => plane.flip !== (plane.across === 0 && state.radiological);

function paint(name) {
  const plane = PLANES[name], { across, down, through } = plane, canvas = plane.canvas;
  const width = meta.shape[across], height = meta.shape[down];
  const image = new ImageData(width, height), pixels = image.data;
  const shown = [[state.base, 1]];
  if (state.over >= 0 && !state.hidden) shown.push([state.over, state.opacity]);
  pixels.fill(255);
  shown.forEach(([index, share], number) => {
    if (!volumes[index]) return;
    const volume = volumes[index], table = colours[index], { low, high } = windowOf(index);
    const factor = 255 / (high - low), scale = meta.layers[index].quantum * factor;
    const offset = offsets[index], depth = offset[through][state.at[through]];
    for (let row = 0, to = 0; row < height; row++) {
      const from = depth + offset[down][height - 1 - row];
      for (let column = 0; column < width; column++, to += 4) {
        const step = volume[from + offset[across][flipped(plane) ? width - 1 - column : column]];
        const colour = 3 * Math.max(0, Math.min(255, Math.round(step * scale - low * factor)));
        for (let c = 0; c < 3; c++) {
          const value = table[colour + c];
          pixels[to + c] = number ? pixels[to + c] + share * (value - pixels[to + c]) : value;
        }
      }
    }
  });
  plane.buffer.width = width;
  plane.buffer.height = height;
  plane.buffer.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(plane.buffer, 0, 0, canvas.width, canvas.height);
  decorate(context, plane);
}

function decorate(context, plane) {
  const { width, height } = context.canvas, dot = window.devicePixelRatio || 1;
  const [x, y] = toPixel(plane).map(Math.round), gap = 7 * dot;
  if (state.lines) {
    context.fillStyle = "rgba(80, 220, 255, .75)";
    context.fillRect(0, y, x - gap, dot);
    context.fillRect(x + gap, y, width, dot);
    context.fillRect(x, 0, dot, y - gap);
    context.fillRect(x, y + gap, dot, height);
  }
  const sides = [...plane.sides];
  if (flipped(plane) !== plane.flip) [sides[0], sides[1]] = [sides[1], sides[0]];
  const pad = 5 * dot;
  const places = [[pad, height / 2, "left", "middle"], [width - pad, height / 2, "right", "middle"],
    [width / 2, pad, "center", "top"], [width / 2, height - pad, "center", "bottom"]];
  context.font = `600 ${13 * dot}px system-ui, sans-serif`;
  context.lineWidth = 3 * dot;
  context.strokeStyle = "#000";
  context.fillStyle = "#fff";
  sides.forEach((letter, i) => {
    const [left, top, align, baseline] = places[i];
    context.textAlign = align;
    context.textBaseline = baseline;
    context.strokeText(letter, left, top);
    context.fillText(letter, left, top);
  });
}

function toPixel(plane) {
  const { across, down, canvas } = plane, i = state.at[across], j = state.at[down];
  const n = meta.shape[across], m = meta.shape[down];
  return [((flipped(plane) ? n - 1 - i : i) + 0.5) / n * canvas.width, (m - 1 - j + 0.5) / m * canvas.height];
}

function moveTo(axis, index) {
  state.at[axis] = Math.max(0, Math.min(meta.shape[axis] - 1, Math.round(index)));
  refresh();
}

function point(plane, event) {
  const box = plane.canvas.getBoundingClientRect(), n = meta.shape[plane.across], m = meta.shape[plane.down];
  const column = Math.floor((event.clientX - box.left) / box.width * n);
  const row = Math.floor((event.clientY - box.top) / box.height * m);
  moveTo(plane.across, flipped(plane) ? n - 1 - column : column);
  moveTo(plane.down, m - 1 - row);
}

const times = (matrix, at) => matrix.slice(0, 3).map(row => row[3] + at.reduce((sum, v, i) => sum + v * row[i], 0));

// Decimals that a multiple of the quantum needs.
const rounded = (value, quantum) => value.toFixed(Math.max(0, -Math.floor(Math.log10(quantum) + 1e-9)));

const withUnit = (layer, text) => layer.units === "as given" ? `${text}` : `${text} ${layer.units}`;

function valueAt(index) {
  if (!volumes[index]) return "…"; // not unpacked yet
  const { quantum } = meta.layers[index], text = rounded(stepsAt(index, state.at) * quantum, quantum);
  return withUnit(meta.layers[index], text);
}

function describe() {
  const mm = times(meta.affine, state.at).map(v => v.toFixed(1)).join(", ");
  const voxel = times(meta.file, state.at).map(Math.round).join(", ");
  const rows = [["mm to right, front, top", [["mm", mm]]], ["Voxel of the file, from 0", [["voxel", voxel]]]];
  meta.layers.forEach((layer, index) => { // an SD stands beside the image that it belongs to
    if (layer.isSd) rows.at(-1)[1].push([index, `SD ${valueAt(index)}`]);
    else rows.push([layer.title, [[index, valueAt(index)]]]);
  });
  find("[data-values]").replaceChildren(...rows.map(([name, values]) => {
    const item = document.createElement("div"), label = document.createElement("span");
    label.textContent = name;
    item.append(label, ...values.map(([key, text]) => {
      const value = document.createElement("b");
      value.dataset.value = key;
      value.textContent = text;
      return value;
    }));
    return item;
  }));
}

function fillSelect(select, options, chosen) {
  const asked = JSON.stringify(options);
  if (select.dataset.options !== asked) {
    select.replaceChildren(...options.map(([text, value]) => new Option(text, value)));
    select.dataset.options = asked;
  }
  select.value = String(chosen);
}

function showControls() {
  const titles = meta.layers.map((layer, index) => [layer.title, index]);
  for (const role of ["base", "over"]) {
    const index = state[role], windows = find(`[data-window="${role}"]`), bar = find(`[data-bar="${role}"]`);
    fillSelect(find(`[data-layer="${role}"]`), role === "over" ? [...titles, ["none", -1]] : titles, index);
    windows.hidden = bar.hidden = index < 0;
    if (index < 0) continue;
    const layer = meta.layers[index];
    const known = layer.windows.map(({ name, low, high }, i) => [withUnit(layer, `${name} ${low} to ${high}`), i]);
    fillSelect(windows, known, state.windows[index]);
    const strip = new ImageData(256, 1);
    for (let i = 0; i < 256; i++) strip.data.set([...colours[index].subarray(3 * i, 3 * i + 3), 255], 4 * i);
    bar.getContext("2d").putImageData(strip, 0, 0);
  }
  find("[data-opacity]").value = Math.round(100 * state.opacity);
  find("[data-percent]").textContent = state.hidden ? "off" : `${Math.round(100 * state.opacity)} %`;
  find("[data-lines]").checked = state.lines;
  find("[data-radiological]").checked = state.radiological;
  for (const [name, plane] of Object.entries(PLANES)) {
    plane.element.classList.toggle("large", name === state.large);
    plane.slider.value = state.at[plane.through];
    plane.counter.textContent = `${state.at[plane.through] + 1} / ${meta.shape[plane.through]}`;
  }
}

let waiting = false;
function refresh() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    Object.keys(PLANES).forEach(paint);
    describe();
    showControls();
  });
}

const next = (index, count) => (index + 1) % count;
const turnWindow = index => {
  if (index >= 0) state.windows[index] = next(state.windows[index], meta.layers[index].windows.length);
};
const fade = change => { state.hidden = false; state.opacity = Math.max(0, Math.min(1, state.opacity + change)); };
const KEYS = {
  "+": () => fade(0.1), "=": () => fade(0.1), "-": () => fade(-0.1),
  o: () => { state.hidden = !state.hidden; },
  l: () => { state.over = next(state.over + 1, meta.layers.length + 1) - 1; },
  k: () => { state.base = next(state.base, meta.layers.length); },
  w: () => turnWindow(state.over), v: () => turnWindow(state.base),
  x: () => { state.lines = !state.lines; }, r: () => { state.radiological = !state.radiological; },
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const focused = event.target.closest("[data-plane]");
  const plane = PLANES[focused ? focused.dataset.plane : state.large], { across, down, through } = plane;
  const right = flipped(plane) ? -1 : 1;
  const moves = { ArrowLeft: [across, -right], ArrowRight: [across, right], ArrowUp: [down, 1],
    ArrowDown: [down, -1], PageUp: [through, 1], PageDown: [through, -1] };
  const act = KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (act) act();
  else if (event.target.tagName === "INPUT") return; // sliders have keys of their own
  else if (event.key === "Home") state.at = [...meta.centre];
  else if (moves[event.key]) moveTo(moves[event.key][0], state.at[moves[event.key][0]] + moves[event.key][1]);
  else return;
  event.preventDefault();
  refresh();
}

function onWheel(plane) {
  let turned = 0;
  return event => {
    if (event.ctrlKey) return; // zooms the page
    event.preventDefault();
    turned += event.deltaY * (event.deltaMode ? 30 : 1);
    if (Math.abs(turned) < 30) return; // a touchpad sends many small turns
    moveTo(plane.through, state.at[plane.through] - Math.sign(turned));
    turned = 0;
  };
}

function setUpPlane(name, plane) {
  plane.element = find(`[data-plane="${name}"]`);
  plane.canvas = plane.element.querySelector("canvas");
  plane.slider = plane.element.querySelector("input");
  plane.counter = plane.element.querySelector("output");
  plane.buffer = document.createElement("canvas");
  const width = meta.shape[plane.across] * meta.spacing[plane.across];
  const height = meta.shape[plane.down] * meta.spacing[plane.down];
  plane.canvas.style.aspectRatio = `${width} / ${height}`;
  plane.canvas.style.setProperty("--shape", width / height);
  plane.slider.max = meta.shape[plane.through] - 1;
  plane.slider.oninput = () => moveTo(plane.through, +plane.slider.value);
  plane.element.querySelector("button").onclick = () => { state.large = name; refresh(); };
  const held = event => event.buttons & 1;
  plane.canvas.onpointerdown = event => {
    plane.canvas.setPointerCapture(event.pointerId);
    if (event.pointerType !== "touch" && held(event)) point(plane, event); // a finger may be scrolling the page
  };
  plane.canvas.onpointermove = event => { if (held(event)) point(plane, event); };
  plane.canvas.onpointerup = event => { if (event.pointerType === "touch") point(plane, event); };
  plane.canvas.addEventListener("wheel", onWheel(plane), { passive: false });
  new ResizeObserver(() => {
    const dot = window.devicePixelRatio || 1, box = plane.canvas.getBoundingClientRect();
    plane.canvas.width = Math.max(1, Math.round(box.width * dot));
    plane.canvas.height = Math.max(1, Math.round(box.height * dot));
    refresh();
  }).observe(plane.canvas);
  return width;
}

function about() {
  const steps = meta.layers.map(layer => `${withUnit(layer, layer.quantum)} (${layer.title})`).join(", ");
  const words = [`Values are rounded to ${steps}; between voxels nothing is interpolated.`];
  const [x, y, z] = meta.step;
  if (Math.max(x, y, z) > 1) words.push(
    `To keep the page small it holds one voxel in ${x} x ${y} x ${z} (sideways, forwards, upwards); none is averaged.`);
  if (meta.layers.some(layer => layer.step.some(step => step > 1))) words.push(
    "Of the SDs it holds fewer still: the nearest is shown.");
  if (meta.oblique >= 0.5) words.push(`The planes are those of the voxels, ${meta.oblique.toFixed(0)} ` +
    "degrees oblique to the scanner; positions in mm are the scanner's.");
  return words.join(" ");
}

function setUp() {
  const widths = Object.entries(PLANES).map(([name, plane]) => setUpPlane(name, plane));
  find(".planes").style.gridTemplateColumns = widths.map(width => `${width}fr`).join(" ");
  const on = (selector, kind, change) => { find(selector)[kind] = event => { change(event.target); refresh(); }; };
  for (const role of ["base", "over"]) {
    on(`[data-layer="${role}"]`, "onchange", ({ value }) => { state[role] = +value; state.hidden = false; });
    on(`[data-window="${role}"]`, "onchange", ({ value }) => { state.windows[state[role]] = +value; });
  }
  on("[data-opacity]", "oninput", ({ value }) => { state.opacity = value / 100; state.hidden = false; });
  on("[data-lines]", "onchange", ({ checked }) => { state.lines = checked; });
  on("[data-radiological]", "onchange", ({ checked }) => { state.radiological = checked; });
  root.addEventListener("keydown", onKey);
  find("[data-about]").textContent = about();
}

async function start() {
  const note = find("[data-note]");
  try {
    note.textContent = "Unpacking the volumes…";
    for (const index of meta.layers.keys()) {
      await decode(index);
      if (index === 1) { // what is shown first
        setUp();
        find("[data-body]").hidden = false;
        note.hidden = true;
      }
      if (index >= 1) refresh();
    }
    root.dataset.ready = "yes";
  } catch (error) {
    find("[data-body]").hidden = true;
    note.hidden = false;
    note.textContent = `The viewer does not run in this browser (${error.message}). ` +
      `The views below hold the images.`;
  }
}
start();
})();
