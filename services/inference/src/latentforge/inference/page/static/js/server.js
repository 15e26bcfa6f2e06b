// Load, swaps and quarantine.

import { Chart } from "./chart.js";
import { element, fill, notice, table, tiles } from "./dom.js";
import { moment, rounded } from "./format.js";

const KEPT = 150;
const MOST_SWAPS = 50;

export class ServerPanel {
  constructor(place) {
    this.samples = [];
    this.load = element("div");
    this.speed = new Chart("Tokens drawn", "tokens/s", { isFromZero: true, axis: "seconds" });
    this.swaps = element("div", { class: "card scroll" });
    this.quarantine = element("div", { class: "card scroll" });
    place.append(this.load, this.speed.root, element("br"), this.swaps, this.quarantine);
  }

  update({ status, metrics, metricsAt }) {
    if (metrics) this.sample(metrics.get("inference_tokens_drawn_total"), metricsAt);
    if (!status) return;
    const slots = metrics?.get("inference_slots");
    const speed = this.samples.length ? this.samples[this.samples.length - 1].y : null;
    fill(this.load, ...(status.problem ? [notice(status.problem)] : []), tiles([
      ["Running", String(status.running), "requests"],
      ["Queued", String(status.queued), "requests"],
      ...(slots === undefined ? [] : [["Slots used", `${metrics.get("inference_slots_used")} of ${slots}`]]),
      ["Speed", rounded(speed), "tokens/s"],
      ["Swaps", String(status.swaps.length)],
      ["Quarantined", String(status.quarantined.length)],
      ["Device", status.device],
    ]));
    const swaps = status.swaps.slice(-MOST_SWAPS).reverse()
      .map((swap) => [moment(swap.at), swap.from ?? "nothing", swap.to]);
    fill(this.swaps, swaps.length
      ? table("Swaps, newest first", [{ name: "when" }, { name: "from", id: true }, { name: "to", id: true }], swaps)
      : element("p", { class: "muted" }, "Nothing has been served yet."));
    fill(this.quarantine, status.quarantined.length
      ? table("Quarantined checkpoints, never served", [{ name: "checkpoint", id: true }, { name: "why" }, { name: "since" }],
        status.quarantined.map((bad) => [bad.checkpoint, bad.reason, moment(bad.at)]))
      : element("p", { class: "muted" }, "No checkpoint is in quarantine."));
  }

  sample(drawn, at) {
    if (drawn === undefined || at === this.lastAt) return;
    if (this.lastAt !== undefined) {
      const speed = 1000 * (drawn - this.lastDrawn) / (at - this.lastAt);
      this.samples.push({ x: Math.round((at - this.firstAt) / 1000), y: Math.max(0, speed) });
      this.samples = this.samples.slice(-KEPT);
      this.speed.set([{ name: "tokens/s", points: this.samples }]);
    }
    this.firstAt ??= at;
    this.lastAt = at;
    this.lastDrawn = drawn;
  }
}
