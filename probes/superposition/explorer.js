// Belief: a problem's graph, nodes as large and as light as the belief in them is great, stepped through thoughts and layers.

const STYLE = `
.wx-graph{display:block;width:100%;border:1px solid var(--line);border-radius:6px}
.wx-graph text{font-size:12px;fill:var(--ink);paint-order:stroke;stroke:var(--bg);stroke-width:3px;stroke-linejoin:round;text-anchor:middle}
.wx-graph text.v{font-size:10.5px;fill:var(--soft);font-variant-numeric:tabular-nums}
.wx-node{cursor:pointer;outline:none}
.wx-node:focus-visible .halo{stroke:var(--accent);stroke-width:2.5px;stroke-dasharray:none}
.wx-node.on .halo{stroke:var(--accent);stroke-width:2px}
.wx-edge{fill:none;stroke:var(--soft);stroke-width:1;opacity:.55}
.wx-edge.near{stroke:var(--accent);opacity:1;stroke-width:1.6}
@media (prefers-reduced-motion:no-preference){.wx-node .disc{transition:r .25s}}
.wx-play button{min-width:34px}
.wx-list{list-style:none;margin:0;padding:0;display:grid;gap:3px}
.wx-list li{display:grid;grid-template-columns:minmax(30px,64px) minmax(24px,1fr) 34px minmax(0,150px);gap:8px;align-items:center;
  cursor:pointer;border-radius:3px;padding:1px 3px}
.wx-list li.on{background:color-mix(in srgb,var(--accent) 16%,transparent)}
.wx-two{display:grid;gap:12px;grid-template-columns:minmax(0,1fr) 320px;align-items:start}
&.narrow .wx-two{grid-template-columns:minmax(0,1fr)}
.wx-list~.wx-facts{margin:8px 0 10px}
.wx-legend{padding-top:4px;display:flex;flex-wrap:wrap;gap:4px 14px}
`;
const WAIT = 1100; // milliseconds for each thought

export default explorer("belief", STYLE, ({ payload: p, root, tell, announce }) => {
  const D = p.layers.length, T = p.positions.length;
  const state = { prompt: 0, layer: D - 1, place: 0, node: -1, hover: -1, of: 0 };
  let playing = 0, width = 0, discs = [];

  const one = () => p.prompts[state.prompt];
  const names = () => p.shown[one().names];
  const places = () => p.places[one().places];
  const N = () => names().length;
  const belief = (d, t, v) => decode(one().belief)[(d * T + t) * N() + v];
  const called = (t) => {
    const [thoughts, token] = places()[t];
    if (thoughts === null) return `at ${token}`;
    if (thoughts && token) return `answer, after ${token}`;
    return thoughts ? `${thoughts} thought${thoughts > 1 ? "s" : ""}` : "no thought yet";
  };
  const short = (t) => { const [thoughts, token] = places()[t]; return token && thoughts !== 0 ? clip(token, 6) : String(thoughts ?? ""); };
  const graph = () => one().target >= 0;
  // The state after t thoughts is what thought t + 1 is made of: its frontier is the ring one step further.
  const step = (t) => { const [thoughts, token] = places()[t]; return thoughts === null || (thoughts && token) ? -1 : thoughts + 1; };
  const ring = (t, v) => graph() && step(t) > 0 && decode(one().depth)[v] === step(t);
  const group = (t, v) => {
    if (!graph()) return "";
    const depth = decode(one().depth)[v], far = decode(one().to_target)[v], k = step(t), length = decode(one().depth)[one().target];
    const kind = v === one().root ? "root" : v === one().target ? "target" : v === one().negative ? "other answer" : "";
    const where = depth < 0 ? "not reachable" : k < 0 ? `${depth} step${depth === 1 ? "" : "s"} away`
      : depth < k ? "reached before" : depth > k ? "further" : far >= 0 && k + far === length ? "frontier, on the way" : "frontier";
    return [kind, where].filter(Boolean).join(", ");
  };

  // ---- nodes
  const tools = make("div", "wx-tools"), play = make("div", "wx-tools wx-play"), two = make("div", "wx-two"), left = make("div"), right = make("div", "wx-panel");
  const svg = draw("svg", { class: "wx-graph", role: "group", "aria-label": "candidates; arrow keys walk through them" });
  const facts = make("p", "wx-facts"), list = make("ol", "wx-list"), head = make("h3"), legend = make("div", "wx-legend wx-hint");
  const pickPrompt = choice("prompt", (i) => {
    stop();
    const name = state.node < 0 ? null : p.names[one().names][state.node];
    state.prompt = i;
    state.node = p.names[one().names].indexOf(name);
    whole();
    done();
  });
  const pickPlace = slider("place", (t) => { stop(); state.place = t; paint(); done(); });
  const pickLayer = slider("layer", (d) => { state.layer = d; paint(); done(); });
  pickPlace.input.max = T - 1;
  pickLayer.input.max = D - 1;
  pickLayer.node.hidden = D < 2;
  const go = (to) => () => { stop(); state.place = clamp(to(), 0, T - 1); paint(); done(); };
  const start = button("▶", "play", () => (playing ? stop() : run()));
  play.append(
    button("|‹", "to the prompt", go(() => 0)), button("‹", "one place back", go(() => state.place - 1)), start,
    button("›", "one place on", go(() => state.place + 1)), button("›|", "to the last place", go(() => T - 1)), pickPlace.node, pickLayer.node,
  );
  tools.append(pickPrompt.node);
  pickPrompt.node.hidden = p.prompts.length < 2;
  pickPrompt.fill(p.prompts.map((x, i) => `${i}: ${tail(x.text, 60)}`));
  const of = choice("belief in", (i) => { state.of = i; chart(); });
  const heat = heatmap("belief by layer and place; arrow keys choose both", {
    pick: (r, t) => { stop(); state.layer = D - 1 - r; state.place = t; paint(); done(); },
  });
  const heatScale = make("div"), heatBox = make("div"), chosen = make("div", "wx-tools");
  chosen.append(of.node);
  heatBox.append(chosen, heat.node, heatScale);
  right.append(head, list, facts, heatBox);
  left.append(svg, legend);
  two.append(left, right);
  root.append(tools, play, two);

  function run() {
    if (matchMedia("(prefers-reduced-motion:reduce)").matches) return go(() => (state.place + 1) % T)();
    start.textContent = "❚❚";
    start.setAttribute("aria-label", (start.title = "pause"));
    const next = () => {
      state.place = state.place + 1 < T ? state.place + 1 : 0;
      paint();
      done();
      if (state.place === T - 1) stop();
    };
    playing = setInterval(next, WAIT);
    next();
  }
  function stop() {
    clearInterval(playing);
    playing = 0;
    start.textContent = "▶";
    start.setAttribute("aria-label", (start.title = "play"));
  }

  // ---- the graph
  const radius = (b) => 6 + 17 * Math.sqrt(clamp(b || 0, 0, 1));

  function layout() {
    if (!width) return;
    const room = Math.max(260, left.clientWidth || width), xs = decode(one().x), ys = decode(one().y), n = N();
    const tall = Math.max(...Object.values([...xs].reduce((all, x) => ({ ...all, [x]: (all[x] || 0) + 1 }), {})), 1);
    const high = clamp(graph() ? 88 * (tall + 0.5) + 60 : Math.min(room, 80 + 22 * n), 220, 760);
    const longest = Math.max(...names().map((name) => Math.min([...name].length, 18)));
    const padX = clamp(4 * longest + 6, 52, 78), padY = graph() ? 30 : 48; // names stand over their nodes, numbers under them
    const X = (v) => padX + xs[v] * (room - 2 * padX), Y = (v) => padY + ys[v] * (high - 2 * padY);
    const arrow = fresh("arrow"), marker = draw("marker", { id: arrow, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" });
    marker.append(draw("path", { d: "M0,0L8,4L0,8z", fill: "var(--soft)" }));
    svg.setAttribute("viewBox", `0 0 ${room} ${high}`);
    svg.style.height = `${high}px`;
    const edges = draw("g", { "aria-hidden": "true" }), ends = decode(one().edges), parts = [marker, edges];
    for (let i = 0; i + 1 < ends.length; i += 2) {
      const [a, b] = [ends[i], ends[i + 1]], dx = X(b) - X(a), dy = Y(b) - Y(a), far = Math.hypot(dx, dy) || 1, off = Math.min(24, far / 3);
      const bend = Math.abs(dx) < 1 ? 30 : 0; // edges within a column go around it
      const mx = (X(a) + X(b)) / 2 + bend, my = (Y(a) + Y(b)) / 2;
      edges.append(draw("path", {
        class: "wx-edge", "data-from": a, "data-to": b, "marker-end": `url(#${arrow})`,
        d: `M${X(a) + (dx / far) * off},${Y(a) + (dy / far) * off}Q${mx},${my} ${X(b) - (dx / far) * off},${Y(b) - (dy / far) * off}`,
      }));
    }
    discs = [];
    for (let v = 0; v < n; v++) {
      const node = draw("g", { class: "wx-node", role: "img", tabindex: v === Math.max(state.node, 0) ? 0 : -1, "data-node": v, transform: `translate(${X(v)},${Y(v)})` });
      const halo = draw("circle", { class: "halo", r: 25, fill: "none" }), disc = draw("circle", { class: "disc" });
      const mark = v === one().target ? "★ " : v === one().negative ? "✕ " : v === one().root ? "▶ " : "";
      const text = draw("text", {}, mark + clip(names()[v], 18)), value = draw("text", { class: "v" });
      const title = draw("title", {}, clip(names()[v], 300));
      node.append(title, draw("circle", { r: 27, fill: "transparent" }), disc, halo, text, value);
      parts.push(node);
      discs.push({ node, disc, halo, text, value });
    }
    svg.replaceChildren(...parts);
  }

  function paint() {
    const t = state.place, d = state.layer;
    pickPlace.set(t, called(t));
    pickLayer.set(d, p.layers[d]);
    discs.forEach(({ node, disc, halo, text, value }, v) => {
      const b = belief(d, t, v), r = ring(t, v) || v === state.node ? 25 : radius(b);
      disc.setAttribute("r", radius(b));
      text.setAttribute("y", -r - 6);
      value.setAttribute("y", r + 13);
      disc.setAttribute("style", `fill:${tint("sequential", b)};stroke:${v === one().target ? "var(--h2)" : v === one().negative ? "var(--h1)" : "var(--soft)"};stroke-width:${v === one().target || v === one().negative ? 3 : 1}`);
      if (v === one().negative) disc.setAttribute("stroke-dasharray", "4 3");
      halo.setAttribute("stroke", ring(t, v) ? "var(--h0)" : "none");
      halo.setAttribute("stroke-dasharray", ring(t, v) ? "2 4" : "none");
      halo.setAttribute("stroke-width", 2);
      value.textContent = say(b);
      node.classList.toggle("on", v === state.node);
      node.setAttribute("tabindex", v === Math.max(state.node, 0) ? 0 : -1);
      node.setAttribute("aria-label", `${clip(names()[v], 80)}: belief ${say(b)}. ${group(t, v)}`);
    });
    near();
    table();
    chart();
    announce(`${called(t)}, layer ${p.layers[d]}: ${list.firstChild ? list.firstChild.textContent : ""}`);
  }

  const near = () => { // the edges of the node that is looked at
    const v = state.hover >= 0 ? state.hover : state.node;
    for (const edge of svg.querySelectorAll(".wx-edge")) edge.classList.toggle("near", Number(edge.dataset.from) === v || Number(edge.dataset.to) === v);
  };

  function table() {
    const t = state.place, d = state.layer, n = N(), all = Array.from({ length: n }, (_, v) => [belief(d, t, v), v]).filter(([b]) => !Number.isNaN(b));
    all.sort((x, y) => y[0] - x[0] || x[1] - y[1]);
    const bits = all.reduce((sum, [b]) => sum - (b > 0 ? b * Math.log2(b) : 0), 0);
    head.textContent = `${called(t)}, layer ${p.layers[d]}`;
    list.replaceChildren(...all.slice(0, 8).map(([b, v]) => {
      const item = make("li", v === state.node ? "on" : "");
      const text = make("span", "wx-one", names()[v]);
      item.append(text, bar([0, b], 1 / n), make("span", "wx-num", say(b)), make("span", "wx-hint wx-one", group(t, v)));
      item.title = group(t, v);
      item.onclick = () => choose(v === state.node ? -1 : v);
      return item;
    }));
    const lines = [];
    if (all.length) lines.push(`holds as much as ${say(2 ** bits, 1)} of ${n} candidates alike (tick: even, ${say(1 / n)})`);
    else lines.push("nothing was read here");
    if (one().mass) lines.push(`candidates have ${share(decode(one().mass)[d * T + t])} of the whole vocabulary's probability`);
    if (graph()) {
      const members = all.filter(([, v]) => ring(t, v)), held = members.reduce((sum, [b]) => sum + b, 0);
      const other = (name) => decode(one().null[name])[d * T + t];
      const beside = (x) => (Number.isNaN(x) ? "" : ` (in other prompts' states ${say(x)})`);
      if (members.length) lines.push(`frontier ${say(held)}${beside(other("frontier"))}, even ${say(members.length / n)}`);
      lines.push(`target ${say(belief(d, t, one().target))}${beside(other("target"))}`);
    }
    facts.replaceChildren(...lines.flatMap((text, i) => (i ? [make("br"), text] : [text])));
  }

  // ---- layers x places of one belief
  function chart() {
    const kinds = graph() ? ["the frontier", "the target", "the other answer"] : [];
    const shown = state.node >= 0 ? names()[state.node] : null, options = [...kinds, ...(shown ? [shown] : [])];
    of.fill(options);
    if (shown && state.of >= kinds.length) state.of = kinds.length;
    state.of = clamp(state.of, 0, Math.max(options.length - 1, 0));
    of.select.selectedIndex = state.of;
    heatBox.hidden = !options.length;
    if (heatBox.hidden || !width) return;
    const value = (d, t) => {
      if (kinds[state.of] === "the frontier") {
        let sum = 0, some = false;
        for (let v = 0; v < N(); v++) if (ring(t, v)) { sum += belief(d, t, v); some = true; }
        return some ? sum : NaN;
      }
      return belief(d, t, kinds[state.of] === "the target" ? one().target : kinds[state.of] ? one().negative : state.node);
    };
    heat.fill({
      rows: p.layers.slice().reverse(), of: "layer", columns: places().map((_, t) => short(t)), title: places()[0][0] === null ? "" : "thoughts so far, then what follows", wide: 50,
      places: places()[0][0] === null ? p.positions : null, high: 20,
      cell: (r, t) => { const x = value(D - 1 - r, t); return { fill: tint("sequential", x), title: `layer ${p.layers[D - 1 - r]}, ${called(t)}: ${say(x)}` }; },
    });
    heat.at(D - 1 - state.layer, state.place);
    heatScale.replaceChildren(scale("sequential", "0", "1", "belief"));
  }

  // ---- choosing
  function choose(v) {
    state.node = v;
    if (v >= 0) state.of = graph() ? 3 : 0;
    paint();
    done();
  }
  rove(svg, ".wx-node", (node) => choose(Number(node.dataset.node)), () => choose(-1));
  svg.addEventListener("pointerover", (event) => { const node = event.target.closest(".wx-node"); state.hover = node ? Number(node.dataset.node) : -1; near(); });
  svg.addEventListener("pointerleave", () => { state.hover = -1; near(); });

  function whole() {
    pickPrompt.select.selectedIndex = state.prompt;
    const says = graph() ? ["▶ root", "★ target", "✕ other answer", "dotted: frontier, one step further than the thoughts so far", "size and colour: belief"] : ["size and colour: belief"];
    legend.replaceChildren(...says.map((text) => make("span", "", text)));
    layout();
    paint();
  }
  const done = () => tell({
    prompt: state.prompt, layer: p.layers[state.layer], position: p.positions[state.place],
    node: state.node < 0 ? null : p.names[one().names][state.node],
  });

  return {
    figure: () => `reading.figure("belief"${p.prompts.length > 1 ? `, prompt=${state.prompt}` : ""}${state.layer < D - 1 ? `, layer=${state.layer}` : ""})`,
    take(s) {
      stop();
      state.prompt = clamp(s.prompt || 0, 0, p.prompts.length - 1);
      const d = p.layers.indexOf(s.layer), t = p.positions.indexOf(s.position);
      if (d >= 0) state.layer = d;
      if (t >= 0) state.place = t;
      const before = state.node;
      state.node = s.node === null || s.node === undefined ? -1 : p.names[one().names].indexOf(s.node);
      if (state.node >= 0 && state.node !== before) state.of = graph() ? 3 : 0;
      whole();
    },
    lay(now) {
      width = now;
      root.classList.toggle("narrow", width < 720);
      layout();
      paint();
    },
    leave() {
      if (state.node < 0) return false;
      choose(-1);
      return true;
    },
    close: stop,
  };
});
