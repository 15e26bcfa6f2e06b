// What else could have stood at a token's place: one small window that follows pointer and focus.

import { element } from "./dom.js";
import { figure, percent, visible } from "./format.js";

const LEAVE_MS = 150;

const box = element("div", { class: "alternatives", role: "tooltip", id: "alternatives", hidden: true });
let shownFor = null;
let timer = 0;

/** Puts the window into a part of the page; called once. */
export function install(part) {
  part.append(box);
  // The pointer may go into the window, to read it or to copy from it.
  box.addEventListener("pointerenter", () => clearTimeout(timer));
  box.addEventListener("pointerleave", () => hideSoon());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  addEventListener("scroll", place, { passive: true });
  addEventListener("resize", hide);
}

/** Shows a token's alternatives beside it. Token: {text, id, logprob, top, chunk, place, teacher?}. */
export function show(token, node) {
  clearTimeout(timer);
  shownFor?.removeAttribute("aria-describedby");
  shownFor = node;
  box.replaceChildren(...content(token));
  box.hidden = false;
  node.setAttribute("aria-describedby", box.id);
  place();
}

export function hideSoon() {
  clearTimeout(timer);
  timer = setTimeout(hide, LEAVE_MS);
}

export function hide() {
  clearTimeout(timer);
  shownFor?.removeAttribute("aria-describedby");
  shownFor = null;
  box.hidden = true;
}

function place() {
  if (!shownFor) return;
  if (!shownFor.isConnected) return hide();
  const [first] = shownFor.getClientRects();
  if (!first) return hide();
  const { width, height } = box.getBoundingClientRect();
  const left = Math.max(8, Math.min(first.left, document.documentElement.clientWidth - width - 8));
  const isRoomBelow = first.bottom + 6 + height < innerHeight;
  box.style.left = `${left}px`;
  box.style.top = `${isRoomBelow ? first.bottom + 6 : Math.max(8, first.top - height - 6)}px`;
}

function content(token) {
  const where = `chunk ${token.chunk + 1}, token ${token.place + 1}`;
  const id = token.id === null ? "" : `, id ${token.id}`;
  const views = [view("Student", token.text, token.logprob, token.top)];
  if (token.teacher) views.push(view("Teacher", token.text, token.teacher.logprob, token.teacher.top));
  return [
    element("p", { class: "small muted" }, element("code", {}, visible(token.text)), ` ${where}${id}`),
    element("div", { class: "who" }, ...views),
  ];
}

function view(who, written, logprob, top) {
  const rows = top.map((other) => ({ ...other, isWritten: other.text === written }));
  if (logprob !== null && !rows.some((row) => row.isWritten)) rows.push({ text: written, logprob, isWritten: true });
  return element("table", {},
    element("thead", {}, element("tr", {}, element("th", { colspan: 3, scope: "col" },
      logprob === null ? who : `${who}: ${percent(Math.exp(logprob))}, ${figure(-logprob)} nats`))),
    element("tbody", {}, ...rows.map(({ text, logprob: value, isWritten }) =>
      element("tr", { class: isWritten && "written" },
        element("td", {}, visible(text), isWritten ? element("span", { class: "sr-only" }, " (written)") : null),
        element("td", {}, element("meter", { value: Math.exp(value).toFixed(4), "aria-hidden": true })),
        element("td", { class: "number" }, percent(Math.exp(value)))))));
}
