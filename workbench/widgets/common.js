// What the explorers share: nodes, numbers, colours, one heat map, and the life of a widget.  An explorer's own text is
// put behind this one, and both are one module: no dependency, no network.
//
//   model.get("payload")     what base.py's View.payload builds
//   model.get("selection")   where the reader is, written back on every choice; may be set at any time
//
// Texts from the data arrive made visible and are only ever set as text, never as markup.

// The payload's "colours" are the table of workbench/figures/colours.py: hues, and scales ("sequential", "diverging", ...).
let COLOURS = { hues: [], dark: [], scales: {} };
const hues = (list) => list.map((hue, i) => `;--h${i}:${hue}`).join("");
const css = ({ hues: light, dark, floor }, LIGHT = `--bg:#fff;--ink:#1b2130;--soft:#5d6675;--line:#d9dee7;--panel:#f6f7fa;
  --accent:#b4235a;--zero:#e9edf2;--deep:45%;--floor:var(--h${floor})${hues(light)}`, DARK = `--bg:#14171f;--ink:#e2e6ee;
  --soft:#9aa4b4;--line:#343b49;--panel:#1c212c;--accent:#ff7ba9;--zero:#262d3a;--deep:30%;--floor:var(--h${floor})${hues(dark)}`) => `
.wx{${LIGHT};font:13px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans",sans-serif;
  color:var(--ink);background:var(--bg);display:grid;grid-template-columns:minmax(0,1fr);gap:10px;min-width:0;
  text-align:left;padding:2px;position:relative}
@media (prefers-color-scheme:dark){.wx{${DARK}}}
body[data-jp-theme-light="true"] .wx,body[data-vscode-theme-kind*="light"] .wx,html[theme="light"] .wx{${LIGHT}}
body[data-jp-theme-light="false"] .wx,body[data-vscode-theme-kind*="dark"] .wx,html[theme="dark"] .wx{${DARK}}
body[data-jp-theme-light] .wx{--bg:var(--jp-layout-color0);--ink:var(--jp-content-font-color1);
  --soft:var(--jp-content-font-color2);--line:var(--jp-border-color2);--panel:var(--jp-layout-color1)}
.wx *{box-sizing:border-box}
.wx [hidden]{display:none!important}
.wx-tools{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center;min-width:0}
.wx-tools label{display:flex;gap:5px;align-items:center;color:var(--soft);min-width:0}
.wx select,.wx input,.wx button{font:inherit;color:var(--ink);background:var(--bg);border:1px solid var(--line);
  border-radius:5px;padding:3px 7px;min-height:28px;max-width:100%;min-width:0;margin:0}
.wx select{max-width:min(280px,60vw);text-overflow:ellipsis}
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
.wx-facts{font-variant-numeric:tabular-nums}
.wx-gone{display:none;color:var(--soft);font-size:12px}
.wx.gone .wx-gone,.jupyter-widgets-disconnected .wx-gone{display:block} /* the class: opened without a kernel */
.wx-live{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);bottom:0}
.wx-text{unicode-bidi:isolate;white-space:pre-wrap;overflow-wrap:anywhere}
.wx-one{unicode-bidi:isolate;white-space:pre;overflow:hidden;text-overflow:ellipsis;min-width:0}
.wx-columns{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,var(--least,320px)),1fr));align-items:start}
.wx-columns>*{min-width:0}
.wx-heat{display:grid;grid-template-columns:fit-content(42%) minmax(0,1fr);column-gap:6px;font-size:11px;color:var(--soft)}
.wx-heat-rows{min-width:0;text-align:right;font-variant-numeric:tabular-nums;padding-top:2px}
.wx-heat-in{overflow-x:auto;overflow-y:hidden;padding:2px 2px 0}
.wx-heat svg{display:block;cursor:pointer;touch-action:pan-y}
.wx-heat-names{position:relative;height:18px;font-variant-numeric:tabular-nums}
.wx-heat-names>div{position:absolute;top:2px;transform:translateX(-50%);max-width:90px;line-height:1.2}
.wx-heat-title{grid-column:2;padding-left:2px}
.wx-scale{display:inline-flex;align-items:center;gap:6px;color:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.wx-ramp{width:90px;height:9px;border-radius:2px;border:1px solid var(--line)}
.wx-bar{height:9px;position:relative;background:var(--zero);border-radius:2px;min-width:20px}
.wx-bar>i{position:absolute;inset:0 auto 0 0;background:var(--h0);border-radius:2px;min-width:1px}
.wx-bar>b{position:absolute;top:-2px;bottom:-2px;width:2px;background:var(--ink);opacity:.7}
.wx-bar>b.floor{background:var(--floor);opacity:1}
.wx-num{text-align:right;font-variant-numeric:tabular-nums;color:var(--soft)}
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
const clip = (text, n) => { const letters = [...text.slice(0, 2 * n)]; return text.length > n && letters.length >= n ? letters.slice(0, n - 1).join("") + "…" : text; };
const say = (x, digits = 2) => (x === null || x === undefined || Number.isNaN(x) ? "–" : Number(x.toFixed(digits)) === 0 ? (0).toFixed(digits) : x.toFixed(digits));
function tail(text, n) { // the end of a text, from a word on
  const letters = [...text];
  if (letters.length <= n) return text;
  const end = letters.slice(1 - n).join(""), word = letters[letters.length - n] === " " ? 0 : end.indexOf(" ") + 1;
  return `…${end.slice(word && word < end.length ? word : 0)}`;
}
const share = (x) => (Number.isNaN(x) ? "–" : `${(100 * x).toFixed(x < 0.1 ? 1 : 0)} %`);
const fresh = (name) => `wx-${name}-${Math.random().toString(36).slice(2, 9)}`; // several widgets share a page

// {t: "u8" | "u16" | "i32", b: base64}: integers; {t: "d8" | "d16", base, digits, b}: decimals.  The highest step of an
// unsigned type is "none": -1 and NaN.
function decode(packed) {
  if (packed.values) return packed.values;
  const text = atob(packed.b), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const steps = packed.t === "i32" ? new Int32Array(bytes.buffer) : packed.t.endsWith("16") ? new Uint16Array(bytes.buffer) : bytes;
  const none = packed.t.endsWith("16") ? 65535 : 255, unit = 10 ** (packed.digits || 0);
  let values = steps;
  if (packed.t[0] === "d") values = Float64Array.from(steps, (s) => (s === none ? NaN : (packed.base + s) / unit));
  else if (packed.t !== "i32") values = Int32Array.from(steps, (s) => (s === none ? -1 : s));
  Object.defineProperty(packed, "values", { value: values });
  return values;
}

const part = (x) => (100 * clamp(x, 0, 1)).toFixed(1);
const stops = (scale) => COLOURS.scales[scale];
const CHANNELS = {}; // of colours that were asked for
const channels = (hex) => (CHANNELS[hex] ||= [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));

// The colour at a share of a scale: 0 to 1, or -1 to 1 about zero ("diverging").
function tint(scale, x) {
  if (Number.isNaN(x)) return "transparent";
  const list = stops(scale), at = clamp(scale === "diverging" ? (x + 1) / 2 : x, 0, 1) * (list.length - 1), low = Math.min(Math.floor(at), list.length - 2);
  const [a, b] = [list[low], list[low + 1]].map(channels);
  return `rgb(${a.map((c, i) => Math.round(c + (b[i] - c) * (at - low)))})`;
}

function inkOn(colour) { // black or white, whichever stands out more from it
  const rgb = colour.match(/\d+/g);
  return rgb ? (rgb.reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * (c / 255) ** 2.2, 0) > 0.179 ? "#000" : "#fff") : "var(--ink)";
}

function scale(of, low, high, name = "") {
  const node = make("span", "wx-scale"), bar = make("span", "wx-ramp");
  bar.style.background = `linear-gradient(90deg,${stops(of)})`;
  node.append(make("span", "", name), make("span", "", low), bar, make("span", "", high));
  return node;
}

function bar(value, full, mark) {
  const node = make("div", "wx-bar"), own = make("i");
  own.style.width = `${part(value / full || 0)}%`;
  node.append(own);
  if (mark !== undefined && !Number.isNaN(mark)) {
    const tick = make("b");
    tick.style.left = `calc(${part(mark / full)}% - 1px)`;
    node.append(tick);
  }
  return node;
}

function button(text, name, onclick) {
  const node = make("button", "", text);
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
  const fill = (texts) => select.replaceChildren(...texts.map((text) => make("option", "", clip(String(text), 70))));
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

function bound(event, moves) { // run the move that a key stands for; the notebook has its own meanings for these keys
  if (event.ctrlKey || event.metaKey || event.altKey || !moves[event.key]) return;
  event.preventDefault();
  event.stopPropagation();
  moves[event.key](event);
}

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
    if (node)
      bound(event, {
        ArrowLeft: () => go(beside(node, -1)), ArrowRight: () => go(beside(node, 1)), ArrowUp: () => go(line(node, -1)),
        ArrowDown: () => go(line(node, 1)), Home: () => go(beside(node, -1e9)), End: () => go(beside(node, 1e9)),
        Enter: () => enter(node), " ": () => enter(node),
      });
  });
  host.addEventListener("click", (event) => { const node = event.target.closest(selector); if (!node || !host.contains(node)) return;
    if (leave && node.classList.contains("on")) leave(node);
    else go(node);
  });
}

// ------------------------------------------------------------------ one heat map

// Rows x columns of colours with one tab stop: arrow keys, a click or a drag choose a cell.
//   heat.fill({rows, columns, cell, row, column, wide})   names; cell(r, c) -> {fill, mark: "hatch" | "dot", title};
//                                                         places: numbers of columns whose names are tokens
//   heat.at(r, c)                                         the cell that is chosen; -1: all of its row, or column
//   heat.trace([[r, c, weight], ...])                     rings on cells, and a line through the first of each row
function heatmap(label, { pick, hover = () => {}, drag = null, keys = {} }) {
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
    names.replaceChildren(...own.rows.map((name) => {
      const text = make("div", "wx-one", name);
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
    const by = (dr, dc) => () => pick(clamp(chosen[0] + dr, 0, own.rows.length - 1), clamp(chosen[1] + dc, 0, own.columns.length - 1));
    if (own)
      bound(event, {
        ArrowUp: by(-1, 0), ArrowDown: by(1, 0), ArrowLeft: by(0, -1), ArrowRight: by(0, 1), Home: by(0, -1e9), End: by(0, 1e9),
        PageUp: by(-1e9, 0), PageDown: by(1e9, 0), ...keys,
      });
  });
  return { node, svg, fill, at, trace };
}

// ------------------------------------------------------------------ the life of a widget

// Focus that a redrawn or hidden part takes with it goes to the element at the same place.
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
    while (node !== root && !can(node)) node = [...node.querySelectorAll("*")].find(can) || node.previousElementSibling || node.parentNode;
    held = null;
    if (node !== root) node.focus({ preventScroll: true });
  });
  watch.observe(root, { childList: true, subtree: true, attributes: true, attributeFilter: ["hidden"] });
  return watch;
}

// build({payload, root, tell, announce}) -> {take(selection), lay(width), leave(), close()}: `tell(selection)` writes a
// choice back, `take` follows one that was set elsewhere, `lay` draws at a width (never 0: a pane that is hidden is drawn
// when shown), `leave` gives up what was chosen last, and says by true that there was something (the key Escape).
const explorer = (name, style, build) => ({
  render({ model, el }) {
    const root = make("div", `wx wx-${name} mathjax_ignore tex2jax_ignore`), live = make("div", "wx-live");
    live.setAttribute("aria-live", "polite");
    root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.target.type === "search" || !view.leave || !view.leave()) return;
      event.preventDefault();
      event.stopPropagation();
    });
    root.addEventListener("keydown", (event) => { // in a notebook plain keys are commands: d, d deletes the cell
      if (!event.ctrlKey && !event.metaKey && !event.altKey && !["Escape", "Tab"].includes(event.key) && !(event.shiftKey && event.key === "Enter"))
        event.stopPropagation();
    });
    let view = null, quiet = false, width = 0, frame = 0, timer = 0;
    const tell = (selection) => {
      quiet = true;
      model.set("selection", selection);
      model.save_changes();
      quiet = false;
    };
    const announce = (text) => { live.textContent = clip(text, 300); };
    const open = () => {
      const payload = model.get("payload") || {};
      if (view && view.close) view.close();
      COLOURS = payload.colours || COLOURS;
      root.replaceChildren(make("style", "", css(COLOURS) + style));
      view = build({ payload, root, tell, announce });
      if ((payload.left_out || []).length) root.append(make("p", "wx-hint wx-left-out", `Left out: ${payload.left_out.join("; ")}.`));
      root.append(make("p", "wx-gone", "No kernel: what is chosen here is shown here only, and told to nobody."), live);
      view.take(model.get("selection") || payload.start);
      if (width) view.lay(width);
    };
    const take = () => { if (!quiet) view.take(model.get("selection") || {}); };
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
    open();
    lay();
    watch.observe(root);
    model.on("comm_live_update", gone);
    model.on("change:payload", open);
    model.on("change:selection", take);
    return () => {
      watch.disconnect();
      focus.disconnect();
      cancelAnimationFrame(frame);
      clearTimeout(timer);
      if (view.close) view.close();
      model.off("comm_live_update", gone);
      model.off("change:payload", open);
      model.off("change:selection", take);
      root.remove();
    };
  },
});
