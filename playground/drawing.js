// Pictures and tables of answers.
export function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function table(head, rows) {
  return element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((h) => element("th", {}, h)))),
    element("tbody", {}, ...rows.map((r) => element("tr", {}, ...r.map((c) => element("td", {}, String(c)))))));
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function grid(panel, rows, columns, fill, words) {
  const canvas = panel.querySelector("canvas");
  canvas.hidden = false;
  canvas.width = columns;
  canvas.height = rows;
  canvas.style.aspectRatio = `${Math.min(Math.max(columns / rows, 0.25), 4)}`;
  const context = canvas.getContext("2d");
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      context.fillStyle = fill(r, c);
      context.fillRect(c, r, 1, 1);
    }
  }
  canvas.setAttribute("aria-label", words);
  panel.querySelector(".said").textContent = words;
  panel.querySelector(".said").classList.remove("error");
}

function none(panel, words, wrong = false) {
  panel.querySelector("canvas").hidden = true;
  panel.querySelector(".said").textContent = words;
  panel.querySelector(".said").classList.toggle("error", wrong);
}

export function drawTiles(panel, found) {
  if (found.error) return none(panel, found.error, true);
  if (!found.kind) return none(panel, "No mask: every tile is live.");
  const colours = [colour("--box"), colour("--some"), colour("--all")];
  const words = `Tiles of ${found.tile.join(" x ")} of ${found.size[0]} ${found.rows} by ${found.size[1]} ${found.columns}: ${found.live}, where ${found.mask}`;
  grid(panel, found.kind.length, found.kind[0].length, (r, c) => colours[found.kind[r][c]], words);
}

export function drawWeights(panel, found) {
  if (found.error) return none(panel, found.error, true);
  const most = Math.max(1e-30, ...found.values.flat().map(Math.abs));
  const fill = (r, c) => {
    const x = found.values[r][c];
    const base = colour(x < 0 ? "--wrong" : "--all");
    return x ? `color-mix(in srgb, ${base} ${(100 * Math.abs(x)) / most}%, ${colour("--box")})` : colour("--box");
  };
  const words = `What each of ${found.values.length} queries (rows) takes of each key: the output for values that are unit vectors in place of ${found.of.join(", ")}. `
    + `The strongest is ${most.toPrecision(3)}. Evaluated as written, of drawn arguments.`;
  grid(panel, found.values.length, found.values[0].length, fill, words);
}

export function short(n) {
  for (const unit of ["", "k", "M", "G", "T"]) {
    if (n < 1000) return `${+n.toPrecision(3)} ${unit}`;
    n /= 1000;
  }
  return `${+n.toPrecision(3)} P`;
}

export const seconds = (t) => `${+(1e6 * t).toPrecision(3)} us`;
