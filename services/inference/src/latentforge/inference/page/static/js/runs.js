// A run's curves, of its published checkpoints and, while it trains, of the trainer; pinning.

import { post } from "./api.js";
import { Chart } from "./chart.js";
import { element, fill, labelled, notice, table, tiles } from "./dom.js";
import { duration, figure, moment, rounded } from "./format.js";

const CURVES = [
  ["ce", "Cross-entropy", "nats/token"], ["kd", "Distillation (KD)", "nats/token"],
  ["greedy_accepted", "Drafts its teacher would accept", "tokens of 8"],
];
const NAMES = { loss: "Loss", ce: "CE", kd: "KD", mse: "MSE", kl: "KL", exact: "Exact", greedy_accepted: "Accepted of 8 drafted" };
const STUDENT_STAGES = ["student", "token-level"];

export class RunsPanel {
  constructor(place, app) {
    this.app = app;
    this.state = null;
    this.run = element("select", { on: { change: () => this.draw() } });
    this.live = element("div", { "aria-live": "off" });
    this.charts = Object.fromEntries(CURVES.map(([name, title, unit]) => [name, new Chart(title, unit)]));
    this.speed = new Chart("Training speed", "tokens/s", { isFromZero: true });
    this.stage = new Chart("Autoencoder", "loss");
    this.list = element("div", { class: "card scroll" });
    this.said = element("div", { role: "status" });
    this.dialog = element("dialog", { "aria-labelledby": "checkpoint-title" });
    place.append(
      element("div", { class: "row" }, labelled("Run", this.run)), element("br"), this.live, this.said,
      element("div", { class: "charts" }, this.stage.root, ...CURVES.map(([name]) => this.charts[name].root), this.speed.root),
      element("br"), this.list, this.dialog);
  }

  update(state) {
    this.state = state;
    const { checkpoints, training, follows } = state;
    const names = [...new Set([...(training ? [training.run] : []), ...checkpoints.map((c) => c.run)])];
    const chosen = this.run.value || (training && !training.done ? training.run : follows) || names[0];
    fill(this.run, ...names.map((name) => element("option", { value: name },
      name + (name === training?.run && !training.done ? " (training)" : name === follows ? " (served)" : ""))));
    if (names.includes(chosen)) this.run.value = chosen;
    this.draw();
  }

  draw() {
    const { checkpoints, training, trainingProblem, config } = this.state;
    const run = this.run.value;
    const own = checkpoints.filter((c) => c.run === run);
    const live = training?.run === run ? training : null;
    fill(this.live, ...this.progress(live, trainingProblem, config));
    const isStudent = live && STUDENT_STAGES.includes(live.stage);
    const curves = isStudent || live?.done || live?.stage === "finished" ? live : null;
    for (const [name, , unit] of CURVES) this.drawCurve(name, unit, own, curves);
    const isAutoencoder = live?.stage === "autoencoder";
    this.stage.root.hidden = !isAutoencoder;
    if (isAutoencoder) this.stage.set([{ name: "training", points: points(live.train, "ce") }]);
    this.speed.root.hidden = !live;
    if (live) this.speed.set([{ name: "tokens/s", points: points(live.train, "tokens_per_s") }]);
    this.drawList(run, own);
  }

  drawCurve(name, unit, own, live) {
    const published = own.filter((c) => `held_out_${name}` in c.metrics)
      .map((c) => ({ x: c.step, y: c.metrics[`held_out_${name}`], checkpoint: c }));
    // The trainer's points and the manifests' are the same measurements; those of both stand once.
    const heldOut = new Map([...published, ...points(live?.held_out ?? [], name)].map(({ x, y }) => [x, y]));
    const series = [
      { name: "training", points: points(live?.train ?? [], name) },
      { name: "held out", points: [...heldOut].sort(([a], [b]) => a - b).map(([x, y]) => ({ x, y })), isDotted: true },
    ];
    const chart = this.charts[name];
    chart.set(series, published.map(({ x, y, checkpoint }) => ({
      x, y, label: `${checkpoint.id}, ${figure(y)} ${unit}${states(checkpoint).map((state) => `, ${state}`).join("")}`,
      classes: states(checkpoint).join(" "),
      onClick: () => this.open(checkpoint.id),
    })));
    // Of older runs nobody measured it.
    chart.root.hidden = name === "greedy_accepted" && chart.isEmpty;
  }

  progress(live, problem, config) {
    if (!live) return problem && config.training ? [notice(problem)] : [];
    const end = live.error ? notice(`The run ended: ${live.error}`, true) : null;
    const ofStage = live.of ? `${live.step.toLocaleString("en")} of ${live.of.toLocaleString("en")}` : String(live.step);
    const figures = Object.entries(live.losses).slice(0, 4).map(([name, value]) => [`${NAMES[name] ?? name}, training`, figure(value)]);
    const last = live.held_out[live.held_out.length - 1] ?? {};
    const heldOut = CURVES.filter(([name]) => name in last).map(([name]) => [`${NAMES[name]}, held out`, figure(last[name])]);
    return [end, tiles([
      ["Stage", live.stage], ["Step", ofStage], ...figures, ...heldOut,
      ["Speed", rounded(live.tokens_per_s), "tokens/s"],
      ["Waited for the teacher", duration(live.teacher_wait_seconds)],
      ["Left in this stage", live.done ? "done" : duration(live.eta)],
    ]), live.of ? element("p", {}, element("progress", { value: live.step, max: live.of, "aria-label": `${live.stage}, steps done` })) : null];
  }

  drawList(run, own) {
    const rows = own.map((c) => [
      c.id, figure(c.metrics.held_out_ce), figure(c.metrics.held_out_kd), moment(c.created),
      element("span", { class: "row" }, ...states(c).map((state) =>
        element("span", { class: `chip ${{ served: "good", quarantined: "bad", pinned: "accent" }[state] ?? ""}` }, state))),
      element("button", { type: "button", class: "small", data: { open: c.id }, "aria-label": `Open ${c.id}` }, "Open"),
    ]);
    const columns = [
      { name: "checkpoint", id: true }, { name: "held-out CE", number: true }, { name: "held-out KD", number: true },
      { name: "published" }, { name: "state" }, { name: "more" },
    ];
    fill(this.list, rows.length ? table(`Published checkpoints of ${run}`, columns, rows)
      : element("p", { class: "muted" }, "Nothing is published of this run yet."));
    this.list.onclick = (event) => {
      const id = event.target.closest("[data-open]")?.dataset.open;
      if (id) this.open(id);
    };
  }

  open(id) {
    const checkpoint = this.state.checkpoints.find((c) => c.id === id);
    if (!checkpoint) return;
    const close = () => this.dialog.close();
    const action = (name, work, isMain) => element("button", { type: "button", class: isMain && "main", on: { click: work } }, name);
    const actions = [];
    if (checkpoint.usable) actions.push(action("Write with it", () => { close(); this.app.writeWith(id); }, true));
    if (!checkpoint.quarantined && checkpoint.created) {
      if (!checkpoint.shipped && !checkpoint.pinned) actions.push(action("Serve it (pin)", () => this.act("pin", { checkpoint: id })));
    }
    if (checkpoint.pinned) actions.push(action("Unpin", () => this.act("unpin", { run: checkpoint.run })));
    this.problem = element("div", { role: "alert" });
    const facts = [
      ["published", moment(checkpoint.created)], ["state", states(checkpoint).join(", ") || "published"],
      ["tokens per step", String(checkpoint.chunk_size ?? "–")],
      ...Object.entries(checkpoint.metrics).map(([name, value]) => [name.replaceAll("_", " "), figure(value)]),
    ];
    this.dialog.replaceChildren(
      element("h2", { id: "checkpoint-title", class: "mono" }, id),
      element("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
      ...(checkpoint.problem ? [notice(checkpoint.problem, true)] : []), this.problem,
      element("div", { class: "row" }, ...actions, action("Close", close)));
    if (!this.dialog.open) this.dialog.showModal();
  }

  async act(what, body) {
    try {
      const answer = await post(`checkpoints/${what}`, body);
      const text = what === "pin" ? `${answer.run} is pinned to ${answer.pinned}.` : `${answer.run} follows its newest checkpoint again.`;
      this.dialog.close();
      this.said.replaceChildren(notice(answer.note ? `${text} But ${answer.note}.` : text));
      await this.app.refresh();
    } catch (error) {
      this.problem.replaceChildren(notice(error.message, true));
    }
  }
}

function states(checkpoint) {
  return ["served", "pinned", "loaded", "quarantined", "shipped"].filter((state) => checkpoint[state]);
}

function points(lines, name) {
  return lines.filter((line) => name in line).map((line) => ({ x: line.step, y: line[name] }));
}
