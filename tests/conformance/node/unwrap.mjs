// What the official OpenAI client for Node makes of a webhook. Environment: DELIVERY, JSON of {headers, body, secret}.
// The last line of standard output is JSON: the event, and what a body that was changed on its way comes to.

import OpenAI from "openai";

const { headers, body, secret } = JSON.parse(process.env.DELIVERY);
const client = new OpenAI({ apiKey: "none", webhookSecret: secret });
const event = await client.webhooks.unwrap(body, headers);
const forged = await client.webhooks.unwrap(body + " ", headers).then(() => "taken", (error) => error.constructor.name);
console.log(JSON.stringify({ event, forged }));
