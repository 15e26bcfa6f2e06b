// A conversation, where the checkpoint's tokenizer has a template for one.

import { Answer, samplingControls } from "./answer.js";
import { chat, sampling } from "./completion.js";
import { element, labelled, notice } from "./dom.js";
import { ModelChoice, SERVED } from "./models.js";

export class ChatPanel {
  constructor(place, app) {
    this.app = app;
    this.messages = [];
    this.abort = null;
    this.turns = element("ol", { class: "turns", "aria-label": "Conversation" });
    this.message = element("textarea", {
      rows: 2, required: true,
      on: {
        keydown: (event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            this.form.requestSubmit();
          }
        },
      },
    });
    this.model = new ModelChoice([[SERVED, "what is served now"]]);
    const { controls, fields } = samplingControls({ maxTokens: 128 });
    this.controls = controls;
    this.start = element("button", { type: "submit", class: "main" }, "Send");
    this.stop = element("button", { type: "button", disabled: true, on: { click: () => this.abort?.abort() } }, "Stop");
    const anew = element("button", { type: "button", on: { click: () => this.clear() } }, "New chat");
    this.form = element("form", { class: "card", on: { submit: (event) => { event.preventDefault(); this.send(); } } },
      labelled("Message (Enter sends, Shift+Enter begins a line)", this.message),
      element("fieldset", { class: "controls" }, element("legend", { class: "sr-only" }, "How to answer"), ...fields,
        labelled("Checkpoint", this.model.select, { class: "wide" })),
      element("div", { class: "row" }, this.start, this.stop, anew));
    this.none = notice("No checkpoint here has a chat template, so that there is nothing to chat with. Write continues any text.");
    place.append(this.none, this.turns, this.form);
  }

  update({ checkpoints }) {
    const chatty = checkpoints.filter((checkpoint) => checkpoint.chat);
    this.none.hidden = chatty.length > 0 || !checkpoints.length;
    this.form.hidden = !this.none.hidden;
    this.model.update(chatty);
  }

  clear() {
    this.abort?.abort();
    this.messages = [];
    this.turns.replaceChildren();
    this.message.focus();
  }

  async send() {
    this.abort?.abort();
    const abort = this.abort = new AbortController();
    const messages = this.messages;
    const content = this.message.value;
    this.message.value = "";
    messages.push({ role: "user", content });
    this.turns.append(element("li", { class: "turn user" }, element("span", { class: "role" }, "You"), content));
    const answer = new Answer("Tokens of the answer", { hasTeacher: false });
    const who = element("span", { class: "role" }, "Assistant");
    answer.onStep = () => { who.textContent = answer.checkpoint ?? "Assistant"; };
    this.turns.append(element("li", { class: "turn assistant" }, who, answer.root));
    this.start.disabled = true;
    this.stop.disabled = false;
    const steps = chat({ ...sampling(this.controls), messages: [...messages], model: this.model.value }, abort.signal);
    let text = "";
    await answer.follow(tapped(steps, (step) => { text += step.text; }), abort.signal);
    // A turn that failed before it said anything is asked anew by the next one.
    if (text) messages.push({ role: "assistant", content: text });
    else messages.pop();
    if (this.abort === abort) {
      this.start.disabled = false;
      this.stop.disabled = true;
    }
  }
}

async function* tapped(steps, see) {
  for await (const step of steps) {
    see(step);
    yield step;
  }
}
