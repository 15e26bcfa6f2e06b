// The API's streams as chunks of tokens.

import { stream } from "./api.js";

const ALTERNATIVES = 5;

/** What the sampling controls say, as fields of a request; an empty seed is left to the server. */
export function sampling(controls) {
  const body = {
    temperature: Number(controls.temperature.value),
    top_p: Number(controls.topP.value),
    max_tokens: Number(controls.maxTokens.value),
  };
  if (controls.seed.value !== "") body.seed = Number(controls.seed.value);
  return body;
}

/** Continues a prompt: yields {tokens, finish, model, usage} for each event. */
export async function* complete(request, signal) {
  const body = { ...request, logprobs: ALTERNATIVES, stream: true, stream_options: { include_usage: true } };
  for await (const event of stream("v1/completions", body, { signal })) {
    const [choice] = event.choices;
    yield step(event, choice, choice ? ofCompletion(choice) : []);
  }
}

/** Answers a conversation, as {@link complete}. */
export async function* chat(request, signal) {
  const body = {
    ...request, logprobs: true, top_logprobs: ALTERNATIVES, stream: true, stream_options: { include_usage: true },
  };
  for await (const event of stream("v1/chat/completions", body, { signal })) {
    const [choice] = event.choices;
    yield { ...step(event, choice, choice ? ofChat(choice) : []), text: choice?.delta?.content ?? "" };
  }
}

function step(event, choice, tokens) {
  return {
    tokens,
    finish: choice?.finish_reason ?? null,
    checkpoint: event.system_fingerprint?.split("@")[0] ?? event.model,
    usage: event.usage ?? null,
  };
}

function ofCompletion({ text, logprobs, token_ids: ids }) {
  if (!logprobs) return text ? [{ text, id: null, logprob: null, top: [] }] : [];
  return logprobs.tokens.map((token, i) => ({
    text: token,
    id: ids?.[i] ?? null,
    logprob: logprobs.token_logprobs[i],
    top: sorted(Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([other, logprob]) => ({ text: other, logprob }))),
  }));
}

function ofChat({ delta, logprobs, token_ids: ids }) {
  if (!logprobs?.content) return delta?.content ? [{ text: delta.content, id: null, logprob: null, top: [] }] : [];
  return logprobs.content.map(({ token, logprob, top_logprobs: top }, i) => ({
    text: token,
    id: ids?.[i] ?? null,
    logprob,
    top: sorted((top ?? []).map((other) => ({ text: other.token, logprob: other.logprob }))),
  }));
}

function sorted(top) {
  return top.sort((a, b) => b.logprob - a.logprob);
}
