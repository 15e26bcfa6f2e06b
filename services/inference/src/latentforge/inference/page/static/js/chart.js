// A line chart with marks that can be clicked, and its figures as a table.

import { element, table } from "./dom.js";
import { figure } from "./format.js";

const HEIGHT = 240;
const DASHES = [[], [6, 4]];
const dark = matchMedia("(prefers-color-scheme: dark)");

/**
 * A chart over steps (or seconds). Series: {name, points: [{x, y}], isDotted}; marks: {id, x, y, label, classes, onClick}.
 */
export class Chart {
  constructor(title, unit, { isFromZero = false, axis = "step" } = {}) {
    Object.assign(this, { title, unit, isFromZero, axis });
    this.series = [];
    this.marks = [];
    this.key = "";
    this.plot = null;
    this.place = element("div", { class: "plot" });
    this.figures = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}: figures` });
    this.details = element("details", { on: { toggle: () => this.drawTable() } },
      element("summary", {}, "as a table"), this.figures);
    this.empty = element("p", { class: "muted small" }, "Nothing is measured yet.");
    this.root = element("figure", { class: "card chart" },
      element("figcaption", {}, element("h2", {}, `${title}, ${unit}`)), this.empty, this.place, this.details);
    new ResizeObserver(() => this.fit()).observe(this.place);
    dark.addEventListener("change", () => this.draw());
    this.draw();
  }

  set(series, marks = []) {
    const key = JSON.stringify([series, marks]);
    if (key === this.key) return;
    this.key = key;
    Object.assign(this, { series, marks });
    this.draw();
  }

  get isEmpty() {
    return !this.series.some((line) => line.points.length);
  }

  draw() {
    this.plot?.destroy();
    this.plot = null;
    this.empty.hidden = !this.isEmpty;
    this.place.hidden = this.details.hidden = this.isEmpty;
    if (this.isEmpty) return;
    const tables = this.series.map(({ points }) => [points.map((p) => p.x), points.map((p) => p.y)]);
    this.plot = new uPlot(this.options(), uPlot.join(tables), this.place);
    this.plot.root.setAttribute("role", "group");
    this.plot.root.setAttribute("aria-label", this.spoken());
    this.plot.root.querySelector("canvas").setAttribute("aria-hidden", "true");
    this.drawMarks();
    this.drawTable();
  }

  options() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--grid") }, ticks: { stroke: colour("--grid") }, font: "12px system-ui" };
    return {
      width: Math.max(this.place.clientWidth, 200),
      height: HEIGHT,
      scales: { x: { time: false }, ...(this.isFromZero ? { y: { range: (plot, min, max) => [0, Math.max(1.1 * max, 1)] } } : {}) },
      cursor: { drag: { x: false, y: false }, points: { size: 7 } },
      legend: { markers: { dash: (plot, i) => (i === 2 ? "dashed" : "solid") } },
      axes: [{ ...axis, label: this.axis, labelSize: 18, labelFont: "12px system-ui" }, { ...axis, size: 52 }],
      series: [
        { label: this.axis },
        ...this.series.map((line, i) => ({
          label: line.name, stroke: colour(`--series-${i + 1}`), width: line.isDotted ? 2 : 1.5, dash: DASHES[i], spanGaps: true,
          points: { show: line.isDotted, size: 5 }, value: (plot, value) => figure(value),
        })),
      ],
      hooks: { draw: [() => this.placeMarks()] },
    };
  }

  fit() {
    if (this.plot && this.place.clientWidth > 0 && this.plot.width !== this.place.clientWidth) {
      this.plot.setSize({ width: this.place.clientWidth, height: HEIGHT });
    }
  }

  drawMarks() {
    this.buttons = this.marks.map((mark) => element("button", {
      type: "button", class: `mark ${mark.classes}`, "aria-label": mark.label, title: mark.label,
      on: { click: mark.onClick, mousedown: (event) => event.stopPropagation() },
    }));
    this.plot.over.append(...this.buttons);
    this.placeMarks();
  }

  placeMarks() {
    this.buttons?.forEach((button, i) => {
      if (!this.plot) return;
      button.style.left = `${this.plot.valToPos(this.marks[i].x, "x")}px`;
      button.style.top = `${this.plot.valToPos(this.marks[i].y, "y")}px`;
    });
  }

  /** What is to be seen, for who does not. */
  spoken() {
    const lines = this.series.filter(({ points }) => points.length).map(({ name, points }) => {
      const [first, last] = [points[0], points[points.length - 1]];
      return `${name} from ${figure(first.y)} at ${this.axis} ${first.x} to ${figure(last.y)} at ${this.axis} ${last.x}`;
    });
    return `${this.title}: ${lines.join("; ")}`;
  }

  drawTable() {
    if (!this.details.open || this.isEmpty) return;
    const steps = [...new Set(this.series.flatMap(({ points }) => points.map((p) => p.x)))].sort((a, b) => a - b);
    const columns = [{ name: this.axis, number: true }, ...this.series.map(({ name }) => ({ name, number: true }))];
    const values = this.series.map(({ points }) => new Map(points.map((p) => [p.x, p.y])));
    this.figures.replaceChildren(table(`${this.title}, ${this.unit}`, columns,
      steps.map((step) => [String(step), ...values.map((known) => figure(known.get(step)))])));
  }
}
