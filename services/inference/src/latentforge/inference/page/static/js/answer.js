// One answer of one checkpoint: its text while it is written, its figures, and the teacher beside it.

import { element, labelled, notice, say } from "./dom.js";
import { counted, duration, figure, rounded } from "./format.js";
import { TeacherView } from "./teacher.js";
import { TokenText } from "./tokens.js";

const ENDS = { stop: "ended by itself", length: "ended at max tokens" };

export class Answer {
  /** hasTeacher: a gateway is configured, so that the teacher can be asked. */
  constructor(label, { hasTeacher = false } = {}) {
    this.text = new TokenText(label);
    this.status = element("p", { class: "small muted", role: "status" });
    this.problem = element("div", { role: "alert" });
    this.teacher = hasTeacher ? new TeacherView(this.text) : null;
    this.root = element("div", {}, this.text.root, this.status, this.problem, this.teacher?.root);
    this.checkpoint = null;
  }

  /**
   * Shows a stream of steps until its end, its failure or the signal.
   * Returns the text that was written.
   */
  async follow(steps, signal) {
    const started = performance.now();
    let firstAt = null;
    let finish = null;
    this.text.setWriting(true);
    say(this.status, "waiting for the first chunk…");
    try {
      for await (const step of steps) {
        firstAt ??= step.tokens.length ? performance.now() : null;
        this.checkpoint = step.checkpoint ?? this.checkpoint;
        finish = step.finish ?? finish;
        this.text.addChunk(step.tokens);
        if (step.tokens.length) say(this.status, "writing…");
        this.onStep?.();
      }
    } catch (error) {
      if (!signal.aborted) this.problem.replaceChildren(notice(error.message, true));
      finish = signal.aborted ? "stopped" : "failed";
    } finally {
      this.text.setWriting(false);
    }
    say(this.status, this.summary(finish, started, firstAt));
    return this.text.tokens.map((token) => token.text).join("");
  }

  summary(finish, started, firstAt) {
    const { tokens, numChunks } = this.text;
    const seconds = (performance.now() - started) / 1000;
    const parts = [`${counted(tokens.length, "token")} in ${counted(numChunks, "chunk")}`];
    if (tokens.length) parts.push(`${rounded(tokens.length / seconds)} tokens/s`);
    if (firstAt !== null) parts.push(`first chunk after ${duration((firstAt - started) / 1000)}`);
    const known = tokens.filter((token) => token.logprob !== null);
    if (known.length) parts.push(`${figure(-known.reduce((sum, t) => sum + t.logprob, 0) / known.length)} nats/token`);
    parts.push(finish === "stopped" ? "stopped by you" : finish === "failed" ? "failed" : ENDS[finish] ?? "ended");
    return parts.join(" · ");
  }

  /** Offers to ask the teacher: prompt is a text or ids. */
  offerTeacher(prompt, model) {
    this.teacher?.offer(prompt, model);
  }
}

/** The fields that say how to draw, each a labelled input. */
export function samplingControls({ maxTokens = 64 } = {}) {
  const number = (value, min, max, step, title = null) =>
    element("input", { type: "number", value, min, max, step, title, required: true, inputmode: "decimal" });
  const controls = {
    temperature: number("0.8", 0, 2, "any", "0 always takes the likeliest token"),
    topP: number("0.95", "0.001", 1, "any"),
    maxTokens: number(String(maxTokens), 1, 100000, 1),
    seed: element("input", { type: "number", min: 0, max: 4294967295, step: 1, placeholder: "any", inputmode: "numeric" }),
  };
  const fields = [
    labelled("Temperature", controls.temperature), labelled("Top-p", controls.topP),
    labelled("Max tokens", controls.maxTokens), labelled("Seed", controls.seed),
  ];
  return { controls, fields };
}
