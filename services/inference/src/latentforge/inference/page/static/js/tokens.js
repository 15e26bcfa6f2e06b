// A model's text as it is written: tokens coloured by probability, borders between chunks, alternatives at each token.

import * as alternatives from "./alternatives.js";
import { element } from "./dom.js";
import { percent, visible } from "./format.js";

// Least probabilities of the classes p0 … p3; below the last one it is p4.
const STEPS = [0.8, 0.5, 0.2, 0.05];
const BYTES_TOKEN = /^bytes:\\x/;
const STEP_NAMES = ["80 % and more", "50 to 80 %", "20 to 50 %", "5 to 20 %", "below 5 %"];

export function legend() {
  return element("ul", { class: "legend", "aria-label": "Legend" },
    ...STEP_NAMES.map((name, i) => element("li", {}, element("span", { class: `swatch p${i}` }), name)),
    element("li", {}, element("span", { class: "border" }), "border of a chunk: tokens between two were written in one step"));
}

function stepOf(logprob) {
  if (logprob === null) return 0;
  const probability = Math.exp(logprob);
  const step = STEPS.findIndex((least) => probability >= least);
  return step < 0 ? STEPS.length : step;
}

/**
 * One text. `tokens` holds what was added: {text, id, logprob, top: [{text, logprob}], chunk, place, teacher}.
 * It is one stop of the Tab key; arrow keys, Home and End go from token to token.
 */
export class TokenText {
  constructor(label) {
    this.tokens = [];
    this.isByTeacher = false;
    this.showsOther = true;
    this.nodes = [];
    this.numChunks = 0;
    this.list = element("span", {
      role: "listbox", "aria-label": label, "aria-orientation": "horizontal",
      on: {
        keydown: (event) => this.onKey(event),
        focusin: (event) => this.activate(this.nodes.indexOf(event.target)),
        focusout: () => { this.deactivate(); alternatives.hideSoon(); },
        pointerover: (event) => this.onPointer(event),
        pointerleave: () => alternatives.hideSoon(),
        click: (event) => this.nodeOf(event.target)?.focus(),
      },
    });
    this.prompt = element("span", { class: "prompt" });
    this.caret = element("span", { class: "caret", hidden: true });
    this.root = element("div", { class: "text" }, this.prompt, this.list, this.caret);
  }

  setPrompt(text) {
    this.prompt.textContent = text;
  }

  setWriting(isWriting) {
    this.caret.hidden = !isWriting;
    this.list.setAttribute("aria-busy", String(isWriting));
  }

  /** Adds what one step wrote. */
  addChunk(tokens) {
    if (!tokens.length) return;
    const chunk = this.numChunks++;
    const group = element("span", { class: "chunk", role: "group", "aria-label": `chunk ${chunk + 1}` });
    for (const token of tokens) {
      Object.assign(token, { chunk, place: this.tokens.length, teacher: null });
      const node = element("span", { role: "option", "aria-selected": "false", tabindex: this.nodes.length ? -1 : 0 });
      this.tokens.push(token);
      this.nodes.push(node);
      this.draw(token, node);
      group.append(node);
    }
    this.list.append(group);
  }

  /** Lays the teacher's view over the student's: one {logprob, rank, top} for each token, or null. */
  setTeacher(judged) {
    judged.forEach((view, i) => { this.tokens[i].teacher = view; });
    this.drawAll();
  }

  setView({ isByTeacher = this.isByTeacher, showsOther = this.showsOther }) {
    Object.assign(this, { isByTeacher, showsOther });
    this.drawAll();
  }

  drawAll() {
    this.root.classList.toggle("taught", this.showsOther && this.tokens.some((t) => this.other(t) !== null));
    this.tokens.forEach((token, i) => this.draw(token, this.nodes[i]));
  }

  /** What the teacher would have written instead, or null where it would have written the same. */
  other(token) {
    const [first] = token.teacher?.top ?? [];
    return first && token.teacher.rank !== 1 && first.text !== token.text ? first.text : null;
  }

  draw(token, node) {
    const logprob = this.isByTeacher ? token.teacher?.logprob ?? null : token.logprob;
    const other = this.showsOther ? this.other(token) : null;
    node.className = `token p${stepOf(logprob)}`;
    const [first, ...rest] = signed(token.text);
    node.replaceChildren(
      other === null ? first : element("ruby", {}, first, element("rt", { "aria-hidden": true }, visible(other))), ...rest);
    node.setAttribute("aria-label", this.spoken(token, other));
  }

  spoken(token, other) {
    const parts = [visible(token.text)];
    if (token.logprob !== null) parts.push(percent(Math.exp(token.logprob)));
    if (token.teacher) parts.push(`teacher ${percent(Math.exp(token.teacher.logprob))}`);
    if (other !== null) parts.push(`the teacher would have written ${visible(other)}`);
    return parts.join(", ");
  }

  nodeOf(target) {
    return target instanceof Element ? target.closest("[role=option]") : null;
  }

  onPointer(event) {
    const at = this.nodes.indexOf(this.nodeOf(event.target));
    if (at >= 0) alternatives.show(this.tokens[at], this.nodes[at]);
  }

  activate(at) {
    if (at < 0) return;
    this.deactivate();
    for (const node of this.list.querySelectorAll("[tabindex='0']")) node.tabIndex = -1;
    const node = this.nodes[at];
    node.tabIndex = 0;
    node.classList.add("active");
    node.setAttribute("aria-selected", "true");
    alternatives.show(this.tokens[at], node);
  }

  deactivate() {
    for (const node of this.list.querySelectorAll(".active")) {
      node.classList.remove("active");
      node.setAttribute("aria-selected", "false");
    }
  }

  onKey(event) {
    const at = this.nodes.indexOf(event.target);
    const first = this.nodes.findIndex((_, i) => this.tokens[i].chunk === this.tokens[at].chunk);
    const next = this.nodes.findIndex((_, i) => this.tokens[i].chunk === this.tokens[at].chunk + 1);
    const before = this.nodes.findIndex((_, i) => this.tokens[i].chunk === this.tokens[at].chunk - 1);
    const to = {
      ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: next, ArrowUp: at > first ? first : before,
      Home: 0, End: this.nodes.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.nodes[to]?.focus();
  }
}

/** A token's text, with a sign where a line ends; at least one piece. */
function signed(text) {
  const sign = () => element("span", { class: "sign", "aria-hidden": true }, "↵");
  const shown = BYTES_TOKEN.test(text) ? visible(text) : text;
  const pieces = shown.split("\n").flatMap((line, i) => [...(i ? [sign(), "\n"] : []), ...(line ? [line] : [])]);
  return pieces.length ? pieces : [""];
}
