// Routing: blocks x experts by how often each serves a label, and the tokens of documents by their experts.

const STYLE = `
.wx-tokens{line-height:2.05;max-height:340px;overflow:auto;border:1px solid var(--line);border-radius:6px;padding:6px 8px}
.wx-token{display:inline-flex;align-items:baseline;max-width:min(100%,26em);margin:0 2px 0 0;padding:0 3px;border-radius:3px;
  line-height:1.5;cursor:pointer;border-bottom:3px solid transparent;vertical-align:bottom}
.wx-token>small{font-size:10px;color:var(--ink);margin-left:3px;font-variant-numeric:tabular-nums}
.wx-token.off{color:var(--soft)}
.wx-token.on{outline:2px solid var(--accent)}
.wx-key{display:flex;flex-wrap:wrap;gap:3px}
.wx-key button{min-height:22px;padding:0 6px;font-size:11px;font-variant-numeric:tabular-nums;border-bottom-width:3px}
.wx-columns>section>.wx-tools{margin-bottom:6px}
.wx-scroll{max-height:420px;overflow:auto}
.wx-side{display:grid;gap:10px;grid-template-columns:minmax(0,1fr);align-content:start;min-width:0}
.wx-two{display:grid;gap:12px 28px;grid-template-columns:minmax(0,1fr);align-items:start}
.wx-two.beside{grid-template-columns:minmax(300px,42%) minmax(0,1fr)}
.wx-path{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:2px 10px;font-variant-numeric:tabular-nums}
.wx-path>.on{color:var(--accent);font-weight:600}
.wx-path span.w{display:inline-flex;gap:4px;margin-right:10px;align-items:center}
.wx-path i{display:inline-block;width:9px;height:9px;border-radius:2px}
`;
const LINES = ["solid", "dashed", "dotted", "double"];
const hue = (e) => `var(--h${e % 8})`;
const line = (e) => LINES[Math.floor(e / 8) % 4]; // beyond eight experts, hues come back with another line; the number tells

export default explorer("routing", STYLE, ({ payload: p, root, tell, announce }) => {
  const B = p.blocks.length, E = p.experts, L = p.labels.length;
  const shares = decode(p.share), low = p.low && decode(p.low), high = p.low && decode(p.high);
  const chance = [decode(p.chance_low), decode(p.chance_high)], tested_p = decode(p.difference_p);
  const cell = (l, b, e) => (l * B + b) * E + e;
  const state = { label: 0, compare: -1, doc: [null, null], block: B - 1, expert: -1, token: [-1, -1], last: 0, hover: null };

  // ---- nodes
  const tools = make("div", "wx-tools"), maps = make("div", "wx-columns"), facts = make("div", "wx-facts");
  const key = make("div", "wx-key"), panes = make("div", "wx-columns"), two = make("div", "wx-two"), left = make("div", "wx-side"), right = make("div", "wx-side"), path = make("section", "wx-panel wx-scroll");
  maps.style.setProperty("--least", "230px");
  if (B > 16) path.tabIndex = 0; // it scrolls
  path.setAttribute("aria-label", "path of a token through the blocks");
  key.setAttribute("role", "group");
  key.setAttribute("aria-label", "experts");
  const pickLabel = choice("label", (i) => { state.label = i; if (state.compare === i) state.compare = -1; settle(); });
  const pickOther = choice("beside", (i) => { state.compare = i ? others()[i - 1] : -1; settle(); });
  const pickBlock = slider("block", (i) => { state.block = i; paint(); done(); });
  const clear = button("all experts", "show all experts", () => leaveExpert());
  const leaveExpert = () => { state.expert = -1; paint(); done(); };
  pickBlock.input.max = B - 1;
  pickBlock.node.hidden = B < 2;
  tools.append(pickLabel.node, pickOther.node, pickBlock.node, clear);
  pickLabel.node.hidden = pickOther.node.hidden = L < 2;
  pickLabel.fill(p.names);
  const hint = make("p", "wx-hint");
  left.append(maps, facts, key);
  right.append(panes, hint, path);
  two.append(left, right);
  root.append(tools, two);
  const others = () => p.labels.map((_, i) => i).filter((i) => i !== state.label);

  // ---- heat maps: of the label, of the other, of their difference
  const titles = [0, 1, 2].map(() => make("h4")), scales = [0, 1, 2].map(() => make("div", "wx-tools"));
  const heats = [0, 1, 2].map((i) => heatmap("experts by block; arrow keys choose a block and an expert", {
    pick: (r, e) => { state.block = B - 1 - r; state.expert = state.expert === e && document.activeElement !== heats[i].svg ? -1 : e; paint(); done(); },
    hover: (to) => tellCell(to ? [B - 1 - to[0], to[1]] : null),
  }));
  const boxes = heats.map((heat, i) => { const box = make("div"); box.append(titles[i], heat.node, scales[i]); return box; });
  maps.append(...boxes);

  const within = (l, b, e) => { const x = shares[cell(l, b, e)]; return x >= chance[0][l * B + b] && x <= chance[1][l * B + b]; };
  const gap = (b, e) => shares[cell(state.label, b, e)] - shares[cell(state.compare, b, e)];
  function beyond(b, e) { // family-wise p of the difference between the two labels; NaN: not tested
    const pair = p.pairs.findIndex(([a, b]) => a === Math.min(state.label, state.compare) && b === Math.max(state.label, state.compare));
    return pair < 0 || !(e < p.exists[b]) ? NaN : tested_p[cell(pair, b, e)];
  }

  let drawn = "";
  function draws(again) {
    const now = `${state.label} ${state.compare} ${root.clientWidth}`;
    if (!again && drawn === now) { traces(); return; }
    drawn = now;
    const several = state.compare >= 0, reach = [0, 0];
    boxes[1].hidden = boxes[2].hidden = !several;
    two.classList.toggle("beside", !several && root.clientWidth >= 860 && E <= 32); // the document beside the map
    for (let b = 0; b < B; b++)
      for (let e = 0; e < p.exists[b]; e++) {
        reach[0] = Math.max(reach[0], shares[cell(state.label, b, e)] || 0, several ? shares[cell(state.compare, b, e)] || 0 : 0);
        if (several) reach[1] = Math.max(reach[1], Math.abs(gap(b, e)) || 0);
      }
    const rows = p.blocks.slice().reverse(), columns = [...Array(E).keys()];
    [state.label, state.compare].forEach((l, i) => {
      if (l < 0) return;
      titles[i].textContent = `${p.names[l]}: share of slots (${p.documents[l]} documents)`;
      heats[i].fill({
        rows, columns, of: "block", title: "expert", wide: several ? 28 : 44, least: E > 48 ? 2 : 6, high: B > 24 ? 14 : 20,
        cell: (r, e) => {
          const b = B - 1 - r, x = e < p.exists[b] ? shares[cell(l, b, e)] : NaN;
          return { fill: tint("sequential", x / (reach[0] || 1)), mark: within(l, b, e) ? "dot" : null, title: `block ${p.blocks[b]}, expert ${e}: ${share(x)}` };
        },
      });
      scales[i].replaceChildren(scale("sequential", "0", share(reach[0])), make("span", "wx-hint", "• as by chance"));
    });
    if (several) {
      titles[2].textContent = `${p.names[state.label]} less ${p.names[state.compare]}`;
      const tested = p.exists.some((n, b) => Array.from({ length: n }, (_, e) => beyond(b, e)).some((x) => !Number.isNaN(x)));
      heats[2].fill({
        rows, columns, of: "block", title: "expert", wide: 28, least: E > 48 ? 2 : 6, high: B > 24 ? 14 : 20,
        cell: (r, e) => {
          const b = B - 1 - r, x = e < p.exists[b] ? gap(b, e) : NaN, test = beyond(b, e);
          return { fill: tint("diverging", x / (reach[1] || 1)), mark: test > 0.05 ? "hatch" : null, title: `block ${p.blocks[b]}, expert ${e}: ${say(100 * x, 1)} points, p ${say(test, 3)}` };
        },
      });
      scales[2].replaceChildren(scale("diverging", `-${share(reach[1])}`, share(reach[1])), make("span", "wx-hint", tested ? "hatched: not beyond chance" : "not tested"));
    }
    traces();
  }

  function tellCell(at) {
    const [b, e] = at || [state.block, state.expert];
    if (e < 0 || e >= p.exists[b]) { facts.textContent = "A cell or a key chooses an expert; a token shows its path."; return; }
    const one = (l) => `${p.names[l]} ${share(shares[cell(l, b, e)])} ${low ? `[${share(low[cell(l, b, e)])}, ${share(high[cell(l, b, e)])}]` : ""}, chance ${share(chance[0][l * B + b])} to ${share(chance[1][l * B + b])}`;
    const said = [`block ${p.blocks[b]}, expert ${e}`, one(state.label)];
    if (state.compare >= 0) {
      const test = beyond(b, e);
      said.push(one(state.compare), `difference ${say(100 * gap(b, e), 1)} points${Number.isNaN(test) ? ", not tested" : `, p = ${say(test, 3)} over all blocks and experts`}`);
    }
    facts.textContent = said.join(" · ");
    if (!at) announce(facts.textContent);
  }

  // ---- documents
  const slots = (one) => one.expert && decode(one.expert).length / (B * one.n);
  for (const one of p.traced) one.n = decode(one.token).length;
  const ids = (one, b, t) => {
    const k = slots(one), from = (b * one.n + t) * k, expert = decode(one.expert), weight = one.weight ? decode(one.weight) : null, found = [];
    for (let s = 0; s < k; s++) if (expert[from + s] >= 0) found.push([expert[from + s], weight ? weight[from + s] : NaN]);
    return found.sort((x, y) => (y[1] || 0) - (x[1] || 0));
  };
  const ofLabel = (l) => p.traced.filter((one) => one.label === l);

  const sides = [0, 1].map((side) => {
    const box = make("section"), head = make("div", "wx-tools"), flow = make("div", "wx-tokens");
    const pick = choice(side ? "document beside" : "document", (i) => { state.doc[side] = mine()[i]; state.token[side] = -1; state.last = side; tokens(side); trail(); done(); });
    const step = (by) => () => { const all = mine(), to = all[clamp(all.indexOf(state.doc[side]) + by, 0, all.length - 1)]; state.doc[side] = to; state.token[side] = -1; tokens(side); trail(); done(); };
    const mine = () => ofLabel(side ? state.compare : state.label);
    flow.setAttribute("role", "listbox");
    flow.setAttribute("aria-label", "tokens; arrow keys walk through them");
    head.append(pick.node, button("‹", "previous document", step(-1)), button("›", "next document", step(1)));
    box.append(head, flow);
    panes.append(box);
    const chosen = (node) => { state.token[side] = Number(node.dataset.at); state.last = side; state.hover = null; mark(side); trail(); done(); };
    rove(flow, ".wx-token", chosen, () => leaveToken(side));
    flow.addEventListener("pointerover", (event) => {
      const node = event.target.closest(".wx-token");
      if (node && event.pointerType !== "touch") { state.hover = [side, Number(node.dataset.at)]; trail(); }
    });
    flow.addEventListener("pointerleave", () => { state.hover = null; trail(); });
    return { box, flow, pick, mine };
  });

  function tokens(side) {
    const { box, flow, pick, mine } = sides[side], one = state.doc[side];
    box.hidden = !one;
    if (!one) { flow.replaceChildren(); return; }
    pick.fill(mine().map((d) => `${d.prompt}: ${d.text}`));
    pick.select.selectedIndex = mine().indexOf(one);
    const nodes = [];
    [...decode(one.token)].forEach((id, t) => {
      const node = make("span", "wx-token"), text = make("span", "wx-one", p.vocab[id]);
      node.append(text, make("small", "", ""));
      node.setAttribute("role", "option");
      node.tabIndex = t === Math.max(state.token[side], 0) ? 0 : -1;
      node.dataset.at = t;
      nodes.push(node);
      if (p.vocab[id].includes("↵")) nodes.push(make("br"));
    });
    flow.replaceChildren(...nodes);
    colours(side);
    mark(side);
  }

  function colours(side) {
    const one = state.doc[side];
    if (!one) return;
    for (const node of sides[side].flow.querySelectorAll(".wx-token")) {
      const t = Number(node.dataset.at), found = ids(one, state.block, t), mine = found.find(([e]) => e === state.expert);
      const [e, w] = (state.expert >= 0 ? mine : found[0]) || [-1, NaN];
      node.classList.toggle("off", e < 0);
      node.style.background = e < 0 ? "none" : `color-mix(in srgb,${hue(e)} calc(var(--deep) * ${(Number.isNaN(w) ? 0.65 : 0.25 + 0.75 * clamp(w, 0, 1)).toFixed(2)}),var(--bg))`;
      node.style.borderBottom = e < 0 ? "" : `3px ${line(e)} ${hue(e)}`;
      node.lastChild.textContent = e < 0 ? (found.length ? "" : "–") : e;
      const said = found.map(([x, y]) => (Number.isNaN(y) ? `expert ${x}` : `expert ${x} ${say(y)}`)).join(", ") || "no expert";
      node.title = `${clip(p.vocab[decode(one.token)[t]], 80)}  #${decode(one.position)[t]}, block ${p.blocks[state.block]}: ${said}`;
      node.setAttribute("aria-label", node.title);
    }
  }

  function leaveToken(side) {
    state.token[side] = -1;
    state.hover = null;
    mark(side);
    trail();
    done();
  }

  function mark(side) {
    for (const node of sides[side].flow.querySelectorAll(".wx-token")) {
      const on = Number(node.dataset.at) === state.token[side];
      node.classList.toggle("on", on);
      node.setAttribute("aria-selected", String(on));
      if (state.token[side] >= 0) node.tabIndex = on ? 0 : -1;
    }
  }

  const looked = () => {
    const [side, t] = state.hover || [state.last, state.token[state.last]];
    return state.doc[side] && t >= 0 ? [side, t] : null;
  };

  function traces() {
    const at = looked(), cells = [];
    if (at) for (let b = 0; b < B; b++) for (const [e, w] of ids(state.doc[at[0]], b, at[1])) cells.push([B - 1 - b, e, Number.isNaN(w) ? 0.5 : w]);
    heats.forEach((heat, i) => { if (!boxes[i].hidden) heat.trace(at && i === 2 ? [] : at && i !== at[0] ? [] : cells); });
  }

  function trail() {
    const at = looked();
    path.hidden = !p.traced.length;
    if (!at) path.replaceChildren(make("p", "wx-hint", "Choose a token to see its experts in every block."));
    else {
      const one = state.doc[at[0]], head = make("h3"), list = make("div", "wx-path");
      head.append("path of ", make("bdi", "wx-text", clip(p.vocab[decode(one.token)[at[1]]], 120)), ` #${decode(one.position)[at[1]]}`);
      for (let b = B - 1; b >= 0; b--) {
        const row = make("div");
        for (const [e, w] of ids(one, b, at[1])) {
          const item = make("span", "w"), box = make("i");
          box.style.background = hue(e);
          item.append(box, make("span", "", e), make("span", "wx-hint", Number.isNaN(w) ? "" : say(w)));
          row.append(item);
        }
        if (!row.childNodes.length) row.append(make("span", "wx-hint", "no expert"));
        list.append(make("div", b === state.block ? "on" : "", `block ${p.blocks[b]}`), row);
      }
      path.replaceChildren(head, list);
    }
    traces();
  }

  // ---- choosing
  function legend() {
    key.hidden = E > 64;
    if (key.hidden) return;
    if (key.childElementCount !== E)
      key.replaceChildren(...Array.from({ length: E }, (_, e) => button(String(e), `expert ${e}`, () => { state.expert = state.expert === e ? -1 : e; paint(); done(); })));
    [...key.children].forEach((node, e) => {
      node.setAttribute("aria-pressed", String(e === state.expert));
      node.style.borderBottom = `3px ${line(e)} ${hue(e)}`;
      node.tabIndex = e === Math.max(state.expert, 0) ? 0 : -1;
    });
  }
  rove(key, "button", () => {});

  function paint() {
    if (state.expert >= p.exists[state.block]) state.expert = -1; // blocks may have fewer experts than others
    pickBlock.set(state.block, p.blocks[state.block]);
    clear.hidden = state.expert < 0;
    hint.hidden = !p.traced.length;
    const weighs = p.traced.some((one) => one.weight) ? "; the stronger the colour, the greater its weight" : "";
    hint.textContent = (state.expert < 0 ? "Small number and colour of a token: its first expert in this block" : `Coloured: tokens of expert ${state.expert} in this block`) + weighs + ".";
    heats.forEach((heat) => heat.at(B - 1 - state.block, state.expert));
    legend();
    colours(0);
    colours(1);
    trail();
    tellCell(null);
  }

  function whole() { // everything, after a label changed
    pickLabel.select.selectedIndex = state.label;
    pickOther.fill(["–", ...others().map((i) => p.names[i])]);
    pickOther.select.selectedIndex = state.compare < 0 ? 0 : others().indexOf(state.compare) + 1;
    [state.label, state.compare].forEach((l, side) => {
      if (l < 0) state.doc[side] = null;
      else if (!state.doc[side] || state.doc[side].label !== l) [state.doc[side], state.token[side]] = [ofLabel(l)[0] || null, -1];
      if (!state.doc[side]) state.token[side] = -1;
    });
    if (!state.doc[state.last]) state.last = 0;
    draws();
    tokens(0);
    tokens(1);
    paint();
  }
  const settle = () => { whole(); done(); };

  const position = (side) => (state.doc[side] && state.token[side] >= 0 ? decode(state.doc[side].position)[state.token[side]] : null);
  const done = () => tell({
    label: p.labels[state.label], compare: state.compare < 0 ? null : p.labels[state.compare],
    prompt: state.doc[0] ? state.doc[0].prompt : null, compare_prompt: state.doc[1] ? state.doc[1].prompt : null,
    block: p.blocks[state.block], expert: state.expert < 0 ? null : state.expert, position: position(0), compare_position: position(1),
  });

  return {
    figure: () => `reading.figure("usage"${L > 1 ? `, label=${quoted(p.labels[state.label])}` : ""})`,
    take(s) {
      const block = p.blocks.indexOf(s.block), find = (d) => p.traced.find((one) => one.prompt === d) || null;
      const [doc, other] = state.doc = [find(s.prompt), find(s.compare_prompt)];
      state.label = doc ? doc.label : Math.max(p.labels.indexOf(s.label), 0);
      state.compare = other ? other.label : p.labels.indexOf(s.compare);
      if (state.compare === state.label) state.compare = -1;
      if (block >= 0) state.block = block;
      state.expert = Number.isInteger(s.expert) ? clamp(s.expert, -1, E - 1) : -1;
      const place = (one, at) => (one && at !== null && at !== undefined ? decode(one.position).indexOf(at) : -1);
      state.token = [place(doc, s.position), place(other, s.compare_position)];
      state.last = state.token[0] < 0 && state.token[1] >= 0 ? 1 : 0;
      whole();
    },
    leave() {
      const side = [state.last, 0, 1].find((i) => state.token[i] >= 0);
      if (side !== undefined) leaveToken(side);
      else if (state.expert >= 0) leaveExpert();
      else return false;
      return true;
    },
    lay() { draws(true); heats.forEach((heat) => heat.at(B - 1 - state.block, state.expert)); },
  };
});
