// The lens explorer: tokens x layers of one or several readings, one cell at a time in detail.
// One module, no dependency, no network.  The notebook widget and the offline page both load this file.
//
//   model.get("payload")     what explorer.py's payload() builds; arrays are base64 of little-endian integers
//   model.get("selection")   {reading, prompt, depth, position, token, metric, pins}, written back on every choice
//
// Token texts arrive made visible (spaces as "·") and are only ever set as text, never as markup.

const VIRIDIS = [
  [68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140],
  [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37],
];
const ROW = 22, GUTTER = 46, AXIS = 26, WIDTHS = [30, 44, 58, 76, 104];
const NAMES = {
  top: "top token", logprob: "log-prob", cosine: "cosine", similarity: "similarity", entropy: "entropy",
  kl_to_final: "KL to final", target_rank: "rank of target", target_logprob: "log-prob of target",
};
const REVERSED = new Set(["entropy", "kl_to_final", "target_rank"]); // small is the strong end

const CSS = `
.lw{--bg:#fff;--ink:#1b2130;--soft:#5d6675;--line:#d9dee7;--panel:#f6f7fa;--accent:#b4235a;--bar:#2a788e;
  font:13px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans",sans-serif;
  color:var(--ink);background:var(--bg);display:grid;gap:8px;min-width:0;text-align:left}
@media (prefers-color-scheme:dark){.lw{--bg:#14171f;--ink:#e2e6ee;--soft:#9aa4b4;--line:#343b49;--panel:#1c212c;
  --accent:#ff7ba9;--bar:#35b0ab}}
body[data-jp-theme-light="true"] .lw{--bg:#fff;--ink:#1b2130;--soft:#5d6675;--line:#d9dee7;--panel:#f6f7fa;
  --accent:#b4235a;--bar:#2a788e}
body[data-jp-theme-light="false"] .lw{--bg:#14171f;--ink:#e2e6ee;--soft:#9aa4b4;--line:#343b49;--panel:#1c212c;
  --accent:#ff7ba9;--bar:#35b0ab}
.lw *{box-sizing:border-box}
.lw-tools{display:flex;flex-wrap:wrap;gap:6px 10px;align-items:center}
.lw-tools label{display:flex;gap:5px;align-items:center;color:var(--soft);min-width:0}
.lw select,.lw input,.lw button{font:inherit;color:var(--ink);background:var(--bg);border:1px solid var(--line);
  border-radius:5px;padding:3px 7px;min-height:28px;max-width:100%}
.lw select{max-width:min(280px,60vw)}
.lw input{width:120px}
.lw button{cursor:pointer}
.lw button:hover{border-color:var(--soft)}
.lw :focus-visible{outline:2px solid var(--accent);outline-offset:1px}
.lw-scale{display:flex;align-items:center;gap:6px;color:var(--soft);margin-left:auto;font-variant-numeric:tabular-nums}
.lw-ramp{width:110px;height:9px;border-radius:2px}
.lw-body{display:grid;grid-template-columns:minmax(0,1fr) 330px;gap:10px;align-items:start}
.lw-body.narrow{grid-template-columns:minmax(0,1fr)}
.lw-grid{position:relative;overflow:auto;border:1px solid var(--line);border-radius:6px;background:var(--bg);
  overscroll-behavior-x:contain;contain:strict}
.lw-space{position:relative}
.lw-cells{position:absolute;inset:0}
.lw-row{position:absolute;left:0;height:${ROW}px}
.lw-cell{position:absolute;top:0;height:${ROW - 1}px;padding:0 3px;overflow:hidden;white-space:pre;
  text-overflow:ellipsis;line-height:${ROW - 1}px;font-size:12px;text-align:center;cursor:pointer;
  border-radius:2px;unicode-bidi:isolate}
.lw-cell.on{outline:2px solid var(--accent);outline-offset:0;z-index:1;border-radius:3px}
.lw-cell.pin{box-shadow:inset 0 0 0 2px var(--accent)}
.lw-cell.hit{text-decoration:underline 2px;font-weight:700}
.lw-cell.dim{opacity:.3}
.lw-left{position:sticky;left:0;width:${GUTTER}px;z-index:3}
.lw-depth{position:absolute;left:0;width:${GUTTER}px;height:${ROW}px;line-height:${ROW}px;text-align:right;
  padding-right:8px;background:var(--bg);color:var(--soft);font-variant-numeric:tabular-nums}
.lw-axis{position:sticky;bottom:0;z-index:4;height:${AXIS}px;background:var(--panel);border-top:1px solid var(--line);min-width:100%}
.lw-in{position:absolute;top:0;height:${AXIS}px;line-height:${AXIS}px;padding:0 3px;overflow:hidden;white-space:pre;
  text-overflow:ellipsis;text-align:center;font-size:12px;font-weight:600;unicode-bidi:isolate}
.lw-in.on{color:var(--accent)}
.lw-corner{position:sticky;left:0;z-index:5;width:${GUTTER}px;height:${AXIS}px;background:var(--panel);color:var(--soft);
  font-size:11px;line-height:${AXIS}px;text-align:right;padding-right:6px}
.lw-panel{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:10px 12px;min-width:0;
  display:grid;gap:8px}
.lw-panel h3{margin:0;font-size:13px;font-weight:600;overflow-wrap:anywhere;display:flex;gap:8px;
  justify-content:space-between;align-items:start}
.lw-facts{color:var(--soft);font-variant-numeric:tabular-nums}
.lw-bars{list-style:none;margin:0;padding:0;display:grid;gap:2px}
.lw-bars button{display:grid;grid-template-columns:minmax(60px,110px) 1fr 58px;gap:8px;align-items:center;width:100%;
  border:0;background:none;padding:1px 3px;min-height:22px;text-align:left;border-radius:3px}
.lw-bars button[aria-pressed=true]{background:color-mix(in srgb,var(--accent) 16%,transparent)}
.lw-tok{overflow:hidden;white-space:pre;text-overflow:ellipsis;unicode-bidi:isolate}
.lw-track{height:9px;position:relative}
.lw-fill{position:absolute;inset:0 auto 0 0;background:var(--bar);border-radius:2px;min-width:1px}
.lw-num{text-align:right;font-variant-numeric:tabular-nums;color:var(--soft)}
.lw-said{color:var(--soft);font-size:12px;margin:0 3px 4px;overflow-wrap:anywhere}
.lw-said mark{background:color-mix(in srgb,var(--accent) 28%,transparent);color:inherit;border-radius:2px}
.lw-said small{opacity:.8;white-space:nowrap}
.lw-pins{display:flex;flex-wrap:wrap;gap:5px}
.lw-pins span{display:inline-flex;border:1px solid var(--line);border-radius:5px;overflow:hidden;max-width:100%}
.lw-pins button{border:0;border-radius:0;white-space:pre;overflow:hidden;text-overflow:ellipsis}
.lw-panel svg{width:100%;height:auto;display:block;overflow:visible}
.lw-panel svg text{fill:var(--soft);font-size:11px}
.lw-hint{color:var(--soft);font-size:12px}
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

// {t: "i16"|"i32", b: base64} as integers; {t: "q16", lo, hi, b} as numbers, 65535 = none.
function decode(packed) {
  if (!packed) return null;
  if (packed.values) return packed.values;
  const text = atob(packed.b), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  let values;
  if (packed.t === "i16") values = new Int16Array(bytes.buffer);
  else if (packed.t === "i32") values = new Int32Array(bytes.buffer);
  else {
    const steps = new Uint16Array(bytes.buffer), unit = (packed.hi - packed.lo) / 65534;
    values = new Float32Array(steps.length);
    for (let i = 0; i < steps.length; i++) values[i] = steps[i] === 65535 ? NaN : packed.lo + steps[i] * unit;
  }
  Object.defineProperty(packed, "values", { value: values });
  return values;
}

function say(x, metric) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (metric === "target_rank") return String(x);
  const text = Math.abs(x) >= 1e5 ? x.toExponential(1) : x.toFixed(Math.abs(x) < 10 ? 2 : 1);
  return Number(text) === 0 ? "0.00" : text;
}

function colour(share) {
  const at = clamp(share, 0, 1) * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), VIRIDIS.length - 2), part = at - low;
  return VIRIDIS[low].map((c, i) => Math.round(c + (VIRIDIS[low + 1][i] - c) * part));
}

// Black or white, whichever stands out more: WCAG's contrasts cross at a luminance of 0.179.
const ink = (...rgb) => rgb.reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * (c / 255) ** 2.2, 0) > 0.179 ? "#000" : "#fff";

// ------------------------------------------------------------------ one prompt of one reading

class View {
  constructor(reading, prompt) {
    this.reading = reading;
    this.prompt = reading.prompts[prompt];
    this.rows = reading.depths.length;
    this.count = this.prompt.inputs.length;
    this.k = reading.top_k;
  }
  cell(row, at) { return row * this.count + at; }
  ids(row, at) {
    const ids = decode(this.prompt.token), from = this.cell(row, at) * this.k, found = [];
    for (let r = 0; r < this.k; r++) if (ids[from + r] >= 0) found.push(ids[from + r]);
    return found;
  }
  score(row, at, rank) {
    const scores = decode(this.prompt.score);
    return scores ? scores[this.cell(row, at) * this.k + rank] : NaN;
  }
  text(id) { return id >= 0 ? this.reading.vocab[id] : ""; }
  top(row, at) { return decode(this.prompt.token)[this.cell(row, at) * this.k]; }
  rankOf(row, at, id) { return this.ids(row, at).indexOf(id); }
  value(metric, row, at, target = 0) {
    if (metric === "top" || metric === this.reading.score) return this.score(row, at, 0);
    const packed = this.prompt.grids[metric];
    if (!packed) return NaN;
    const values = decode(packed), wide = this.reading.wide.includes(metric);
    const x = values[(wide ? target * this.rows * this.count : 0) + this.cell(row, at)];
    return metric === "target_rank" && x < 0 ? NaN : x;
  }
}

// ------------------------------------------------------------------ the widget

function render({ model, el }) {
  const payload = model.get("payload") || {};
  const readings = payload.readings || [];
  const root = make("div", "lw");
  root.append(make("style", "", CSS));
  el.append(root);
  if (!readings.length) {
    root.append(make("p", "lw-hint", "There is no reading to explore."));
    return () => root.remove();
  }

  const kept = model.get("selection") || {};
  const state = {
    reading: clamp(kept.reading || 0, 0, readings.length - 1), prompt: 0, row: 0, at: 0, metric: "top", target: 0,
    token: null, pins: [], width: 2, query: "", hover: null,
  };
  let view, hits = [], frame = 0, timer = 0, quiet = false;

  // ---- tools
  const tools = make("div", "lw-tools");
  const labelled = (name, node) => {
    const label = make("label");
    label.append(name, node);
    node.setAttribute("aria-label", name);
    return label;
  };
  const pickReading = make("select"), pickPrompt = make("select"), pickMetric = make("select"), pickTarget = make("select");
  const readingLabel = labelled("reading", pickReading), promptLabel = labelled("prompt", pickPrompt);
  const targetLabel = labelled("target", pickTarget);
  const search = make("input");
  search.type = "search";
  search.placeholder = "find a token";
  search.setAttribute("aria-label", "find a token");
  const found = make("span", "lw-hint");
  found.setAttribute("role", "status");
  const smaller = make("button", "", "−"), larger = make("button", "", "+");
  smaller.setAttribute("aria-label", "narrower cells");
  larger.setAttribute("aria-label", "wider cells");
  smaller.type = larger.type = "button";
  const scale = make("div", "lw-scale"), low = make("span"), ramp = make("div", "lw-ramp"), high = make("span");
  scale.append(low, ramp, high);
  tools.append(readingLabel, promptLabel, labelled("show", pickMetric), targetLabel, search, found, smaller, larger, scale);

  // ---- grid
  const body = make("div", "lw-body"), grid = make("div", "lw-grid"), space = make("div", "lw-space");
  const cells = make("div", "lw-cells"), left = make("div", "lw-left"), axis = make("div", "lw-axis");
  const corner = make("div", "lw-corner");
  grid.tabIndex = 0;
  grid.setAttribute("role", "grid");
  grid.setAttribute("aria-label", "top tokens by layer and position; arrow keys move, P pins");
  left.setAttribute("aria-hidden", "true");
  space.append(left, cells);
  axis.append(corner);
  space.append(axis);
  grid.append(space);
  const panel = make("section", "lw-panel");
  panel.setAttribute("aria-label", "the chosen cell");
  const live = make("div", "lw-hint");
  body.append(grid, panel);
  live.setAttribute("aria-live", "polite");
  root.append(tools, body, live);

  const fill = (select, texts, values) => {
    select.replaceChildren(...texts.map((text, i) => {
      const option = make("option", "", text.length > 60 ? text.slice(0, 59) + "…" : text);
      option.value = values ? values[i] : i;
      return option;
    }));
  };
  const cw = () => WIDTHS[state.width];
  const top = (row) => (view.rows - 1 - row) * ROW; // layers rise upwards

  function metrics() {
    const r = view.reading, names = ["top"];
    if (r.score) names.push(r.score);
    return names.concat(Object.keys(view.prompt.grids).filter((n) => NAMES[n]));
  }

  function open() { // a new reading or prompt
    const r = readings[state.reading];
    state.prompt = clamp(state.prompt, 0, r.prompts.length - 1);
    view = new View(r, state.prompt);
    state.row = clamp(state.row, 0, view.rows - 1);
    state.at = clamp(state.at, 0, view.count - 1);
    state.target = clamp(state.target, 0, Math.max(r.targets.length - 1, 0));
    state.hover = null;
    const own = metrics();
    if (!own.includes(state.metric)) state.metric = "top";
    fill(pickReading, readings.map((x) => x.name));
    fill(pickPrompt, r.prompts.map((p, i) => `${i}: ${p.text}`));
    fill(pickMetric, own.map((n) => NAMES[n]), own);
    fill(pickTarget, r.targets);
    pickReading.value = state.reading;
    pickPrompt.value = state.prompt;
    pickMetric.value = state.metric;
    pickTarget.value = state.target;
    readingLabel.hidden = readings.length < 2;
    readingLabel.style.display = readings.length < 2 ? "none" : "";
    promptLabel.style.display = r.prompts.length < 2 ? "none" : "";
    targetLabel.style.display = r.targets.length < 2 ? "none" : "";
    corner.textContent = r.depth;
    grid.setAttribute("aria-rowcount", view.rows);
    grid.setAttribute("aria-colcount", view.count);
    find();
    size();
  }

  function size() {
    const rows = view.rows * ROW;
    space.style.width = `${GUTTER + view.count * cw()}px`;
    space.style.height = `${rows + AXIS}px`;
    const bar = GUTTER + view.count * cw() > grid.clientWidth ? 22 : 6; // room for the scroll bar
    grid.style.height = `${Math.min(rows + AXIS + bar, Math.max(200, Math.min(620, innerHeight * 0.68)))}px`;
    left.style.height = `${rows}px`;
    cells.style.height = `${rows}px`;
    axis.style.width = `${GUTTER + view.count * cw()}px`;
    schedule();
  }

  function schedule() {
    if (frame) return;
    const go = () => { settle(); paint(); };
    frame = requestAnimationFrame(go);
    timer = setTimeout(go, 100); // panes that are not in front get no animation frames
  }

  function settle() {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    frame = 0;
  }

  function share(metric, x) { // 0..1 on the colour map
    let [from, to] = view.reading.domain[metric === "top" ? view.reading.score : metric] || [0, 1];
    if (metric === "target_rank") [x, from, to] = [Math.log1p(x), Math.log1p(from), Math.log1p(to)];
    const part = to > from ? (x - from) / (to - from) : 1;
    return REVERSED.has(metric) ? 1 - part : part;
  }

  function paint() { // only what is in sight
    const wide = cw(), width = grid.clientWidth || 900, height = grid.clientHeight || 500;
    const from = clamp(Math.floor((grid.scrollLeft - 2 * wide) / wide), 0, view.count - 1);
    const to = clamp(Math.ceil((grid.scrollLeft + width) / wide) + 1, 0, view.count);
    const first = clamp(Math.floor(grid.scrollTop / ROW) - 2, 0, view.rows - 1);
    const last = clamp(Math.ceil((grid.scrollTop + height) / ROW) + 2, 0, view.rows);
    const rows = [], depths = [], inputs = [];
    const query = state.query, pinned = new Set(state.pins.filter(here).map((p) => `${p.row},${p.at}`));
    const marked = new Set(hits.map(([r, a]) => `${r},${a}`));
    for (let line = first; line < last; line++) {
      const row = view.rows - 1 - line, depth = make("div", "lw-depth", view.reading.depths[row]);
      depth.style.top = `${line * ROW}px`;
      depths.push(depth);
      const strip = make("div", "lw-row");
      strip.setAttribute("role", "row");
      strip.setAttribute("aria-rowindex", line + 1);
      strip.style.top = `${line * ROW}px`;
      for (let at = from; at < to; at++) {
        const x = view.value(state.metric, row, at, state.target), key = `${row},${at}`;
        const token = view.text(view.top(row, at));
        const cell = make("div", "lw-cell", state.metric === "top" ? token : say(x, state.metric));
        cell.setAttribute("role", "gridcell");
        cell.setAttribute("aria-colindex", at + 1);
        cell.style.left = `${GUTTER + at * wide}px`;
        cell.style.width = `${wide - 1}px`;
        if (!Number.isNaN(x)) {
          const [r, g, b] = colour(share(state.metric, x));
          cell.style.background = `rgb(${r},${g},${b})`;
          cell.style.color = ink(r, g, b);
        }
        if (query) cell.classList.add(marked.has(key) ? "hit" : "dim");
        if (pinned.has(key)) cell.classList.add("pin");
        if (row === state.row && at === state.at) {
          cell.classList.add("on");
          cell.setAttribute("aria-selected", "true");
        }
        cell.dataset.row = row;
        cell.dataset.at = at;
        strip.append(cell);
      }
      rows.push(strip);
    }
    for (let at = from; at < to; at++) {
      const name = make("div", "lw-in" + (at === state.at ? " on" : ""), view.prompt.inputs[at]);
      name.style.left = `${GUTTER + at * wide}px`;
      name.style.width = `${wide - 1}px`;
      name.title = `${view.prompt.inputs[at]}  #${view.prompt.positions[at]}`;
      inputs.push(name);
    }
    left.replaceChildren(...depths);
    cells.replaceChildren(...rows);
    axis.replaceChildren(corner, ...inputs);
    const [a, b] = view.reading.domain[state.metric === "top" ? view.reading.score : state.metric] || [0, 1];
    low.textContent = say(a, state.metric);
    high.textContent = say(b, state.metric);
    const stops = VIRIDIS.map((c) => `rgb(${c})`);
    if (REVERSED.has(state.metric)) stops.reverse();
    ramp.style.background = `linear-gradient(90deg,${stops})`;
    const unit = state.metric === "top" ? view.reading.score : state.metric;
    scale.title = NAMES[unit] || unit;
  }

  const here = (pin) => pin.reading === state.reading && pin.prompt === state.prompt;

  // ---- detail
  function detail() {
    const [row, at] = state.hover || [state.row, state.at], r = view.reading;
    const head = make("h3"), pin = make("button", "", state.pins.some((p) => here(p) && p.row === row && p.at === at) ? "unpin" : "pin");
    pin.type = "button";
    pin.onclick = () => togglePin(row, at);
    head.append(make("span", "", `${r.depth_label} ${r.depths[row]}, after ${view.prompt.inputs[at]} #${view.prompt.positions[at]}`), pin);
    const facts = [];
    for (const name of Object.keys(view.prompt.grids)) {
      const x = view.value(name, row, at, state.target);
      if (NAMES[name] && !Number.isNaN(x)) facts.push(`${NAMES[name]} ${say(x, name)}`);
    }
    if (r.floor && r.floor[row] !== null) facts.push(`${r.score} floor ${say(r.floor[row])}`);
    const list = make("ol", "lw-bars"), ids = view.ids(row, at), scores = ids.map((_, i) => view.score(row, at, i));
    const probability = r.score === "logprob";
    const full = probability ? 1 : Math.max(...scores.map(Math.abs), 1e-9);
    ids.forEach((id, rank) => {
      const item = make("li"), button = make("button"), track = make("span", "lw-track"), bar = make("span", "lw-fill");
      const x = scores[rank], part = probability ? Math.exp(x) : Math.abs(x) / full;
      button.type = "button";
      button.setAttribute("aria-pressed", String(id === state.token));
      button.setAttribute("aria-label", `follow ${view.text(id)}, ${NAMES[r.score] || "score"} ${say(x)}`);
      bar.style.width = `${(100 * clamp(part || 0, 0, 1)).toFixed(1)}%`;
      track.append(bar);
      button.append(make("span", "lw-tok", view.text(id)), track, make("span", "lw-num", say(x)));
      button.onclick = () => { state.token = state.token === id ? null : id; detail(); tell(); };
      item.append(button);
      const said = view.prompt.said;
      if (said) {
        const where = view.cell(row, at) * view.k + rank, line = make("p", "lw-said");
        const [before, word, after] = said.texts[decode(said.at)[where]];
        const layer = said.layer ? decode(said.layer)[where] : -1;
        line.append(before, make("mark", "", word), after);
        if (layer >= 0) line.append(make("small", "", ` layer ${layer}`));
        item.append(line);
      }
      list.append(item);
    });
    const parts = [head];
    if (facts.length) parts.push(make("div", "lw-facts", facts.join(" · ")));
    parts.push(list, trajectory(row, at, ids));
    if (state.pins.length) parts.push(pins());
    panel.replaceChildren(...parts);
  }

  // The chosen token's score over depth at this position; without a choice, the target's with its null.
  function trajectory(row, at, ids) {
    const r = view.reading, lines = [];
    let title;
    const along = (name) => r.depths.map((_, d) => view.value(name, d, at, state.target));
    if (state.token === null && view.prompt.grids.target_logprob) {
      lines.push({ y: along("target_logprob") });
      if (view.prompt.grids.target_logprob_null) lines.push({ y: along("target_logprob_null"), dash: "3 3" });
      const target = r.targets[state.target] ?? view.text((view.prompt.target || [])[at] ?? -1);
      title = `log-prob of target ${target}${lines.length > 1 ? ", null dotted" : ""}`;
    } else {
      const id = state.token ?? ids[0];
      if (id === undefined) return make("div");
      lines.push({ y: r.depths.map((_, d) => { const k = view.rankOf(d, at, id); return k < 0 ? NaN : view.score(d, at, k); }) });
      title = `${NAMES[r.score] || "score"} of ${view.text(id)} (where in the top ${view.k}${view.k < r.ranks ? ` of ${r.ranks} kept` : ""})`;
    }
    const W = 300, H = 120, L = 38, B = 20, T = 8, all = lines.flatMap((l) => l.y).filter((y) => !Number.isNaN(y));
    const box = make("div"), svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
    box.append(make("div", "lw-facts", title), svg);
    if (!all.length) return box;
    let from = Math.min(...all), to = Math.max(...all);
    if (to - from < 1e-6) [from, to] = [from - 0.5, to + 0.5];
    const n = Math.max(view.rows - 1, 1);
    const X = (d) => L + (d / n) * (W - L - 6), Y = (y) => T + ((to - y) / (to - from)) * (H - T - B);
    svg.append(draw("path", { d: `M${L},${T}V${H - B}H${W - 4}`, fill: "none", stroke: "var(--line)" }));
    svg.append(draw("path", { d: `M${X(row)},${T}V${H - B}`, stroke: "var(--accent)", "stroke-width": 1, opacity: 0.6 }));
    for (const [y, text] of [[to, say(to)], [from, say(from)]])
      svg.append(draw("text", { x: L - 5, y: Y(y) + 4, "text-anchor": "end" }, text));
    for (const d of new Set([0, view.rows - 1]))
      svg.append(draw("text", { x: X(d), y: H - 5, "text-anchor": d ? "end" : "start" }, `${d ? "" : r.depth + " "}${r.depths[d]}`));
    for (const { y, dash } of lines) {
      let path = "", pen = false;
      y.forEach((v, d) => {
        if (Number.isNaN(v)) { pen = false; return; }
        path += `${pen ? "L" : "M"}${X(d).toFixed(1)},${Y(v).toFixed(1)}`;
        pen = true;
        if (!dash) svg.append(draw("circle", { cx: X(d), cy: Y(v), r: view.rows > 40 ? 1.4 : 2.2, fill: "var(--bar)" }));
      });
      svg.append(draw("path", { d: path, fill: "none", stroke: "var(--bar)", "stroke-width": 1.6, ...(dash && { "stroke-dasharray": dash, opacity: 0.75 }) }));
    }
    return box;
  }

  function pins() {
    const box = make("div", "lw-pins");
    box.setAttribute("aria-label", "pinned cells");
    state.pins.forEach((pin, i) => {
      const other = new View(readings[pin.reading], pin.prompt), chip = make("span");
      const where = readings.length > 1 ? `${readings[pin.reading].name} ` : "";
      const go = make("button", "", `${where}${other.reading.depth[0].toUpperCase()}${other.reading.depths[pin.row]} ${other.prompt.inputs[pin.at]} → ${other.text(other.top(pin.row, pin.at))}`);
      const drop = make("button", "", "×");
      go.type = drop.type = "button";
      drop.setAttribute("aria-label", "unpin");
      go.onclick = () => { Object.assign(state, { reading: pin.reading, prompt: pin.prompt }); open(); choose(pin.row, pin.at); };
      drop.onclick = () => { state.pins.splice(i, 1); schedule(); detail(); tell(); };
      chip.append(go, drop);
      box.append(chip);
    });
    return box;
  }

  function togglePin(row, at) {
    const i = state.pins.findIndex((p) => here(p) && p.row === row && p.at === at);
    if (i >= 0) state.pins.splice(i, 1);
    else state.pins.push({ reading: state.reading, prompt: state.prompt, row, at });
    schedule();
    detail();
    tell();
  }

  // ---- choosing and finding
  function choose(row, at, silent) {
    state.row = clamp(row, 0, view.rows - 1);
    state.at = clamp(at, 0, view.count - 1);
    state.hover = null;
    const x = GUTTER + state.at * cw(), y = top(state.row);
    if (x - GUTTER < grid.scrollLeft) grid.scrollLeft = x - GUTTER;
    else if (x + cw() > grid.scrollLeft + grid.clientWidth) grid.scrollLeft = x + cw() - grid.clientWidth;
    if (y < grid.scrollTop) grid.scrollTop = y;
    else if (y + ROW + AXIS > grid.scrollTop + grid.clientHeight) grid.scrollTop = y + ROW + AXIS - grid.clientHeight;
    live.textContent = `${view.reading.depth} ${view.reading.depths[state.row]}, position ${view.prompt.positions[state.at]}: ${view.text(view.top(state.row, state.at))}`;
    schedule();
    detail();
    if (!silent) tell();
  }

  function find() {
    const wanted = state.query.toLowerCase().replaceAll(" ", "·");
    hits = [];
    if (wanted) {
      const match = view.reading.vocab.map((t) => t.toLowerCase().includes(wanted));
      for (let row = view.rows - 1; row >= 0; row--)
        for (let at = 0; at < view.count; at++) if (match[view.top(row, at)]) hits.push([row, at]);
    }
    found.textContent = wanted ? `${hits.length} cell${hits.length === 1 ? "" : "s"}` : "";
  }

  function tell() {
    const ids = view.ids(state.row, state.at), chosen = state.token ?? ids[0];
    quiet = true;
    model.set("selection", {
      reading: state.reading, prompt: state.prompt, depth: view.reading.depths[state.row],
      position: view.prompt.columns[state.at], token: chosen === undefined ? null : view.reading.vocab_id[chosen],
      metric: state.metric,
      pins: state.pins.map((p) => ({
        reading: p.reading, prompt: p.prompt, depth: readings[p.reading].depths[p.row],
        position: readings[p.reading].prompts[p.prompt].columns[p.at],
      })),
    });
    model.save_changes();
    quiet = false;
  }

  function take() { // a selection set from Python
    if (quiet) return;
    const s = model.get("selection") || {};
    const changed = (s.reading ?? state.reading) !== state.reading || (s.prompt ?? state.prompt) !== state.prompt;
    state.reading = clamp(s.reading ?? state.reading, 0, readings.length - 1);
    state.prompt = s.prompt ?? state.prompt;
    if (s.metric) state.metric = s.metric;
    if (changed || s.metric) open();
    const row = view.reading.depths.indexOf(s.depth), at = view.prompt.columns.indexOf(s.position);
    if (Array.isArray(s.pins))
      state.pins = s.pins.flatMap((p) => {
        const r = readings[p.reading], q = r && r.prompts[p.prompt];
        const pin = q && { reading: p.reading, prompt: p.prompt, row: r.depths.indexOf(p.depth), at: q.columns.indexOf(p.position) };
        return pin && pin.row >= 0 && pin.at >= 0 ? [pin] : [];
      });
    choose(row < 0 ? state.row : row, at < 0 ? state.at : at, true);
  }

  // ---- events
  const target = (event) => {
    const cell = event.target.closest(".lw-cell");
    return cell && [Number(cell.dataset.row), Number(cell.dataset.at)];
  };
  grid.addEventListener("scroll", schedule, { passive: true });
  grid.addEventListener("click", (event) => { const at = target(event); if (at) { state.token = null; choose(...at); } });
  grid.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const at = target(event);
    if (at && (!state.hover || state.hover[0] !== at[0] || state.hover[1] !== at[1])) { state.hover = at; detail(); }
  });
  grid.addEventListener("pointerleave", () => { if (state.hover) { state.hover = null; detail(); } });
  grid.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(grid.clientWidth / cw()) - 2);
    const moves = {
      ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e9], End: [0, 1e9],
      PageUp: [0, -page], PageDown: [0, page],
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key]) choose(state.row + moves[event.key][0], state.at + moves[event.key][1]);
    else if (event.key === "p" || event.key === "P") togglePin(state.row, state.at);
    else if (event.key === "/") search.focus();
    else return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has its own meanings for these keys
  });
  pickReading.onchange = () => { state.reading = Number(pickReading.value); state.token = null; open(); choose(state.row, state.at); };
  pickPrompt.onchange = () => { state.prompt = Number(pickPrompt.value); state.token = null; grid.scrollLeft = 0; open(); choose(state.row, state.at); };
  pickMetric.onchange = () => { state.metric = pickMetric.value; schedule(); tell(); };
  pickTarget.onchange = () => { state.target = Number(pickTarget.value); state.token = null; schedule(); detail(); };
  search.oninput = () => { state.query = search.value; find(); schedule(); };
  search.onkeydown = (event) => {
    event.stopPropagation();
    if (event.key !== "Enter" || !hits.length) return;
    const now = hits.findIndex(([r, a]) => r === state.row && a === state.at);
    choose(...hits[(now + (event.shiftKey ? -1 : 1) + hits.length) % hits.length]);
    found.textContent = `${hits.findIndex(([r, a]) => r === state.row && a === state.at) + 1} of ${hits.length}`;
  };
  const zoom = (step) => { state.width = clamp(state.width + step, 0, WIDTHS.length - 1); size(); choose(state.row, state.at, true); };
  smaller.onclick = () => zoom(-1);
  larger.onclick = () => zoom(1);

  const lay = () => { body.classList.toggle("narrow", root.clientWidth < 760); size(); };
  const watch = typeof ResizeObserver === "undefined" ? null : new ResizeObserver(lay);
  if (watch) watch.observe(root);
  model.on("change:selection", take);

  state.prompt = kept.prompt || 0;
  state.row = readings[state.reading].depths.length - 1;
  const longest = readings[state.reading].prompts[clamp(state.prompt, 0, readings[state.reading].prompts.length - 1)];
  state.at = longest.inputs.length - 1;
  open();
  state.metric = metrics().includes(kept.metric) ? kept.metric : "top";
  lay();
  take();
  paint();

  return () => {
    if (watch) watch.disconnect();
    settle();
    model.off("change:selection", take);
    root.remove();
  };
}

export default { render };
