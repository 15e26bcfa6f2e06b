// Elements are made here alone: what is written by a model or a person becomes text, never markup.

/**
 * Makes an element. `on` holds listeners, `data` data attributes; true is an empty attribute, false and null none.
 * Children are nodes or text; null is left out.
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name === "data") Object.assign(made.dataset, value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Replaces what is in a place, unless it would look the same: focus and selection are kept then. */
export function fill(place, ...children) {
  const next = element("div", {}, ...children);
  if (next.innerHTML !== place.dataset.filled) {
    place.dataset.filled = next.innerHTML;
    place.replaceChildren(...next.childNodes);
  }
}

/** Sets a text that is often the same. */
export function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

let lastId = 0;

/** A field with its label above it. */
export function labelled(text, field, properties = {}) {
  field.id ||= `field-${++lastId}`;
  return element("div", properties, element("label", { for: field.id }, text), field);
}

/**
 * A table. Columns: {name, number?, id?}; rows are lists of texts or nodes. At phone width each row stands by itself.
 */
export function table(caption, columns, rows) {
  const head = columns.map((c) => element("th", { scope: "col", role: "columnheader", class: c.number && "number" }, c.name));
  const cells = (row) => row.map((value, i) => {
    const kind = columns[i].number ? "number" : columns[i].id ? "id" : null;
    return element("td", { role: "cell", class: kind, "data-label": columns[i].name }, value);
  });
  return element("table", { class: "stack", role: "table" },
    element("caption", {}, caption),
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...head)),
    element("tbody", { role: "rowgroup" }, ...rows.map((row) => element("tr", { role: "row" }, ...cells(row)))));
}

/** A list of figures: pairs of a name and a text, or a text with a smaller one behind it. */
export function tiles(pairs) {
  return element("dl", { class: "tiles" }, ...pairs.map(([name, value, more]) =>
    element("div", { class: "tile" }, element("dt", {}, name),
      element("dd", {}, value, more ? element("small", {}, ` ${more}`) : null))));
}

export function notice(text, isBad = false) {
  return element("p", { class: isBad ? "notice bad" : "notice" }, text);
}
