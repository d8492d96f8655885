// Drift: topics x checkpoints, a range of checkpoints, and the items that changed most between its ends.

const STYLE = `
.wx-range{position:relative;height:26px;margin-top:2px}
.wx-range .track{position:absolute;left:0;right:0;top:11px;height:4px;border-radius:2px;background:var(--zero)}
.wx-range .own{position:absolute;top:11px;height:4px;background:var(--accent)}
.wx-grip{position:absolute;top:3px;width:12px;height:20px;margin-left:-6px;border-radius:4px;background:var(--bg);
  border:2px solid var(--accent);cursor:ew-resize;touch-action:none}
.wx-items{list-style:none;margin:0;padding:0;max-height:430px;overflow:auto;border:1px solid var(--line);border-radius:6px}
.wx-items>li{display:grid;grid-template-columns:minmax(0,1fr) minmax(150px,300px) 122px;gap:4px 12px;padding:6px 10px;
  border-bottom:1px solid var(--line);cursor:pointer;align-items:center}
&.narrow .wx-items>li{grid-template-columns:minmax(0,1fr) 122px}
&.narrow .wx-items>li>.wx-ends{grid-column:1/-1;grid-row:2}
.wx-items>li:last-child{border-bottom:0}
&.wide{display:grid;grid-template-columns:max-content minmax(0,1fr);grid-template-rows:repeat(5,max-content) 1fr;gap:8px 28px}
&.wide>*{grid-column:2}
&.wide>.wx-top{grid-column:1/-1}
&.wide>.wx-map{grid-column:1;grid-row:2/7}
&.wide>.wx-items{max-height:560px}
&.wide>.wx-items>li{grid-template-columns:minmax(0,1.4fr) minmax(130px,1fr) 118px}
.wx-items>li.on{background:color-mix(in srgb,var(--accent) 9%,transparent)}
.wx-said{display:-webkit-box;-webkit-line-clamp:2;-webkit-box-orient:vertical;overflow:hidden;unicode-bidi:isolate;overflow-wrap:anywhere}
.on>div>.wx-said{-webkit-line-clamp:14}
.wx-about{display:flex;gap:8px;white-space:nowrap;min-width:0;color:var(--soft);font-size:12px}
.wx-about>:first-child{flex:none;max-width:60%}
.wx-ends{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:2px 6px;align-items:center;font-size:11px;color:var(--soft);
  font-variant-numeric:tabular-nums}
.wx-stack{display:flex;height:15px;border-radius:3px;overflow:hidden;background:var(--zero)}
.wx-stack>span{overflow:hidden;white-space:nowrap;font-size:10px;line-height:15px;text-align:center;color:#000}
.wx-change{text-align:right;font-variant-numeric:tabular-nums}
.wx-change small{display:block;color:var(--soft);font-size:11px}
.s0{background:var(--s0)}
.s1{background:var(--s1)}
.s2{background:var(--s2)}
.s3{background:var(--s3);color:var(--bg)!important}
.wx-key2{display:flex;flex-wrap:wrap;gap:4px 12px;font-size:12px;color:var(--soft)}
.wx-key2 i{display:inline-block;width:14px;height:11px;border-radius:2px;margin-right:4px;vertical-align:-1px}
.wx-course{grid-column:1/-1;min-width:0}
.wx-axis{display:flex;justify-content:space-between;gap:8px;font-size:11px;color:var(--soft);font-variant-numeric:tabular-nums}
.wx-years{display:flex;align-items:flex-end;gap:1px;height:74px;margin-top:6px}
.wx-years>div{flex:1;display:flex;flex-direction:column-reverse;height:100%;min-width:2px;opacity:.55}
.wx-years>div.in{opacity:1}
`;
const STANCES = ["support", "neutral", "oppose", "uncommitted"], LETTERS = ["+", "0", "−", "?"], MOST = 60;
const CALLED = { keyed: "keyed stance", drift: "keyed drift" };
const MEANS = {
  keyed: "support less opposition, turned round for items keyed −; above 0 is towards the topic's direction",
  drift: "change of the keyed stance, support less opposition, turned round for items keyed −; above 0 is towards the topic's direction",
  commitment: "support and opposition together: how often a side is taken",
  uncommitted: "refusals and other answers that take no side",
};

export default explorer("drift", STYLE, ({ payload: p, root, tell, announce }) => {
  const K = p.steps.length, I = p.items.length, M = p.topics.length, measures = p.choices.measure;
  const mean = decode(p.p), S = p.n_samples || 0;
  const state = { measure: p.start.measure, topic: -1, ends: [0, K - 1], item: -1, query: "", column: K - 1, anchor: K - 1 };

  const at = (k, i) => { // four stances; the last is what is left of 1
    const x = [0, 1, 2].map((s) => mean[(k * I + i) * 3 + s]);
    return [...x, Math.max(0, 1 - x[0] - x[1] - x[2])];
  };
  const apart = (x, y) => x.reduce((sum, v, s) => sum + Math.abs(v - y[s]), 0) / 2;

  // ---- nodes
  const tools = make("div", "wx-tools wx-top"), box = make("div", "wx-map"), range = make("div", "wx-range"), track = make("div", "track"), own = make("div", "own");
  const facts = make("p", "wx-facts"), scales = make("div", "wx-tools"), head = make("div", "wx-tools"), list = make("ol", "wx-items"), key = make("div", "wx-key2");
  const title = make("h3"), means = make("p", "wx-hint"), number = make("p", "wx-hint");
  const pickMeasure = choice("show", (i) => { state.measure = measures[i]; paint(); done(); });
  const pickTopic = choice("topic", (i) => toTopic(i - 1));
  const toTopic = (i) => { // an item of another topic is left
    state.topic = i;
    if (i >= 0 && state.item >= 0 && p.topic[state.item] !== i) state.item = -1;
    paint();
    done();
  };
  const pickFrom = choice("from", (i) => { state.ends[0] = i; if (state.ends[1] < i) state.ends[1] = i; paint(); done(); });
  const pickTo = choice("to", (i) => { state.ends[1] = i; if (state.ends[0] > i) state.ends[0] = i; paint(); done(); });
  pickMeasure.fill(measures.map((m) => CALLED[m] || m));
  pickTopic.fill(["all topics", ...p.names]);
  pickFrom.fill(p.steps);
  pickTo.fill(p.steps);
  const find = finder("find in items", () => {
    state.query = find.value.toLowerCase();
    const left = state.item >= 0 && !found(state.item);
    if (left) state.item = -1;
    items();
    if (left) done();
  });
  const found = (i) => `${p.texts[i]} ${p.item_names[i]} ${p.names[p.topic[i]]}`.toLowerCase().includes(state.query);
  tools.append(pickMeasure.node, pickTopic.node, pickFrom.node, pickTo.node);
  head.append(title, find);
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "items by how far they changed; arrow keys walk through them");
  STANCES.forEach((name, s) => root.style.setProperty(`--s${s}`, `var(--h${p.stances[name]})`));
  STANCES.forEach((name, s) => { const entry = make("span"), swatch = make("i", `s${s}`); entry.append(swatch, `${LETTERS[s]} ${name}`); key.append(entry); });
  const heat = heatmap("topics by checkpoint; arrow keys choose a topic, Shift with an arrow stretches the range of checkpoints", {
    pick: (r, k) => { state.column = state.anchor = k; toTopic(r); },
    hover: (to) => tellCell(to),
    drag: (from, to) => { state.ends = [Math.min(from[1], to[1]), Math.max(from[1], to[1])]; paint(); done(); },
  });
  heat.svg.addEventListener("keydown", (event) => { // before the heat map's own keys
    if (!event.shiftKey || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    state.column = clamp(state.column + (event.key === "ArrowLeft" ? -1 : 1), 0, K - 1);
    state.ends = [Math.min(state.anchor, state.column), Math.max(state.anchor, state.column)];
    paint();
    done();
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  const grips = ["from", "to"].map((name, end) => {
    const grip = make("div", "wx-grip");
    grip.tabIndex = 0;
    grip.setAttribute("role", "slider");
    grip.setAttribute("aria-label", `${name} checkpoint`);
    grip.setAttribute("aria-valuemin", 0);
    grip.setAttribute("aria-valuemax", K - 1);
    const move = (k) => { // pushes the other along
      const to = clamp(k, 0, K - 1), other = state.ends[1 - end];
      if (to === state.ends[end]) return;
      state.ends = end ? [Math.min(other, to), to] : [to, Math.max(other, to)];
      paint();
      done();
    };
    grip.addEventListener("keydown", (event) => bound(event, arrows((dx, dy) => move(state.ends[end] + dx - dy))));
    grip.addEventListener("pointerdown", (event) => { grip.setPointerCapture(event.pointerId); event.preventDefault(); grip.focus(); });
    grip.addEventListener("pointermove", (event) => {
      if (!grip.hasPointerCapture(event.pointerId)) return;
      const line = range.getBoundingClientRect();
      move(Math.round(((event.clientX - line.left) / line.width) * K - 0.5));
    });
    return grip;
  });
  range.append(track, own, ...grips);
  heat.svg.after(range);
  box.append(heat.node, scales, means, facts);
  root.append(tools, box, head, key, number, list);

  // ---- heat map
  const signed = (name) => p.measures[name].scale === "diverging";
  const packed = (name, which) => (p.measures[name][which] ? decode(p.measures[name][which]) : null);
  function chart() {
    const name = state.measure, values = packed(name, "value"), low = packed(name, "low"), high = packed(name, "high"), ps = packed(name, "p");
    const two = signed(name);
    let reach = 0;
    for (const x of values) if (!Number.isNaN(x)) reach = Math.max(reach, Math.abs(x));
    reach = two ? Math.max(reach, 0.05) : 1;
    const unsure = (j) => (ps ? ps[j] > 0.05 : two && low[j] <= 0 && high[j] >= 0);
    heat.fill({
      rows: p.names, columns: p.steps, title: "checkpoint", wide: 60, least: 7, high: 20,
      cell: (r, k) => {
        const j = r * K + k, x = values[j];
        return { fill: tint(p.measures[name].scale, x / reach), mark: !Number.isNaN(x) && unsure(j) ? "hatch" : null, title: cellText(r, k) };
      },
    });
    const width = heat.svg.getAttribute("width");
    range.style.width = `${width}px`;
    const of = name === "drift" ? ` from ${p.baseline ?? p.steps[0]}` : "";
    scales.replaceChildren(
      scale(p.measures[name].scale, two ? say(-reach) : "0", say(reach), (CALLED[name] || name) + of),
      make("span", "wx-hint", ps ? "hatched: not beyond chance (family-wise p > 0.05)" : two ? "hatched: the 95 % interval holds 0" : "95 % intervals below"),
    );
    means.textContent = MEANS[name] ? `${CALLED[name] || name}: ${MEANS[name]}.` : "";
    means.hidden = !MEANS[name];
    cursor();
  }
  function cellText(r, k) {
    const name = state.measure, j = r * K + k, ps = packed(name, "p"), sign = (x) => (signed(name) && x > 0 ? "+" : "") + say(x);
    const test = ps && !Number.isNaN(ps[j]) ? `, p ${say(ps[j], 3)}` : "";
    return `${p.names[r]}, checkpoint ${p.steps[k]}: ${CALLED[name] || name} ${sign(packed(name, "value")[j])} [${sign(packed(name, "low")[j])}, ${sign(packed(name, "high")[j])}]${test}`;
  }
  function tellCell(to) {
    if (!to && state.topic < 0) facts.textContent = `checkpoint ${p.steps[state.column]}: a cell chooses a topic and a checkpoint, a drag a range of checkpoints.`;
    else facts.textContent = cellText(...(to || [state.topic, state.column]));
  }
  function cursor() {
    const [a, b] = state.ends, unit = 100 / K;
    heat.at(state.topic, state.column);
    heat.trace(state.topic < 0 ? [] : [[state.topic, a, 0], [state.topic, b, 0]]);
    own.style.left = `${(a + 0.5) * unit}%`;
    own.style.width = `${(b - a) * unit}%`;
    grips.forEach((grip, end) => {
      const k = state.ends[end];
      grip.style.left = `${(k + 0.5) * unit}%`;
      grip.style.marginLeft = a !== b ? "" : end ? "0" : "-12px"; // beside each other, so that both can be had
      grip.setAttribute("aria-valuenow", k);
      grip.setAttribute("aria-valuetext", `checkpoint ${p.steps[k]}`);
    });
  }

  // ---- items
  // Whether an item moved more than its framings' noise: each framing's two readings swapped at random, all ways or 64
  // of them, the readings as they are among them.  [mean distance under swaps, share of swaps that reach the observed].
  const swaps = (() => {
    const all = 2 ** Math.max(S - 1, 0);
    let seed = 1;
    const random = () => { seed = (seed * 48271) % 2147483647; return seed / 2147483647; };
    return Array.from({ length: Math.min(all, 64) }, (_, n) => Array.from({ length: S }, (_, s) => (all <= 64 ? ((n >> s) & 1 ? -1 : 1) : n && random() < 0.5 ? -1 : 1)));
  })();
  const many = S ? decode(p.samples) : null;
  function chance(i) {
    const gaps = [], signs = [];
    for (let s = 0; many && s < S; s++) {
      const x = [0, 1, 2].map((q) => many[((state.ends[1] * I + i) * S + s) * 3 + q] - many[((state.ends[0] * I + i) * S + s) * 3 + q]);
      if (!x.some(Number.isNaN)) { gaps.push([...x, -(x[0] + x[1] + x[2])]); signs.push(s); }
    }
    if (gaps.length < 2) return null;
    const found = swaps.map((own) => [0, 1, 2, 3].reduce((sum, q) => sum + Math.abs(gaps.reduce((all, x, j) => all + own[signs[j]] * x[q], 0)), 0) / gaps.length / 2);
    return [found.reduce((x, y) => x + y) / found.length, found.filter((x) => x >= found[0] - 1e-9).length / found.length];
  }

  function stack(x) {
    const node = make("div", "wx-stack");
    node.title = STANCES.map((name, s) => `${name} ${say(x[s])}`).join(", ");
    if (Number.isNaN(x[0])) { node.textContent = "not read"; return node; }
    x.forEach((v, s) => {
      const piece = make("span", `s${s}`, v > 0.13 ? `${LETTERS[s]} ${Math.round(100 * v)}` : "");
      piece.style.width = `${100 * v}%`;
      node.append(piece);
    });
    return node;
  }

  function items() {
    const [a, b] = state.ends, rows = [];
    for (let i = 0; i < I; i++) {
      if (state.topic >= 0 && p.topic[i] !== state.topic) continue;
      if (state.query && !found(i)) continue;
      const far = apart(at(a, i), at(b, i));
      rows.push([Number.isNaN(far) ? -1 : far, i]);
    }
    rows.sort((x, y) => y[0] - x[0] || x[1] - y[1]);
    let shown = rows.slice(0, MOST);
    const lost = rows.find(([, i]) => i === state.item);
    if (lost && !shown.includes(lost)) shown = [...shown, lost];
    const same = a === b, when = same ? `at ${p.steps[a]}` : `from ${p.steps[a]} to ${p.steps[b]}`;
    const which = rows.length > MOST ? (same ? `the first ${MOST} of ${rows.length}` : `the ${MOST} of ${rows.length} that changed most`) : rows.length;
    title.textContent = `Items ${when}${state.topic >= 0 ? `, ${p.names[state.topic]}` : ""}: ${which}`;
    number.textContent = same ? "This is one checkpoint: there is no change to show."
      : "Number: how far an item moved, the total variation between its two stances: 0 alike, 1 nothing in common." + (S ? " Chance and p: each framing's two readings swapped at random." : "");
    list.replaceChildren(...shown.map(([far, i], n) => {
      const item = make("li", i === state.item ? "on" : ""), text = make("div"), about = make("div", "wx-about"), ends = make("div", "wx-ends"), change = make("div", "wx-change");
      const said = make("div", "wx-said", p.texts[i]);
      said.dir = "auto";
      const polarity = p.polarity[i] > 0 ? "keyed +" : p.polarity[i] < 0 ? "keyed −" : "not keyed";
      about.append(make("span", "wx-one", p.names[p.topic[i]]), make("span", "", polarity));
      if (p.item_names[i] !== p.texts[i]) about.append(make("span", "wx-one", p.item_names[i]));
      text.append(said, about);
      for (const k of same ? [a] : [a, b]) ends.append(make("span", "", p.steps[k]), stack(at(k, i)));
      const swapped = far < 0 || same ? null : chance(i);
      change.append(same ? "" : far < 0 ? "–" : say(far));
      if (swapped) change.append(make("small", "", `chance ${say(swapped[0])}, p ${say(swapped[1])}`));
      change.title = "total variation between the two stance vectors; chance and p: when each framing's two readings are swapped at random; p is of this item alone, whatever the number of items";
      item.append(text, ends, change);
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", String(i === state.item));
      item.dataset.item = i;
      item.tabIndex = i === state.item || (n === 0 && !lost) ? 0 : -1;
      if (i === state.item) item.append(course(i));
      return item;
    }));
  }

  function course(i) { // the item's stances at every checkpoint
    const box = make("div", "wx-course"), node = make("div", "wx-years"), axis = make("div", "wx-axis");
    axis.append(make("span", "", p.steps[0]), make("span", "", "checkpoint"), make("span", "", p.steps[K - 1]));
    box.append(node, axis);
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", `stances at ${K} checkpoints`);
    for (let k = 0; k < K; k++) {
      const x = at(k, i), column = make("div", k >= state.ends[0] && k <= state.ends[1] ? "in" : "");
      column.title = `checkpoint ${p.steps[k]}: ${STANCES.map((name, s) => `${name} ${say(x[s])}`).join(", ")}`;
      if (!Number.isNaN(x[0])) x.forEach((v, s) => { const piece = make("div", `s${s}`); piece.style.height = `${100 * v}%`; column.append(piece); });
      node.append(column);
    }
    return box;
  }
  const leaveItem = () => { state.item = -1; items(); done(); };
  rove(list, "li", (node) => {
    const i = Number(node.dataset.item);
    if (i === state.item) return;
    for (const other of list.children) {
      const on = other === node;
      other.classList.toggle("on", on);
      other.setAttribute("aria-selected", String(on));
      if (other.lastChild.className === "wx-course") other.lastChild.remove();
    }
    state.item = i;
    node.append(course(i));
    done();
  }, leaveItem);

  function show() { // the chosen item, within the list
    const item = list.querySelector(".on");
    if (!item) return;
    const a = item.getBoundingClientRect(), b = list.getBoundingClientRect();
    if (a.top < b.top || a.bottom > b.bottom) list.scrollTop += a.top - b.top - 8;
  }

  // ---- choosing
  function paint() {
    pickMeasure.select.selectedIndex = measures.indexOf(state.measure);
    pickTopic.select.selectedIndex = state.topic + 1;
    pickFrom.select.selectedIndex = state.ends[0];
    pickTo.select.selectedIndex = state.ends[1];
    chart();
    tellCell(null);
    announce(facts.textContent);
    items();
  }
  const done = () => tell({
    measure: state.measure, topic: state.topic < 0 ? null : p.topics[state.topic], checkpoint: p.steps[state.column], from: p.steps[state.ends[0]], to: p.steps[state.ends[1]],
    item: state.item < 0 ? null : p.items[state.item],
  });

  return {
    figure: () => (state.measure === "drift" ? 'probes.values.measures.drift(readings).figure("drifts")' : 'probes.values.measures.stance(readings).figure("trajectories")'),
    take(s) {
      if (measures.includes(s.measure)) state.measure = s.measure;
      state.topic = s.topic === null || s.topic === undefined ? -1 : p.topics.indexOf(s.topic);
      const a = p.steps.indexOf(s.from), b = p.steps.indexOf(s.to), k = p.steps.indexOf(s.checkpoint);
      state.ends = [a < 0 ? 0 : a, b < 0 ? K - 1 : b].sort((x, y) => x - y);
      state.anchor = state.column = k < 0 ? K - 1 : k;
      state.item = s.item === null || s.item === undefined ? -1 : p.items.indexOf(s.item);
      if (state.item >= 0 && !found(state.item)) state.query = find.value = "";
      paint();
      show();
    },
    leave() {
      if (state.item >= 0) leaveItem();
      else if (state.topic >= 0) toTopic(-1);
      else return false;
      return true;
    },
    lay(width) {
      root.classList.remove("wide");
      box.style.width = "";
      root.classList.toggle("narrow", width < 640);
      chart();
      // Items beside the map, where it leaves them room.  Its width is then its own, so that painting does not change it.
      const taken = heat.svg.getBoundingClientRect().right - box.getBoundingClientRect().left + 8;
      const beside = width >= 1000 && taken <= 0.56 * width;
      root.classList.toggle("wide", beside);
      box.style.width = beside ? `${Math.max(taken, 420)}px` : "";
    },
  };
});
