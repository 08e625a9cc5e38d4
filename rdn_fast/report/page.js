// Makes sliders of pictures, sorts tables, tells the values under the pointer. Without it the page shows all it has.
"use strict";

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// --- Sliders: two of a window's pictures on top of each other, the left one as far as the slider says. ---

class Slider {
  constructor(figure) {
    this.shots = new Map([...figure.querySelectorAll(".shot")].map((shot) => [shot.dataset.key, shot]));
    this.newest = [...this.shots.values()].at(-2); // the last one is HR
    this.images = [make("img", { alt: "", draggable: false }), make("img", { alt: "", draggable: false, className: "left" })];
    this.labels = [make("span"), make("span")]; // of the left and the right picture
    this.input = make("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: `Compare: ${figure.dataset.about}` });
    this.stage = make("div", { className: "stage" }, ...this.images, ...this.labels, this.input);
    this.stage.style.setProperty("--ratio", figure.querySelector(".strip").style.getPropertyValue("--ratio"));
    figure.querySelector("figcaption").after(this.stage);
    this.input.addEventListener("input", () => this.move());
    for (const name of ["pointerdown", "pointermove"]) {
      this.stage.addEventListener(name, (event) => this.drag(event));
    }
  }

  drag(event) {
    if (event.type === "pointerdown") {
      this.stage.setPointerCapture(event.pointerId);
      this.input.focus({ preventScroll: true });
    } else if (!event.buttons) {
      return;
    }
    const box = this.stage.getBoundingClientRect();
    this.input.value = (100 * (event.clientX - box.left)) / box.width;
    this.move();
    if (event.pointerType === "mouse") event.preventDefault(); // no selection; a finger may still scroll
  }

  show(left, right) {
    const [first, second] = [left, right].map((key) => this.shots.get(key) ?? this.newest);
    this.images[0].src = second.querySelector("img").src;
    this.images[1].src = first.querySelector("img").src;
    this.names = [first, second].map((shot) => [shot.dataset.label, shot.dataset.psnr].filter(Boolean).join(", "));
    this.labels.forEach((label, i) => (label.textContent = this.names[i].replace("RDN, step", "RDN")));
    this.move();
  }

  move() {
    const at = this.input.value;
    this.stage.style.setProperty("--at", `${at}%`);
    this.labels[0].hidden = at < 8;
    this.labels[1].hidden = at > 92;
    this.input.setAttribute("aria-valuetext", `${at}% ${this.names[0]}, the rest ${this.names[1]}`);
  }
}

function choice(label, options, value) {
  const select = make("select", {}, ...[...options].map(([key, text]) => make("option", { value: key }, text)));
  select.value = value;
  return [make("label", {}, `${label} `, select), select];
}

function addSliders(section) {
  const sliders = [...section.querySelectorAll(".compare")].map((figure) => new Slider(figure));
  if (!sliders.length) return;
  section.classList.add("scripted");
  const options = new Map(sliders.flatMap((slider) => [...slider.shots].map(([key, shot]) => [key, shot.dataset.label])));
  const [left, leftSelect] = choice("Left", options, section.dataset.left);
  const [right, rightSelect] = choice("Right", options, section.dataset.right);
  const hint = make("small", {}, "Drag, or use the arrow keys.");
  section.querySelector("h2").after(make("div", { className: "tools" }, left, right, hint));
  const show = () => sliders.forEach((slider) => slider.show(leftSelect.value, rightSelect.value));
  leftSelect.addEventListener("change", show);
  rightSelect.addEventListener("change", show);
  show();
}

// --- Charts: the values of all curves at the pointer. ---

function points(path) {
  return [...path.getAttribute("d").matchAll(/[ML](-?[\d.]+) (-?[\d.]+)/g)].map((found) => [+found[1], +found[2]]);
}

function valueAt(plot, down) {
  const [low, high] = [+plot.dataset.low, +plot.dataset.high];
  const share = 1 - down / 1000;
  return plot.dataset.log === "1" ? low * (high / low) ** share : low + share * (high - low);
}

function addReadout(plot) {
  const readout = plot.closest("figure").querySelector(".readout");
  const curves = [...plot.querySelectorAll("path[data-label]:not(.raw)")];
  const cursor = make("div", { className: "cursor", hidden: true });
  plot.append(cursor);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const told = curves.map((curve) => {
      curve.points ??= points(curve);
      if (!curve.points.length) return "";
      const distance = (point) => Math.abs(point[0] - 1000 * share);
      const nearest = curve.points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
      const value = Number(valueAt(plot, nearest[1]).toPrecision(4));
      const text = `${curve.dataset.label} ${value} ${plot.dataset.unit}`;
      return make("span", { className: `chip ${curve.classList[1]}` }, text);
    });
    cursor.hidden = false;
    cursor.style.left = `${100 * share}%`;
    const x = Number((share * plot.dataset.xHigh).toPrecision(4));
    readout.replaceChildren(`${plot.dataset.x} ${x}`, ...told.flatMap((part) => [" ", part]));
  });
  plot.addEventListener("pointerleave", () => {
    cursor.hidden = true;
    readout.replaceChildren();
  });
}

// --- Tables: a click on a column's title sorts by it. ---

function compare(a, b) {
  const [x, y] = [a, b].map((text) => parseFloat(text));
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return Number.isNaN(x) ? a.localeCompare(b) : x - y;
}

function addSorting(table) {
  const titles = [...table.querySelectorAll("thead th")];
  titles.forEach((title, column) => {
    const button = make("button", { type: "button" }, ...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const order = title.ariaSort === "ascending" ? "descending" : "ascending";
      titles.forEach((each) => (each.ariaSort = null));
      title.ariaSort = order;
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => sign * compare(a.cells[column].textContent, b.cells[column].textContent));
      table.tBodies[0].append(...rows);
    });
  });
}

document.querySelectorAll(".pictures").forEach(addSliders);
document.querySelectorAll(".plot").forEach(addReadout);
document.querySelectorAll("table.sorts").forEach(addSorting);
