// The page: which view is shown, and what all views know of the server.

import { install } from "./alternatives.js";
import { get, getMetrics, onKeyNeeded } from "./api.js";
import { ChatPanel } from "./chat.js";
import { element, fill, labelled, notice } from "./dom.js";
import { RunsPanel } from "./runs.js";
import { ServerPanel } from "./server.js";
import { WritePanel } from "./write.js";

const VIEWS = ["write", "chat", "runs", "server"];
const EVERY_MS = 2000;

class App {
  constructor() {
    this.config = { teacher: false, training: false };
    this.state = { status: null, checkpoints: [], follows: null, training: null, trainingProblem: null, config: this.config };
    this.notices = document.getElementById("notices");
    this.servedLine = document.getElementById("served");
  }

  async start() {
    install(document.getElementById("main"));
    onKeyNeeded(askForKey);
    try {
      this.config = this.state.config = await get("page/config");
    } catch (error) {
      fill(this.notices, notice(error.message, true));
    }
    const place = (name) => document.getElementById(name);
    this.panels = {
      write: new WritePanel(place("write"), this),
      chat: new ChatPanel(place("chat"), this),
      runs: new RunsPanel(place("runs"), this),
      server: new ServerPanel(place("server")),
    };
    addEventListener("hashchange", () => this.show());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh(); });
    this.show();
    for (;;) {
      if (!document.hidden) await this.refresh();
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  }

  get served() {
    return this.state.status?.checkpoint ?? null;
  }

  show() {
    // Other fragments, as that of the skip link, name places in the view that is there.
    const view = VIEWS.find((name) => `#${name}` === location.hash) ?? this.view ?? VIEWS[0];
    for (const name of VIEWS) document.getElementById(name).hidden = name !== view;
    for (const link of document.querySelectorAll("#views a")) {
      if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${view[0].toUpperCase()}${view.slice(1)} · LatentForge`;
    this.view = view;
    this.draw();
  }

  writeWith(id) {
    location.hash = "write";
    this.show();
    this.panels.write.choose(id);
  }

  /** Asks the server how it is, and draws the view that is shown. */
  async refresh() {
    const [status, listing, training, metrics] = await Promise.allSettled([
      get("status"), get("checkpoints"), this.config.training ? get("training") : null, getMetrics(),
    ]);
    const problems = [];
    if (status.status === "fulfilled") this.state.status = status.value;
    else problems.push(status.reason.message);
    if (listing.status === "fulfilled") {
      Object.assign(this.state, { checkpoints: listing.value.checkpoints, follows: listing.value.follows });
    } else if (!problems.length) {
      problems.push(listing.reason.message);
    }
    if (metrics.status === "fulfilled") Object.assign(this.state, { metrics: metrics.value, metricsAt: Date.now() });
    this.state.training = training.status === "fulfilled" ? training.value : null;
    this.state.trainingProblem = training.status === "rejected" ? training.reason.message : null;
    fill(this.notices, ...problems.map((text) => notice(text, true)));
    this.drawServed(problems.length > 0);
    this.draw();
  }

  draw() {
    if (!this.panels) return;
    this.panels[this.view].update(this.state);
  }

  drawServed(isLost) {
    const { status } = this.state;
    if (isLost || !status) fill(this.servedLine, element("span", { class: "chip bad" }, "not reachable"));
    else if (!status.checkpoint) fill(this.servedLine, element("span", { class: "chip" }, "waiting"), ` for ${status.waiting_for}`);
    else {
      fill(this.servedLine, element("span", { class: "chip good" }, "serving"), " ", element("code", {}, status.checkpoint),
        ` · ${status.running} running, ${status.queued} queued`);
    }
  }
}

/** A dialog for the API key; null where it is closed without one. The key stays in this tab's session storage. */
function askForKey(message) {
  return new Promise((resolve) => {
    const field = element("input", { type: "password", required: true, autocomplete: "off" });
    const dialog = element("dialog", { "aria-labelledby": "key-title" },
      element("form", { method: "dialog" },
        element("h2", { id: "key-title" }, "This server asks for its API key"),
        element("p", { class: "small muted" }, message),
        labelled("API key (kept in this tab until it is closed)", field),
        element("div", { class: "row" },
          element("button", { type: "submit", value: "use", class: "main" }, "Use it"),
          element("button", { type: "submit", value: "", formnovalidate: true }, "Cancel"))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "use" ? field.value : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

new App().start();
