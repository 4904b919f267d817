// What the official openai client makes of the router's answers, as facts for tests/e2e/test_js_clients.py to judge.

import OpenAI from "openai";
import { answer, MESSAGES, TOOL } from "./cases.mjs";

const client = (base) => new OpenAI({ baseURL: `${base}/v1`, apiKey: "any", maxRetries: 0 });

await answer({
  chat: async (base, model) => {
    const said = await client(base).chat.completions.create({ model, messages: MESSAGES, max_tokens: 12 });
    return { model: said.model, text: said.choices[0].message.content, tokens: said.usage.completion_tokens };
  },

  stream: async (base, model) => {
    const stream = await client(base).chat.completions.create({
      model,
      messages: MESSAGES,
      max_tokens: 12,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let tokens = null;
    const models = new Set();
    for await (const event of stream) {
      text += event.choices[0]?.delta?.content ?? "";
      tokens = event.usage?.completion_tokens ?? tokens;
      models.add(event.model);
    }
    return { models: [...models], text, tokens };
  },

  tools: async (base, model) => {
    const stream = client(base).chat.completions.stream({ model, messages: MESSAGES, tools: [TOOL] });
    const whole = await stream.finalChatCompletion();
    const [call] = whole.choices[0].message.tool_calls;
    const plain = await client(base).chat.completions.create({ model, messages: MESSAGES, tools: [TOOL] });
    return {
      model: whole.model,
      reasons: [whole.choices[0].finish_reason, plain.choices[0].finish_reason],
      names: [call.function.name, plain.choices[0].message.tool_calls[0].function.name],
      arguments: JSON.parse(call.function.arguments),
    };
  },

  // The client asks for base64 by itself and decodes it.
  embeddings: async (base, model) => {
    const input = ["hello", "world"];
    const whole = await client(base).embeddings.create({ model, input });
    const floats = await client(base).embeddings.create({ model, input, encoding_format: "float" });
    const short = await client(base).embeddings.create({ model, input, dimensions: 64 });
    return {
      models: [whole.model, floats.model, short.model],
      lengths: [whole, floats, short].map((found) => found.data.map((item) => item.embedding.length)),
      difference: Math.max(
        ...whole.data[0].embedding.map((value, index) => Math.abs(value - floats.data[0].embedding[index])),
      ),
    };
  },

  models: async (base) => {
    const names = [];
    for await (const model of client(base).models.list()) names.push(model.id);
    return names;
  },

  retrieve: async (base, model) => await client(base).models.retrieve(model),

  unknown: async (base) => {
    try {
      await client(base).chat.completions.create({ model: "nope", messages: MESSAGES, stream: true });
    } catch (error) {
      return { kind: error.constructor.name, status: error.status, type: error.type, id: error.requestID };
    }
  },

  abort: async (base, model) => {
    const stream = await client(base).chat.completions.create({ model, messages: MESSAGES, stream: true });
    let events = 0;
    for await (const event of stream) {
      events += event.choices.length;
      break; // which is how users of this client leave: it aborts the request
    }
    return { events };
  },
});
