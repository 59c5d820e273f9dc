// Charts: the roofline of a machine, and what is held and busy over time.
function roofline(found, tierAt, width) {
  const [height, left, right, top, bottom] = [width > 560 ? 420 : 340, 62, 16, 16, 46];
  const tier = found.tiers[tierAt];
  const points = found.points.filter((point) => tier && point.intensity[tier.name]);
  if (!points.length) return el("p", { class: "muted" }, "Nothing moves: there is no roofline.");
  const peak = Math.max(...found.rates.map((rate) => rate.rate), ...points.map((point) => point.rate));
  const xs = points.map((point) => point.intensity[tier.name]);
  const ridge = peak / tier.bandwidth;
  const span = [Math.min(...xs, ridge) / 3, Math.max(...xs, ridge) * 4].map(Math.log10);
  const low = Math.log10(Math.min(...points.map((point) => point.rate), ...found.rates.map((rate) => rate.rate)) / 4);
  const high = Math.log10(peak * 2.5);
  const x = (value) => left + ((Math.log10(value) - span[0]) / (span[1] - span[0])) * (width - left - right);
  const y = (value) => height - bottom - ((Math.log10(value) - low) / (high - low)) * (height - top - bottom);
  const marks = [];
  for (let power = Math.ceil(span[0]); power <= span[1]; power += 1) {
    const at = x(10 ** power);
    marks.push(svg("line", { class: "tick", x1: at, x2: at, y1: top, y2: height - bottom }),
      svg("text", { x: at, y: height - bottom + 17, "text-anchor": "middle" }, plain(power)));
  }
  for (let power = Math.ceil(low); power <= high; power += 1) {
    const at = y(10 ** power);
    marks.push(svg("line", { class: "tick", x1: left, x2: width - right, y1: at, y2: at }),
      svg("text", { x: left - 7, y: at + 4, "text-anchor": "end" }, short(power)));
  }
  const edges = span.map((power) => 10 ** power);
  for (const [at, roof] of found.tiers.entries()) {
    const clip = (value) => Math.min(peak, Math.max(10 ** low, value * roof.bandwidth));
    const start = Math.max(edges[0], 10 ** low / roof.bandwidth);
    const end = Math.min(edges[1], peak / roof.bandwidth);
    if (start >= end) continue;
    marks.push(svg("path", { class: at === tierAt ? "roof" : "roof off", d: `M${x(start)} ${y(clip(start))}L${x(end)} ${y(clip(end))}` }));
    if (at === tierAt) {
      const middle = Math.sqrt(start * Math.min(end, Math.sqrt(start * end) * 2));
      const angle = (Math.atan2(y(clip(end)) - y(clip(start)), x(end) - x(start)) * 180) / Math.PI;
      marks.push(svg("text", { class: "halo", transform: `translate(${x(middle)} ${y(clip(middle)) - 7}) rotate(${angle})`, "text-anchor": "middle" }, `${roof.name} ${roof.text}`));
    }
  }
  for (const rate of found.rates) {
    const from = Math.max(edges[0], Math.min(edges[1], rate.rate / tier.bandwidth));
    marks.push(svg("line", { class: "ceiling", x1: x(from), x2: width - right, y1: y(rate.rate), y2: y(rate.rate) }));
  }
  const before = points.find((point) => point.kind === "unfused");
  const chosen = points.find((point) => point.kind === "chosen");
  const centre = (point) => [x(point.intensity[tier.name]), y(point.rate)];
  if (before && chosen) marks.push(svg("path", { class: "path", d: `M${centre(before)}L${centre(chosen)}` }));
  for (const point of [...points].sort((a, b) => (a.kind === "candidate" ? 0 : 1) - (b.kind === "candidate" ? 0 : 1))) {
    const [px, py] = centre(point);
    marks.push(svg("circle", { class: point.kind, cx: px, cy: py, r: point.kind === "candidate" ? 4.5 : 6.5 }, svg("title", {}, `${point.name}: ${point.text}`)));
  }
  const taken = points.map((point) => { const [px, py] = centre(point); return [px - 7, py - 7, px + 7, py + 7]; });
  const label = (text, className, places) => {
    const long = text.length * (className.includes("strong") ? 6.9 : 6.3);
    for (const [at, level, end] of places) {
      const box = [end ? at - long : at, level - 11, end ? at : at + long, level + 3];
      const free = taken.every((other) => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3]);
      if (!free || box[0] < left || box[2] > width - 2 || box[1] < 0 || box[3] > height - bottom) continue;
      taken.push(box);
      marks.push(svg("text", { class: className, x: at, y: level, "text-anchor": end ? "end" : "start" }, text));
      return true;
    }
    return false;
  };
  for (const [point, name] of [[chosen, "chosen"], [before, "unfused"]]) {
    if (!point) continue;
    const [px, py] = centre(point);
    const places = [[px + 10, py + 19], [px + 10, py - 11], [px - 10, py - 11, true], [px - 10, py + 19, true], [px + 10, py + 34], [px - 10, py + 34, true]];
    if (!label(`${name}: ${point.text}`, "strong halo", places)) label(name, "strong halo", places);
  }
  for (const rate of found.rates) {
    const [at, end] = [y(rate.rate), width - right - 4];
    label(`${rate.name} ${rate.text}`, "halo", [[end, at - 6, true], [end, at + 15, true], [left + 120, at - 6], [left + 120, at + 15]]);
  }
  return el("figure", {}, svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Roofline, bytes of ${tier.name}` },
    marks,
    svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, `operations per byte of ${tier.name}`),
    svg("text", { transform: `translate(14 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "operations per second")));
}

const plain = (power) => (power < -3 || power > 5 ? `1e${power}` : String(Number((10 ** power).toPrecision(1))));
function short(power) {
  const names = ["", "k", "M", "G", "T", "P", "E"];
  const step = Math.floor(power / 3);
  return power < 0 || step >= names.length ? `1e${power}` : `${10 ** (power - 3 * step)} ${names[step]}`;
}

function area(values, most, kind) {
  const steps_ = values.map((value, at) => `L${at} ${100 - (100 * value) / most}H${at + 1}`).join("");
  return svg("svg", { viewBox: `0 0 ${values.length} 100`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: kind, d: `M0 100${steps_}V100Z` }));
}

function timeline(found) {
  if (found.why) return el("p", { class: "panel pad muted" }, `Not simulated: ${found.why}.`);
  const rows = [];
  const lane = (name, chart, text) => rows.push(el("div", { class: "lane" }, el("span", {}, name), chart, el("span", { class: "muted" }, text)));
  rows.push(el("h3", {}, "Bytes held"));
  for (const row of found.held)
    lane(row.name, area(row.values, Math.max(row.top, 1), "held"), `${row.most} of ${row.capacity}${row.each ? ", of one unit" : ""}`);
  rows.push(el("h3", {}, "Busy"));
  for (const row of found.busy)
    lane(row.name, area(row.values, 1, "busy"), `${(100 * row.share).toFixed(1)} %${row.each > 1 ? ` of ${row.each} units` : ""}`);
  rows.push(el("div", { class: "ruler" }, el("span", {}, "0"), el("span", {}, found.seconds)));
  const note = found.smaller
    ? `The simulator executes the chosen schedule with the same blocks at smaller sizes, which takes less time: ${found.sizes}.`
    : `The simulator executes the chosen schedule: ${found.sizes}. Nothing happens until a kernel is dispatched.`;
  const held = "A tile is held from when the first operation with it begins until all operations before its release are over; the figures are the most if operations kept their order.";
  return el("div", { class: "panel pad" }, el("p", { class: "muted" }, `${note} ${held}`), el("div", { class: "lanes" }, rows));
}
