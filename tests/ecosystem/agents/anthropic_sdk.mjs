// Use Anthropic's package for JavaScript: whole and streamed messages, a loop with a tool, counts and errors.
// Run it in a folder in which the package is installed, with ANTHROPIC_BASE_URL and the name of a model.

import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";

const model = process.argv[2];
const client = new Anthropic({ apiKey: "none", maxRetries: 0 });
const question = [{ role: "user", content: "Name a river." }];
const base = { model, max_tokens: 16, messages: question };

const whole = await client.messages.create(base);
assert.equal(whole.type, "message");
assert.equal(whole.content[0].type, "text");
assert.ok(whole.usage.input_tokens + whole.usage.cache_read_input_tokens > 0);

const stream = client.messages.stream(base);
let text = "";
stream.on("text", (piece) => (text += piece));
const streamed = await stream.finalMessage();
assert.equal(streamed.content[0].text, text);
assert.ok(["end_turn", "max_tokens"].includes(streamed.stop_reason));

const tools = [
  {
    name: "get_weather",
    description: "The weather in a city.",
    input_schema: { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"] },
  },
];
const asked = [{ role: "user", content: "What is the weather in Paris?" }];
const called = await client.messages
  .stream({ ...base, max_tokens: 60, messages: asked, tools, tool_choice: { type: "any" } })
  .finalMessage();
assert.equal(called.stop_reason, "tool_use");
const [call] = called.content;
assert.deepEqual(Object.keys(call.input), ["city"]);
const result = { type: "tool_result", tool_use_id: call.id, content: "rain" };
const answered = await client.messages.create({
  ...base,
  messages: [...asked, { role: "assistant", content: called.content }, { role: "user", content: [result] }],
  tools,
});
assert.ok(answered.content.length > 0);

const counted = await client.messages.countTokens({ model, messages: question });
assert.equal(counted.input_tokens, whole.usage.input_tokens + whole.usage.cache_read_input_tokens);
const models = [];
for await (const listed of client.models.list()) models.push(listed.id);
assert.deepEqual(models, [model]);

await assert.rejects(client.messages.create({ ...base, model: "gpt-4o" }), (error) => {
  assert.ok(error instanceof Anthropic.NotFoundError);
  assert.equal(error.error.error.type, "not_found_error");
  return true;
});
await assert.rejects(client.messages.create({ ...base, max_tokens: 0 }), Anthropic.BadRequestError);
console.log("done");
