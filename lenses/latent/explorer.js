// Neighbours: one row for each, the word marked in its sentence; sorted and filtered, and only what is in sight is drawn.

const STYLE = `
.wx-table{overflow:auto;border:1px solid var(--line);border-radius:6px;height:var(--high,460px);position:relative;contain:strict}
.wx-line{display:grid;grid-template-columns:var(--columns);gap:0 10px;align-items:center;height:26px;padding:0 8px;min-width:max(100%,var(--least));
  font-size:12px;border-bottom:1px solid color-mix(in srgb,var(--line) 60%,transparent)}
.wx-top{position:sticky;top:0;z-index:2;background:var(--panel);height:30px;border-bottom:1px solid var(--line)}
.wx-top button{border:0;background:none;padding:0 2px;min-height:24px;font-weight:600;font-size:12px;text-align:left;white-space:nowrap;overflow:hidden;
  text-overflow:ellipsis;width:100%}
.wx-space{position:relative;min-width:max(100%,var(--least))}
.wx-space .wx-line{position:absolute;left:0;right:0;cursor:pointer}
.wx-line.on{background:color-mix(in srgb,var(--accent) 14%,var(--bg))}
.wx-line.under{color:var(--soft)}
.wx-score{display:grid;grid-template-columns:44px 1fr;gap:6px;align-items:center}
.wx-bar .wx-spot{min-width:8px;margin-left:-4px;border-radius:50%}
.wx-score .wx-bar{margin-right:6px;overflow:visible}
.narrow .wx-score .wx-bar{display:none}
.wx-say{unicode-bidi:plaintext;white-space:pre;overflow:hidden;text-overflow:ellipsis;min-width:0}
.wx-whole{unicode-bidi:plaintext;white-space:pre-wrap;overflow-wrap:anywhere;max-height:140px;overflow:auto}
.wx-chips{display:flex;flex-wrap:wrap;gap:4px;align-items:center;color:var(--soft)}
.wx-chips button{min-height:24px;padding:1px 7px; font-size:12px}
`;
const HIGH = 26, TOP = 30;
const NAMES = { similarity: "similarity", over: "over floor", index_layer: "index layer", word: "word in its context", position: "at token" };

export default explorer("neighbours", STYLE, ({ payload: p, root, tell, announce }) => {
  const size = p.axes.map((a) => p.values[a].length), rows = size.reduce((x, y) => x * y, 1);
  const score = decode(p.similarity), from = decode(p.index_layer), which = decode(p.context.at);
  const floors = Object.entries(p.floors).map(([name, { of, values }]) => [name, decode(values), of]), kinds = p.kind ? decode(p.kind) : null;
  const input = p.input ? decode(p.input.at) : null, places = p.place ? decode(p.place) : null;
  const state = { row: -1, sort: "similarity", down: true, layers: new Set(), above: false, least: null, text: "", only: {} };
  let order = new Int32Array(0), frame = 0, timer = 0;

  // ---- one row
  const strides = size.map((_, i) => size.slice(i + 1).reduce((x, y) => x * y, 1));
  const index = (n, axis) => { const i = p.axes.indexOf(axis); return Math.floor(n / strides[i]) % size[i]; };
  const value = (n, axis) => p.values[axis][index(n, axis)];
  const meant = (of, n) => !of || of === (kinds?.[spotOf(n)] ? "image" : "text"); // a floor of patches is none of texts
  const floor = p.depth && floors.length ? floors.flatMap(([, own]) => [...own].filter((x) => !Number.isNaN(x))) : null;
  const floorOf = (n) => (floor ? floors.reduce((x, [, own, of]) => (Number.isNaN(own[index(n, p.depth)]) || !meant(of, n) ? x : Math.max(x, own[index(n, p.depth)])), -Infinity) : NaN);
  const context = (n) => p.context.texts[which[n]], word = (n) => context(n)[1]; // before, the word, after
  const spotOf = (n) => index(n, "prompt") * p.values.position.length + index(n, "position");
  const at = (n) => (input ? p.input.texts[input[spotOf(n)]] : "");
  const place = (n) => (places ? places[spotOf(n)] : value(n, "position")); // counted from the prompt's first token
  const key = {
    similarity: (n) => score[n], over: (n) => score[n] - floorOf(n), index_layer: (n) => from[n], word: (n) => word(n).toLowerCase(),
    ...Object.fromEntries(p.axes.map((a) => [a, a === "position" ? place : (n) => value(n, a)])),
  };

  // ---- nodes
  const tools = make("div", "wx-tools"), chips = make("div", "wx-chips"), tally = make("span", "wx-hint");
  const box = make("div", "wx-table"), top = make("div", "wx-line wx-top"), space = make("div", "wx-space"), panel = make("section", "wx-panel");
  const find = finder("find in contexts and tokens", () => { state.text = find.value; narrow(); });
  tally.setAttribute("role", "status");
  panel.setAttribute("aria-label", "the chosen neighbour");
  const picks = p.axes.filter((a) => a !== "position").map((a) => {
    const pick = choice(a, (i) => { state.only[a] = i - 1; narrow(); });
    pick.fill([a === "query" ? "all queries" : `all ${a}s`, ...p.values[a]]);
    pick.node.hidden = p.values[a].length < 2;
    return { a, ...pick };
  });
  const above = make("label"), tick = make("input");
  tick.type = "checkbox";
  tick.onchange = () => { state.above = tick.checked; narrow(); };
  above.append(tick, "above the floor only");
  above.hidden = !floor;
  const bounds = score.reduce(([low, high], x) => (Number.isNaN(x) ? [low, high] : [Math.min(low, x), Math.max(high, x)]), [Infinity, -Infinity]);
  const ends = [floor ? Math.min(bounds[0], ...floor) : bounds[0], floor ? Math.max(bounds[1], ...floor) : bounds[1]];
  const all = from.reduce((sum, layer, n) => sum + (layer >= 0 && !Number.isNaN(score[n])), 0), id = fresh("row");
  const least = slider(`${p.score} from`, (x) => { state.least = x <= 0 ? null : bounds[0] + ((bounds[1] - bounds[0]) * x) / 100; narrow(); });
  least.input.max = 100;
  tools.append(...picks.map((pick) => pick.node), above, least.node, find, tally);
  chips.setAttribute("role", "group");
  chips.setAttribute("aria-label", "index layers");
  root.append(tools, chips, box, panel);
  if (!floor) root.append(make("p", "wx-hint", "No floor was measured for these neighbours: how near states of random tokens would be is not known."));

  // ---- columns
  const WIDE = { similarity: "112px", over: "80px", position: "minmax(60px,110px)", index_layer: "82px", word: "minmax(220px,1fr)" };
  let columns = [];
  const fit = (width) => { // where there is little room, the score, the place and the word: the detail has the rest
    columns = width < 640 ? p.columns.filter((c) => ["similarity", "position", "query", "word"].includes(c)) : p.columns;
    box.style.setProperty("--columns", columns.map((c) => (width < 640 && c === "similarity" ? "50px" : WIDE[c] || "54px")).join(" "));
    box.style.setProperty("--least", width < 640 ? "0px" : `${p.columns.length * 80 + 160}px`);
    box.classList.toggle("narrow", width < 640);
    for (const { column, cell } of heads) cell.hidden = !columns.includes(column);
  };
  box.tabIndex = 0;
  box.setAttribute("role", "grid");
  box.setAttribute("aria-label", "neighbours; arrow keys walk through them");
  top.setAttribute("role", "row");
  const heads = p.columns.map((column) => {
    const cell = make("div"), sort = button("", "", () => {
      if (state.sort === column) state.down = !state.down;
      else [state.sort, state.down] = [column, column === "similarity" || column === "over"];
      filter();
      done();
    });
    cell.setAttribute("role", "columnheader");
    cell.append(sort);
    top.append(cell);
    return { column, cell, sort };
  });
  box.append(top, space);
  fit(1000);

  const chipNodes = p.index_layers.map((layer) => {
    const chip = button("", "", () => {
      if (!state.layers.delete(layer)) state.layers.add(layer);
      narrow();
    });
    const told = p.shares[layer];
    chip.title = told ? `of all neighbours ${share(told[0])} are from index layer ${layer}; of random tokens' ${share(told[1])}` : "";
    return { layer, chip };
  });
  const everyLayer = button("all", "all index layers", () => { state.layers.clear(); narrow(); });
  chips.append("index layer", everyLayer, ...chipNodes.map(({ chip }) => chip));
  rove(chips, "button", () => {});

  function spot(x, low) { // a dot between the least and the greatest of all scores, a tick at the floor
    const where = (y) => (y - ends[0]) / (ends[1] - ends[0] || 1), node = bar([where(x), where(x)], where(low), "floor");
    node.firstChild.className = "wx-spot";
    return node;
  }

  // ---- which rows, in which order
  function filter() {
    const text = state.text.toLowerCase(), spaced = text.replaceAll(" ", "·"), kept = [], layers = new Map();
    const match = text ? p.context.texts.map((parts) => parts.join("").toLowerCase().includes(text)) : null;
    const axes = Object.entries(state.only).filter(([, i]) => i >= 0);
    for (let n = 0; n < rows; n++) {
      if (from[n] < 0 || Number.isNaN(score[n])) continue;
      if (axes.some(([a, i]) => index(n, a) !== i)) continue;
      if (state.above && !(score[n] > floorOf(n))) continue;
      if (state.least !== null && score[n] < state.least) continue;
      if (match && !match[which[n]] && !at(n).toLowerCase().includes(spaced)) continue;
      layers.set(from[n], (layers.get(from[n]) || 0) + 1);
      if (!state.layers.size || state.layers.has(from[n])) kept.push(n);
    }
    const of = key[state.sort], way = state.down ? -1 : 1, keys = new Map(kept.map((n) => [n, of(n)]));
    kept.sort((a, b) => { const x = keys.get(a), y = keys.get(b); return (x < y ? -way : x > y ? way : 0) || a - b; });
    order = Int32Array.from(kept);
    tally.textContent = `${order.length} of ${all} neighbours`;
    for (const { layer, chip } of chipNodes) {
      chip.textContent = `${layer}  (${layers.get(layer) || 0})`;
      chip.setAttribute("aria-pressed", String(state.layers.has(layer)));
      chip.setAttribute("aria-label", `index layer ${layer}, ${layers.get(layer) || 0} neighbours`);
    }
    everyLayer.setAttribute("aria-pressed", String(!state.layers.size));
    const tabs = [everyLayer, ...chipNodes.map(({ chip }) => chip)];
    if (!tabs.some((node) => node.tabIndex === 0 && node === document.activeElement)) tabs.forEach((node, i) => { node.tabIndex = i ? -1 : 0; });
    for (const { column, cell, sort } of heads) {
      const on = state.sort === column;
      sort.textContent = (column === "similarity" ? p.score : NAMES[column] || column) + (on ? (state.down ? " ▾" : " ▴") : "");
      cell.setAttribute("aria-sort", on ? (state.down ? "descending" : "ascending") : "none");
    }
    const x = state.least === null ? 0 : Math.round((100 * (state.least - bounds[0])) / (bounds[1] - bounds[0] || 1));
    least.set(x, state.least === null ? "any" : say(state.least));
    tick.checked = state.above;
    for (const { a, select } of picks) select.selectedIndex = (state.only[a] ?? -1) + 1;
    if (find.value !== state.text) find.value = state.text;
    space.style.height = `${order.length * HIGH}px`;
    box.setAttribute("aria-rowcount", order.length + 1);
    box.style.setProperty("--high", `${clamp(order.length * HIGH + TOP + 18, 120, 460)}px`);
    paint();
  }

  function sentence(n, reach) {
    const [before, marked, after] = context(n), letters = [...before], node = make("span");
    node.append(letters.length > reach ? `…${letters.slice(-reach).join("")}` : before, make("mark", "", marked), after);
    return node;
  }

  function paint() { // only what is in sight
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    frame = 0;
    const high = box.clientHeight || 460, first = Math.max(0, Math.floor(box.scrollTop / HIGH) - 4), last = Math.min(order.length, first + Math.ceil(high / HIGH) + 8);
    const lines = [];
    for (let k = first; k < last; k++) {
      const n = order[k], line = make("div", "wx-line"), low = floorOf(n);
      line.style.top = `${k * HIGH}px`;
      line.dataset.row = n;
      line.id = `${id}-${n}`;
      line.setAttribute("role", "row");
      line.setAttribute("aria-rowindex", k + 2);
      line.classList.toggle("on", n === state.row);
      line.setAttribute("aria-selected", String(n === state.row));
      line.classList.toggle("under", floor !== null && !(score[n] > low));
      for (const column of columns) {
        const cell = make("div", "wx-one wx-field");
        cell.setAttribute("role", "gridcell");
        if (column === "similarity") {
          cell.className = "wx-score";
          cell.append(make("span", "", say(score[n], 3)), spot(score[n], floor ? low : NaN));
        } else if (column === "over") cell.textContent = (score[n] > low ? "+" : "") + say(score[n] - low, 3);
        else if (column === "index_layer") cell.textContent = from[n];
        else if (column === "word") { cell.className = "wx-say"; cell.append(sentence(n, 36)); }
        else if (column === "position" && input) { cell.textContent = at(n); cell.title = `${clip(at(n), 200)}  #${place(n)}`; }
        else cell.textContent = value(n, column);
        line.append(cell);
      }
      lines.push(line);
    }
    space.replaceChildren(...lines);
    if (lines.some((line) => Number(line.dataset.row) === state.row)) box.setAttribute("aria-activedescendant", `${id}-${state.row}`);
    else box.removeAttribute("aria-activedescendant");
  }
  const schedule = () => { if (!frame) { frame = requestAnimationFrame(paint); timer = setTimeout(paint, 100); } };

  function detail() {
    const n = state.row;
    if (n < 0) { panel.replaceChildren(make("p", "wx-hint", "Choose a row to see its sentence.")); return; }
    const text = make("p", "wx-whole"), facts = make("p", "wx-facts"), head = make("h3");
    if (input) head.append("near to the state at ", make("bdi", "", clip(at(n), 120)), ` #${place(n)}, ${p.depth} ${value(n, p.depth)}`);
    else head.textContent = p.axes.map((a) => `${a} ${value(n, a)}`).join(", ");
    text.append(sentence(n, 1e9));
    const cell = Math.floor(n / size[size.length - 1]); // rank is the last axis, and these are of the nearest
    const tests = Object.entries(p.tests).map(([name, own]) => `${name} of the nearest ${say(decode(own)[cell], 4)}`);
    const said = [...(p.sink && decode(p.sink)[cell] > 0 ? [p.sink_said] : []), `${p.score} ${say(score[n], 4)}`, ...tests, `index layer ${from[n]}`, `rank ${value(n, "rank")}`];
    for (const [name, own, of] of floors) if (meant(of, n)) said.push(`floor of ${name} ${say(own[index(n, p.depth)], 4)}`);
    facts.textContent = said.join(" · ");
    panel.replaceChildren(head, text, facts);
    announce(`${say(score[n], 3)}: ${word(n)}, index layer ${from[n]}`);
  }

  // ---- choosing
  function narrow() { // a filter leaves a row that it hides
    filter();
    if (state.row >= 0 && !order.includes(state.row)) leaveRow();
    else done();
  }
  function leaveRow() {
    state.row = -1;
    paint();
    detail();
    done();
  }
  function choose(k, silent) {
    if (!order.length) return;
    k = clamp(k, 0, order.length - 1);
    state.row = order[k];
    const y = k * HIGH, room = box.clientHeight - TOP - 16;
    if (y < box.scrollTop) box.scrollTop = y;
    else if (y + HIGH > box.scrollTop + room) box.scrollTop = y + HIGH - room;
    paint();
    detail();
    if (!silent) done();
  }
  box.addEventListener("scroll", schedule, { passive: true });
  space.addEventListener("click", (event) => {
    const line = event.target.closest(".wx-line");
    if (!line) return;
    if (line.classList.contains("on")) leaveRow();
    else choose(order.indexOf(Number(line.dataset.row)));
  });
  box.addEventListener("keydown", (event) => {
    if (event.target !== box) return;
    const now = order.indexOf(state.row), page = Math.max(1, Math.floor(box.clientHeight / HIGH) - 2);
    bound(event, arrows((dx, dy) => choose(now < 0 && Math.abs(dx + dy) < FAR ? 0 : now + dx + dy), page));
  });

  const done = () => tell({
    ...Object.fromEntries(p.axes.map((a) => [a, state.row < 0 ? null : value(state.row, a)])),
    ...Object.fromEntries(picks.map(({ a }) => [`only_${a}`, state.only[a] >= 0 ? p.values[a][state.only[a]] : null])), sort: state.sort, descending: state.down,
    index_layers: [...state.layers].sort((a, b) => a - b), above_floor: state.above, least: state.least, text: state.text,
  });

  return {
    figure: () => (p.depth ? `reading.figure("heatmap", value="similarity"${p.values.prompt.length > 1 ? `, prompt=${p.values.prompt.indexOf(state.row < 0 ? p.values.prompt[Math.max(state.only.prompt, 0)] : value(state.row, "prompt"))}` : ""})` : null),
    take(s) {
      if (key[s.sort]) state.sort = s.sort;
      state.down = s.descending !== false;
      state.layers = new Set([s.index_layers ?? []].flat().filter((l) => p.index_layers.includes(l)));
      for (const { a } of picks) state.only[a] = p.values[a].indexOf(s[`only_${a}`]);
      state.above = !!s.above_floor && !!floor;
      state.least = typeof s.least === "number" ? s.least : null;
      state.text = String(s.text ?? "");
      const places = p.axes.map((a) => (s[a] === null || s[a] === undefined ? -1 : p.values[a].indexOf(s[a])));
      state.row = places.includes(-1) ? -1 : places.reduce((sum, i, j) => sum + i * strides[j], 0);
      if (state.row >= 0 && from[state.row] < 0) state.row = -1;
      filter();
      const k = order.indexOf(state.row);
      if (k >= 0) choose(k, true);
      else detail();
    },
    leave() {
      if (state.row < 0) return false;
      leaveRow();
      return true;
    },
    lay(width) { fit(width); paint(); },
    close() { cancelAnimationFrame(frame); clearTimeout(timer); },
  };
});
