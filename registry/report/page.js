// Draws the charts with the colours of the page's theme, places the labels of the trade-off chart, and links its points
// to the list of variants. Charts are drawn again when the theme or the width changes.
(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map();

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // Replace "@name" by the theme's colour, everywhere but in data.
  function themed(value, key) {
    if (key === "values" || key === "datasets") return value;
    if (typeof value === "string") return value.startsWith("@") ? color(value.slice(1)) : value;
    if (Array.isArray(value)) return value.map((one) => themed(one, ""));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, themed(one, name)]));
    }
    return value;
  }

  function config() {
    const font = getComputedStyle(document.body).fontFamily;
    const text = { labelColor: color("muted"), titleColor: color("muted"), labelFontSize: 11, titleFontSize: 11.5 };
    return {
      font, background: null, padding: { left: 2, right: 6, top: 4, bottom: 2 },
      view: { stroke: null },
      axis: { ...text, titleFontWeight: 400, gridColor: color("grid"), domainColor: color("line"), tickColor: color("line"), labelOverlap: true },
      legend: { ...text, labelColor: color("text"), symbolStrokeWidth: 1.5, symbolOpacity: 1 },
    };
  }

  async function draw(place) {
    const key = place.dataset.chart;
    const spec = themed(specs[key], "");
    const summary = document.getElementById(place.dataset.alt).textContent;
    spec.description = `${place.dataset.title}. ${summary}`;
    const narrow = place.clientWidth < 480;
    spec.config = config();
    // On a narrow screen, labels stand above and below the points, which takes more room.
    if (key.endsWith("-tradeoff")) spec.config.legend.columns = narrow ? 3 : 6;
    if (narrow && key.endsWith("-tradeoff")) spec.height *= 1.3;
    const result = await vegaEmbed(place, spec, { actions: false, renderer: "svg", hover: false, logLevel: 1 });
    drawn.get(key)?.finalize();
    drawn.set(key, result);
    place.dataset.width = place.clientWidth;
    place.dataset.drawn = "true";
    if (key.endsWith("-tradeoff")) label(result.view, specs[key], place, key.slice(0, 1));
  }

  // Try places around each point, near ones first, and take the first that touches neither a label nor a point. The
  // chosen variant and the plain export come first. Where a name has no room, the number of the variant stands.
  function label(view, spec, place, side) {
    const width = view.width(), height = view.height();
    const x = view.scale("x"), y = view.scale("y");
    const context = document.createElement("canvas").getContext("2d");
    context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const area = view.scale("size");
    const points = spec.data.values.map((one) => ({ ...one, px: x(one.x), py: y(one.y), radius: Math.sqrt(area(one.mb) / Math.PI) }));
    const taken = points.map((one) => box(one.px - one.radius, one.py - 7, 2 * one.radius, 14));
    if (spec.usermeta.budget) taken.push(box(width - 130, y(1) - 16, 130, 16));  // the text at the budget's line
    const order = [...points].sort((a, b) => b.first - a.first || a.n - b.n);
    const labels = [];
    for (const one of order) {
      for (const text of [`${one.n} ${one.label}`, `${one.n} ${shortened(one.label)}`, `${one.n}`]) {
        const long = context.measureText(text).width + 2;
        const spot = spots(one, long, width).find(({ lx, ly }) => {
          const area = box(lx, ly - 7, long, 14);
          return lx >= 0 && lx + long <= width && ly >= 6 && ly <= height - 6 && !taken.some((other) => touch(area, other));
        });
        if (!spot) continue;
        taken.push(box(spot.lx, spot.ly - 7, long, 14));
        const far = Math.abs(spot.ly - one.py) > 16;
        const tx = Math.min(Math.max(one.px, spot.lx), spot.lx + long);
        labels.push({ text, ...spot, px: one.px, py: one.py, tx: far ? tx : one.px, ty: far ? spot.ly + (spot.ly < one.py ? 7 : -7) : one.py });
        break;
      }
    }
    view.data("labels", labels).runAsync();
    view.addEventListener("click", (_, item) => item?.datum?.n && show(side, item.datum.n));
    document.querySelectorAll(`[id^="${side}-variant-"]`).forEach((row) => {
      const number = Number(row.dataset.number);
      if (!points.some((one) => one.n === number)) return;
      row.onmouseenter = () => view.signal("focus", number).runAsync();
      row.onmouseleave = () => view.signal("focus", 0).runAsync();
    });
  }

  // The beginning and the end of a name, which tell variants apart.
  const shortened = (name) => name.length > 30 ? `${name.slice(0, 14)}…${name.slice(-15)}` : name;

  function spots(one, long, width) {
    const found = [];
    for (const away of [0, 14, 20, 34, 48, 62, 80, 100]) {
      for (const sign of away ? [-1, 1] : [1]) {
        const ly = one.py + sign * away;
        const beside = one.radius + 4;
        const shifts = away < 14 ? [beside, -beside - long] : [beside, -long / 2, -beside - long];
        for (const shift of shifts) found.push({ lx: one.px + shift, ly });
        if (away) found.push({ lx: Math.min(Math.max(one.px - long / 2, 0), width - long), ly });
      }
    }
    return found;
  }

  const box = (left, top, width, height) => ({ left, top, right: left + width, bottom: top + height });
  const touch = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

  function show(side, number) {
    const row = document.getElementById(`${side}-variant-${number}`);
    document.querySelectorAll(".variants li.focus").forEach((other) => other.classList.remove("focus"));
    row.closest("details").open = true;
    row.classList.add("focus");
    row.scrollIntoView({ block: "center" });
  }

  // One after the other, so that the page answers while many charts are drawn.
  let queue = Promise.resolve();
  const places = [...document.querySelectorAll(".chart")];
  function drawAll(wanted) {
    for (const place of places.filter(wanted)) queue = queue.then(() => draw(place)).catch((error) => {
      place.textContent = "This chart could not be drawn. The page contains the same figures as text.";
      console.error(error);
    });
    queue = queue.then(() => { document.body.dataset.charts = "drawn"; });
  }
  drawAll(() => true);
  dark.addEventListener("change", () => drawAll(() => true));
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => drawAll((place) => Number(place.dataset.width) !== place.clientWidth), 150);
  });
})();
