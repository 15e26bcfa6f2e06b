// Writing: one prompt, one or two checkpoints.

import { Answer, samplingControls } from "./answer.js";
import { complete, sampling } from "./completion.js";
import { element, labelled } from "./dom.js";
import { ModelChoice, SERVED } from "./models.js";
import { legend } from "./tokens.js";

export class WritePanel {
  constructor(place, app) {
    this.app = app;
    this.abort = null;
    this.prompt = element("textarea", {
      rows: 4, spellcheck: "false", "aria-describedby": "prompt-help",
      on: { keydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit(); } },
    }, "def main(argv=None):\n");
    this.model = new ModelChoice([[SERVED, "what is served now"]]);
    this.beside = new ModelChoice([["", "none"], [SERVED, "what is served now"]]);
    const { controls, fields } = samplingControls();
    this.controls = controls;
    this.start = element("button", { type: "submit", class: "main" }, "Write");
    this.stop = element("button", { type: "button", disabled: true, on: { click: () => this.abort?.abort() } }, "Stop");
    this.form = element("form", { class: "card", on: { submit: (event) => { event.preventDefault(); this.write(); } } },
      labelled("Prompt", this.prompt),
      element("fieldset", { class: "controls" },
        element("legend", { class: "sr-only" }, "How to write"),
        ...fields,
        labelled("Checkpoint", this.model.select, { class: "wide" }),
        labelled("Beside it", this.beside.select, { class: "wide" })),
      element("div", { class: "row" }, this.start, this.stop,
        element("span", { class: "small muted", id: "prompt-help" }, "Ctrl+Enter writes too")));
    this.legend = legend();
    this.legend.hidden = true;
    this.panes = element("div", { class: "panes" });
    place.append(this.form, this.legend, this.panes);
  }

  update({ checkpoints }) {
    this.model.update(checkpoints);
    this.beside.update(checkpoints);
  }

  /** Chooses a checkpoint, for who comes from the list of runs. */
  choose(id) {
    this.model.value = id;
    this.prompt.focus();
  }

  async write() {
    this.abort?.abort();
    const abort = this.abort = new AbortController();
    const prompt = this.prompt.value;
    const models = [this.model.value, ...(this.beside.value ? [this.beside.value] : [])];
    const request = sampling(this.controls);
    // Both get the same seed: what differs is the checkpoint.
    if (models.length > 1) request.seed ??= Math.floor(Math.random() * 2 ** 31);
    this.start.disabled = true;
    this.stop.disabled = false;
    this.legend.hidden = false;
    this.panes.replaceChildren();
    await Promise.all(models.map((model) => this.writeWith({ ...request, prompt, model }, abort.signal)));
    if (this.abort === abort) {
      this.start.disabled = false;
      this.stop.disabled = true;
    }
  }

  async writeWith(request, signal) {
    const name = request.model === SERVED ? this.app.served ?? "what is served now" : request.model;
    const answer = new Answer(`Tokens of ${name}`, { hasTeacher: this.app.config.teacher });
    answer.text.setPrompt(request.prompt);
    const title = element("h2", {}, name);
    answer.onStep = () => { title.textContent = answer.checkpoint; };
    this.panes.append(element("article", { class: "card pane", "aria-label": `Written by ${name}` }, title, answer.root));
    await answer.follow(complete(request, signal), signal);
    answer.offerTeacher(request.prompt, request.model === SERVED ? answer.checkpoint : request.model);
  }
}
