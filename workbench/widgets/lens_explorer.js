// The lens explorer: tokens x layers of one or several readings side by side, one cell at a time in detail; of prompts
// with pictures the picture, too, a colour on each patch, at one layer large and at all of them small.
//
// What was not sent whole is asked for: ask([reading, prompt]); the answer is {block: [reading, prompt]} with the prompt.

const ROW = 22, AXIS = 26, WIDTHS = [30, 44, 58, 76, 104, 150], MOST_PANES = 4, ROOM = 400; // ROOM: the least pixels for a pane
const STYLE = `
.wx-panes{display:grid;gap:12px;grid-template-columns:minmax(0,1fr);align-items:start}
.wx-pane{display:grid;gap:6px;grid-template-columns:minmax(0,1fr);min-width:0;position:relative}
.wx-pane.wide{grid-template-columns:minmax(0,1fr) 340px;column-gap:10px}
.wx-pane.wide>.wx-head{grid-column:1/-1}
.wx-pane.wide>.wx-panel{grid-template-columns:minmax(0,1fr)}
.wx-head{min-height:30px;align-content:start}
.wx-title{font-weight:600;font-size:14px;color:var(--ink)}
&.several .wx-pane:not(.wide){grid-row:span 3;grid-template-rows:subgrid;row-gap:6px}
&.several .wx-pane{border:1px solid var(--line);border-radius:8px;padding:8px}
&.several .wx-pane.in{border-color:var(--soft)}
&.several .wx-pane:not(.first) .wx-scale{display:none}
&.several .wx-head{padding-right:34px}
&.several .wx-close{position:absolute;top:8px;right:8px}
&.stacked .wx-pane{display:contents}
&.stacked .wx-pane.in>.wx-grid{border-color:var(--soft)}
&.stacked .wx-pane:not(.in)>.wx-panel{display:none}
&.stacked .wx-panel{order:1}
&.stacked .wx-panel h3>span::before{content:attr(data-of) " · "}
&.stacked .wx-head{position:relative;margin-bottom:-6px}
&.stacked .wx-close{top:0;right:0}
&.stacked .wx-pane.alike .wx-prompt{display:none}
.wx-grid{position:relative;overflow:auto;border:1px solid var(--line);border-radius:6px;background:var(--bg);
  overscroll-behavior:contain;contain:strict;align-self:start}
.wx-space{position:relative;min-width:100%;display:flex;flex-direction:column;justify-content:flex-end}
.wx-row{position:absolute;left:0;width:100%;height:${ROW}px}
.wx-grid :is(.wx-cell,.wx-in,.wx-depth){overflow:hidden;white-space:pre;text-overflow:ellipsis;unicode-bidi:isolate;direction:ltr;cursor:pointer}
.wx-grid :is(.wx-cell,.wx-in){position:absolute;top:0;width:calc(var(--cw) - 1px);padding:0 3px;font-size:12px;text-align:center}
.wx-cell{height:${ROW - 1}px;line-height:${ROW - 1}px;border-radius:2px;contain:strict;forced-color-adjust:none}
.wx-cell.on{outline:2px solid var(--accent);outline-offset:-2px;box-shadow:inset 0 0 0 3px var(--bg)}
.wx-cell.pin{border:2px dashed currentColor;line-height:${ROW - 5}px;padding:0 1px}
.wx-cell.hit{text-decoration:underline 2px;font-weight:700}
.wx-cell.near{text-decoration:underline 1px dotted}
.wx-cell.dim{opacity:.28}
.wx-cell.sink:not(.on){outline:1px dotted;outline-offset:-2px}
.wx-depth{position:sticky;left:0;z-index:3;width:var(--gutter);height:${ROW}px;line-height:${ROW}px;text-align:right;
  padding-right:8px;background:var(--bg);color:var(--soft)}
.wx-depth.on{color:var(--accent);font-weight:600}
.wx-axis{position:sticky;bottom:0;z-index:4;height:${AXIS}px;background:var(--panel);border-top:1px solid var(--line);
  min-width:100%}
.wx-in{height:${AXIS - 1}px;line-height:${AXIS - 1}px;font-weight:600}
.wx-in.on{color:var(--accent)}
.wx-corner{position:sticky;left:0;z-index:5;width:var(--gutter);height:${AXIS - 1}px;background:var(--panel);
  color:var(--soft);font-size:11px;line-height:${AXIS - 1}px;text-align:right;padding-right:6px}
.wx-panel{display:grid;gap:8px 18px;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));align-content:start;
  overflow:auto;max-height:max(var(--tall,0px),560px,86vh)}
:is(.wx-panel>h3,.wx-panel>.wx-facts,.wx-card h3){grid-column:1/-1}
.wx-pane h3{margin:0}
:is(.wx-pane,.wx-card) h3{display:flex;gap:8px;justify-content:space-between;align-items:start;margin:0}
:is(.wx-pane,.wx-card) h3{flex-wrap:wrap}
:is(.wx-pane,.wx-card) h3>:is(span:not(.wx-crop),.wx-go){flex:1 1 120px;min-width:0}
:is(.wx-pane,.wx-card) h3>button:not(.wx-go){flex:none;white-space:nowrap;font-weight:400;min-height:24px;padding:0 7px}
.wx-bars{list-style:none;margin:0;padding:0;display:grid;gap:2px;align-content:start;min-width:0}
.wx-bars button{display:grid;grid-template-columns:minmax(80px,2fr) 3fr 58px;gap:8px;align-items:center;width:100%;
  border:1px solid transparent;background:none;padding:0 3px;min-height:23px;text-align:left;border-radius:4px}
.wx-bars button[aria-pressed=true]{background:color-mix(in srgb,var(--accent) 14%,transparent);border-color:transparent}
.wx-said{color:var(--soft);font-size:12px;margin:0 4px 5px;overflow-wrap:anywhere;unicode-bidi:plaintext}
.wx-said mark{color:var(--ink);text-decoration:underline}
.wx-pins{display:grid;gap:8px;grid-template-columns:repeat(auto-fill,minmax(min(100%,230px),1fr))}
.wx-card{border:1px solid var(--line);border-radius:6px;padding:8px 10px;background:var(--panel);min-width:0;
  display:grid;gap:4px;align-content:start}
.wx-card h3 button{border:0;background:none;padding:0 2px;min-height:22px}
.wx-card .wx-go{text-align:left;font-weight:600;overflow-wrap:anywhere}
.wx-in.patch{color:var(--soft);font-weight:400;box-shadow:inset 0 2px var(--h0)}
.wx-look{display:grid;gap:6px;grid-template-columns:minmax(0,1fr);align-content:start;min-width:0}
.wx-under{display:flex;flex-wrap:wrap;gap:4px 12px;align-items:center}
.wx-thumbs{display:flex;gap:6px;flex-wrap:wrap}
.wx-thumbs button{padding:2px;min-height:0;line-height:0}
.wx-thumbs i{display:none}
.wx-strip{display:flex;gap:5px;overflow-x:auto;padding:3px 3px 6px;min-width:0;scrollbar-width:thin}
.wx-strip button{flex:none;padding:2px 2px 0;min-height:0;border-color:transparent;color:var(--soft);font-size:11px;line-height:1.4;display:grid;justify-items:center}
.wx-strip canvas{display:block;background:var(--zero);border-radius:2px;image-rendering:pixelated}
.wx-strip button.on{border-color:var(--accent);color:var(--accent);font-weight:600}
.wx-pane.pictured>.wx-grid{order:1}
.wx-pane.pictured .wx-head .wx-scale{display:none}
.wx-under .wx-scale{display:inline-flex!important}
.wx-pane.pictured.wide{grid-template-columns:minmax(280px,470px) minmax(0,1fr)}
.wx-pane.pictured.wide>.wx-head{grid-row:1}
.wx-pane.pictured.wide>.wx-look{grid-row:2}
.wx-pane.pictured.wide>.wx-panel{grid-area:2/2;max-height:none;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr))}
.wx-pane.pictured.wide>:is(.wx-strip,.wx-grid){grid-column:1/-1}
&.several.seen:not(.stacked) .wx-pane:not(.wide){grid-row:span 5}
&.several.seen:not(.stacked) .wx-pane:not(.wide)>.wx-head{grid-row:1}
&.several.seen:not(.stacked) .wx-pane:not(.wide)>.wx-look{grid-row:2}
&.several.seen:not(.stacked) .wx-pane:not(.wide)>.wx-strip{grid-row:3}
&.several.seen:not(.stacked) .wx-pane:not(.wide)>.wx-panel{grid-row:4;max-height:none}
&.several.seen:not(.stacked) .wx-pane:not(.wide)>.wx-grid{grid-row:5}
&.stacked.seen .wx-pane:not(.in)>:is(.wx-look,.wx-strip){display:none}
&.stacked.seen .wx-panel{display:grid!important;max-height:none}
&.stacked.seen .wx-pane.in>.wx-head{order:-4;margin-bottom:0}
&.stacked.seen .wx-look{order:-3}
&.stacked.seen .wx-strip{order:-2}
&.stacked.seen .wx-panel{order:-1}
&.stacked.seen .wx-pane.pictured>.wx-grid{order:0}
&:not(.stacked.seen) .wx-over,&.stacked .wx-pane.in .wx-over{display:none}
.wx-said small{font-weight:400;font-size:11px;color:var(--ink);border:1px solid var(--line);border-radius:9px;padding:0 6px;margin-left:6px;white-space:nowrap;background:var(--bg)}
.wx-panel svg{width:100%;max-width:360px;height:auto;display:block;overflow:visible;cursor:pointer}
.wx-panel svg text{fill:var(--soft);font-size:11px}
`;
// The whole word that a marked piece of a sentence is in.
const whole = ([before, piece, after]) => (/[\p{L}\p{N}]*$/u.exec(before)[0] + piece + /^[\p{L}\p{N}]*/u.exec(after)[0]);
const named = ({ name, units }) => name + (units && ` (${units})`); // of a variable

// -------- which part of which picture a position shows

// frames: the grids of all pictures of a prompt, {image, tile, picture, at: positions, boxes, row, column, rows, columns};
// frame, slot: of each position its grid and its place in it, -1 for none; image: the picture, -1 for a text
function layout(seen, pictures) {
  const [kind, image, tile, row, column, sides] = ["kind", "image", "tile", "row", "column", "box"].map((name) => decode(seen[name]));
  const n = kind.length, frames = [], known = new Map(), frame = new Int32Array(n).fill(-1), slot = new Int32Array(n).fill(-1);
  for (let at = 0; at < n; at++) {
    const box = [0, 1, 2, 3].map((side) => sides[side * n + at]), key = `${image[at]},${tile[at]}`, picture = pictures[seen.pictures[image[at]]];
    if (kind[at] !== 1 || box.some(Number.isNaN) || !picture) continue;
    if (!known.has(key)) known.set(key, frames.push({ image: image[at], tile: tile[at], picture, at: [], boxes: [], rows: 0, columns: 0 }) - 1);
    const own = frames[(frame[at] = known.get(key))];
    slot[at] = own.at.push(at) - 1;
    own.boxes.push(box);
    own.rows = Math.max(own.rows, row[at] + 1);
    own.columns = Math.max(own.columns, column[at] + 1);
  }
  frames.sort((a, b) => a.image - b.image || a.tile - b.tile);
  frames.forEach((own, f) => { for (const at of own.at) frame[at] = f; });
  const images = [...new Set(frames.map((own) => own.image))];
  return { frames, frame, slot, image, kind, row, column, tile, images, tiled: frames.some((own) => own.tile > 0) };
}

// -------- one prompt of one reading

class View {
  constructor(reading, prompt) {
    this.reading = reading;
    this.prompt = reading.prompts[prompt];
    this.rows = reading.depths.length;
    this.there = Boolean(this.prompt.inputs);
    this.count = this.there ? this.prompt.inputs.length : 0;
    this.k = this.prompt.ranks || 0;
    this.whole = this.there && this.count === this.prompt.count && this.k === reading.top_k;
  }
  get where() { // the pictures of the prompt, or null
    const own = this.prompt;
    if (own.seen && !own.layout) Object.defineProperty(own, "layout", { value: layout(own.seen, this.reading.pictures) });
    return own.layout?.frames.length ? own.layout : null;
  }
  frame(at) { return this.where?.frames[this.where.frame[at]]; } // the grid that a position is in
  box(at) { return this.frame(at)?.boxes[this.where.slot[at]]; }
  patch(at) { // in words; "" for a text
    const { where } = this;
    if (!where || where.image[at] < 0) return "";
    const own = this.frame(at), parts = where.images.length > 1 ? [`picture ${where.image[at]}`] : [];
    if (where.tiled) parts.push(where.tile[at] > 0 ? `tile ${where.tile[at]}` : "whole picture");
    parts.push(...(!own ? ["a token that shows nothing"] : where.row[at] < 0 ? [`token ${where.slot[at]}`] : [`row ${where.row[at]}`, `column ${where.column[at]}`]));
    return parts.join(", ");
  }
  head(at) { // what a column is called
    const { where } = this;
    if (!where || where.image[at] < 0) return clip(this.prompt.inputs[at]);
    if (!this.frame(at)) return "–";
    return (where.tile[at] > 0 ? `${where.tile[at]}:` : "") + (where.row[at] < 0 ? where.slot[at] : `${where.row[at]},${where.column[at]}`);
  }
  middle(frame) { // the patch of a grid that is nearest to the middle of its picture
    const { boxes, at, picture } = frame, off = boxes.map(([l, t, r, b]) => Math.hypot((l + r - picture.width) / 2, (t + b - picture.height) / 2));
    return at[off.indexOf(Math.min(...off))];
  }
  home() { return this.where ? this.middle(this.where.frames[0]) : this.count - 1; } // where a look at a prompt begins
  cell(row, at, rank = 0) { return (rank * this.count + at) * this.rows + row; }
  get tokens() { // where each context tells its own, they are told once
    const { token, said } = this.prompt;
    if (!token && !said.tokens) Object.defineProperty(said, "tokens", { value: Int32Array.from(decode(said.at), (i) => (i < 0 ? -1 : decode(said.token)[i])) });
    return token ? decode(token) : said.tokens;
  }
  // Tokens are places in the prompt's vocabulary; -1 is none.  Between prompts they go by their ids.
  token(row, at, rank = 0) { return this.k ? this.tokens[this.cell(row, at, rank)] : -1; }
  list(row, at) {
    return Array.from({ length: this.k }, (_, rank) => [this.token(row, at, rank), rank]).filter(([token]) => token >= 0);
  }
  text(token) { return token >= 0 ? this.prompt.vocab[token] : ""; }
  id(token) { return token >= 0 ? this.prompt.vocab_id[token] : null; }
  find(id) { return this.prompt.vocab_id.indexOf(id); }
  score(row, at, rank = 0) {
    const scores = decode(this.prompt.score);
    return scores ? scores[this.cell(row, at, rank)] : NaN;
  }
  rankOf(token, row, at) { // where a token is among the top k; -1: nowhere
    for (let rank = 0; rank < this.k; rank++) if (this.token(row, at, rank) === token) return rank;
    return -1;
  }
  isPatch(at) { return this.where?.image[at] >= 0; }
  floor(row, at) { return ((this.isPatch(at) && this.reading.floor_image) || this.reading.floor)?.[row] ?? null; }
  means(at) { return (this.isPatch(at) && this.reading.means_image) || this.reading.means; }
  under(row, at, x = this.score(row, at)) { // whether a score says no more than the floor of its layer
    const floor = this.floor(row, at);
    return floor !== null && !(x > floor);
  }
  along(token, at) {
    return this.reading.depths.map((_, row) => {
      const hit = this.list(row, at).find(([t]) => t === token);
      return hit ? this.score(row, at, hit[1]) : NaN;
    });
  }
  get metrics() { return this.reading.metrics; }
  get targets() { return this.prompt.targets || this.reading.targets; } // a prompt's own, or all prompts'
  metric(wanted) { return this.metrics.includes(wanted) ? wanted : this.metrics[0]; }
  // What packing.py tells of a metric or variable.
  about(metric) { return this.reading.variables[metric]; }
  // The colour at a share of the metric's domain.
  shade(metric, share) { const { colours } = this.about(metric); return shade(colours, colours === "diverging" ? 2 * share - 1 : share); }
  // The variable whose colours a metric has.
  unit(metric) { return metric === "top" ? this.reading.score : metric; }
  digits(metric) {
    const name = this.unit(metric);
    return name === "probability" ? 2 : this.reading.digits[name] ?? 2; // a power of e: of three, the last would be wrong
  }
  say(x, metric) { return say(x, this.digits(metric), this.about(metric)?.whole); } // everywhere as many digits as there are: rounded once
  // A value with its name and unit.
  told(metric, row, at, target) {
    const { name, units } = this.about(metric);
    return `${this.named(name, at, target)} ${this.say(this.value(metric, row, at, target), metric)}${units && " " + units}`;
  }
  named(name, at, target) { return name.replace(/\btarget\b/, () => this.aim(at, target)); }
  target(wanted) { return clamp(wanted, 0, Math.max(this.targets.length - 1, 0)); }
  // The target at a place: one that was asked for, or the token that is on top in the end.
  aim(at, target) { return clip(this.targets[target] ?? this.text(this.find((this.prompt.target || [])[at]))) || "target"; }
  value(metric, row, at, target = 0) {
    if (metric === "probability") return Math.exp(this.score(row, at));
    if (metric === "top" || metric === this.reading.score) return this.score(row, at);
    const values = decode(this.prompt.grids[metric]), wide = this.reading.wide.includes(metric);
    if (!values) return NaN;
    const x = values[this.cell(row, at, wide ? target : 0)];
    return this.about(metric)?.whole && x < 0 ? NaN : x;
  }
  domain(metric) {
    if (metric === "probability") return [0, 1];
    return this.reading.domain[this.unit(metric)] || [0, 1];
  }
  place(row, at) { return `${this.reading.depth_label} ${this.reading.depths[row]}, ${this.patch(at) || `at ${clip(this.prompt.inputs[at], 240)}`} #${this.prompt.positions[at]}`; }
  // How deep a row is: 0 for the embeddings, b + 1 for what block b writes.
  level(row) {
    const depth = this.reading.depths[row];
    if (this.reading.depth === "layer") return depth;
    if (this.reading.depth === "block") return depth + 1;
    const block = /\.(\d+)$/.exec(depth);
    return block ? Number(block[1]) + 1 : depth === "embed" ? 0 : Infinity;
  }
  // The row and the column that answer those of another view.
  rowLike(other, row) {
    const mine = this.reading, theirs = other.reading;
    if (mine.depth === theirs.depth && same(mine.depths, theirs.depths)) return row;
    if (mine.model === theirs.model && mine.fingerprint === theirs.fingerprint) {
      const wanted = other.level(row);
      let best = 0;
      for (let r = 0; r < this.rows; r++) if (Math.abs(this.level(r) - wanted) < Math.abs(this.level(best) - wanted)) best = r;
      return wanted === Infinity ? this.rows - 1 : best;
    }
    return Math.round((row / Math.max(other.rows - 1, 1)) * (this.rows - 1)); // another model: the same share of its depth
  }
  columnLike(other, at) {
    const mine = this.prompt, theirs = other.prompt;
    if (mine === theirs) return at;
    const seen = other.frame(at);
    if (seen && this.where) { // the patch at the same place of the same picture, however it is cut
      const [l, t, r, b] = other.box(at), x = (l + r) / 2, y = (t + b) / 2;
      const own = this.where.frames.find((f) => f.image === seen.image && f.tile === seen.tile) || this.where.frames.find((f) => f.image === seen.image);
      const hit = own ? own.boxes.findIndex(([l, t, r, b]) => x >= l && x <= r && y >= t && y <= b) : -1;
      if (own?.boxes.length === seen.boxes.length) return own.at[other.where.slot[at]];
      if (hit >= 0) return own.at[hit];
    }
    const offset = mine.count - this.count - (theirs.count - other.count);
    if (mine.text !== theirs.text || (mine.count === theirs.count && mine.inputs[at - offset] === theirs.inputs[at]))
      return clamp(at - offset, 0, this.count - 1);
    // The same text in other pieces: what is left of it after the token tells the place.
    const size = (view, i) => (view.where?.image[i] >= 0 ? 0 : view.prompt.inputs[i].length);
    let found = this.count - 1, left = 0, wanted = 0;
    for (let i = at + 1; i < other.count; i++) wanted += size(other, i);
    while (found > 0 && left + size(this, found) <= wanted) left += size(this, found--);
    return found;
  }
}

// -------- one cell in detail

// A line of a list, which is a button: a text, a bar, a number.
function line(list, text, number, bar, pressed, act) {
  const item = make("li"), node = button("", "", act);
  node.ariaPressed = String(pressed);
  node.append(make("span", "wx-one", text), bar, make("span", "wx-num", number));
  item.append(node);
  list.append(item);
  return { item, node };
}

// The top tokens as bars, each a button that follows it; of contexts, the sentence with the word marked.
function bars(view, row, at, most, followed, follow) {
  const r = view.reading, box = make("div"), list = make("ol", "wx-bars"), found = view.list(row, at).slice(0, most);
  const about = view.about(r.score), chance = about?.log_prob, floor = view.floor(row, at);
  const full = Math.max(...found.map(([, rank]) => Math.abs(view.score(row, at, rank))), floor || 0, 1e-9);
  for (const [token, rank] of found) {
    const x = view.score(row, at, rank), part = chance ? Math.exp(x) : Math.abs(x) / full;
    const id = view.id(token), track = bar([0, part], floor ? floor / full : NaN, "floor");
    const { item, node } = line(list, view.text(token), view.say(x, "top"), track, id === followed, () => follow(id));
    node.title = `follow ${clip(view.text(token), 240)}`;
    const said = view.prompt.said;
    if (said) {
      const place = view.cell(row, at, rank), words = make("p", "wx-said");
      const [before, word, after] = said.texts[decode(said.at)[place]];
      words.append(before, make("mark", "", word), after);
      if (said.layer) words.append(make("small", "", `index layer ${decode(said.layer)[place]}`));
      item.append(words);
    }
  }
  if (r.score) box.append(make("div", "wx-facts", `${named(about)}${chance ? "; bars: probability" : ""}`));
  box.append(list);
  return box;
}

// The parts that moved the logit most, at one position.
function parts(view, row, at, target, most, go) {
  const list = make("ol", "wx-bars"), metric = view.metrics[0];
  const all = view.reading.depths.map((_, d) => [d, view.value(metric, d, at, target)]).filter(([, x]) => !Number.isNaN(x));
  const full = Math.max(...all.map(([, x]) => Math.abs(x)), 1e-9);
  for (const [d, x] of all.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, most)) {
    const end = 0.5 + x / full / 2, track = bar([Math.min(0.5, end), Math.max(0.5, end)]);
    track.firstChild.style.background = `rgb(${view.shade(metric, x < 0 ? 0.2 : 0.8)})`;
    line(list, view.reading.depths[d], view.say(x, metric), track, d === row, () => go(d));
  }
  return list;
}

const around = (a, b) => `${Math.round(a)}–${Math.round(b)}`;

function facts(view, row, at, target) {
  const r = view.reading, found = [], there = (name) => !Number.isNaN(view.value(name, row, at, target));
  for (const name of Object.keys(view.prompt.grids)) {
    const { role, nulls } = view.about(name);
    if (["mask", "null", "label"].includes(role) || !there(name)) continue;
    found.push(view.told(name, row, at, target) + nulls.filter(there).map((n) => ` (null ${view.say(view.value(n, row, at, target), n)})`).join(""));
  }
  if (view.value("sink", row, at) > 0) found.unshift(r.sink);
  for (const [name, mean] of Object.entries(view.means(at))) found.push(`${mean.name} ${view.say((mean.values[target] || mean.values[0])[row], name)}`);
  for (const { name, values } of Object.values(view.prompt.sums || {})) found.push(`${view.named(name, at, target)} ${say((values[target] || values[0])[at], 3)}`);
  if (view.floor(row, at) !== null) found.push(`${view.about(r.score).name} floor ${view.say(view.floor(row, at), "top")}, below which it says nothing`);
  return make("div", "wx-facts", found.join(" · "));
}

// The followed token's score over depth at this position; without one, the target's with its null.
function trajectory(view, row, at, target, followed, called, go) {
  const r = view.reading, lines = [], along = (name) => r.depths.map((_, d) => view.value(name, d, at, target));
  const token = view.find(followed);
  let title, shows = "top";
  if (followed !== null && token < 0 && view.k) return make("div", "wx-facts", `${called(followed)} is in no cell of this prompt`);
  const own = r.depth === "component" || !view.k ? view.metrics[0] : r.followed; // without a token that is followed
  if (token < 0 && own && view.prompt.grids[own]) {
    const { name, units, nulls } = view.about(own), mean = view.means(at)[own], dotted = [];
    lines.push({ y: along(own) });
    for (const [y, called] of [...nulls.map((n) => [along(n), view.about(n).name]), ...(mean ? [[mean.values[target] || mean.values[0], mean.name]] : [])])
      if (y.some((x) => !Number.isNaN(x))) { lines.push({ y, dash: "0.1 4" }); dotted.push(called); }
    title = `${view.named(named({ name, units }), at, target)} by ${r.depth}${dotted.length ? `; dotted: ${dotted.join(", ")} (null)` : ""}`;
    shows = own;
  } else {
    const shown = token < 0 ? view.token(row, at) : token;
    if (shown < 0) return make("div");
    lines.push({ y: view.along(shown, at) });
    title = `${r.score ? named(view.about(r.score)) : "score"} of ${clip(view.text(shown))} by ${r.depth} (where in the top ${view.k}${view.k < r.ranks ? ` of ${r.ranks} kept` : ""})`;
  }
  const W = 320, H = 124, L = 44, B = 20, T = 8, all = lines.flatMap((l) => l.y).filter((y) => !Number.isNaN(y));
  const box = make("div"), svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  box.append(make("div", "wx-facts", all.length ? title : `${title}: nowhere`));
  if (!all.length) return box;
  box.append(svg);
  let from = Math.min(...all), to = Math.max(...all);
  if (to - from < 1e-6) [from, to] = [from - 0.5, to + 0.5];
  const n = Math.max(view.rows - 1, 1), X = (d) => L + (d / n) * (W - L - 6), Y = (y) => T + ((to - y) / (to - from)) * (H - T - B);
  svg.onclick = (event) => { // goes to the nearest layer
    const { left, width } = svg.getBoundingClientRect();
    go(clamp(Math.round((((event.clientX - left) / width) * W - L) / (W - L - 6) * n), 0, view.rows - 1));
  };
  svg.append(draw("path", { d: `M${L},${T}V${H - B}H${W - 4}`, fill: "none", stroke: "var(--line)" }));
  if (from < 0 && to > 0) svg.append(draw("path", { d: `M${L},${Y(0)}H${W - 4}`, stroke: "var(--line)" }));
  svg.append(draw("path", { d: `M${X(row)},${T}V${H - B}`, stroke: "var(--accent)", "stroke-width": 1, opacity: 0.7 }));
  for (const y of [to, from]) svg.append(draw("text", { x: L - 5, y: Y(y) + 4, "text-anchor": "end" }, view.say(y, shows)));
  for (const d of new Set([0, view.rows - 1]))
    svg.append(draw("text", { x: X(d), y: H - 5, "text-anchor": d ? "end" : "start" }, r.depth === "component" ? r.depths[d] : `${d ? "" : r.depth + " "}${r.depths[d]}`));
  for (const { y, dash } of lines) {
    let path = "", pen = false;
    y.forEach((v, d) => {
      if (Number.isNaN(v)) { pen = false; return; }
      path += `${pen ? "L" : "M"}${X(d).toFixed(1)},${Y(v).toFixed(1)}`;
      pen = true;
      if (!dash) svg.append(draw("circle", { cx: X(d), cy: Y(v), r: view.rows > 40 ? 1.3 : 2.2, fill: "var(--h0)" }));
    });
    svg.append(draw("path", { d: path, fill: "none", stroke: "var(--h0)", "stroke-width": 1.6, ...(dash && { "stroke-dasharray": dash, "stroke-linecap": "round" }) }));
  }
  return box;
}

// -------- one grid with its detail

// app: what the panes share (state, readings, and what happens on a choice); place: {reading, prompt}.
function pane(app, place) {
  const { state, readings } = app, self = { held: null, ...place, row: 0, at: 0, marks: null, ranks: null, hits: [], columns: [], spots: [] };
  const name = fresh("lens");
  let view = new View(readings[place.reading], place.prompt), strips = new Map(), heads = new Map(), low = 0, high = 0, dirty = true, expected = [-1, -1], gutter = 46;
  let framed = null, patchOf = {}, drawn = "", stripped = ""; // the picture's grid that is shown; of each picture its patch in the table

  const root = (self.root = make("section", "wx-pane")), head = make("div", "wx-tools wx-head");
  const pickReading = choice("reading", (i) => app.turn(self, i, self.prompt)), pickPrompt = choice("prompt", (i) => app.turn(self, self.reading, i));
  const pickTarget = choice("target", (i) => app.aim(i)), colours = make("span");
  const close = button("×", "close this pane", () => app.close(self), "wx-close");
  pickPrompt.node.classList.add("wx-prompt");
  colours.style.marginLeft = "auto";
  pickReading.select.classList.add("wx-title");
  pickReading.node.firstChild.hidden = true; // a reading's name is the title of its pane
  head.append(pickReading.node, pickPrompt.node, pickTarget.node, colours, close);

  const grid = (self.grid = make("div", "wx-grid")), space = make("div", "wx-space"), axis = make("div", "wx-axis"), corner = make("div", "wx-corner");
  grid.tabIndex = 0;
  grid.role = "grid";
  grid.setAttribute("aria-activedescendant", `${name}-on`);
  space.role = "rowgroup";
  axis.role = "row";
  corner.role = "rowheader";
  axis.append(corner);
  space.append(axis);
  grid.append(space);
  const panel = make("section", "wx-panel");
  panel.ariaLabel = "the chosen cell";

  // ---- the picture: large at this layer, and small at every layer
  const look = make("div", "wx-look"), strip = make("div", "wx-strip"), under = make("div", "wx-under"), thumbs = make("div", "wx-thumbs"), ramp = make("span");
  const stage = (self.stage = mosaic("patches of the picture", {
    pick: (i) => app.choose(self, self.row, framed.at[i]),
    hover: (i) => app.looked(self, i < 0 ? -1 : framed.at[i]),
    step: (by) => app.choose(self, clamp(self.row + by, low, high), self.at),
  }));
  const pickTile = choice("grid", (i) => { const own = tilesHere()[i]; app.choose(self, self.row, view.middle(own)); });
  const hold = button("hold layer", "keep this layer here, whatever layer is chosen beside it", () => app.hold(self), "wx-hold");
  const tilesHere = () => view.where.frames.filter((own) => own.image === framed.image);
  strip.role = "group";
  strip.ariaLabel = "layers";
  thumbs.role = "group";
  thumbs.ariaLabel = "pictures of the prompt";
  under.append(ramp, pickTile.node, hold);
  look.append(stage.node, thumbs, under);
  rove(strip, "button", (node) => app.choose(self, Number(node.dataset.row), self.at));
  root.append(head, look, strip, grid, panel);

  const cw = () => WIDTHS[state.width];
  const metric = () => view.metric(state.metric);
  const target = () => view.target(state.target);
  self.view = () => view;

  self.open = () => { // a new reading, prompt, or block of numbers
    const before = view, r = readings[self.reading];
    self.prompt = clamp(self.prompt, 0, r.prompts.length - 1);
    view = new View(r, self.prompt);
    if (before.there && view.there && before.prompt.count === view.prompt.count) self.at += view.count - before.count;
    self.row = clamp(self.row, 0, view.rows - 1);
    self.at = clamp(self.at, 0, Math.max(view.count - 1, 0));
    if (self.held !== null && !r.depths.includes(self.held)) self.held = null;
    if (self.held !== null) self.row = r.depths.indexOf(self.held);
    root.classList.toggle("pictured", !!view.where);
    look.hidden = strip.hidden = !view.where;
    framed = null;
    patchOf = {};
    for (const own of view.where?.frames || []) patchOf[own.image] ??= view.middle(own);
    self.lineUp();
    for (const [pick, texts, at] of [[pickReading, readings.map((x) => x.name), self.reading], [pickPrompt, r.prompts.map((p, i) => `${i}: ${p.text}`), self.prompt], [pickTarget, view.targets, target()]]) {
      pick.fill(texts, [...texts.keys()]);
      pick.select.selectedIndex = at;
      pick.node.hidden = texts.length < 2;
    }
    root.ariaLabel = r.name;
    close.hidden = app.panes.length < 2;
    corner.textContent = r.depth === "component" ? "part" : r.depth;
    gutter = r.depth === "component" ? 92 : 46;
    grid.style.setProperty("--gutter", `${gutter}px`);
    grid.ariaLabel = `${r.name}, ${r.depth} by position.`;
    if (!view.whole) app.ask(self.reading, self.prompt);
    self.clear();
    if (!view.there) {
      panel.replaceChildren(make("div", "wx-facts", `prompt ${self.prompt} is not in the saved notebook. The kernel is asked for it; where there is none, run the cell again.`));
      grid.hidden = true;
      return;
    }
    grid.hidden = false;
    self.zoom();
    self.find();
  };

  // The columns of the table: of a picture one, of the patch that was chosen in it last, unless all are wanted.
  self.lineUp = () => {
    const image = view.where && !state.spread ? view.where.image : null, first = new Map();
    self.columns = [];
    self.spots = new Int32Array(view.count);
    for (let at = 0; at < view.count; at++) {
      const own = image ? image[at] : -1;
      if (own >= 0 && patchOf[own] !== undefined) {
        if (!first.has(own)) first.set(own, self.columns.push(patchOf[own]) - 1);
        self.spots[at] = first.get(own);
      } else self.spots[at] = self.columns.push(at) - 1;
    }
    grid.ariaColCount = self.columns.length + 1;
  };

  self.turnTo = () => { // the patch that is chosen is the one that its picture has in the table
    const image = view.where ? view.where.image[self.at] : -1;
    if (!(image >= 0) || patchOf[image] === self.at) return;
    patchOf[image] = self.at;
    if (!state.spread) self.columns[self.spots[self.at]] = self.at;
  };

  self.clear = () => {
    for (const strip of strips.values()) strip.node.remove();
    for (const node of heads.values()) node.remove();
    strips = new Map();
    heads = new Map();
  };

  self.zoom = () => { // the layers shown
    const range = app.range(view);
    [low, high] = range || [0, view.rows - 1];
    grid.ariaRowCount = high - low + 2;
    axis.ariaRowIndex = high - low + 2;
    self.clear();
    self.size();
  };

  self.size = () => {
    if (!view.there) return;
    const rows = (high - low + 1) * ROW, wide = gutter + self.columns.length * cw();
    space.style.width = axis.style.width = `${wide}px`;
    grid.style.setProperty("--cw", `${cw()}px`);
    const bar = grid.offsetHeight - grid.clientHeight; // the border, and the scroll bar where there is one
    const most = Math.max(190, Math.min(620, innerHeight * (app.panes.length > 1 && app.stacked ? 0.42 : 0.62)));
    const tall = Math.min(rows + AXIS + bar, most);
    grid.style.height = `${tall}px`;
    panel.style.setProperty("--tall", `${tall}px`);
    space.style.height = `${rows + AXIS}px`;
    self.refresh();
  };

  self.room = () => (view.there ? (grid.clientWidth - gutter) / self.columns.length : Infinity); // pixels for each position

  self.refresh = () => { dirty = true; app.schedule(); };

  const share = (shown, x) => { // 0..1 on the colour map
    let [a, b] = app.domain(view, shown);
    if (view.about(shown).log) [x, a, b] = [Math.log1p(x), Math.log1p(Math.max(a, 0)), Math.log1p(Math.max(b, 0))];
    return b > a ? (x - a) / (b - a) : 1;
  };

  function dress(cell, row, at) {
    const shown = metric(), x = view.value(shown, row, at, target()), token = view.token(row, at);
    const text = shown === "top" ? clip(view.text(token)) : view.say(x, shown);
    if (cell.firstChild) cell.firstChild.data = text;
    else cell.textContent = text;
    let style = `left:${gutter + self.spots[at] * cw()}px`;
    if (!Number.isNaN(x)) {
      const rgb = view.shade(shown, share(shown, x));
      style += `;background:rgb(${rgb});color:${ink(rgb)}`;
    }
    cell.style.cssText = style;
    let kind = "wx-cell";
    const mark = self.marks ? self.marks[view.cell(row, at)] : 0;
    if (self.marks) kind += mark === 2 ? " hit" : mark === 1 ? " near" : " dim";
    else if ((state.differ && app.alike(self, row, at)) || (state.floor && view.under(row, at))) kind += " dim";
    if (app.pinned(self, row, at)) kind += " pin";
    if (view.value("sink", row, at) > 0) kind += " sink";
    const on = row === self.row && at === self.at;
    if (on) kind += " on";
    cell.className = kind;
    if (on) { cell.id = `${name}-on`; cell.ariaSelected = "true"; }
    else if (cell.id) { cell.removeAttribute("id"); cell.removeAttribute("aria-selected"); }
    cell.row = row;
    cell.at = at;
    cell.ariaColIndex = self.spots[at] + 2;
  }

  self.paint = () => { // only what is in sight, and of that only what is new
    if (!view.there || !grid.isConnected) return;
    const wide = cw(), width = grid.clientWidth || 900, height = grid.clientHeight || 500, rows = high - low + 1;
    const first = clamp(Math.floor(grid.scrollTop / ROW) - 1, 0, rows - 1), last = clamp(Math.ceil((grid.scrollTop + height - AXIS) / ROW) + 1, 1, rows);
    const most = self.columns.length, left = clamp(Math.floor(grid.scrollLeft / wide) - 1, 0, most - 1), right = clamp(Math.ceil((grid.scrollLeft + width - gutter) / wide) + 1, 1, most);
    const spare = [];
    for (const [line, strip] of strips)
      if (line < first || line >= last) {
        strip.node.remove();
        spare.push(strip);
        strips.delete(line);
      }
    for (let line = first; line < last; line++) {
      const row = high - line;
      let strip = strips.get(line), fresh = dirty;
      if (!strip) {
        strip = spare.pop() || newStrip();
        fresh = true;
        strips.set(line, strip);
        strip.node.style.top = `${line * ROW}px`;
        strip.node.ariaRowIndex = line + 1;
        strip.depth.textContent = view.reading.depths[row];
        strip.depth.row = row;
      }
      const free = [];
      for (const [c, cell] of strip.cells) if (c < left || c >= right) { free.push(cell); strip.cells.delete(c); }
      if (fresh) {
        strip.depth.className = row === self.row ? "wx-depth on" : "wx-depth";
        for (const [c, cell] of strip.cells) dress(cell, row, self.columns[c]);
      }
      for (let c = left; c < right; c++) {
        if (strip.cells.has(c)) continue;
        let cell = free.pop();
        if (!cell) {
          cell = make("div", "wx-cell");
          cell.role = "gridcell";
          strip.node.append(cell);
        }
        dress(cell, row, self.columns[c]);
        strip.cells.set(c, cell);
      }
      for (const cell of free) cell.remove();
      if (!strip.node.isConnected) space.insertBefore(strip.node, axis);
    }
    for (const [c, node] of heads) if (c < left || c >= right) { node.remove(); heads.delete(c); }
    for (let c = left; c < right; c++) {
      let node = heads.get(c);
      const at = self.columns[c], patch = view.where?.image[at] >= 0;
      if (!node) {
        node = make("div");
        node.role = "columnheader";
        node.ariaColIndex = c + 2;
        heads.set(c, node);
        axis.append(node);
      }
      if (node.at !== at) {
        node.at = at;
        node.textContent = view.head(at);
        node.title = `${view.patch(at) || view.prompt.inputs[at]}  #${view.prompt.positions[at]}`;
      }
      node.className = `wx-in${patch ? " patch" : ""}${at === self.at ? " on" : ""}`;
      node.style.left = `${gutter + c * wide}px`;
    }
    if (dirty) legend();
    self.picture();
    dirty = false;
  };

  // Of the words that are looked for, or the token that is followed: their score at a place, NaN where they are not.
  function wanted() {
    if (!view.where || !view.k) return null;
    const token = view.find(app.followed(view) ?? NaN), score = (row, at, rank) => (rank < 0 ? NaN : view.reading.score ? view.score(row, at, rank) : -rank);
    if (state.query) return { words: `“${clip(state.query, 24)}”`, of: (row, at) => score(row, at, self.ranks ? self.ranks[view.cell(row, at)] : -1) };
    return token < 0 ? null : { words: clip(view.text(token), 24), of: (row, at) => score(row, at, view.rankOf(token, row, at)) };
  }
  let spanned = [null, null];
  self.span = () => { // its lowest and highest
    const own = view.there && wanted(), key = own && JSON.stringify([own.words, self.reading, self.prompt, view.k, low, high]);
    if (!own) return [Infinity, -Infinity];
    if (spanned[0] === key) return spanned[1];
    const ends = [Infinity, -Infinity];
    for (const { at: all } of view.where.frames) for (const at of all) for (let row = low; row <= high; row++) {
      const x = own.of(row, at);
      if (x < ends[0]) ends[0] = x;
      if (x > ends[1]) ends[1] = x;
    }
    spanned = [key, ends];
    return ends;
  };
  function heat() { // what colours a patch: these words, or else what is shown; x and its share of the colours
    const own = wanted(), shown = metric(), t = target();
    if (!own) return { shown, of: (row, at) => { const x = view.value(shown, row, at, t); return [x, Number.isNaN(x) ? NaN : share(shown, x)]; } };
    const [from, to] = app.span(view);
    return { words: own.words, of: (row, at) => { const x = own.of(row, at); return [x, Number.isNaN(x) ? NaN : to > from ? (x - from) / (to - from) : 1]; } };
  }

  self.picture = () => { // the large one and the small ones, where they have changed
    if (!view.where || !look.isConnected || !look.clientWidth) return;
    const frame = view.frame(self.at) || framed || view.where.frames[0];
    if (frame !== framed) {
      framed = frame;
      const { picture } = frame, own = tilesHere(), said = view.where.images.length > 1 ? `picture ${frame.image}` : "the picture";
      stage.show({ ...picture, boxes: frame.boxes, names: (i) => view.patch(frame.at[i]), alt: `${said} of the prompt, ${picture.width} by ${picture.height} pixels` });
      stage.node.ariaLabel = `patches of ${said}, ${frame.rows > 0 ? `${frame.rows} by ${frame.columns}` : count(frame.at.length, "token")}`;
      pickTile.fill(own.map((f) => `${f.tile > 0 ? `tile ${f.tile}` : "whole picture"}, ${f.rows > 0 ? `${f.rows} × ${f.columns}` : f.at.length}`), [...own.keys()]);
      pickTile.select.selectedIndex = own.indexOf(frame);
      pickTile.node.hidden = own.length < 2;
      thumbs.hidden = view.where.images.length < 2;
      thumbs.replaceChildren(...(thumbs.hidden ? [] : view.where.images).map((image) => {
        const first = view.where.frames.find((f) => f.image === image), node = button("", `picture ${image}`, () => app.choose(self, self.row, patchOf[image] ?? view.middle(first)));
        node.ariaPressed = String(image === frame.image);
        node.append(crop(first.picture, [0, 0, first.picture.width, first.picture.height], 44));
        return node;
      }));
      drawn = stripped = "";
    }
    const shown = heat(), faded = (row, at, x) => (state.floor && view.under(row, at, shown.words ? x : undefined)) || (state.differ && app.alike(self, row, at));
    const sign = JSON.stringify([metric(), target(), shown.words, app.followed(view), state.floor, state.differ, app.domain(view, metric()), shown.words && app.span(view), self.prompt, self.reading, low, high, state.query]);
    const colour = (part) => (Number.isNaN(part) ? null : view.shade(shown.words ? "top" : shown.shown, part));
    if (drawn !== sign + self.row + state.veil + stage.node.clientWidth + view.k) {
      drawn = sign + self.row + state.veil + stage.node.clientWidth + view.k;
      stage.paint((i) => {
        const at = frame.at[i], [x, part] = shown.of(self.row, at);
        return { rgb: colour(part), faded: faded(self.row, at, x), sink: view.value("sink", self.row, at) > 0, text: !shown.words && shown.shown === "top" ? view.text(view.token(self.row, at)) : "" };
      }, state.veil);
      ramp.replaceChildren(legendOf(shown));
    }
    stage.at(view.where.slot[self.at] >= 0 && view.frame(self.at) === frame ? view.where.slot[self.at] : -1);
    stage.pins(frame.at.flatMap((at, i) => (app.pinned(self, self.row, at) ? [i] : [])));
    hold.hidden = app.panes.length < 2;
    hold.ariaPressed = String(self.held !== null);
    hold.textContent = self.held !== null ? `holds ${view.reading.depth} ${self.held}` : "hold layer";
    if (stripped !== sign + strip.clientWidth) {
      stripped = sign + strip.clientWidth;
      small(frame, shown, colour, faded);
    }
    for (const node of strip.children) {
      const on = Number(node.dataset.row) === self.row;
      node.classList.toggle("on", on);
      node.setAttribute("aria-current", String(on));
      node.tabIndex = on ? 0 : -1;
      if (on && (node.offsetLeft < strip.scrollLeft || node.offsetLeft + node.offsetWidth > strip.scrollLeft + strip.clientWidth)) strip.scrollLeft = node.offsetLeft - strip.clientWidth / 2;
    }
  };

  function small(frame, shown, colour, faded) { // a picture of colours for each layer
    const rows = high - low + 1, { width, height } = frame.picture, wide = clamp(Math.floor((strip.clientWidth - 6) / rows) - 11, 34, Math.min(84, (70 * width) / height)), ratio = Math.max(2, globalThis.devicePixelRatio || 1);
    while (strip.children.length > rows) strip.lastChild.remove();
    while (strip.children.length < rows) { const node = button("", "", null); node.append(make("canvas"), make("span")); strip.append(node); }
    [...strip.children].forEach((node, i) => {
      const row = low + i, canvas = node.firstChild, g = canvas.getContext("2d");
      node.dataset.row = row;
      node.ariaLabel = `${view.reading.depth} ${view.reading.depths[row]}`;
      node.lastChild.textContent = i ? view.reading.depths[row] : `${view.reading.depth} ${view.reading.depths[row]}`;
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round((wide * ratio * height) / width);
      canvas.style.width = `${wide}px`;
      const scale = canvas.width / width;
      frame.boxes.forEach((box, slot) => {
        const at = frame.at[slot], [x, part] = shown.of(row, at), rgb = colour(part);
        if (!rgb) return;
        const [l, t, r, b] = box.map((side) => Math.round(side * scale));
        g.globalAlpha = faded(row, at, x) ? 0.16 : 1;
        g.fillStyle = `rgb(${rgb})`;
        g.fillRect(l, t, r - l, b - t);
      });
    });
  }

  function legendOf({ words, shown }) {
    if (!words) return scaleOf(shown);
    const [least, most] = app.span(view), name = view.reading.score ? named(view.about(view.reading.score)) : "rank";
    if (!(most >= least)) return make("span", "wx-facts", `${words} is in no cell here`);
    return scale(view.about("top").colours, view.say(least, "top"), view.say(most, "top"), `${name} of ${words}, where in the top ${view.k}`);
  }

  function newStrip() {
    const node = make("div", "wx-row"), depth = make("div", "wx-depth");
    node.role = "row";
    depth.role = "rowheader";
    node.append(depth);
    return { node, depth, cells: new Map() };
  }

  function scaleOf(shown) {
    const ends = app.domain(view, shown), what = view.about(view.unit(shown));
    const [least, most] = ends.map((x) => say(x, Math.min(view.digits(shown), 2), view.about(shown).whole));
    return scale(view.about(shown).colours, least, most, what ? named(what) : "");
  }

  function legend() {
    const shown = metric();
    colours.replaceChildren(scaleOf(shown));
    // What all panes share is said once: the scale by the first that has it, the prompt by the first that shows it.
    const first = app.panes.find((p) => p.view().unit(p.view().metric(state.metric)) === view.unit(shown));
    root.classList.toggle("first", first === self);
    root.classList.toggle("alike", app.panes[0] !== self && app.panes[0].view().prompt.text === view.prompt.text);
    pickTarget.select.selectedIndex = target();
  }

  self.detail = () => {
    if (!view.there) return;
    const { row, at } = self, title = make("h3"), go = (d) => app.choose(self, d, at), token = app.followed(view);
    const box = view.box(at), over = button("over the picture", "show this reading over the picture", () => app.choose(self, self.row, self.at), "wx-over");
    if (box) title.append(crop(view.frame(at).picture, box));
    title.append(make("span", "", view.place(row, at)), ...(view.where ? [over] : []), button(app.pinned(self, row, at) ? "unpin" : "pin", "", () => app.pin(self)));
    title.querySelector("span:not(.wx-crop)").dataset.of = view.reading.name;
    const follow = (id) => app.follow(self, id), found = [title];
    const said = facts(view, row, at, target());
    if (box) said.prepend(`x ${around(box[0], box[2])}, y ${around(box[1], box[3])} of ${view.frame(at).picture.width} × ${view.frame(at).picture.height} pixels${said.textContent && " · "}`);
    if (said.textContent) found.push(said);
    found.push(view.k ? bars(view, row, at, view.k, token, follow) : parts(view, row, at, target(), 12, go));
    found.push(trajectory(view, row, at, target(), token, app.called, go));
    panel.replaceChildren(...found);
  };

  self.near = (at) => { if (view.where && framed) stage.near(view.frame(at) === framed ? view.where.slot[at] : -1); };

  self.told = (row, at) => { // a cell in words: its top token with its score, and what cells show
    const shown = metric(), score = view.reading.score, say = (what) => view.told(what, row, at, target());
    const found = view.k ? [clip(view.text(view.token(row, at)), 240) + (score ? `, ${say(score)}` : "")] : [];
    if (shown !== "top" && shown !== score) found.push(say(shown));
    return found.join("; ");
  };

  self.reveal = () => {
    const x = self.spots[self.at] * cw(), y = (high - self.row) * ROW, width = grid.clientWidth - gutter, height = grid.clientHeight - AXIS;
    if (width <= 0) return;
    if (x < grid.scrollLeft) grid.scrollLeft = x;
    else if (x + cw() > grid.scrollLeft + width) grid.scrollLeft = x + cw() - width;
    if (y < grid.scrollTop) grid.scrollTop = y;
    else if (y + ROW > grid.scrollTop + height) grid.scrollTop = y + ROW - height;
  };

  self.follows = (other) => { // scrolls where another pane has been scrolled to
    const theirs = other.view();
    if (!theirs.there || !view.there) return;
    const column = other.grid.scrollLeft / cw(), whole = Math.floor(column), like = self.spots[view.columnLike(theirs, other.columns[clamp(whole, 0, other.columns.length - 1)])];
    const line = other.grid.scrollTop / Math.max(other.grid.scrollHeight - other.grid.clientHeight, 1);
    grid.scrollLeft = (like + column - whole) * cw();
    grid.scrollTop = same(theirs.reading.depths, view.reading.depths) ? other.grid.scrollTop : line * (grid.scrollHeight - grid.clientHeight);
    expected = [grid.scrollLeft, grid.scrollTop];
  };

  // Tokens whose text holds the query, anywhere in the top k: 2 where it is the top token, 1 below.
  self.find = () => {
    const wanted = state.query.toLowerCase().replaceAll(" ", "·");
    self.hits = [];
    self.marks = self.ranks = null;
    if (!wanted || !view.there || !view.k) return;
    const match = view.prompt.vocab.map((t) => t.toLowerCase().includes(wanted)), cells = view.rows * view.count, all = view.tokens;
    const { said } = view.prompt, words = said?.texts.map((parts) => whole(parts).toLowerCase().replaceAll(" ", "·").includes(wanted)), sentence = said && decode(said.at);
    self.marks = new Uint8Array(cells);
    self.ranks = new Int16Array(cells).fill(-1);
    for (let i = 0; i < all.length; i++) if ((match[all[i]] || words?.[sentence[i]]) && !self.marks[i % cells]) {
      self.marks[i % cells] = i < cells ? 2 : 1;
      self.ranks[i % cells] = Math.floor(i / cells);
    }
    for (let row = high; row >= low; row--) for (let at = 0; at < view.count; at++) if (self.marks[view.cell(row, at)]) self.hits.push([row, at]);
  };

  self.left = () => { // what is not here, in words
    if (!view.there) return "";
    const r = view.reading, found = [];
    if (view.k < r.ranks) found.push(`the top ${view.k} of ${r.ranks} tokens`);
    if (view.count < view.prompt.count) found.push(`the last ${view.count.toLocaleString("en")} of ${count(view.prompt.count, "position")}`);
    return found.join(", ");
  };

  // ---- events
  grid.addEventListener("scroll", () => {
    app.schedule();
    if (grid.scrollLeft === expected[0] && grid.scrollTop === expected[1]) return;
    expected = [-1, -1];
    app.scrolled(self);
  }, { passive: true });
  grid.addEventListener("click", (event) => { // a cell; a layer at this position, or a position at this layer
    const hit = event.target.closest(".wx-cell,.wx-depth,.wx-in");
    if (hit) app.choose(self, hit.row ?? self.row, hit.at ?? self.at);
  });
  grid.addEventListener("pointerover", (event) => {
    const cell = event.target.closest(".wx-cell");
    if (!cell || event.pointerType === "touch") return;
    cell.title = self.told(cell.row, cell.at);
    app.looked(self, cell.at, cell.row);
  });
  grid.addEventListener("pointerleave", () => app.looked(self, -1));
  grid.addEventListener("keydown", (event) => {
    if (!view.there) return;
    const page = Math.max(1, Math.floor(grid.clientWidth / cw()) - 2), move = (dx, dy) => app.choose(self, clamp(self.row - dy, low, high), self.columns[clamp(self.spots[self.at] + dx, 0, self.columns.length - 1)]);
    bound(event, {
      ...arrows(move), PageUp: () => move(-page, 0), PageDown: () => move(page, 0), "+": () => app.wider(1), "-": () => app.wider(-1),
      "[": () => app.between(self, self.row, high), "]": () => app.between(self, low, self.row), 0: () => app.between(self, 0, view.rows - 1),
    });
  });
  return self;
}

// -------- the view

export default explorer("lens", STYLE, ({ payload, root, tell: write, announce, hint, note, ask }) => {
  const { readings } = payload;
  const opened = (prompt) => Object.assign(prompt, { vocab_id: prompt.words?.map(([id]) => id), vocab: prompt.words?.map(([, text]) => text) });
  for (const reading of readings) { reading.pictures = payload.pictures || []; reading.prompts.forEach(opened); }
  const state = { metric: "top", target: 0, token: null, width: 2, chosen: false, query: "", range: null, differ: false, floor: false, spread: false, veil: 0.5, pins: [] };
  const asked = new Set();
  let frame = 0, timer = 0, focus = 0, spread = true; // spread: nobody chose which panes there are
  let last = {}; // the selection as it was last told or taken

  // ---- tools
  const tools = make("div", "wx-tools"), found = make("span", "wx-facts"), panes = make("div", "wx-panes"), pins = make("div", "wx-pins");
  const pickMetric = choice("show", () => { state.metric = pickMetric.select.value; dress(); tell(); });
  const lowest = choice("layers", (i) => app.between(app.panes[0], i, Math.max(highest.select.selectedIndex, i)));
  const highest = choice("to", (i) => app.between(app.panes[0], Math.min(lowest.select.selectedIndex, i), i));
  const search = finder("find a token", () => seek());
  lowest.select.ariaLabel = "lowest layer shown";
  highest.select.ariaLabel = "highest layer shown";
  found.role = "status";
  const smaller = button("−", "narrower cells", () => app.wider(-1)), larger = button("+", "wider cells", () => app.wider(1));
  const differ = button("differences", "dim the cells where the panes agree", () => { state.differ = !state.differ; dress(); });
  const beside = button("compare", "show another reading or prompt beside this one", () => {
    more(app.panes.length + 1);
    tell();
    if (beside.hidden) here().grid.focus();
  });
  const layer = slider("layer", (row) => app.choose(here(), row, here().at)), veil = slider("colours", (x) => { state.veil = x / 100; veil.set(x, `${x} %`); each((p) => p.picture()); });
  veil.input.max = 100;
  veil.input.step = 5;
  veil.set(100 * state.veil, `${100 * state.veil} %`);
  const floor = button("floor", "fade what is not above the floor of its layer", () => { state.floor = !state.floor; dress(); });
  const another = button("another layer", "the same beside this, at a layer of its own", () => {
    const self = here();
    add(self.reading, self.prompt, readings[self.reading].depths[self.row]);
    Object.assign(app.panes.at(-1), { at: self.at, row: self.row });
    shape();
    each((p) => p.open());
    settleOn(self, self.row, self.at);
    tell();
  });
  const expand = button("all patches", "a column for each patch in the table", () => {
    state.spread = !state.spread;
    each((p) => { if (p.view().there) { p.lineUp(); p.clear(); p.size(); } });
    dress();
    each((p) => p.reveal());
  });
  const chip = button("", "", () => { app.follow(here(), state.token); here().grid.focus(); });
  chip.title = "stop following (Escape)";
  pins.role = "group";
  pins.ariaLabel = "pinned cells";
  tools.append(pickMetric.node, layer.node, search, found, chip, floor, veil.node, lowest.node, highest.node, smaller, larger, expand, differ, another, beside);
  root.append(tools, panes, pins);

  const app = {
    state, readings, hint, panes: [], stacked: true,
    schedule() {
      if (frame) return;
      frame = requestAnimationFrame(go);
      timer = setTimeout(go, 100); // panes that are not in front get no animation frames
    },
    // What is under the mouse, here and in what answers it beside.
    looked(self, at, row = self.row) {
      const view = self.view();
      hint(at < 0 ? "" : `${view.place(row, at)}: ${self.told(row, at)}`);
      for (const p of app.panes) if (p.view().there) p.near(at < 0 ? -1 : p === self ? at : p.view().columnLike(view, at));
    },
    hold(self) {
      self.held = self.held === null ? self.view().reading.depths[self.row] : null;
      settleOn(here(), here().row, here().at);
      tell();
    },
    span(view) { // of the words that are looked for, in all panes with the same score
      const ends = app.panes.filter((p) => p.view().reading.score === view.reading.score).map((p) => p.span());
      return [Math.min(...ends.map((e) => e[0])), Math.max(...ends.map((e) => e[1]))];
    },
    // Numbers of one kind have one colour scale in all panes.
    domain(view, metric) {
      const unit = view.unit(metric), ends = app.panes.map((p) => p.view()).filter((v) => v.there && v.metrics.includes(unit)).map((v) => v.domain(unit));
      return ends.length ? [Math.min(...ends.map((e) => e[0])), Math.max(...ends.map((e) => e[1]))] : view.domain(metric);
    },
    range(view) {
      if (!state.range) return null;
      const first = app.panes[state.range.pane] || app.panes[0], ends = state.range.rows.map((row) => view.rowLike(first.view(), row));
      return ends[0] <= ends[1] ? ends : null;
    },
    alike(self, row, at) {
      const other = app.panes[self === app.panes[0] ? 1 : 0];
      if (!other || !other.view().there || !other.view().k || !self.view().k) return false;
      const theirs = other.view(), mine = self.view();
      return theirs.text(theirs.token(theirs.rowLike(mine, row), theirs.columnLike(mine, at))) === mine.text(mine.token(row, at));
    },
    pinned(self, row, at) { return state.pins.some((p) => samePlace(p, pinOf(self, row, at))); },
    pin(self) {
      const pin = pinOf(self, self.row, self.at), i = state.pins.findIndex((p) => samePlace(p, pin));
      if (i >= 0) state.pins.splice(i, 1);
      else state.pins.push(pin);
      dress();
      details();
      tell();
    },
    // The followed token, where its id means the same: in readings of the model that the reader is in.
    followed(view) { return view.reading.model === readings[here().reading].model ? state.token : null; },
    called(id) {
      const known = [readings[here().reading], ...readings].flatMap((r) => r.prompts).find((p) => p.vocab_id?.includes(id));
      return known ? clip(known.vocab[known.vocab_id.indexOf(id)]) : `token ${id}`;
    },
    choose(self, row, at) {
      settleOn(self, row, at);
      tell();
    },
    follow(self, id) {
      focus = app.panes.indexOf(self);
      state.token = state.token === id ? null : id;
      details();
      tell();
    },
    turn(self, reading, prompt) {
      focus = app.panes.indexOf(self);
      move(self, reading, prompt);
      shape();
      settleOn(self, self.row, self.view().there ? self.view().home() : 0);
      tell();
    },
    aim(target) { state.target = target; dress(); details(); tell(); },
    between(self, low, high) {
      const whole = low <= 0 && high >= self.view().rows - 1;
      state.range = whole || low > high ? null : { pane: app.panes.indexOf(self), rows: [low, high] };
      each((p) => { if (p.view().there) { p.zoom(); p.find(); } });
      ranges();
      settleOn(self, self.row, self.at);
      tell();
    },
    wider(step) {
      state.width = clamp(state.width + step, 0, WIDTHS.length - 1);
      state.chosen = true;
      each((p) => p.size());
      go();
      each((p) => p.reveal());
    },
    scrolled(self) { for (const p of app.panes) if (p !== self) p.follows(self); },
    ask(reading, prompt) {
      const key = `${reading},${prompt}`;
      if (!asked.has(key)) ask?.({ ask: [reading, prompt] });
      asked.add(key);
    },
    close(self) {
      const at = app.panes.indexOf(self);
      app.panes.splice(at, 1);
      self.root.remove();
      focus = clamp(focus >= at ? focus - 1 : focus, 0, app.panes.length - 1);
      state.range = null;
      shape();
      each((p) => p.open());
      settleOn(here(), here().row, here().at);
      here().grid.focus();
      tell();
    },
  };
  const pinOf = (self, row, at) => {
    const view = self.view();
    return { reading: self.reading, prompt: self.prompt, depth: view.reading.depths[row], position: view.prompt.columns[at] };
  };
  const samePlace = (a, b) => a.reading === b.reading && a.prompt === b.prompt && a.depth === b.depth && a.position === b.position;

  function go() {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    frame = 0;
    each((p) => p.paint());
  }
  const dress = () => {
    for (const [node, on] of [[differ, state.differ], [floor, state.floor], [expand, state.spread]]) node.ariaPressed = String(on);
    each((p) => p.refresh());
  };
  const details = () => { each((p) => p.detail()); cards(); words(); };

  const here = () => app.panes[focus], each = (act) => app.panes.forEach(act); // here: where the reader is

  // ---- choosing
  function settleOn(self, row, at) { // the chosen cell, and what answers it in the other panes
    const view = self.view();
    state.token = app.followed(view);
    focus = app.panes.indexOf(self);
    self.row = clamp(row, 0, view.rows - 1);
    self.at = clamp(at, 0, Math.max(view.count - 1, 0));
    if (self.held !== null) self.held = view.reading.depths[self.row];
    for (const p of app.panes) {
      p.root.classList.toggle("in", p === self);
      if (!p.view().there) continue;
      if (p !== self && view.there) p.at = p.view().columnLike(view, self.at);
      if (p !== self && view.there && p.held === null && self.held === null) p.row = p.view().rowLike(view, self.row);
      p.turnTo();
      p.refresh();
    }
    layer.input.max = Math.max(view.rows - 1, 0);
    layer.set(self.row, String(view.reading.depths[self.row]));
    self.reveal();
    for (const p of app.panes) { if (p !== self) { p.follows(self); p.reveal(); } p.paint(); }
    if (view.there) announce(`${view.place(self.row, self.at)}: ${self.told(self.row, self.at)}`);
    details();
  }

  // ---- panes
  // The prompt of another reading with the text of this one; that of the same number where there are several.
  const twin = (reading, from, prompt) => {
    const { prompts } = readings[reading], { text, seen } = readings[from].prompts[prompt], pictures = (p) => p?.seen && JSON.stringify(p.seen.pictures);
    if (prompts[prompt] && (prompts[prompt].text === text || (seen && pictures(prompts[prompt]) === JSON.stringify(seen.pictures)))) return prompt;
    return prompts.findIndex((p) => p.text === text);
  };
  const shown = (reading, prompt) => {
    const alike = app.panes.filter((p) => p.reading === reading && p.prompt === prompt);
    return alike.find((p) => p === here()) || alike.find((p) => p.held === null) || alike[0];
  };

  function move(self, reading, prompt) { // with it go the other readings that showed the same text
    const along = app.panes.filter((p) => self.reading === reading && p !== self && p.prompt === (p.reading === reading ? self.prompt : twin(p.reading, reading, self.prompt)));
    if (readings[self.reading].model !== readings[reading].model) state.token = null;
    Object.assign(self, { reading, prompt });
    for (const p of [self, ...along]) {
      const to = twin(p.reading, reading, prompt);
      if (to >= 0 && p !== self) p.prompt = to;
      p.grid.scrollLeft = 0;
      p.open();
    }
  }

  function add(reading, prompt, held = null) {
    const other = pane(app, { reading, prompt, held });
    app.panes.push(other);
    panes.append(other.root);
  }

  function more(most) { // panes: this prompt in another reading, a reading that is not shown, or else a prompt that is not
    const self = here(), all = readings.flatMap((r, i) => r.prompts.map((_, p) => [i, p]));
    while (app.panes.length < most && all.some((place) => !shown(...place))) {
      const left = all.filter((place) => !shown(...place)), fresh = ([r]) => !app.panes.some((p) => p.reading === r);
      add(...(left.find(([r, p]) => r !== self.reading && p === twin(r, self.reading, self.prompt)) || left.find(fresh) || left[0]));
    }
    shape();
    each((p) => p.open());
    settleOn(self, self.row, self.at);
  }

  function shape() { // where the panes go, by the room there is
    const width = root.clientWidth, n = app.panes.length, columns = n > 1 && width / n >= ROOM ? n : n > 3 && width / 2 >= ROOM ? 2 : 1;
    panes.style.gridTemplateColumns = `repeat(${columns},minmax(0,1fr))`;
    app.stacked = columns < n;
    root.classList.toggle("several", n > 1);
    root.classList.toggle("stacked", n > 1 && app.stacked);
    // A grid of few layers has its detail below: beside it most of the page would stay empty.
    for (const p of app.panes) p.root.classList.toggle("wide", p.view().where ? width / columns >= 700 : width / columns >= 780 && p.view().rows > 12);
    const seen = app.panes.some((p) => p.view().where);
    root.classList.toggle("seen", seen);
    for (const node of [layer.node, veil.node, expand]) node.hidden = !seen;
    another.hidden = !seen || n >= MOST_PANES || readings[here().reading].depths.length < 2;
    floor.hidden = !app.panes.some((p) => readings[p.reading].floor || readings[p.reading].floor_image);
    beside.hidden = n >= MOST_PANES || readings.every((r, i) => r.prompts.every((_, j) => shown(i, j)));
    search.hidden = !app.panes.some((p) => readings[p.reading].ranks);
    differ.hidden = n < 2 || app.panes.filter((p) => readings[p.reading].depth !== "component").length < 2;
    const views = app.panes.map((p) => p.view()), metrics = [...new Set(views.flatMap((v) => v.metrics))];
    const called = (m) => { const about = views.find((v) => v.metrics.includes(m)).about(m); return m === "top" ? about.name : named(about); };
    pickMetric.fill(metrics.map(called), metrics);
    pickMetric.select.value = metrics.includes(state.metric) ? state.metric : metrics[0];
    ranges();
  }

  function fit() { // the widest cells with which all positions are in sight, as long as nobody chose another width
    if (state.chosen) return;
    const room = Math.min(...app.panes.map((p) => p.room()));
    state.width = 2;
    while (state.width < 4 && WIDTHS[state.width + 1] <= room) state.width++;
  }

  function ranges() { // the two ends of the layers shown
    const first = app.panes[0], depths = readings[first.reading].depths, [low, high] = app.range(first.view()) || [0, depths.length - 1];
    for (const [pick, value] of [[lowest, low], [highest, high]]) {
      pick.fill(depths);
      pick.select.selectedIndex = value;
      pick.node.hidden = depths.length < 2;
    }
    lowest.node.firstChild.textContent = { layer: "layers", block: "blocks", component: "parts" }[readings[first.reading].depth];
  }

  function cards() { // pinned cells beside each other
    pins.hidden = !state.pins.length;
    pins.replaceChildren(...state.pins.map((pin, i) => {
      const r = readings[pin.reading], view = new View(r, pin.prompt), row = r.depths.indexOf(pin.depth), at = view.there ? view.prompt.columns.indexOf(pin.position) : -1;
      const card = make("article", "wx-card"), title = make("h3"), target = view.target(state.target);
      const like = app.panes.find((p) => readings[p.reading].model === r.model); // where a token's id means the same
      const visit = (d) => {
        const self = shown(pin.reading, pin.prompt) || here();
        if (!shown(pin.reading, pin.prompt)) { move(self, pin.reading, pin.prompt); shape(); }
        app.choose(self, d, at);
      };
      const go = button("", "", () => visit(row), "wx-go"), box = at >= 0 && view.box(at);
      if (box) title.append(crop(view.frame(at).picture, box, 48));
      go.textContent = (readings.length > 1 ? `${r.name} · ` : "") + (r.prompts.length > 1 ? `prompt ${pin.prompt} · ` : "") + (at < 0 ? `${r.depth} ${pin.depth}, not saved` : view.place(row, at) + (view.k ? "" : ` · ${view.named(view.about(view.metrics[0]).name, at, target)}`));
      title.append(go, button("×", "unpin", () => { state.pins.splice(i, 1); dress(); details(); tell(); }));
      card.append(title);
      if (at >= 0) card.append(view.k ? bars(view, row, at, 5, app.followed(view), (id) => app.follow(like || here(), id)) : parts(view, row, at, target, 5, visit));
      return card;
    }));
  }

  function words() { // what is left out, and how to have it
    const left = [...new Set(app.panes.map((p) => p.left()).filter(Boolean))];
    note(left.length ? `Here: ${left.join("; ")}.${ask ? " The rest is in the kernel; explore(saved_kb=None) keeps it in the notebook." : ""}` : "");
    chip.hidden = state.token === null;
    chip.textContent = chip.hidden ? "" : `following ${app.called(state.token)} ×`;
  }

  function seek() {
    state.query = search.value;
    each((p) => { p.find(); p.refresh(); });
    const hits = here().hits, tops = hits.filter(([r, a]) => here().marks[here().view().cell(r, a)] === 2).length;
    found.textContent = state.query ? count(hits.length, "cell") + (hits.length ? `, ${tops.toLocaleString("en")} on top` : "") : "";
  }

  // ---- between here and Python
  function tell() {
    const self = here(), view = self.view();
    if (!view.there) return;
    const zoomed = app.range(view);
    write(last = {
      reading: self.reading, prompt: self.prompt, depth: view.reading.depths[self.row], position: view.prompt.columns[self.at],
      token: state.token, metric: state.metric, target: state.target,
      depths: zoomed && zoomed.map((row) => view.reading.depths[row]),
      panes: app.panes.map((p) => [p.reading, p.prompt, ...(p.held === null ? [] : [p.held])]), pins: state.pins.map((p) => ({ ...p })),
    });
  }

  function take(s) { // a selection set from Python, or by another view of this widget
    last = s;
    const ok = (r, p) => readings[r] && readings[r].prompts[p];
    const places = (s.panes || []).filter(([r, p]) => ok(r, p));
    const asked = [s.reading ?? (here() ? here().reading : 0), s.prompt ?? 0];
    const place = ok(...asked) ? asked : places[0] || (here() ? [here().reading, here().prompt] : [0, 0]);
    if (places.length) spread = false;
    else if (!here()) places.push(place);
    if (places.length && !places.some((p) => same(p.slice(0, 2), place))) places[clamp(focus, 0, places.length - 1)] = place;
    if (!places.length) { // which panes there are was left to this side
      if (!shown(...place)) move(app.panes.find((p) => p.reading === place[0]) || here(), ...place);
    } else if (JSON.stringify(places) !== JSON.stringify(app.panes.map((p) => [p.reading, p.prompt, ...(p.held === null ? [] : [p.held])]))) {
      while (app.panes.length > places.length) app.panes.pop().root.remove();
      places.forEach(([reading, prompt, held = null], i) => {
        if (app.panes[i]) Object.assign(app.panes[i], { reading, prompt, held });
        else add(reading, prompt, held);
      });
      focus = 0;
      shape();
      each((p) => p.open());
    }
    const self = shown(...place), view = self.view();
    focus = app.panes.indexOf(self);
    if (s.metric) state.metric = s.metric;
    if (Number.isInteger(s.target)) state.target = s.target;
    if (s.pins) state.pins = s.pins.filter((p) => ok(p.reading, p.prompt)).map((p) => ({ ...p }));
    const ends = Array.isArray(s.depths) && s.depths.map((d) => view.reading.depths.indexOf(d)), range = ends && ends[0] >= 0 && ends[1] >= ends[0] ? { pane: focus, rows: ends } : null;
    if (JSON.stringify(range) !== JSON.stringify(state.range)) {
      state.range = range;
      for (const p of app.panes) if (p.view().there) p.zoom();
    }
    shape();
    const row = view.reading.depths.indexOf(s.depth), at = view.there ? view.prompt.columns.indexOf(s.position) : -1;
    state.token = Number.isInteger(s.token) ? s.token : null;
    const to = [row < 0 ? (s.depth === undefined ? view.rows - 1 : self.row) : row, at < 0 ? (s.position === undefined ? (view.there ? view.home() : 0) : self.at) : at];
    settleOn(self, ...to);
  }

  function arrived({ block: [reading, prompt] }, own) {
    const first = !readings[reading].prompts[prompt].inputs;
    readings[reading].prompts[prompt] = opened(own);
    for (const [i, src] of Object.entries(own.sources || {})) payload.pictures[i].src = src;
    for (const p of app.panes) if (p.reading === reading && p.prompt === prompt) p.open();
    const self = here();
    if (!first) settleOn(self, self.row, self.at);
    else if (last.reading === self.reading && last.prompt === self.prompt) take(last); // Python asked for a place in it
    else {
      settleOn(self, self.row, self.view().home());
      tell();
    }
  }

  search.addEventListener("keydown", (event) => { // the next hit, with Shift the one before
    const self = here();
    if (event.key !== "Enter" || !self.hits.length) return;
    const place = () => self.hits.findIndex(([r, a]) => r === self.row && a === self.at);
    app.choose(self, ...self.hits[(place() + (event.shiftKey ? -1 : 1) + self.hits.length) % self.hits.length]);
    found.textContent = `${(place() + 1).toLocaleString("en")} of ${count(self.hits.length, "cell")}`;
  });

  function figure() { // the line of Python that draws the grid that the reader is in; of an attribution, its position
    const self = here(), view = self.view(), r = view.reading, range = app.range(view);
    if (!view.there) return null;
    const seen = view.frame(self.at);
    if (seen && r.depth !== "component") { // of a patch, its picture
      const metric = view.unit(view.metric(state.metric)), words = state.query || (app.followed(view) !== null && view.find(state.token) >= 0 && view.text(view.find(state.token)).replaceAll("·", " ").trim());
      const said = [`layer=${r.depths[self.row]}`, ...(r.prompts.length > 1 ? [`prompt=${self.prompt}`] : []), ...(view.where.images.length > 1 ? [`picture=${seen.image}`] : []), ...(seen.tile > 0 ? [`tile=${seen.tile}`] : [])];
      if (words) said.push(`word=${quoted(words)}`);
      else if (metric && metric !== "probability" && metric !== r.score) said.push(`value=${quoted(metric)}`);
      return `${r.call}.figure("overlay", ${said.join(", ")})`;
    }
    const shown = view.unit(view.metric(state.metric)), options = r.prompts.length > 1 ? [`prompt=${self.prompt}`] : [];
    if (r.depth === "component") options.push(`position=${view.prompt.count - view.count + self.at}`);
    else if (shown && shown !== "probability" && shown !== r.score) options.push(`value=${quoted(shown)}`);
    if (view.targets.length > 1 && (r.wide.includes(shown) || r.depth === "component")) options.push(`target=${view.target(state.target)}`);
    const part = range && r.depth !== "component" ? `.sel(${r.depth}=slice(${range.map((row) => r.depths[row]).join(", ")}))` : "";
    return `${r.call}${part}.figure("${r.depth === "component" ? "attribution" : "heatmap"}"${options.map((o) => `, ${o}`).join("")})`;
  }

  return {
    take, arrived, figure,
    lay() {
      // At first as many readings beside each other as there is room for, and three below each other in any case.
      if (spread) more(Math.min(readings.length, clamp(Math.floor(root.clientWidth / ROOM), root.clientWidth < 2 * ROOM ? 3 : 2, MOST_PANES)));
      spread = false;
      shape();
      fit();
      each((p) => { p.size(); p.reveal(); });
      go();
    },
    leave() {
      if (state.token === null) return false;
      app.follow(here(), state.token);
      return true;
    },
    pin: () => app.pin(here()),
    keys: [["p", "pins"], ["[", "from this layer"], ["]", "up to it"], ["0", "all layers"], ["+ -", "width of cells"], ...(payload.pictures?.length ? [["PageUp PageDown", "layer, on a picture"]] : [])],
    close() { cancelAnimationFrame(frame); clearTimeout(timer); },
  };
});
