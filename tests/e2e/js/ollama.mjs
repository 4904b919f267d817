// What the official ollama client makes of the router's answers, as facts for tests/e2e/test_js_clients.py to judge.

import { Ollama } from "ollama";
import { answer, MESSAGES, TOOL } from "./cases.mjs";

const client = (host) => new Ollama({ host });
const options = { num_predict: 8 };

await answer({
  chat: async (base, model) => {
    const said = await client(base).chat({ model, messages: MESSAGES, options });
    return { model: said.model, text: said.message.content, tokens: said.eval_count };
  },

  stream: async (base, model) => {
    let text = "";
    let tokens = null;
    const models = new Set();
    for await (const part of await client(base).chat({ model, messages: MESSAGES, stream: true, options })) {
      text += part.message.content;
      tokens = part.eval_count ?? tokens;
      models.add(part.model);
    }
    return { models: [...models], text, tokens };
  },

  tools: async (base, model) => {
    const plain = await client(base).chat({ model, messages: MESSAGES, tools: [TOOL] });
    const calls = [];
    for await (const part of await client(base).chat({ model, messages: MESSAGES, tools: [TOOL], stream: true })) {
      calls.push(...(part.message.tool_calls ?? []));
    }
    return {
      model: plain.model,
      names: [plain.message.tool_calls[0].function.name, ...calls.map((call) => call.function.name)],
      arguments: calls[0].function.arguments,
    };
  },

  embeddings: async (base, model) => {
    const found = await client(base).embed({ model, input: ["hello", "world"] });
    return { models: [found.model], lengths: [found.embeddings.map((vector) => vector.length)] };
  },

  models: async (base) => (await client(base).list()).models.map((model) => model.model),

  loaded: async (base, model) => {
    await client(base).generate({ model, prompt: "Why?", options });
    for (;;) {
      const { models } = await client(base).ps();
      if (models.length) return models.map((shown) => shown.model);
    }
  },

  version: async (base) => (await client(base).version()).version,

  show: async (base, model) => await client(base).show({ model }),

  unknown: async (base) => {
    try {
      await client(base).chat({ model: "nope", messages: MESSAGES, stream: true });
    } catch (error) {
      return { kind: error.name, status: error.status_code, text: error.error };
    }
  },

  abort: async (base, model) => {
    const talking = client(base);
    let events = 0;
    try {
      for await (const _ of await talking.chat({ model, messages: MESSAGES, stream: true })) {
        events += 1;
        talking.abort();
      }
    } catch (error) {
      return { events, kind: error.name };
    }
  },
});
