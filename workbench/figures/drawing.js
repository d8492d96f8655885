// What the page does that draws figures: plots one, measures what is written on it, and gives it as svg.
// Python calls these through workbench/figures/drawing.py; plotly.js is on the page already.

window.workbench = {
  // {svg, texts, axes, size, legend, colorbars, table}: boxes are [x, y, width, height] in CSS pixels.
  async draw(figure, width, height) {
    document.body.innerHTML = "";
    const graph = document.createElement("div");
    document.body.append(graph);
    await Plotly.newPlot(graph, figure.data, { ...figure.layout, width, height }, { staticPlot: true });
    await vectorHeatmaps(graph);
    const found = measured(graph);
    return { ...found, svg: Plotly.Snapshot.toSVG(graph, "svg", 1) };
  },

  // The svg alone on the page, to be printed or photographed; afterwards nothing else of it is there.
  show(svg) {
    document.body.innerHTML = svg;
    document.body.firstElementChild.style.display = "block";
  },

  // Those of the characters that no font here has: all of them are drawn as the same box.
  missing(characters, family) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 64;
    const ink = canvas.getContext("2d", { willReadFrequently: true });
    const drawn = (text) => {
      ink.clearRect(0, 0, 64, 64);
      ink.font = `32px ${family}`;
      ink.fillText(text, 8, 44);
      return ink.getImageData(0, 0, 64, 64).data.join();
    };
    const box = drawn("\u{10FFFE}"); // never a character
    return characters.filter((c) => drawn(c) === box);
  },

  // The file of an installed font, in base64.
  async font(name) {
    const [face] = await window.queryLocalFonts({ postscriptNames: [name] });
    if (!face) return null;
    const bytes = new Uint8Array(await (await face.blob()).arrayBuffer());
    let text = "";
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return btoa(text);
  },
};

function measured(graph) {
  const from = graph.getBoundingClientRect();
  const box = (node) => {
    const b = node.getBoundingClientRect();
    return [b.x - from.x, b.y - from.y, b.width, b.height];
  };
  const layout = graph._fullLayout;
  const axes = {};
  for (const name of Object.keys(layout)) {
    const axis = layout[name];
    if (!/^[xy]axis\d*$/.test(name) || !axis._length) continue;
    const words = axis.type === "category" ? axis._categories : (axis.ticktext ?? []);
    const names = axis.visible && words.some((w) => Number.isNaN(Number(w))) ? words.length : 0;
    axes[name] = { offset: axis._offset, length: axis._length, names };
  }
  const all = (selector) => [...graph.querySelectorAll(selector)];
  const texts = all("svg text")
    .filter((t) => t.textContent.trim() && t.getBoundingClientRect().width)
    .map((t) => ({ text: t.textContent, box: box(t), angle: angle(t), size: parseFloat(getComputedStyle(t).fontSize), ...kind(t) }));
  const size = layout._size;
  return {
    texts, axes, size: { l: size.l, r: size.r, t: size.t, b: size.b },
    legend: all(".legend .bg").map(box)[0] ?? null,
    colorbars: all(".colorbar").map(box),
    table: all(".table .cell-rect").map(box),
  };
}

function angle(text) {
  const turns = [...(text.getAttribute("transform") ?? "").matchAll(/rotate\(([-\d.]+)/g)];
  return turns.reduce((sum, [, degrees]) => sum + Number(degrees), 0);
}

// What a text is: {kind, axis}; kind is title, tick, colorbar title, annotation, label or other.
function kind(text) {
  const classes = text.getAttribute("class") ?? "";
  const title = classes.match(/^([xy])(\d*)title/);
  if (title) return { kind: "title", axis: `${title[1]}axis${title[2]}` };
  if (text.closest(".colorbar")) return { kind: /title/.test(classes) ? "colorbar title" : "colorbar" };
  const tick = text.closest("[class$='tick']")?.getAttribute("class").match(/^([xy])(\d*)tick$/);
  if (tick) return { kind: "tick", axis: `${tick[1]}axis${tick[2]}` };
  const note = text.closest(".annotation");
  if (note) return { kind: "annotation", index: Number(note.getAttribute("data-index")) };
  if (text.closest(".table")) return { kind: "table" };
  if (text.closest(".heatmap-label, .textpoint, .hm, .trace")) return { kind: "label" };
  return { kind: "other" };
}

// Plotly paints heatmaps as pictures of as many dots as the screen has.  On paper they are cells: rectangles, or where
// there are more than anyone could tell apart, a picture of one dot for each.
const MOST_CELLS = 20000;

async function vectorHeatmaps(graph) {
  for (const group of graph.querySelectorAll(".heatmaplayer .hm")) {
    const found = group.__data__[0], trace = found.trace, layout = graph._fullLayout;
    if (trace.zsmooth || !group.querySelector("image")) continue;
    const along = (ref, edges) => {
      const axis = layout[ref.replace(/^([xy])/, "$1axis")];
      return [...edges].map((e) => axis.c2p(e));
    };
    const x = along(trace.xaxis, found.x), y = along(trace.yaxis, found.y), z = found.z;
    const rows = z.length, columns = x.length - 1;
    if (y.length !== rows + 1 || rows * columns === 0) continue;
    const colour = scale(trace, layout);
    const image = group.querySelector("image");
    if (rows * columns > MOST_CELLS) {
      image.setAttribute("href", dots(z, rows, columns, colour, x[0] > x[columns], y[0] < y[rows]));
      image.removeAttribute("xlink:href");
      const left = Math.min(x[0], x[columns]), top = Math.min(y[0], y[rows]);
      for (const [name, value] of Object.entries({
        x: left, y: top, width: Math.abs(x[columns] - x[0]), height: Math.abs(y[rows] - y[0]),
      })) image.setAttribute(name, value);
      image.style.imageRendering = "pixelated";
      continue;
    }
    // Without gaps each cell reaches under the next: viewers draw white seams between edges that only touch.
    const seam = (gap) => (gap ? -gap / 2 : 0.15);
    const [sx, sy] = [seam(trace.xgap), seam(trace.ygap)];
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const fill = colour(z[r]?.[c]);
        if (!fill) continue;
        const cell = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        const [x0, x1] = [x[c], x[c + 1]].sort((a, b) => a - b), [y0, y1] = [y[r], y[r + 1]].sort((a, b) => a - b);
        cell.setAttribute("x", (x0 - sx).toFixed(2));
        cell.setAttribute("y", (y0 - sy).toFixed(2));
        cell.setAttribute("width", Math.max(0.1, x1 - x0 + 2 * sx).toFixed(2));
        cell.setAttribute("height", Math.max(0.1, y1 - y0 + 2 * sy).toFixed(2));
        cell.setAttribute("fill", fill);
        group.insertBefore(cell, image);
        if (trace.text?.[r]?.[c] === HATCH) group.insertBefore(hatch(x0, y0, x1 - x0, y1 - y0, fill), image);
      }
    }
    image.remove();
    for (const label of graph.querySelectorAll(".heatmap-label text"))
      if (label.textContent === HATCH) label.remove();
  }
}

// Lines across a cell from edge to edge, in black or white, whichever stands out (WCAG: from a luminance of 0.179).
const HATCH = "///", APART = 6;

function hatch(x, y, width, height, fill) {
  let path = "";
  for (let c = APART / 2; c < width + height; c += APART) {
    const a = Math.max(0, c - height), b = Math.min(width, c);
    path += `M${(x + a).toFixed(2)},${(y + c - a).toFixed(2)}L${(x + b).toFixed(2)},${(y + c - b).toFixed(2)}`;
  }
  const light = fill.match(/\d+/g).reduce((sum, v, i) => sum + [0.2126, 0.7152, 0.0722][i] * (v / 255) ** 2.2, 0);
  const lines = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [name, value] of Object.entries({
    class: "hatch", d: path, fill: "none", stroke: light > 0.179 ? "#000000" : "#ffffff", "stroke-width": 0.6,
    "stroke-opacity": 0.5,
  })) lines.setAttribute(name, value);
  return lines;
}

// The colour of a value, as plotly takes it: straight between the stops of the scale; "" where there is no value.
function scale(trace, layout) {
  const shared = trace.coloraxis ? layout[trace.coloraxis] : null;
  const own = shared ?? trace;
  const low = shared ? own.cmin : own.zmin, high = shared ? own.cmax : own.zmax;
  let stops = own.colorscale.map(([at, text]) => [at, channels(text)]);
  if (own.reversescale) stops = stops.map(([at, c]) => [1 - at, c]).reverse();
  return (value) => {
    if (value === undefined || value === null || Number.isNaN(Number(value))) return "";
    const share = Math.min(1, Math.max(0, high > low ? (value - low) / (high - low) : 0));
    const next = Math.max(1, stops.findIndex(([at]) => at >= share));
    const [[a, from], [b, to]] = [stops[next - 1], stops[next]];
    const mix = from.map((f, i) => Math.round(f + ((to[i] - f) * (share - a)) / (b - a || 1)));
    return `rgb(${mix})`;
  };
}

function channels(text) {
  const ink = document.createElement("canvas").getContext("2d");
  ink.fillStyle = text;
  return [1, 3, 5].map((i) => parseInt(ink.fillStyle.slice(i, i + 2), 16));
}

function dots(z, rows, columns, colour, mirrored, upright) {
  const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  const ink = canvas.getContext("2d");
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const fill = colour(z[r]?.[c]);
      if (!fill) continue;
      ink.fillStyle = fill;
      ink.fillRect(mirrored ? columns - 1 - c : c, upright ? r : rows - 1 - r, 1, 1);
    }
  }
  return canvas.toDataURL("image/png");
}
