"use strict";
// Helpers. Text of the program becomes text of the page: nothing here makes elements from text.
const data = await read(document.getElementById("data"));
const $ = (id) => document.getElementById(id);

async function read(element) {
  if (element.type === "application/json") return JSON.parse(element.textContent);
  const packed = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const many = (count, thing) => `${count} ${thing}${count === 1 ? "" : "s"}`;

// A sentence: what stands between backquotes is code.
const prose = (text) => text.split("`").map((piece, at) => (at % 2 ? el("code", {}, piece) : piece));

function table(columns, rows, options = {}) {
  const right = new Set(options.right || []);
  const cell = (tag, value, at, more) => el(tag, { class: [right.has(at) ? "right" : "", more || ""].join(" ").trim() || null }, value);
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, columns.map((name, at) => cell("th", name, at)))),
    el("tbody", {}, rows.map((row) => el("tr", { class: row.chosen ? "chosen" : null },
      row.cells.map((value, at) => cell("td", value, at, (options.classes || {})[at])))))));
}

function flash(element) {
  element.classList.remove("flash");
  void element.getBoundingClientRect();
  element.classList.add("flash");
}

// What is shown: a machine, a part of the program, a step.
const state = { machine: 0, part: 0, step: 0, before: false, zoom: 0 };
const machine = () => data.machines[state.machine];
const part = () => machine().parts[state.part];
const steps = () => part().steps;

// Kernels: a colour that people with colour vision deficiencies can tell apart (Okabe and Ito 2008), and a number.
const PALETTE = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#b3a100", "#8c8c8c"];
const colour = (kernel) => PALETTE[kernel % PALETTE.length];
function paint(element, kernels) {
  const stripes = kernels.map((kernel, at) => {
    const [from, to] = [at, at + 1].map((place) => `${(100 * place) / kernels.length}%`);
    return `${colour(kernel)}55 ${from} ${to}`;
  });
  if (stripes.length) element.style.background = `linear-gradient(to bottom, ${stripes.join(", ")})`;
  return element;
}
function chip(kernel) {
  return paint(el("span", { class: "chip" }, String(kernel + 1)), [kernel]);
}
