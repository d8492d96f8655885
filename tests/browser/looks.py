"""What tests ask of an explorer in a page: its texts, and those whose contrast is too low to be read."""

SAID = """
(root) => {
  for (const live of root.querySelectorAll(".wx-live")) live.textContent = "";  // what was last read out to somebody
  return [root.innerText, ...[...root.querySelectorAll("[title], title")].map((n) => n.title || n.textContent)]
    .join("\\n");
}
"""
CONTRAST = """
(root) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parse = (colour) => { // any colour of CSS, mixed ones too
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const light = (c) => c.slice(0, 3).map((x) => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + [0.2126, 0.7152, 0.0722][i] * x, 0);
  const over = (a, b) => a.slice(0, 3).map((x, i) => x * a[3] + b[i] * (1 - a[3]));
  const ground = (node) => {
    if (!node) return [255, 255, 255];
    const own = parse(getComputedStyle(node).backgroundColor);
    return own[3] > 0.99 ? own : over(own, ground(node.parentElement));
  };
  const low = [];
  for (const node of root.querySelectorAll("*")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !node.getClientRects().length || node.closest("style, option, .wx-live, .s3")) continue;
    const style = getComputedStyle(node), back = ground(node);
    const ink = over(parse(node instanceof SVGElement ? style.fill : style.color), back);
    const [a, b] = [light(ink), light(back)], ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([node.className.baseVal ?? node.className, node.textContent.slice(0, 20), ratio]);
  }
  return low;
}
"""
