// `node CLIENT.mjs CASE BASE [MODEL]` runs one case and prints what came of it as one line of JSON.

export const MESSAGES = [{ role: "user", content: "Why is the sky blue?" }];
export const TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

export async function answer(cases) {
  const [name, base, model] = process.argv.slice(2);
  console.log(JSON.stringify(await cases[name](base, model)));
}
