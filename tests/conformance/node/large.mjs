// A large file through `uploads` with the official client: parts of 64 MiB, two at a time.
// Environment: BASE_URL, API_KEY, FILE, MD5. Prints {status, file}.

import { openAsBlob } from "node:fs";
import { basename } from "node:path";
import OpenAI from "openai";

const { BASE_URL: baseURL, API_KEY: apiKey, FILE, MD5: md5 } = process.env;
const client = new OpenAI({ baseURL, apiKey });
const PART = 64 * 1024 * 1024;

const blob = await openAsBlob(FILE);
const upload = await client.uploads.create({
  bytes: blob.size, filename: basename(FILE), mime_type: "application/jsonl", purpose: "batch",
});
const starts = Array.from({ length: Math.ceil(blob.size / PART) }, (_, n) => n * PART);
const part_ids = [];
for (let n = 0; n < starts.length; n += 2) {
  const pair = starts.slice(n, n + 2).map((start) =>
    client.uploads.parts.create(upload.id, { data: new File([blob.slice(start, start + PART)], "part") }));
  part_ids.push(...(await Promise.all(pair)).map((part) => part.id));
}
const done = await client.uploads.complete(upload.id, { part_ids, md5 });
console.log(JSON.stringify({ status: done.status, file: done.file.id }));
