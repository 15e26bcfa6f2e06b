// Which checkpoints can be written with.

import { element, fill } from "./dom.js";

export const SERVED = "latentforge";

/** A choice of checkpoints that follows the list of them; `first` are options before the checkpoints. */
export class ModelChoice {
  constructor(first) {
    this.first = first;
    this.select = element("select");
    this.update([]);
  }

  update(checkpoints) {
    const chosen = this.select.value;
    const usable = checkpoints.filter((c) => c.usable);
    const options = [
      ...this.first.map(([value, name]) => element("option", { value }, name)),
      ...usable.map((c) => element("option", { value: c.id }, c.served ? `${c.id} (served)` : c.id)),
    ];
    fill(this.select, ...options);
    if (chosen && [...this.select.options].some((option) => option.value === chosen)) this.select.value = chosen;
  }

  get value() {
    return this.select.value;
  }

  set value(id) {
    this.select.value = id;
  }
}
