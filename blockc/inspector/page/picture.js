// The picture of a block program. What two pictures have in common are the same elements, which move.
const KIND = 0, TEXT = 1, NAMES = 2, SOURCE = 3, HEAD = 4, HEAVY = 5, MOVED = 6;
const MANY = 400; // parts of a picture: of a larger one only what is near the window is there, and nothing glides
const picture = { root: null, boxes: new Map(), nodes: new Map(), ways: new Map(), of: null, room: [0, 0], top: 0, whole: false };

function newPicture() {
  const layers = ["boxes", "ways", "nodes", "badges"].map((name) => svg("g", { class: name }));
  picture.root = svg("svg", { role: "img" }, layers);
  [picture.boxLayer, picture.wayLayer, picture.nodeLayer, picture.badgeLayer] = layers;
  for (const name of ["boxes", "nodes", "ways"]) picture[name].clear();
  picture.of = steps();
  $("canvas").replaceChildren(picture.root);
}

function draw(moving) {
  const { stops } = steps();
  const stop = stops[state.step];
  const shown = state.before && stop.before >= 0 ? stop.before : state.step;
  if (picture.of !== steps()) { newPicture(); moving = false; }
  const drawn = nearest(shown);
  const frame = steps().frames[stops[drawn].frame];
  picture.frame = frame;
  resize();
  picture.root.classList.toggle("moving", moving && frame.places.length <= MANY);
  picture.marks = drawn === shown ? marksOf(stop) : [];
  place(frame);
  badges(frame, stops[shown] === stops.at(-1));
  const label = stop.rule ? `${stop.label} ${stop.rule}` : "the unfused program";
  picture.root.setAttribute("aria-label", `Block program ${state.before ? "before" : "after"} ${label}`);
  if (drawn !== shown) pick(`The derivation is long: this is the picture of step ${stops[drawn].label}.`);
  else pick("");
}

const marksOf = (stop) => [["added", state.before ? [] : stop.added], ["removed", state.before ? stop.removed : []], ["changed", stop.changed]];

// The numbers of kernels, at the boxes of the program that is executed.
function badges(frame, executed) {
  const first = machine().source.kernels.findIndex((kernel) => kernel.part === state.part);
  const places = new Map(frame.places.map((index) => [steps().places[index][0], steps().places[index]]));
  picture.badgeLayer.replaceChildren(...(executed ? steps().kernels : []).flatMap((boxes, at) => boxes.map((number) => {
    const [, , x, y] = places.get(number);
    const name = String(first + at + 1);
    const wide = 12 + 7 * name.length;
    return svg("g", { class: "badge", transform: `translate(${x - 8} ${y - 9})` }, svg("title", {}, `kernel ${name}`),
      svg("rect", { width: wide, height: 18, rx: 5, fill: colour(first + at) }), svg("text", { x: wide / 2, y: 13, "text-anchor": "middle" }, name));
  })));
}

// Shows where a kernel is, at the last step.
function showKernelBox(kernel) {
  const first = machine().source.kernels.findIndex((one) => one.part === state.part);
  const numbers = new Set(steps().kernels[kernel - first]);
  const found = picture.frame.places.map((index) => steps().places[index]).find(([number]) => numbers.has(number));
  if (!found) return;
  $("canvas").scrollTop = Math.max(0, (found[3] - 40) * picture.scale);
  scrolled();
  for (const [number, entry] of picture.boxes) entry.group.classList.toggle("on", numbers.has(number));
}

function nearest(number) {
  const { stops } = steps();
  let found = number;
  while (found > 0 && stops[found].frame === null) found -= 1;
  return found;
}

function place(frame) {
  const { places, looks, titles, ways } = steps();
  const seen = { boxes: [], nodes: [], ways: [] };
  const [low, high] = inWindow(frame);
  const marks = new Map((picture.marks || []).flatMap(([name, numbers]) => numbers.map((number) => [number, name])));
  for (const index of frame.places) {
    const [number, lookAt, x, y, width, height, titleX, titleY] = places[index];
    if (y > high || y + height < low) continue;
    const look = looks[lookAt];
    const boxed = titleX !== undefined;
    const known = boxed ? picture.boxes : picture.nodes;
    let entry = known.get(number);
    if (!entry) {
      entry = { group: svg("g", { class: "fresh" }), look: -1 };
      known.set(number, entry);
    } else entry.group.classList.remove("fresh");
    if (entry.look !== lookAt) {
      entry.look = lookAt;
      if (boxed) dressBox(entry, look); else dressNode(entry, look, width, number);
    }
    if (entry.at !== index) {
      entry.at = index;
      entry.group.style.transform = `translate(${x}px, ${y}px)`;
      if (entry.shape) { entry.shape.style.width = `${width}px`; entry.shape.style.height = `${height}px`; }
      if (boxed) entry.words.setAttribute("transform", `translate(${titleX} ${titleY})`);
    }
    const mark = marks.get(number) || "";
    if (entry.mark !== mark) {
      entry.group.classList.remove("added", "removed", "changed");
      if (mark) entry.group.classList.add(mark);
      entry.mark = mark;
    }
    (boxed ? seen.boxes : seen.nodes).push([number, entry]);
  }
  const repeated = new Map();
  for (const index of frame.ways) {
    const [source, target, titleAt, kind, ...points] = ways[index];
    const [title] = titles[titleAt];
    const [thick, tipped] = [kind % 2 === 1, kind > 1];
    if (points[1] > high || points.at(-1) < low) continue;
    const ends = `${source} ${target} ${title.split(":")[0]}`;
    repeated.set(ends, (repeated.get(ends) || 0) + 1);
    const key = `${ends} ${repeated.get(ends)}`;
    let entry = picture.ways.get(key);
    if (!entry) {
      entry = { way: svg("path"), tip: svg("path", { class: "tip" }), title: svg("title"), at: -1 };
      entry.group = svg("g", { class: "fresh" }, entry.title, entry.way, entry.tip);
      entry.way.setAttribute("class", "way");
      picture.ways.set(key, entry);
    } else entry.group.classList.remove("fresh");
    if (entry.at !== index) {
      entry.at = index;
      entry.title.textContent = title;
      entry.group.classList.toggle("thick", thick);
      const [path, tip] = route(points, thick);
      entry.way.setAttribute("d", path);
      entry.tip.setAttribute("d", tipped ? tip : "");
      entry.ends = [source, target];
    }
    seen.ways.push([key, entry]);
  }
  settle(picture.boxLayer, picture.boxes, seen.boxes);
  settle(picture.wayLayer, picture.ways, seen.ways);
  settle(picture.nodeLayer, picture.nodes, seen.nodes);
}

// From and to where parts have to be there.
function inWindow(frame) {
  if (picture.whole || frame.places.length <= MANY) return [-Infinity, Infinity];
  const [top, height] = [picture.top / picture.scale, picture.room[1] / picture.scale];
  return [top - height - 300, top + 2 * height + 300];
}

function scrolled() {
  picture.top = $("canvas").scrollTop;
  if (picture.frame && picture.frame.places.length > MANY) place(picture.frame);
}

// Straight down, then curved and straight in turn; and the arrow at the end.
function route(points, thick) {
  let [x, y] = points;
  let path = `M${x} ${y}`;
  for (let at = 2; at < points.length;) {
    y = points[at];
    path += `V${y}`;
    at += 1;
    if (at < points.length) {
      const [toX, toY] = [points[at], points[at + 1]];
      const middle = (y + toY) / 2;
      path += `C${x} ${middle} ${toX} ${middle} ${toX} ${toY}`;
      [x, y] = [toX, toY];
      at += 2;
    }
  }
  const [half, long] = thick ? [5, 9] : [3.5, 7];
  return [path, `M${x} ${y}l${-half} ${-long}h${2 * half}Z`];
}

// Puts the elements of a layer into their order, touching only those that are out of it, and drops the others.
function settle(layer, known, seen) {
  const wanted = new Set(seen.map(([key]) => key));
  for (const [key, entry] of known) if (!wanted.has(key)) { entry.group.remove(); known.delete(key); }
  let next = null;
  for (let at = seen.length - 1; at >= 0; at -= 1) {
    const { group } = seen[at][1];
    if (group.parentNode !== layer || group.nextSibling !== next) layer.insertBefore(group, next);
    next = group;
  }
}

function lines(look, className, anchor, x) {
  return look[TEXT].map((text, number) => {
    const moved = look[MOVED] && number === look[TEXT].length - 1;
    const kind = moved ? "bytes" : className(number);
    return svg("text", { class: kind || null, x, y: anchor.y + 16 * number, "text-anchor": anchor.name }, text);
  });
}

function dressBox(entry, look) {
  entry.group.setAttribute("class", "frame-box");
  entry.mark = "";
  entry.shape = entry.shape || svg("rect", { rx: 6 });
  entry.shape.setAttribute("class", `box ${look[KIND]}`);
  entry.words = svg("g", {}, lines(look, (number) => (number ? "note" : "title"), { name: "start", y: 12 }, 0));
  entry.group.replaceChildren(entry.shape, entry.words);
  entry.at = -1;
}

function dressNode(entry, look, width, number) {
  entry.group.setAttribute("class", "part");
  entry.mark = "";
  entry.at = -1;
  if (look[KIND] === "pin") {
    entry.group.replaceChildren(svg("circle", { class: look[HEAVY] ? "pin heavy" : "pin", cx: 4, cy: 4, r: 4 }));
    return;
  }
  entry.shape = svg("rect", { class: look[HEAVY] ? "node heavy" : "node", rx: look[KIND] === "operator" ? 3 : 11 });
  const words = lines(look, (at) => (at >= look[HEAD] ? "name" : ""), { name: "middle", y: 16 }, width / 2);
  entry.group.replaceChildren(entry.shape, ...words);
  entry.group.onclick = () => choose(number);
}

// A node that is chosen: its edges, its bytes, and where it comes from.
function choose(number) {
  for (const [other, entry] of picture.nodes) entry.group.classList.toggle("on", other === number);
  for (const [, entry] of picture.ways) entry.group.classList.toggle("near", entry.ends.includes(number));
  const entry = picture.nodes.get(number);
  const look = steps().looks[entry.look];
  const text = [el("code", {}, look[NAMES].join(", ")), ` ${look[KIND]}`];
  if (look[MOVED]) text.push(`, ${look[MOVED].toLocaleString("en")} bytes`);
  if (look[SOURCE]) text.push(" from ", lineLink(look[SOURCE]));
  pick(text);
}

function pick(text) {
  $("picked").replaceChildren(...[text].flat());
}

function extent() {
  if (!picture.of.extent) {
    const { frames } = picture.of;
    const left = Math.min(...frames.map((frame) => frame.size[0]));
    const right = Math.max(...frames.map((frame) => frame.size[0] + frame.size[2]));
    picture.of.extent = [left - 8, right - left + 16];
  }
  return picture.of.extent;
}

function measure() {
  const canvas = $("canvas");
  picture.room = [canvas.clientWidth - 18, canvas.clientHeight - 18];
  resize();
  scrolled();
}

function resize() {
  if (!picture.frame) return;
  const [left, width] = extent();
  const height = picture.frame.size[3] + 16;
  const { room } = picture;
  const fitting = Math.min(1, room[0] / width);
  const zoom = state.zoom === "fit" ? Math.min(fitting, room[1] / height) : fitting * 1.25 ** state.zoom;
  picture.root.setAttribute("viewBox", `${left} -8 ${width} ${height}`);
  picture.root.setAttribute("width", Math.max(1, Math.round(width * zoom)));
  picture.root.setAttribute("height", Math.max(1, Math.round(height * zoom)));
  picture.scale = zoom;
}

// Brings what a step has changed into view, if none of it is.
function reveal() {
  const marked = new Set(picture.marks.flatMap(([, numbers]) => numbers));
  const { places } = steps();
  const tops = picture.frame.places.map((index) => places[index]).filter(([number]) => marked.has(number)).map((one) => one[3]);
  if (!tops.length) return;
  const canvas = $("canvas");
  const highest = (Math.min(...tops) + 8) * picture.scale;
  const [top, bottom] = [picture.top, picture.top + picture.room[1]];
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (highest < top || highest > bottom - 60) canvas.scrollTo({ top: Math.max(0, highest - 60), behavior: still || picture.frame.places.length > MANY ? "auto" : "smooth" });
}
