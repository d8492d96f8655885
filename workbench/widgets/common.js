// What the explorers share: nodes, numbers, colours, keys, one heat map, and the life of a widget.  An explorer's own text
// is put behind this one, and both are one module: no dependency, no network.
//
//   model.get("packed")      the payload of base.py's View, packed by packing.py: bytes, in a page their base64
//   model.get("selection")   where the reader is, written back on every choice; may be set at any time
//
// Texts from the data arrive made visible and are only ever set as text, never as markup.

// The payload's "colours" are the table of workbench/figures/colours.py: hues, and scales ("sequential", "diverging", ...).
let COLOURS = { hues: [], dark: [], scales: {} };
const hues = (list) => list.map((hue, i) => `;--h${i}:${hue}`).join("");
const css = ({ hues: light, dark, floor }, LIGHT = `--bg:#fff;--ink:#1b2130;--soft:#59616f;--line:#d5dbe4;--panel:#f6f7fa;
  --accent:#b4235a;--zero:#e9edf2;--deep:45%;--floor:var(--h${floor});color-scheme:light${hues(light)}`, DARK = `--bg:#14171f;
  --ink:#e2e6ee;--soft:#a3adbc;--line:#3a4252;--panel:#1c212c;--accent:#ff7ba9;--zero:#262d3a;--deep:30%;--floor:var(--h${floor});
  color-scheme:dark${hues(dark)}`) => `
.wx{${LIGHT};font:13px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans",sans-serif;
  color:var(--ink);background:var(--bg);display:grid;grid-template-columns:minmax(0,1fr);gap:10px;min-width:0;width:100%;
  text-align:left;padding:2px;position:relative;font-variant-numeric:tabular-nums}
@media (prefers-color-scheme:dark){.wx{${DARK}}}
body[data-jp-theme-light="true"] .wx,body[data-vscode-theme-kind*="light"] .wx,html[theme="light"] .wx{${LIGHT}}
body[data-jp-theme-light="false"] .wx,body[data-vscode-theme-kind*="dark"] .wx,html[theme="dark"] .wx{${DARK}}
body[data-jp-theme-light] .wx{--bg:var(--jp-layout-color0)}
.wx,.wx *{box-sizing:border-box}
.wx [hidden]{display:none!important}
@media (prefers-reduced-motion:reduce){.wx *{transition:none!important;animation:none!important}}
.wx-tools{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center;min-width:0}
.wx-tools label{display:flex;gap:5px;align-items:center;color:var(--soft);min-width:0}
.wx select,.wx input,.wx button{font:inherit;color:var(--ink);background:var(--bg);border:1px solid var(--line);
  border-radius:5px;padding:3px 7px;min-height:28px;max-width:100%;min-width:0;margin:0}
.wx select{max-width:min(280px,52vw);text-overflow:ellipsis}
.wx input[type=range]{padding:0;border:0;accent-color:var(--h0);width:150px;background:none}
.wx input[type=checkbox]{min-height:0;accent-color:var(--h0)}
.wx button{cursor:pointer}
.wx button:hover{border-color:var(--soft)}
.wx button[aria-pressed=true]{background:color-mix(in srgb,var(--h0) 18%,var(--bg));border-color:var(--h0)}
.wx :focus-visible{outline:2px solid var(--accent);outline-offset:1px}
.wx-panel{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:9px 12px;min-width:0}
.wx h3,.wx h4{margin:0 0 6px;font-size:13px;font-weight:600;overflow-wrap:anywhere;color:var(--ink)}
.wx h4{font-size:12px;color:var(--soft)}
.wx p{margin:0}
.wx-hint,.wx-facts{color:var(--soft);font-size:12px;overflow-wrap:anywhere}
.wx-gone{display:none;color:var(--soft);font-size:12px}
.wx.gone .wx-gone,.jupyter-widgets-disconnected .wx-gone{display:block} /* the class: opened without a kernel */
.wx-live{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);bottom:0}
.wx-text{unicode-bidi:isolate;white-space:pre-wrap;overflow-wrap:anywhere}
.wx-one{unicode-bidi:isolate;white-space:pre;overflow:hidden;text-overflow:ellipsis;min-width:0}
.wx-columns{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,var(--least,320px)),1fr));align-items:start}
.wx-columns>*{min-width:0}
.wx-heat{display:grid;grid-template-columns:fit-content(42%) minmax(0,1fr);column-gap:6px;font-size:11px;color:var(--soft)}
.wx-heat-rows{min-width:0;text-align:right;padding-top:2px}
.wx-heat-in{overflow-x:auto;overflow-y:hidden;padding:2px 2px 0}
.wx-heat svg{display:block;cursor:pointer;touch-action:pan-y}
.wx-heat-names{position:relative;height:18px}
.wx-heat-names>div{position:absolute;top:2px;transform:translateX(-50%);max-width:90px;line-height:1.2}
.wx-heat-title{grid-column:2;padding-left:2px}
.wx-scale{display:inline-flex;flex-wrap:wrap;align-items:center;gap:0 6px;color:var(--soft);font-size:12px}
.wx-ramp{width:90px;height:9px;border-radius:2px;border:1px solid var(--line)}
.wx-bar{height:9px;position:relative;background:var(--zero);border-radius:2px;min-width:20px;overflow:hidden}
.wx-bar>i{position:absolute;inset:0 auto 0 0;background:var(--h0);border-radius:2px;min-width:1px}
.wx-bar>i.mark{width:2px;background:var(--ink);opacity:.7;border-radius:0}
.wx-bar>i.floor{background:var(--floor);opacity:1}
.wx-num{text-align:right;color:var(--soft)}
.wx mark{background:color-mix(in srgb,var(--accent) 28%,transparent);color:inherit;border-radius:2px;font-weight:600}
.wx-foot{color:var(--soft);font-size:12px;display:flex;flex-wrap:wrap;gap:4px 10px;align-items:center;min-width:0}
.wx-foot button{font-size:12px;min-height:24px;padding:1px 7px;color:var(--soft)}
.wx-foot .wx-hover{flex:1 1 240px;min-height:18px}
.wx-keys{display:flex;flex-wrap:wrap;gap:4px 14px;flex-basis:100%}
.wx-keys kbd{font:inherit;color:var(--ink);border:1px solid var(--line);border-radius:3px;padding:0 4px;background:var(--panel)}
.wx-mosaic{position:relative;width:100%;background:var(--panel);border-radius:4px;cursor:crosshair;touch-action:manipulation;user-select:none;-webkit-user-select:none}
.wx-mosaic:focus-visible{outline-offset:2px}
.wx-mosaic>:is(img,canvas){position:absolute;inset:0;width:100%;height:100%;border-radius:4px;pointer-events:none}
.wx-mosaic.veiled img{filter:grayscale(1)}
.wx-mosaic>.wx-facts{position:absolute;inset:auto 8px 8px}
.wx-mosaic :is(.wx-at,.wx-near,.wx-kept){position:absolute;pointer-events:none;border-radius:1px}
.wx-at{outline:2px solid var(--accent);box-shadow:0 0 0 3.5px #fff,inset 0 0 0 1px #fff}
.wx-near{outline:1px solid #000;box-shadow:0 0 0 2px #fff}
.wx-kept{outline:2px dashed #000;box-shadow:0 0 0 2px #fff}
.wx-crop{position:relative;display:inline-block;flex:none;overflow:hidden;border-radius:4px;background:var(--zero) no-repeat}
.wx-crop i{position:absolute;outline:2px solid var(--accent);box-shadow:0 0 0 3px #fff8}
`;

// ------------------------------------------------------------------ small helpers

const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
const draw = (tag, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const same = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);
function clip(text, most = 40) { // at most so many letters, and an ellipsis
  if (text.length <= most) return text;
  const letters = [...text.slice(0, 2 * most + 2)];
  return letters.length > most ? letters.slice(0, most).join("") + "…" : text;
}
function tail(text, n) { // the end of a text, from a word on
  const letters = [...text];
  if (letters.length <= n) return text;
  const end = letters.slice(1 - n).join(""), word = letters[letters.length - n] === " " ? 0 : end.indexOf(" ") + 1;
  return `…${end.slice(word && word < end.length ? word : 0)}`;
}
function say(x, digits = 2, whole = false) {
  if (Number.isNaN(x ?? NaN)) return "–";
  if (whole) return String(x);
  const text = Math.abs(x) >= 1e6 ? x.toExponential(2) : x.toFixed(clamp(digits, 0, 9));
  return Number(text) === 0 ? text.replace("-", "") : text;
}
const share = (x) => (Number.isNaN(x) ? "–" : `${(100 * x).toFixed(x < 0.1 ? 1 : 0)} %`);
const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const fresh = (name) => `wx-${name}-${Math.random().toString(36).slice(2, 9)}`; // several widgets share a page
const quoted = (text) => JSON.stringify(text).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`); // for a line of Python

// ------------------------------------------------------------------ the payload

// Inflates a block (bytes, or their base64), and gives each column in it its own bytes.
async function unpack(block) {
  let bytes = block;
  if (typeof block === "string") bytes = Uint8Array.from(atob(block), (c) => c.charCodeAt(0));
  else if (!(block instanceof Uint8Array)) bytes = new Uint8Array(block.buffer || block, block.byteOffset || 0, block.byteLength);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const end = 4 + new DataView(raw.buffer).getUint32(0, true), payload = JSON.parse(new TextDecoder().decode(raw.subarray(4, end)));
  const known = payload.$shared || [];
  const visit = (own) => {
    if (!own || typeof own !== "object" || (Array.isArray(own) && typeof own[0] !== "object")) return own;
    if (own.$) Object.defineProperty(own, "bytes", { value: raw.subarray(end + own.at) });
    else for (const key of Object.keys(own)) if (key !== "$shared") own[key] = visit(own[key]);
    return own.shared ? Array.from(decode(own), (i) => known[i]) : own;
  };
  return visit(payload);
}

// The numbers of a column: packing.py tells how they are packed.
function decode(column) {
  if (!column || column.values) return column && column.values;
  const { $: type, n, bytes, base } = column, width = { 8: 1, 6: 2, 2: 4 }[type.at(-1)], none = width === 1 ? 255 : 65535;
  const values = type[0] === "d" ? new Float64Array(n) : new Int32Array(n), unit = 10 ** (column.digits || 0);
  const by = column.by || n, steps = by < n ? new Uint16Array(n) : null;
  for (let i = 0; i < n; i++) {
    let step = bytes[i];
    for (let plane = 1; plane < width; plane++) step |= bytes[plane * n + i] << (8 * plane);
    if (steps) step = steps[i] = i < by ? step : (steps[i - by] - step) & none;
    values[i] = width < 4 && step === none ? (type[0] === "d" ? NaN : -1) : type[0] === "d" ? (base + step) / unit : step;
  }
  Object.defineProperty(column, "values", { value: values });
  return values;
}

// ------------------------------------------------------------------ colours

const part = (x) => (100 * clamp(x, 0, 1)).toFixed(1);
const stops = (scale) => COLOURS.scales[scale];
const CHANNELS = {}; // of colours that were asked for
const channels = (hex) => (CHANNELS[hex] ||= [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));

// Red, green and blue at a share of a scale: 0 to 1, or -1 to 1 about zero ("diverging").
function shade(scale, x) {
  const list = stops(scale), at = clamp(scale === "diverging" ? (x + 1) / 2 : x, 0, 1) * (list.length - 1), low = Math.min(Math.floor(at), list.length - 2);
  const a = channels(list[low]), b = channels(list[low + 1]);
  return a.map((c, i) => Math.round(c + (b[i] - c) * (at - low)));
}
const tint = (scale, x) => (Number.isNaN(x) ? "transparent" : `rgb(${shade(scale, x)})`);
// Black or white, whichever stands out more: WCAG's contrasts cross at a luminance of 0.179.
const ink = (rgb) => (rgb.reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * (c / 255) ** 2.2, 0) > 0.179 ? "#000" : "#fff");
const inkOn = (colour) => { const rgb = colour.match(/\d+/g); return rgb ? ink(rgb) : "var(--ink)"; };

function scale(of, low, high, name = "") {
  const node = make("span", "wx-scale"), bar = make("span", "wx-ramp");
  bar.style.background = `linear-gradient(90deg,${stops(of)})`;
  node.append(make("span", "", name), make("span", "", low), bar, make("span", "", high));
  return node;
}

// A bar from one share of its track to another; `mark`: a tick at a share, of a class such as "floor".
function bar([from, to], mark = NaN, kind = "") {
  const node = make("span", "wx-bar"), own = make("i");
  own.style.left = `${part(from || 0)}%`;
  own.style.width = `${part(to - from || 0)}%`;
  node.append(own);
  if (!Number.isNaN(mark)) {
    const tick = make("i", `mark ${kind}`);
    tick.style.left = `calc(${part(mark)}% - 1px)`;
    node.append(tick);
  }
  return node;
}

// ------------------------------------------------------------------ controls

function button(text, name, onclick, kind = "") {
  const node = make("button", kind, text);
  node.type = "button";
  if (name) node.setAttribute("aria-label", node.title = name);
  node.onclick = onclick;
  return node;
}

function choice(name, onchange) { // a labelled select
  const node = make("label"), select = make("select");
  node.append(make("span", "", name), select);
  select.setAttribute("aria-label", name);
  select.onchange = () => onchange(select.selectedIndex);
  const fill = (texts, values) => {
    const words = texts.map((text) => clip(String(text), 70));
    if (!same(words, [...select.options].map((o) => o.textContent)))
      select.replaceChildren(...words.map((word, i) => Object.assign(make("option", "", word), values && { value: values[i] })));
  };
  return { node, select, fill };
}

function slider(name, onchange) {
  const node = make("label"), input = make("input"), said = make("output", "wx-facts");
  input.type = "range";
  input.min = 0;
  input.setAttribute("aria-label", name);
  node.append(make("span", "", name), input, said);
  input.oninput = () => onchange(Number(input.value));
  const set = (value, text) => { input.value = value; said.textContent = text; input.setAttribute("aria-valuetext", text); };
  return { node, input, set };
}

function finder(name, oninput) { // where a text is looked for; the key / goes there
  const node = make("input");
  node.type = "search";
  node.placeholder = name;
  node.style.width = `${name.length + 4}ch`;
  node.setAttribute("aria-label", name);
  node.oninput = oninput;
  return node;
}

// ------------------------------------------------------------------ keys

function bound(event, moves) { // run the move that a key stands for; the notebook has its own meanings for these keys
  if (event.ctrlKey || event.metaKey || event.altKey || !moves[event.key]) return;
  event.preventDefault();
  event.stopPropagation();
  moves[event.key](event);
}

const FAR = 1e9;
// What arrows, Home, End and the page keys stand for: move(to the right, down).
const arrows = (move, page = FAR) => ({
  ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
  Home: () => move(-FAR, 0), End: () => move(FAR, 0), PageUp: () => move(0, -page), PageDown: () => move(0, page),
});

// One tab stop for many: arrow keys walk the children that match.  `enter(node)` is told where the focus went, `leave`
// of a click on the one that is chosen (class "on").
function rove(host, selector, enter, leave) {
  const all = () => [...host.querySelectorAll(selector)];
  const go = (node) => {
    if (!node) return;
    for (const other of host.querySelectorAll(`${selector}[tabindex="0"]`)) other.tabIndex = -1;
    node.tabIndex = 0;
    node.focus({ preventScroll: false });
    enter(node);
  };
  const beside = (node, step) => { const nodes = all(); return nodes[clamp(nodes.indexOf(node) + step, 0, nodes.length - 1)]; };
  const line = (node, way) => { // the nearest one above or below
    const from = node.getBoundingClientRect(), x = from.left + from.width / 2;
    let best = null, least = Infinity;
    for (const other of all()) {
      const to = other.getBoundingClientRect(), gap = way * (to.top - from.top);
      const far = gap > 2 ? gap * 4 + Math.abs(to.left + to.width / 2 - x) : Infinity;
      if (far < least) [best, least] = [other, far];
    }
    return best;
  };
  host.addEventListener("keydown", (event) => {
    const node = event.target.closest(selector);
    if (node) bound(event, { ...arrows((dx, dy) => go(dx ? beside(node, dx) : line(node, dy)), 1), Enter: () => enter(node), " ": () => enter(node) });
  });
  host.addEventListener("click", (event) => { const node = event.target.closest(selector); if (!node || !host.contains(node)) return;
    if (leave && node.classList.contains("on")) leave(node);
    else go(node);
  });
}

// ------------------------------------------------------------------ one heat map

// Rows x columns of colours with one tab stop: arrow keys, a click or a drag choose a cell.
//   heat.fill({rows, columns, cell, of, title, wide})     names; cell(r, c) -> {fill, mark: "hatch" | "dot", title};
//                                                         of: what rows are, said at the first; title: what columns are;
//                                                         places: numbers of columns whose names are tokens
//   heat.at(r, c)                                         the cell that is chosen; -1: all of its row, or column
//   heat.trace([[r, c, weight], ...])                     rings on cells, and a line through the first of each row
function heatmap(label, { pick, hover = () => {}, drag = null }) {
  const node = make("div", "wx-heat"), names = make("div", "wx-heat-rows"), inner = make("div", "wx-heat-in");
  const svg = draw("svg", { role: "grid", tabindex: 0, "aria-label": label }), below = make("div", "wx-heat-names");
  const title = make("div", "wx-heat-title"), id = fresh("heat");
  inner.append(svg, below);
  node.append(names, inner, title);
  let own = null, chosen = [0, 0], high = 18, wide = 20, cursor, over, from = null, dragged = false;

  const place = (event) => {
    const box = svg.getBoundingClientRect();
    const r = Math.floor((event.clientY - box.top) / high), c = Math.floor((event.clientX - box.left) / wide);
    return own && r >= 0 && c >= 0 && r < own.rows.length && c < own.columns.length ? [r, c] : null;
  };
  const rect = (r, c, more) => draw("rect", { x: c * wide, y: r * high, width: wide < 4 ? wide : wide - 1, height: high - 1, ...more });

  function fill(given) {
    own = given;
    high = own.high || 18;
    const R = own.rows.length, C = own.columns.length, room = Math.max(inner.clientWidth - 4, 60);
    wide = clamp(Math.floor(room / C), own.least || 6, own.wide || 34);
    svg.setAttribute("width", C * wide);
    svg.setAttribute("height", R * high);
    svg.setAttribute("aria-rowcount", R);
    svg.setAttribute("aria-colcount", C);
    const parts = ["#000", "#fff"].map((ink) => {
      const hatch = draw("pattern", { id: `${id}-${ink.slice(1)}`, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
      hatch.append(draw("rect", { width: 1.6, height: 5, fill: ink, opacity: 0.55 }));
      return hatch;
    });
    own.rows.forEach((name, r) => {
      const line = draw("g", { role: "row", "aria-rowindex": r + 1 });
      for (let c = 0; c < C; c++) {
        const { fill: colour, mark } = own.cell(r, c), ink = inkOn(colour);
        const cell = rect(r, c, { role: "gridcell", id: `${id}-${r}-${c}`, style: `fill:${colour}` });
        line.append(cell);
        if (mark === "hatch") line.append(rect(r, c, { fill: `url(#${id}-${ink.slice(1)})`, class: "wx-hatch", "pointer-events": "none" }));
        if (mark === "dot") line.append(draw("circle", { cx: (c + 0.5) * wide - 0.5, cy: (r + 0.5) * high - 0.5, r: 1.7, fill: ink, opacity: 0.7, class: "wx-dot" }));
      }
      parts.push(line);
    });
    over = draw("g", { "pointer-events": "none" });
    cursor = draw("rect", { fill: "none", stroke: "var(--accent)", "stroke-width": 2, rx: 2, "pointer-events": "none" });
    svg.replaceChildren(...parts, over, cursor);
    names.replaceChildren(...own.rows.map((name, r) => {
      const text = make("div", "wx-one", r || !own.of ? name : `${own.of} ${name}`);
      text.style.height = text.style.lineHeight = `${high}px`;
      text.title = clip(String(name), 300);
      return text;
    }));
    const apart = (texts) => Math.ceil((7 * clamp(Math.max(...texts.map((c) => String(c).length)), 1, 12) + 6) / wide);
    const numbered = own.places && apart(own.columns) > 1; // every second token would read as a text
    const said = numbered ? own.places : own.columns, step = apart(said);
    below.style.width = `${C * wide}px`;
    below.replaceChildren(...said.flatMap((name, c) => {
      if (c % step) return [];
      const text = make("div", "wx-one", name);
      text.style.left = `${(c + 0.5) * wide}px`;
      return [text];
    }));
    title.textContent = numbered ? "places, numbered where their tokens do not fit" : own.title || "";
    at(...chosen);
  }

  function at(r, c) {
    chosen = [r, c];
    if (!own || !cursor) return;
    const inside = Math.max(r, c) >= 0 && r < own.rows.length && c < own.columns.length;
    cursor.style.display = inside ? "" : "none";
    if (inside) {
      const [width, height] = [(c < 0 ? own.columns.length : 1) * wide - 1, (r < 0 ? own.rows.length : 1) * high - 1];
      for (const [key, value] of Object.entries({ x: Math.max(c, 0) * wide, y: Math.max(r, 0) * high, width, height })) cursor.setAttribute(key, value);
    }
    if (!inside || Math.min(r, c) < 0) { svg.removeAttribute("aria-activedescendant"); return; }
    const cell = svg.getElementById(`${id}-${r}-${c}`);
    if (cell) cell.setAttribute("aria-label", own.cell(r, c).title || "");
    svg.setAttribute("aria-activedescendant", `${id}-${r}-${c}`);
  }

  function trace(cells) {
    if (!over) return;
    const parts = [], way = new Map();
    for (const [r, c, weight = 1] of cells) {
      parts.push(rect(r, c, { fill: "none", stroke: "var(--accent)", "stroke-width": 1 + 2 * clamp(weight, 0, 1), rx: 3, class: "wx-ring" }));
      if (!way.has(r)) way.set(r, c);
    }
    const line = [...way].sort((a, b) => a[0] - b[0]).map(([r, c]) => `${(c + 0.5) * wide},${(r + 0.5) * high}`);
    over.replaceChildren(draw("polyline", { points: line.join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 1.5, opacity: 0.8 }), ...parts);
  }

  svg.addEventListener("click", (event) => { const to = place(event); if (to && !dragged) pick(...to); });
  svg.addEventListener("pointerdown", (event) => {
    from = drag && event.button === 0 ? place(event) : null;
    dragged = false;
    if (from) svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    const to = place(event);
    if (!from || !event.buttons) hover(to);
    else if (to && (dragged ||= to[0] !== from[0] || to[1] !== from[1])) drag(from, to);
  });
  svg.addEventListener("pointerup", () => { from = null; });
  svg.addEventListener("pointerleave", () => hover(null));
  svg.addEventListener("keydown", (event) => {
    if (own) bound(event, arrows((dx, dy) => pick(clamp(chosen[0] + dy, 0, own.rows.length - 1), clamp(chosen[1] + dx, 0, own.columns.length - 1))));
  });
  return { node, svg, fill, at, trace };
}

// ------------------------------------------------------------------ pictures

// The address of a picture that came with the data; "" for anything else.
const safe = (src) => (/^data:image\/(png|jpeg|webp|gif);base64,[\w+/=]+$/.test(src || "") ? src : "");
const pixels = (x) => `${Math.round(10 * x) / 10}px`;

// A picture that a model saw, under the grid that it was cut into: one tab stop; arrow keys, a click or a drag choose a
// patch, wherever it lies.
//   mosaic.show({src, width, height, alt, boxes, names})   boxes: [[left, top, right, bottom], ...] in its pixels
//   mosaic.paint(cell, veil)        cell(i) -> {rgb, faded, sink, text}; veil: how strong its colours are, 0 to 1
//   mosaic.at(i)  mosaic.near(i)    the patch that is chosen, or looked at; -1: none
//   mosaic.pins([i, ...])           patches that are kept
function mosaic(label, { pick, hover = () => {}, step = null }) {
  const node = make("div", "wx-mosaic"), img = make("img"), canvas = make("canvas"), row = make("div"), on = make("div", "wx-at");
  const near = make("div", "wx-near"), kept = make("div"), id = fresh("patch"), gone = make("span", "wx-facts", "The picture itself is in the kernel.");
  let own = null, chosen = -1, painted = null, wide = 0, dragged = false;
  node.tabIndex = 0;
  node.role = "grid";
  node.ariaLabel = label;
  row.role = "row";
  on.role = "gridcell";
  on.id = id;
  on.ariaSelected = "true";
  canvas.ariaHidden = "true";
  row.append(on);
  node.append(gone, canvas, kept, near, row);

  function show(given) {
    own = given;
    const src = safe(given.src);
    if (src) canvas.before(Object.assign(img, { src, alt: given.alt }));
    else img.remove();
    gone.hidden = !!src;
    node.style.aspectRatio = `${given.width} / ${given.height}`;
    node.style.maxWidth = pixels(Math.min(640, (480 * given.width) / given.height));
    painted = null;
    chosen = -1;
    for (const box of [on, near]) box.hidden = true;
    kept.replaceChildren();
  }
  function put(box, i) {
    box.hidden = !(i >= 0 && own && i < own.boxes.length);
    if (box.hidden) return;
    const [left, top, right, bottom] = own.boxes[i], part = (x, whole) => `${(100 * x) / whole}%`;
    Object.assign(box.style, { left: part(left, own.width), top: part(top, own.height), width: part(right - left, own.width), height: part(bottom - top, own.height) });
  }
  function at(i) {
    put(on, (chosen = i));
    if (i >= 0) { on.ariaLabel = own.names(i); node.setAttribute("aria-activedescendant", id); }
    else node.removeAttribute("aria-activedescendant");
  }
  const pins = (list) => kept.replaceChildren(...list.map((i) => { const box = make("div", "wx-kept"); put(box, i); return box; }));

  function paint(cell = painted?.cell, veil = painted?.veil) {
    wide = node.clientWidth;
    painted = { cell, veil };
    if (!own || !wide || !cell) return;
    const ratio = globalThis.devicePixelRatio || 1, scale = (wide * ratio) / own.width, g = canvas.getContext("2d");
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(own.height * scale);
    node.classList.toggle("veiled", veil > 0);
    const small = Math.min(...own.boxes.map(([l, t, r, b]) => Math.min(r - l, b - t))) * scale;
    own.boxes.forEach((box, i) => {
      const [x, y, right, bottom] = box.map((side) => Math.round(side * scale)), w = right - x, h = bottom - y, { rgb, faded, sink, text } = cell(i);
      if (rgb) {
        g.globalAlpha = veil * (faded ? 0.16 : 1);
        g.fillStyle = `rgb(${rgb})`;
        g.fillRect(x, y, w, h);
      }
      g.globalAlpha = 1;
      if (small >= 6 * ratio) {
        g.strokeStyle = "rgba(255,255,255,.3)";
        g.lineWidth = 1;
        g.strokeRect(x + 0.5, y + 0.5, w, h);
      }
      if (sink && small >= 4 * ratio) for (const [shade, dash] of [["#fff", []], ["#000", [2 * ratio, 2 * ratio]]]) {
        g.strokeStyle = shade;
        g.lineWidth = ratio;
        g.setLineDash(dash);
        g.strokeRect(x + 1.5 * ratio, y + 1.5 * ratio, w - 3 * ratio, h - 3 * ratio);
        g.setLineDash([]);
      }
      if (text && w >= 36 * ratio && h >= 15 * ratio) write(g, text, x + w / 2, y + h / 2, w - 4 * ratio, ratio);
    });
  }
  function write(g, text, x, y, room, ratio) { // cut to its box, and seen on whatever is under it
    g.font = `${11 * ratio}px system-ui,sans-serif`;
    g.textAlign = "center";
    g.textBaseline = "middle";
    const letters = [...clip(text, 24)];
    while (letters.length > 1 && g.measureText(letters.join("")).width > room) letters.splice(-2, 2, "…");
    g.lineWidth = 3 * ratio;
    g.strokeStyle = "rgba(0,0,0,.8)";
    g.lineJoin = "round";
    g.strokeText(letters.join(""), x, y);
    g.fillStyle = "#fff";
    g.fillText(letters.join(""), x, y);
  }

  // The patch under the pointer; of several that lie on each other the one behind the chosen one.
  function under(event) {
    if (!own) return -1;
    const box = node.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * own.width, y = ((event.clientY - box.top) / box.height) * own.height;
    const found = own.boxes.flatMap(([l, t, r, b], i) => (x >= l && x < r && y >= t && y < b ? [i] : []));
    return found.length ? found[(found.indexOf(chosen) + 1) % found.length] : -1;
  }
  function beside(dx, dy) { // the nearest patch that way; of patches on each other the next one
    if (chosen < 0) return 0;
    const middle = ([l, t, r, b]) => [(l + r) / 2, (t + b) / 2], [x, y] = middle(own.boxes[chosen]), far = Math.abs(dx || dy) > 1;
    let best = chosen, least = Infinity;
    own.boxes.forEach((box, i) => {
      const [u, v] = middle(box), along = dx ? (u - x) * Math.sign(dx) : (v - y) * Math.sign(dy), off = Math.abs(dx ? v - y : u - x);
      if (along < 0.01 || (far && off > (box[3] - box[1]) / 2)) return;
      const cost = far ? -along : along + 4 * off;
      if (cost < least) [best, least] = [i, cost];
    });
    const alone = own.boxes.every((box) => same(box, own.boxes[0]));
    return alone ? clamp(chosen + Math.sign(dx + dy), 0, own.boxes.length - 1) : best;
  }
  node.addEventListener("keydown", (event) => {
    if (!own?.boxes.length || event.target !== node) return;
    bound(event, { ...arrows((dx, dy) => pick(beside(dx, dy))), ...(step && { PageUp: () => step(1), PageDown: () => step(-1) }) });
  });
  node.addEventListener("click", (event) => { const i = under(event); if (i >= 0 && !dragged) pick(i); node.focus({ preventScroll: true }); });
  node.addEventListener("pointerdown", () => { dragged = false; });
  node.addEventListener("pointermove", (event) => {
    const i = under(event);
    if (event.pointerType === "touch") return;
    if (i >= 0 && event.buttons & 1 && !same(own.boxes[i], own.boxes[chosen] || [])) { dragged = true; pick(i); }
    put(near, i);
    hover(i);
  });
  node.addEventListener("pointerleave", () => { put(near, -1); hover(-1); });
  img.draggable = false;
  return { node, show, paint, at, pins, near: (i) => put(near, i), get wide() { return wide; } };
}

// A part of a picture as the model's patch stands in it: what is around, and the patch in a frame.
function crop({ src, width, height }, [left, top, right, bottom], size = 56) {
  const node = make("span", "wx-crop"), frame = make("i"), side = Math.min(3 * Math.max(right - left, bottom - top), Math.max(width, height)), scale = size / side;
  const from = (a, b, whole) => (whole <= side ? (whole - side) / 2 : clamp((a + b - side) / 2, 0, whole - side)), x = from(left, right, width), y = from(top, bottom, height);
  if (safe(src)) node.style.backgroundImage = `url("${src}")`;
  Object.assign(node.style, { width: pixels(size), height: pixels(size), backgroundSize: `${pixels(width * scale)} ${pixels(height * scale)}`, backgroundPosition: `${pixels(-x * scale)} ${pixels(-y * scale)}` });
  Object.assign(frame.style, { left: pixels((left - x) * scale), top: pixels((top - y) * scale), width: pixels((right - left) * scale), height: pixels((bottom - top) * scale) });
  node.append(frame);
  return node;
}

// ------------------------------------------------------------------ the life of a widget

// Focus that a redrawn or hidden part takes with it goes to the element at the same place, or else to the grid.
function keepFocus(root) {
  let held = null, way = [];
  root.addEventListener("focusin", (event) => {
    held = event.target;
    way = [];
    for (let node = held; node !== root; node = node.parentNode) way.unshift([...node.parentNode.children].indexOf(node));
  });
  const lost = () => !root.contains(held) || held.closest("[hidden]");
  root.addEventListener("focusout", () => queueMicrotask(() => { if (held && !lost() && !root.contains(document.activeElement)) held = null; }));
  const watch = new MutationObserver(() => {
    const now = document.activeElement;
    if (!held || !lost() || (now !== held && now !== document.body)) return;
    let node = root, i = 0;
    while (i < way.length && node.children.length) node = node.children[Math.min(way[i++], node.children.length - 1)];
    const can = (other) => other.matches("[tabindex],button,select,input") && !other.closest("[hidden]");
    while (node !== root && !can(node)) node = [...node.querySelectorAll("[role=grid]"), ...node.querySelectorAll("*")].find(can) || node.previousElementSibling || node.parentNode;
    held = null;
    if (node !== root) node.focus({ preventScroll: true });
  });
  watch.observe(root, { childList: true, subtree: true, attributes: true, attributeFilter: ["hidden"] });
  return watch;
}

async function copied(text) { // to the clipboard; false where the browser does not let us
  try { await navigator.clipboard.writeText(text); return true; }
  catch { // not allowed here: the old way
    const held = document.activeElement, area = make("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    held?.focus({ preventScroll: true });
    return done;
  }
}

// build(kit) -> what a view is: take(selection) follows one that was set elsewhere; lay(width) draws at a width (never 0:
// a pane that is hidden is drawn when shown); and where it has them: leave() gives up what was chosen last, and says by
// true that there was something (the key Escape); figure() is the line of Python that draws the same, or null; pin() is
// the key p; keys, [[key, what it does], ...] of its own; arrived(content, payload) what ask() brought; close().
//   kit.payload, kit.root                what is shown, and where
//   kit.tell(selection)                  writes a choice back
//   kit.announce(text), hint(text)       to a screen reader; of what is under the mouse
//   kit.note(text)                       what is left out
//   kit.ask(question)                    of the kernel; undefined where there is none
// Lines of `style` that begin with a dot or a colon are rules within this view; & is the view itself.
const explorer = (name, style, build) => ({
  async render({ model, el }) {
    if (!globalThis.DecompressionStream) {
      el.append(make("p", "", "This browser cannot unpack what is shown here: it has no DecompressionStream. Chrome and Edge have it since version 80, Firefox since 113, Safari since 16.4."));
      return;
    }
    const payload = await unpack(model.get("packed")), own = `.wx-${name}`;
    const root = make("div", `wx wx-${name} mathjax_ignore tex2jax_ignore`), live = make("div", "wx-live");
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", payload.view);
    live.setAttribute("aria-live", "polite");
    COLOURS = payload.colours || COLOURS;
    root.append(make("style", "", css(COLOURS) + style.replace(/^(?=[.:])/gm, `${own} `).replaceAll("&", own)));

    let quiet = false, width = 0, frame = 0, timer = 0, from = null;
    const foot = make("div", "wx-foot"), note = make("span", "wx-note"), hover = make("span", "wx-hover wx-one"), done = make("span", "wx-done"), keys = make("div", "wx-keys");
    for (const node of [hover, done]) node.setAttribute("role", "status");
    const tell = (selection) => {
      quiet = true;
      model.set("selection", selection);
      model.save_changes();
      quiet = false;
      settled();
    };
    const take = (selection) => { view.take(selection); settled(); };
    const settled = () => { done.textContent = ""; figure.hidden = !view.figure?.(); };
    const kit = {
      payload, root, tell,
      announce(text) { live.textContent = clip(text, 300); },
      hint(text) { hover.textContent = text; },
      note(text) { note.textContent = text; },
      ask: model.send && ((question) => { try { model.send(question); } catch { /* no kernel: what was saved is what there is */ } }),
    };
    const view = build(kit);
    if (payload.left_out?.length) note.textContent = `Left out: ${payload.left_out.join("; ")}.`;

    // ---- below the view: what is left out, how to take it along, its keys
    const figure = button("copy as figure", "copy the line of Python that draws this", async () => {
      const text = view.figure();
      done.textContent = (await copied(text)) ? `copied: ${text}` : `not copied, the browser does not allow it: ${text}`; // not over the hint: the pointer that rests on a cell writes that
    });
    const help = button("keys", "what the keys do", () => { keys.hidden = !keys.hidden; help.ariaExpanded = String(!keys.hidden); });
    keys.hidden = true;
    help.ariaExpanded = "false";
    for (const [key, what] of [["arrows, Home, End", "move"], ["Enter", "into the detail"], ["Escape", "back, and leaves what is chosen"],
      ...(root.querySelector("input[type=search]") ? [["/", "finds"]] : []), ...(view.keys || []), ...(view.figure ? [["c", "copies as figure"]] : []), ["?", "these keys"]]) {
      const entry = make("span");
      entry.append(make("kbd", "", key), ` ${what}`);
      keys.append(entry);
    }
    foot.append(figure, help, note, done, hover, keys);
    root.append(foot, make("p", "wx-gone", "No kernel: what is chosen here is shown here only, and told to nobody."), live);

    // ---- keys that mean the same in every view
    const focusable = (node) => node && (node.querySelector("li button") || node.querySelector("button,select,[tabindex='0']") || (node.tabIndex >= 0 && node));
    const go = (node) => { node?.focus(); return !!node; };
    root.addEventListener("keydown", (event) => {
      const { target, key } = event, search = target.type === "search", writes = target.matches("select,input:not([type=range],[type=checkbox])");
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      // In a notebook plain keys are commands: d, d deletes the cell.
      if (!["Escape", "Tab"].includes(key) && !(event.shiftKey && key === "Enter")) event.stopPropagation();
      const acts = {
        Escape() {
          if (search && target.value) { target.value = ""; target.dispatchEvent(new Event("input")); }
          if (search) return go(root.querySelector("[role=grid],[role=listbox]"));
          if (from && target.closest(".wx-panel")) { const back = from; from = null; return go(back); }
          return view.leave?.();
        },
        ...(!writes && {
          Enter() {
            if (target.getAttribute("role") !== "grid") return false;
            from = target;
            return go(focusable((target.closest(".wx-pane") || root).querySelector(".wx-panel")));
          },
          "/": () => go([...root.querySelectorAll("input[type=search]")].find((node) => node.offsetParent)),
          "?"() { help.click(); return true; },
          c() { if (!figure.hidden) figure.click(); return !figure.hidden; },
          p() { view.pin?.(); return !!view.pin; },
        }),
      };
      if (!acts[key]?.()) return;
      event.preventDefault();
      event.stopPropagation();
    });

    const follow = () => { if (!quiet) take(model.get("selection") || {}); };
    const arrived = async (content, buffers) => { if (buffers?.length) view.arrived?.(content, await unpack(buffers[0])); };
    const lay = () => {
      cancelAnimationFrame(frame);
      clearTimeout(timer);
      const now = root.clientWidth;
      if (now && Math.abs(now - width) > 1) view.lay(width = now);
    };
    const gone = () => root.classList.add("gone"); // once it is drawn a widget's line to its kernel only ever breaks
    const soon = () => { cancelAnimationFrame(frame); clearTimeout(timer); frame = requestAnimationFrame(lay); timer = setTimeout(lay, 100); }; // no frames in a pane behind others
    const watch = new ResizeObserver(soon), focus = keepFocus(root);
    el.append(root);
    take(model.opens?.(payload) || model.get("selection") || payload.start);
    lay();
    watch.observe(root);
    const heard = { comm_live_update: gone, "change:selection": follow, "msg:custom": arrived };
    for (const [event, act] of Object.entries(heard)) model.on(event, act);
    return () => {
      watch.disconnect();
      focus.disconnect();
      cancelAnimationFrame(frame);
      clearTimeout(timer);
      view.close?.();
      for (const [event, act] of Object.entries(heard)) model.off(event, act);
      root.remove();
    };
  },
});
