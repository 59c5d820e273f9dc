// The chapters of the page.
function lineLink(line) {
  return el("a", { href: `#line-${line}`, onclick: () => setTimeout(() => $(`line-${line}`) && flash($(`line-${line}`))) }, `source line ${line}`);
}

function showSummary() {
  const now = machine();
  const before = now.parts.reduce((sum, one) => sum + one.before.kernels, 0);
  const [bytesBefore, bytesAfter] = ["before", "after"].map((side) => now.parts.reduce((sum, one) => sum + one[side].bytes, 0));
  const saved = bytesBefore ? Math.round(1000 * (1 - bytesAfter / bytesBefore)) / 10 : 0;
  const arrow = (from, to) => [el("i", {}, `${from} → `), to];
  const figure = (value, note) => el("div", { class: "panel figure" }, el("b", {}, value), el("span", {}, note));
  $("summary").replaceChildren(
    el("h1", {}, data.program),
    el("p", {}, `${now.name}${now.description ? `, ${now.description}` : ""}. Sizes: ${data.sizes}`),
    el("div", { class: "figures" },
      figure(arrow(before, now.kernels), now.parts.length > 1 ? `kernels, in ${now.parts.length} parts` : "kernels"),
      figure(arrow(bytes(bytesBefore), bytes(bytesAfter)), `moved to and from slow memory, ${saved < 0 ? `${-saved} % more` : `${saved} % less`}`),
      figure(now.seconds, `predicted on ${now.name}`),
      figure(now.waits || "nothing", "is what it waits for")),
    data.machines.length > 1 ? comparison() : "",
    now.parts.length > 1 ? partsTable(now) : "");
}

function bytes(number) {
  const names = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (number >= 999.5 && at < names.length - 1) { number /= 1000; at += 1; }
  return `${at ? number.toPrecision(3) : number} ${names[at]}`;
}

function partsTable(now) {
  const rows = now.parts.map((one, at) => ({ chosen: at === state.part, cells: [
    el("button", { class: "link", type: "button", onclick: () => go({ part: at }) }, String(at + 1)),
    one.first === one.last ? one.first : `${one.first} … ${one.last}`, one.operators, one.kernels,
    `${one.before.moved} → ${one.after.moved}`, one.seconds, one.waits] }));
  return el("div", { class: "panel pad" }, el("h3", {}, "Parts, in the order in which they run"),
    table(["part", "from … to", "operators", "kernels", "bytes moved", "predicted", "waits for"], rows, { right: [2, 3, 4, 5] }));
}

function comparison() {
  const figures = [
    ["kernels", (one) => String(one.kernels)], ["predicted", (one) => one.seconds], ["waits for", (one) => one.waits],
    ["parts", (one) => String(one.parts.length)],
    ["form", (one) => unique(one.parts.map((some) => `snapshot ${some.costs.choice.snapshot}, ${some.costs.choice.form}`))],
    ["blocks", (one) => (one.parts.length === 1 ? one.parts[0].blocks : "those of the parts")],
    ["moved", (one) => one.boundaries.map(([way, count]) => el("div", {}, `${way}: ${count}`))],
  ];
  const rows = figures.map(([name, get]) => ({ cells: [name, ...data.machines.map(get)] }));
  return el("div", { class: "compare" },
    el("div", { class: "panel pad" }, el("h3", {}, "Side by side"), table(["", ...data.machines.map((one) => one.name)], rows)),
    el("div", { class: "grid two" }, data.machines.map((one, at) => el("div", { class: "panel source" },
      el("h3", { class: "pad" }, `${one.name}: ${many(one.kernels, "kernel")}`), sourceCode(one, at, "")))));
}
const kernelsOf = (operators, own) => [...new Set(own.flatMap((index) => operators[index].kernels))].sort((a, b) => a - b);
const unique = (texts) => [...new Set(texts)].join("; ");

function sourceCode(one, at, prefix) {
  const { lines: rows, operators } = one.source;
  return el("div", { class: "code", tabindex: 0, role: "region", "aria-label": `Source, kernels of ${one.name}` }, rows.map((pieces, number) =>
    el("div", { id: prefix ? `${prefix}-${number + 1}` : null }, el("span", { class: "n" }, String(number + 1)), pieces.map(([text, own], place) => {
      if (!own.length) return text;
      const some = own.map((index) => operators[index]);
      const kernels = kernelsOf(operators, own);
      const goesOn = place + 1 < pieces.length && String(kernelsOf(operators, pieces[place + 1][1])) === String(kernels);
      const names = some.map((operator) => operator.name).join(", ");
      const tip = kernels.length ? `${names}: kernel ${kernels.map((kernel) => kernel + 1).join(", ")}` : `${names}: ${unique(some.map((operator) => operator.removed))}`;
      const piece = el("button", { class: kernels.length ? "op" : "op none", type: "button", title: tip, "data-kernels": kernels.join(" "),
        onclick: () => { if (kernels.length) goKernel(at, kernels[0]); }, onmouseenter: () => mark(kernels), onmouseleave: () => mark([]) },
      text, kernels.length && !goesOn ? el("sup", {}, kernels.map((kernel) => kernel + 1).join("·")) : "");
      return paint(piece, kernels);
    }))));
}

function showSource() {
  const now = machine();
  const chips = now.source.kernels.map((kernel, at) => el("li", {}, el("button", { type: "button", "data-kernel": at,
    onclick: () => goKernel(state.machine, at), onmouseenter: () => mark([at]), onmouseleave: () => mark([]) },
  chip(at), el("span", {}, `${kernel.seconds}, ${many(kernel.operators.length, "operator")}`),
  el("small", {}, `${kernel.tasks} ${kernel.tasks === "1" ? "task" : "tasks"}; waits for ${kernel.waits}`))));
  $("source-body").replaceChildren(el("div", { class: "source-grid" },
    el("div", { class: "panel source" }, sourceCode(now, state.machine, "line")),
    el("ol", { class: chips.length > 7 ? "kernels long" : "kernels", "aria-label": "Kernels" }, chips)));
}

function mark(kernels) {
  for (const element of $("source-body").querySelectorAll("[data-kernel], [data-kernels]")) {
    const own = (element.dataset.kernels ?? element.dataset.kernel).split(" ").filter(Boolean).map(Number);
    element.classList.toggle("on", own.some((kernel) => kernels.includes(kernel)));
  }
}

function goKernel(at, kernel) {
  const wanted = data.machines[at].source.kernels[kernel].part;
  if (at !== state.machine || wanted !== state.part) go({ machine: at, part: wanted });
  $("derivation").scrollIntoView();
  go({ step: steps().stops.length - 1 });
  cancelAnimationFrame(showStep.later);
  showKernelBox(kernel);
  $("canvas").focus({ preventScroll: true });
}

// The derivation
function showSteps() {
  const { stops } = steps();
  const rows = [];
  for (const [number, stop] of stops.entries()) {
    if (number > 1 && stop.snapshot !== stops[number - 1].snapshot && stop.rule !== "stabilize")
      rows.push(el("li", {}, el("h3", {}, `snapshot ${stop.snapshot}`)));
    const more = stop.deltas[0].startsWith("+") && stop.deltas[0] !== "0";
    rows.push(el("li", {}, el("button", { type: "button", id: `step-${number}`, class: stop.quiet && stop.rule ? "quiet" : null, onclick: () => go({ step: number }) },
      el("span", { class: "label" }, stop.label), el("span", { class: "rule" }, title(stop)),
      stop.at ? el("span", { class: "at" }, stop.at) : "",
      stop.rule && stop.deltas[0] !== "0" ? el("span", { class: more ? "delta more" : "delta" }, minus(stop.deltas[0])) : "")));
  }
  $("steps").replaceChildren(...rows);
  $("slider").max = stops.length - 1;
  const most = Math.max(...stops.map((stop) => stop.bytes), 1);
  const last = Math.max(1, stops.length - 1);
  const level = (stop) => 100 - (96 * stop.bytes) / most;
  const line = stops.map((stop, at) => (at ? `H${(1000 * at) / last}V${level(stop)}` : `M0 ${level(stop)}`)).join("");
  $("descent").replaceChildren(svg("path", { class: "area", d: `${line}V100H0Z` }), svg("path", { class: "rim", d: line }), svg("line", { class: "now", y1: 0, y2: 100 }));
  $("derivation-part").textContent = partName();
}
const title = (stop) => (stop.rule ? (stop.rule === "stabilize" ? "as it is executed" : stop.rule.replaceAll("_", " ")) : "unfused program");
const minus = (text) => text.replace("-", "−");

function partName() {
  if (machine().parts.length === 1) return `on ${machine().name}`;
  const one = part();
  return `part ${state.part + 1} of ${machine().parts.length}: ${one.first === one.last ? one.first : `${one.first} … ${one.last}`}, on ${machine().name}`;
}

function showStep(moving) {
  const { stops } = steps();
  const stop = stops[state.step];
  $("slider").value = state.step;
  $("slider").setAttribute("aria-valuetext", `${stop.label} ${title(stop)}`);
  $("where").replaceChildren(el("b", {}, `${state.step} of ${stops.length - 1}`), `${stop.moved} moved, ${many(stop.kernels, "kernel")}`);
  const at = (1000 * state.step) / Math.max(1, stops.length - 1);
  const now = $("descent").querySelector(".now");
  now.setAttribute("x1", at);
  now.setAttribute("x2", at);
  for (const old of $("steps").querySelectorAll("[aria-current]")) old.removeAttribute("aria-current");
  const row = $(`step-${state.step}`);
  row.setAttribute("aria-current", "step");
  $("first").disabled = $("back").disabled = state.step === 0;
  $("last").disabled = $("next").disabled = state.step === stops.length - 1;
  if (stop.before < 0) state.before = false;
  $("show-before").disabled = stop.before < 0;
  $("show-before").setAttribute("aria-pressed", String(state.before));
  $("show-after").setAttribute("aria-pressed", String(!state.before));
  draw(moving);
  showDetail(stop);
  cancelAnimationFrame(showStep.later);
  showStep.later = requestAnimationFrame(() => {
    const list = $("steps");
    const [top, height] = [row.offsetTop - list.offsetTop, row.offsetHeight];
    if (top < list.scrollTop + 30) list.scrollTop = top - 60;
    else if (top + height > list.scrollTop + list.clientHeight - 30) list.scrollTop = top + height + 60 - list.clientHeight;
    $("detail").scrollTop = 0;
    if (moving) reveal();
  });
}

function showDetail(stop) {
  const { lines: texts } = steps();
  if (!stop.rule) {
    const one = part();
    $("detail").replaceChildren(el("h3", {}, "The unfused program"),
      el("p", {}, `Every operator is ${one.before.kernels === 1 ? "the" : "a"} kernel of its own: ${many(one.before.kernels, "kernel")}. All values between them are lists in slow memory: ${one.before.moved} are moved.`),
      el("p", { class: "muted" }, "A map runs its body once for each block of a dimension. Thick edges are lists in slow memory, with the bytes that move for them; thin edges are tiles in local memory."),
      el("p", { class: "muted" }, "The slider, the arrow keys or the list lead through the steps."));
    return;
  }
  const rule = data.rules[stop.rule];
  const tag = (name, delta) => (delta === "0" ? "" : el("span", { class: delta.startsWith("-") ? "tag good" : "tag bad" }, `${name} ${minus(delta)}`));
  const parts = [el("h3", {}, title(stop)), el("div", { class: "tags" },
    rule.paper !== "-" ? el("span", { class: "tag" }, `paper: rule ${rule.paper}`) : "",
    stop.rule !== "stabilize" ? el("span", { class: "tag" }, `step ${stop.label}`) : "",
    stop.line ? el("span", { class: "tag" }, lineLink(stop.line)) : "",
    tag("moved", stop.deltas[0]), tag("operations", stop.deltas[1]), tag("local", stop.deltas[2]),
    stop.quiet ? el("span", { class: "tag" }, "no figure changes") : "")];
  parts.push(el("p", {}, prose(rule.text[0] || "")));
  parts.push(el("h4", {}, stop.at ? `Here, at ${stop.at}` : "Here"), diff(stop.text.map(([sign, line]) => [sign, line === undefined ? "⋯" : texts[line]])));
  if (rule.before.length) {
    parts.push(el("h4", {}, "The rule"), diff(rule.before.map((line) => ["-", line])), el("p", { class: "muted" }, "becomes"), diff(rule.after.map((line) => ["+", line])));
  }
  for (const text of rule.text.slice(1)) parts.push(el("p", { class: "muted" }, prose(text)));
  if (rule.effect) parts.push(el("p", { class: "muted" }, `Its effect, which is tested: ${rule.effect}.`));
  $("detail").replaceChildren(...parts);
}

function diff(given) {
  const depth = Math.min(...given.filter(([sign, line]) => sign !== "@" && line.trim()).map(([, line]) => line.length - line.trimStart().length));
  const rows = given.map(([sign, line]) => [sign, sign === "@" ? line : line.slice(depth)]);
  if (!rows.length) return el("p", { class: "muted" }, "The text of the program stays the same.");
  const kinds = { "+": "plus", "-": "minus", "@": "gap" };
  return el("div", { class: "diff" }, rows.map(([sign, line]) => el("div", { class: kinds[sign] || null }, el("i", {}, sign === "@" ? "" : minus(sign)), line)));
}

// Costs
let roofTier = 0;
const roofWidth = () => ($("cost-body").clientWidth < 700 ? 440 : 760);
function showCost() {
  const { costs } = part();
  $("cost-part").textContent = partName();
  const { choice } = costs;
  const runner = choice.runner;
  const chosen = el("div", { class: "panel pad" }, el("h3", {}, "Chosen"),
    el("p", {}, `Snapshot ${choice.snapshot}, ${choice.form}, in blocks of ${choice.blocks}. Lists: ${choice.lists}. It takes ${choice.seconds} and waits for ${choice.waits}.`),
    runner ? el("p", { class: "muted" }, `Next best: snapshot ${runner.snapshot}, ${runner.form}: ${runner.seconds} (${runner.margin}). Why not: ${runner.why}.`) : "",
    choice.note ? el("p", { class: "muted" }, choice.note) : "");
  const share = (row) => (row.share === null || row.unfused === "" ? "" : `${(100 * row.share).toFixed(row.share < 0.1 ? 1 : 0)} %`);
  const moved = el("div", { class: "panel pad" }, el("h3", {}, "Moved across boundaries"),
    table(["boundary", "unfused", "now", "", "time", "bytes now, as a formula"], costs.boundaries.map((row) => ({ cells: [row.way, row.unfused, row.bytes, share(row), row.time, row.formula] })),
      { right: [1, 2, 3, 4], classes: { 5: "formula" } }));
  const tiers = el("div", { class: "panel pad" }, el("h3", {}, "Held at the same time"),
    el("div", { class: "bars" }, costs.tiers.flatMap((tier) => [el("span", {}, `${tier.name}${tier.scope === "unit" ? ", of one unit" : ""}`), bar(tier.share), el("span", {}, `${tier.peak} of ${tier.capacity}`)])));
  const kernels = el("div", { class: "panel pad" }, el("h3", {}, "What kernels wait for"), costs.kernels.map((kernel, at) => el("div", { class: "kernel-cost" },
    el("p", {}, costs.kernels.length > 1 ? `Kernel ${at + 1}: ` : "", `${kernel.seconds}, ${kernel.tasks} ${kernel.tasks === "1" ? "task" : "tasks"}. Each resource on its own:`),
    el("div", { class: "bars" }, kernel.resources.slice(0, 8).flatMap(([name, time, part_], row) => [el("span", { class: row ? null : "first" }, name), bar(part_), el("span", {}, time)])))));
  const ways = [...new Set(costs.candidates.flatMap((row) => Object.keys(row.bytes || {})))];
  const candidates = el("div", { class: "panel pad" }, el("h3", {}, "Candidates, the fastest first"),
    table(["snapshot", "form", "kernels", ...ways, "operations", "predicted", "", "waits for", "why not"],
      costs.candidates.map((row) => ({ chosen: row.chosen, cells: [`${row.snapshot}${row.chosen ? " ✓" : ""}`, row.form, row.kernels ?? "", ...ways.map((way) => (row.bytes || {})[way] || ""), row.flops || "", row.seconds, row.ratio ? `${row.ratio}×` : "", row.waits || "", row.why] })),
      { right: [2, ...ways.map((_, at) => 3 + at), 3 + ways.length, 4 + ways.length, 5 + ways.length], classes: { 1: "words", [6 + ways.length]: "words", [7 + ways.length]: "why" } }));
  const snapshots = el("div", { class: "panel pad" }, el("h3", {}, "Snapshots of the chosen form, at its blocks"),
    table(["snapshot", "kernels", "loads", "stores", "operations", "special", "local", "keeps in slow memory", "bytes, as a formula"],
      costs.snapshots.map((row) => ({ chosen: row.chosen, cells: [row.name + (row.chosen ? " ✓" : ""), row.kernels, row.loads, row.stores, row.flops, row.special, row.local, row.kept, row.formula] })),
      { right: [1, 2, 3, 4, 5, 6], classes: { 7: "why", 8: "formula" } }));
  const cuts = machine().cuts;
  const looked = cuts.length > 1 ? el("details", { class: "panel pad" }, el("summary", {}, `${cuts.length} ways to cut the program into parts were looked at`),
    table(["from", "to", "first estimate", ""], cuts.map((row) => ({ chosen: row.chosen, cells: [row.first, row.last, row.seconds, row.chosen ? "chosen" : row.why] })), { right: [2] })) : "";
  $("cost-body").replaceChildren(el("div", { class: "grid" }, chosen, el("div", { class: "grid two" }, roofPanel(costs.roofline), el("div", { class: "grid" }, kernels, tiers)), moved, candidates, snapshots, looked));
}

function bar(share) {
  const inner = el("span");
  inner.style.width = `${Math.min(100, 100 * share)}%`;
  return el("span", { class: "bar" }, inner);
}

function roofPanel(found) {
  roofTier = Math.min(roofTier, Math.max(0, found.tiers.length - 1));
  const choices = found.tiers.map((tier, at) => el("button", { type: "button", "aria-pressed": String(at === roofTier), onclick: () => { roofTier = at; showCost(); } }, tier.name));
  const above = found.tiers.some((tier) => found.points.some((point) => point.rate > 1.001 * tier.bandwidth * (point.intensity[tier.name] || Infinity)));
  return el("div", { class: "panel pad", id: "roofline" }, el("h3", {}, "Roofline"), el("div", { class: "switch", role: "group", "aria-label": "Bytes of which tier" }, choices),
    roofline(found, roofTier, roofWidth()),
    el("p", { class: "muted" }, "A point is a candidate: predicted operations per second, dispatch included. Hollow points were not chosen. Bytes are those of the direction, reading or writing, that takes longer, of every task.",
      above ? " Points above a roof: several tasks share what comes into a cache once." : ""));
}

function showTimeline() {
  $("timeline-part").textContent = partName();
  $("timeline-body").replaceChildren(timeline(part().timeline));
}

// Kernels
function showKernel() {
  const { emitted } = machine();
  $("kernel-kind").textContent = `${emitted.kind === "schedule" ? "as a schedule: nothing emits code for" : `${emitted.kind}, for`} ${machine().name}`;
  const first = new Map();
  emitted.links.forEach((to, from) => { if (to >= 0 && !first.has(to)) first.set(to, from); });
  const row = (text, number, id, target) => el("div", { id: `${id}-${number}`, class: text.trimStart().startsWith("#") ? "comment" : null },
    target === null ? el("span", { class: "n" }, String(number + 1)) : el("a", { class: "n", href: `#${target}` }, String(number + 1)), text);
  const pane = (name, rows, id) => el("div", { class: "panel" }, el("h3", {}, name), el("div", { class: "code", id, tabindex: 0, role: "region", "aria-label": name }, rows));
  const source = emitted.source.map((text, at) => row(text, at, "emitted", emitted.links[at] < 0 ? null : `ir-${emitted.links[at]}`));
  const program = emitted.program.map((text, at) => row(text, at, "ir", first.has(at) ? `emitted-${first.get(at)}` : null));
  $("kernel-body").replaceChildren(
    emitted.note ? el("p", { class: "notice" }, `No kernels: ${emitted.note}`) : "",
    el("p", { class: "muted" }, "A line number leads to the definition that the line implements, and back."),
    el("div", { class: "linked" }, pane(emitted.kind === "schedule" ? "Schedule" : "Emitted source", source, "emitted"), pane("Block program", program, "ir")));
  for (const id of ["emitted", "ir"]) {
    const begin = $(id).querySelector("a.n")?.parentElement;
    if (begin) $(id).scrollTop = begin.offsetTop - $(id).offsetTop - 24;
  }
}

function follow(event) {
  const link = event.target.closest("#kernel-body a.n");
  if (!link) return;
  event.preventDefault();
  const target = $(link.hash.slice(1));
  const own = link.parentElement;
  const { links } = machine().emitted;
  const definition = Number((target.id.startsWith("ir-") ? target : own).id.slice(3));
  for (const old of $("kernel-body").querySelectorAll(".on")) old.classList.remove("on");
  links.forEach((to, from) => { if (to === definition) $(`emitted-${from}`).classList.add("on"); });
  $(`ir-${definition}`).classList.add("on");
  const pane = target.parentElement;
  pane.scrollTop = target.offsetTop - pane.offsetTop - pane.clientHeight / 3;
  flash(target);
  target.querySelector(".n").focus?.({ preventScroll: true });
}

// Neighbours in different kernels, and what was refused
const KINDS = {
  removed: "one of the two is in no kernel: algebra removed it", cut: "they are in different parts of the program",
  slower: "one kernel for both takes longer", no_room: "one kernel for both does not fit the machine",
  refused: "a rule has the shape for them, and one of its conditions fails", shape: "no rule has the shape for them",
};
function pairGroups(wanted) {
  const { pairs } = machine().source;
  const shown = pairs.filter((pair) => !wanted || [pair.first, pair.second, pair.rule, pair.reason, pair.why, KINDS[pair.kind]].some((text) => text.toLowerCase().includes(wanted)));
  const groups = Object.keys(KINDS).map((kind) => [kind, shown.filter((pair) => pair.kind === kind).sort((a, b) => b.bytes - a.bytes)]);
  const kernels = (numbers) => numbers.map((kernel) => chip(kernel));
  return { count: shown.length, all: pairs.length, groups: groups.filter(([, rows]) => rows.length).map(([kind, rows]) => el("div", { class: "panel group" },
    el("h3", {}, el("span", {}, `Not in one kernel: ${KINDS[kind]}`), el("span", { class: "muted" }, many(rows.length, "pair"))),
    el("ul", { class: "pairs" }, rows.map((pair) => el("li", {}, el("div", {}, kernels(pair.kernels[0]), " ", el("code", {}, pair.first), " → ", kernels(pair.kernels[1]), " ", el("code", {}, pair.second)),
      el("div", {}, pair.rule ? [el("code", {}, pair.rule), ` ${pair.reason.replaceAll("_", " ")}: `] : "", prose(pair.why), pair.line ? [" (", lineLink(pair.line), ")"] : "",
        pair.saved ? el("span", { class: "muted" }, pair.bytes < 0 ? `, ${minus(pair.saved)} would be saved: more would move` : `, ${pair.saved} would be saved`) : ""))))) ) };
}

function showRefused() {
  const wanted = $("search").value.trim().toLowerCase();
  const pairs = pairGroups(wanted);
  const groups = new Map();
  let shown = 0;
  let all = 0;
  for (const [at, one] of machine().parts.entries()) {
    for (const refusal of one.refusals) {
      const sentence = (data.rules[refusal.rule].reasons || {})[refusal.reason] || "";
      const where = machine().parts.length > 1 ? `part ${at + 1}, ` : "";
      all += 1;
      if (wanted && ![refusal.rule, refusal.reason, refusal.at, refusal.why, sentence].some((text) => text.toLowerCase().includes(wanted))) continue;
      shown += 1;
      const key = `${refusal.rule} ${refusal.reason}`;
      if (!groups.has(key)) groups.set(key, { refusal, sentence, rows: [] });
      groups.get(key).rows.push(el("li", {}, el("code", {}, refusal.at), ` (${where}snapshot ${refusal.snapshot}): `, prose(refusal.why)));
    }
  }
  const counts = [[pairs.count, pairs.all, "pair"], [shown, all, "refusal"]];
  $("found").textContent = counts.map(([some, every, name]) => (wanted ? `${some} of ${many(every, name)}` : many(every, name))).join(", ");
  const found = [...groups.values()].sort((a, b) => b.rows.length - a.rows.length);
  $("refused-body").replaceChildren(...pairs.groups, ...found.map(({ refusal, sentence, rows }) => el("div", { class: "panel group" },
    el("h3", {}, el("code", {}, refusal.rule), el("span", {}, refusal.reason.replaceAll("_", " ")), el("span", { class: "muted" }, many(rows.length, "time"))),
    el("p", {}, sentence ? `${sentence}.` : ""), el("ul", {}, rows))));
  if (!found.length && !pairs.count) $("refused-body").append(el("p", { class: "muted" }, all || pairs.all ? "Nothing that matches." : "Nothing was refused: everything that could be fused is."));
}

// Everything
function showTools() {
  $("program").textContent = data.program;
  $("file").textContent = data.file;
  $("machines").replaceChildren(...data.machines.map((one, at) => el("button", { type: "button", "aria-pressed": String(at === state.machine), onclick: () => go({ machine: at }) }, one.name)));
  $("part-choice").hidden = machine().parts.length < 2;
  $("part").replaceChildren(...machine().parts.map((one, at) => el("option", { value: at }, `${at + 1}: ${one.first === one.last ? one.first : `${one.first} … ${one.last}`}`)));
  $("part").value = state.part;
}

function go(change) {
  const before = { ...state };
  Object.assign(state, change);
  if (state.machine !== before.machine) state.part = change.part ?? 0;
  const elsewhere = state.machine !== before.machine || state.part !== before.part;
  if (elsewhere) state.step = change.step ?? steps().stops.length - 1;
  state.step = Math.max(0, Math.min(steps().stops.length - 1, state.step));
  if (state.step !== before.step && change.before === undefined) state.before = false;
  if (state.machine !== before.machine) { showSource(); showKernel(); showRefused(); }
  if (elsewhere) { showTools(); showSummary(); showSteps(); showCost(); showTimeline(); }
  showStep(!elsewhere);
}

function theme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  return dark ? "dark" : "light";
}
function setTheme(wanted) {
  if (wanted) document.documentElement.dataset.theme = wanted;
  $("theme").textContent = theme() === "dark" ? "☀" : "☾";
}

const zoomed = (by) => { state.zoom = by === 0 ? (state.zoom === "fit" ? 0 : "fit") : (state.zoom === "fit" ? 0 : state.zoom) + by; resize(); };
const KEYS = {
  ArrowRight: () => go({ step: state.step + 1 }), j: () => go({ step: state.step + 1 }),
  ArrowLeft: () => go({ step: state.step - 1 }), k: () => go({ step: state.step - 1 }),
  Home: () => go({ step: 0 }), End: () => go({ step: steps().stops.length - 1 }),
  b: () => { if (steps().stops[state.step].before >= 0) go({ before: !state.before }); },
  "+": () => zoomed(1), "-": () => zoomed(-1), 0: () => zoomed(0),
  m: () => go({ machine: (state.machine + 1) % data.machines.length }),
  "[": () => go({ part: Math.max(0, state.part - 1) }), "]": () => go({ part: Math.min(machine().parts.length - 1, state.part + 1) }),
  "/": () => { $("refused").scrollIntoView(); $("search").focus(); },
  t: () => setTheme(theme() === "dark" ? "light" : "dark"),
  "?": () => $("help").showModal(),
};

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const typing = event.target.matches?.("input[type=search], select");
  if (typing) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.target === $("slider") && ["Home", "End", "ArrowLeft", "ArrowRight"].includes(event.key)) return;
  const action = KEYS[event.key];
  if (action) { event.preventDefault(); action(); }
}

function start() {
  showTools(); showSummary(); showSource(); showSteps(); showCost(); showTimeline(); showKernel(); showRefused();
  setTheme("");
  measure();
  state.step = steps().stops.length - 1;
  const wanted = /^#step-(\d+)$/.exec(location.hash);
  if (wanted && Number(wanted[1]) < state.step) state.step = Number(wanted[1]);
  showStep(false);
  $("slider").addEventListener("input", (event) => go({ step: Number(event.target.value) }));
  for (const [id, key] of [["first", "Home"], ["back", "k"], ["next", "j"], ["last", "End"], ["larger", "+"], ["smaller", "-"], ["fit", 0], ["theme", "t"], ["ask", "?"]]) $(id).addEventListener("click", KEYS[key]);
  $("show-before").addEventListener("click", () => go({ before: true }));
  $("show-after").addEventListener("click", () => go({ before: false }));
  $("part").addEventListener("change", (event) => go({ part: Number(event.target.value) }));
  $("search").addEventListener("input", showRefused);
  $("kernel-body").addEventListener("click", follow);
  document.addEventListener("keydown", keyed);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(""));
  new ResizeObserver(measure).observe($("canvas"));
  $("canvas").addEventListener("scroll", scrolled, { passive: true });
  addEventListener("beforeprint", () => { picture.whole = true; place(picture.frame); });
  addEventListener("afterprint", () => { picture.whole = false; place(picture.frame); });
  let drawn = roofWidth();
  new ResizeObserver(() => { if (roofWidth() !== drawn) { drawn = roofWidth(); showCost(); } }).observe($("cost-body"));
}
start();
