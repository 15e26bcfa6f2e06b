// The teacher beside the student: its probability of what the student wrote, and what it would have written instead.

import { post } from "./api.js";
import { element, notice, say } from "./dom.js";
import { counted, figure, percent } from "./format.js";

export class TeacherView {
  constructor(text) {
    this.text = text;
    this.status = element("p", { class: "small", role: "status" });
    this.problem = element("div", { role: "alert" });
    this.button = element("button", { type: "button", class: "small", on: { click: () => this.ask() } }, "Ask the teacher");
    this.byTeacher = element("input", { type: "checkbox", on: { change: () => this.apply() } });
    this.other = element("input", { type: "checkbox", checked: true, on: { change: () => this.apply() } });
    this.views = element("div", { class: "row small", hidden: true },
      element("label", { class: "inline" }, this.byTeacher, "colours show the teacher’s probability"),
      element("label", { class: "inline" }, this.other, "what it would have written stands above"));
    this.root = element("div", { class: "teacher", hidden: true }, this.button, this.status, this.views, this.problem);
  }

  offer(prompt, model) {
    this.request = { prompt, model };
    this.root.hidden = !this.text.tokens.some((token) => token.id !== null);
  }

  async ask() {
    const tokens = this.text.tokens.filter((token) => token.id !== null);
    this.button.disabled = true;
    this.problem.replaceChildren();
    say(this.status, "the teacher reads…");
    try {
      const answer = await post("teacher", { ...this.request, token_ids: tokens.map((token) => token.id) });
      const views = answer.tokens.map((view) => view && {
        logprob: view.logprob, rank: view.rank, top: view.top.map(({ token, logprob }) => ({ text: token, logprob })),
      });
      const byToken = new Map(tokens.map((token, i) => [token, views[i]]));
      this.text.setTeacher(this.text.tokens.map((token) => byToken.get(token) ?? null));
      this.views.hidden = false;
      this.button.hidden = true;
      say(this.status, this.summary(answer, tokens));
      this.apply();
    } catch (error) {
      say(this.status, "");
      this.problem.replaceChildren(notice(error.message, true));
    } finally {
      this.button.disabled = false;
    }
  }

  apply() {
    this.text.setView({ isByTeacher: this.byTeacher.checked, showsOther: this.other.checked });
  }

  summary(answer, tokens) {
    const seen = tokens.filter((token) => token.teacher);
    const mean = (pick) => -seen.reduce((sum, token) => sum + pick(token), 0) / Math.max(seen.length, 1);
    const same = seen.filter((token) => this.text.other(token) === null).length;
    const parts = [
      `${answer.teacher} finds ${figure(mean((token) => token.teacher.logprob))} nats/token in this text`,
      `would have written the same at ${same} of ${counted(seen.length, "token")} (${percent(same / Math.max(seen.length, 1))})`,
    ];
    if (seen.every((token) => token.logprob !== null)) {
      parts[0] += `, the student ${figure(mean((token) => token.logprob))}`;
    }
    return `${parts.join("; it ")}.`;
  }
}
