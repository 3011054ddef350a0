// A loop of several steps with the AI SDK, which speaks the Responses API. Prints the steps as JSON.

import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);
const openai = createOpenAI({ baseURL, apiKey: "none" });
const birds = { myna: "talks", kiwi: "walks" };
const tools = {
  lookup: tool({
    description: "Look up a bird.",
    inputSchema: z.object({ bird: z.string() }),
    execute: async ({ bird }) => birds[bird],
  }),
};
const options = { model: openai(model), tools, stopWhen: stepCountIs(5) };

const whole = await generateText({ ...options, prompt: "Task one: compare the birds" });
const streamed = streamText({ ...options, prompt: "Task one: compare the birds again" });
let text = "";
for await (const piece of streamed.textStream) text += piece;

const shown = (steps) =>
  steps.map((step) => ({
    text: step.text,
    calls: step.toolCalls.map((call) => call.input.bird),
    results: step.toolResults.map((result) => result.output),
  }));
console.log(JSON.stringify({ whole: shown(whole.steps), streamed: shown(await streamed.steps), text }));
