// Each call of the official OpenAI client for Node, by name, against a real broker. The last line of standard output is
// one JSON object: what became of each call, and what methods the client offers.
// Environment: BASE_URL, API_KEY, VIEWER_KEY, BATCH (has ended), MODEL, LINES (how many it had), BAD (which one failed).

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import OpenAI, { toFile } from "openai";

const { BASE_URL: baseURL, API_KEY: apiKey, VIEWER_KEY, BATCH, MODEL } = process.env;
const LINES = Number(process.env.LINES), BAD = Number(process.env.BAD);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const CONTENT = Buffer.from(
  [0, 1, 2].map((n) => JSON.stringify({
    custom_id: `node-${n}`, method: "POST", url: "/v1/chat/completions",
    body: { model: MODEL, max_tokens: 8, messages: [{ role: "user", content: `say ${n}` }] },
  }) + "\n").join(""),
);

const newFile = async (content = CONTENT) =>
  client.files.create({ file: await toFile(content, "in.jsonl"), purpose: "batch" });
const newUpload = () =>
  client.uploads.create({ bytes: CONTENT.length, filename: "big.jsonl", mime_type: "text/plain", purpose: "batch" });
const newPart = (id, content) => client.uploads.parts.create(id, { data: new File([content], "part") });
const newBatch = async (more = {}) =>
  client.batches.create({
    input_file_id: (await newFile()).id, endpoint: "/v1/chat/completions", completion_window: "24h", ...more,
  });
const all = async (page) => { const found = []; for await (const each of page) found.push(each); return found; };
const refused = async (ask, kind, fields) => {
  const error = await ask().then(() => null, (caught) => caught);
  assert.ok(error instanceof kind, `${error} is no ${kind.name}`);
  for (const [name, value] of Object.entries(fields)) assert.equal(error[name], value, name);
};

const calls = {
  "files.create": async () => {
    const file = await client.files.create({
      file: await toFile(CONTENT, "in.jsonl"), purpose: "batch",
      expires_after: { anchor: "created_at", seconds: 3600 },
    });
    assert.deepEqual([file.object, file.bytes, file.purpose, file.filename, file.status],
      ["file", CONTENT.length, "batch", "in.jsonl", "processed"]);
    assert.equal(file.expires_at, file.created_at + 3600);
  },
  "files.retrieve": async () => {
    const made = await newFile();
    assert.deepEqual(await client.files.retrieve(made.id), made);
  },
  "files.list": async () => {
    const made = [];
    for (let n = 0; n < 3; n++) made.push((await newFile(Buffer.from("x"))).id);
    const newest = (await all(client.files.list({ purpose: "batch", limit: 1 }))).map((file) => file.id);
    assert.deepEqual(newest.slice(0, 3), made.toReversed());
    const oldest = (await all(client.files.list({ purpose: "batch", limit: 2, order: "asc" }))).map((file) => file.id);
    assert.deepEqual(oldest, newest.toReversed());
  },
  "files.content": async () => {
    const batch = await client.batches.retrieve(BATCH);
    const answered = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map(JSON.parse);
    const wanted = Array.from({ length: LINES }, (_, n) => `line-${n}`).filter((name) => name !== `line-${BAD}`);
    assert.deepEqual(answered.map((line) => line.custom_id), wanted);
    assert.ok(answered.every((line) => line.response.status_code === 200 && line.error === null));
    let streamed = "";
    const decoder = new TextDecoder();
    for await (const chunk of (await client.files.content(batch.error_file_id)).body)
      streamed += decoder.decode(chunk, { stream: true });
    assert.equal(JSON.parse(streamed).custom_id, `line-${BAD}`);
  },
  "files.delete": async () => {
    const { id } = await newFile();
    assert.deepEqual(await client.files.delete(id), { id, object: "file", deleted: true });
    await refused(() => client.files.content(id), OpenAI.NotFoundError, { code: "file_gone" });
  },
  "files.waitForProcessing": async () => {
    assert.equal((await client.files.waitForProcessing((await newFile()).id, { pollInterval: 10 })).status, "processed");
  },
  "uploads.create": async () => {
    const upload = await newUpload();
    assert.deepEqual([upload.object, upload.status, upload.bytes, upload.file],
      ["upload", "pending", CONTENT.length, null]);
    assert.equal(upload.expires_at, upload.created_at + 3600);
  },
  "uploads.parts.create": async () => {
    const upload = await newUpload();
    const part = await newPart(upload.id, CONTENT.subarray(0, 10));
    assert.deepEqual([part.object, part.upload_id], ["upload.part", upload.id]);
  },
  "uploads.complete": async () => {
    const upload = await newUpload();
    const [last, first] = await Promise.all([CONTENT.subarray(10), CONTENT.subarray(0, 10)].map((each) => newPart(upload.id, each)));
    const ask = { part_ids: [first.id, last.id], md5: createHash("md5").update(CONTENT).digest("hex") };
    const done = await client.uploads.complete(upload.id, ask);
    assert.equal(done.status, "completed");
    assert.equal(await (await client.files.content(done.file.id)).text(), CONTENT.toString());
    assert.deepEqual((await client.uploads.complete(upload.id, ask)).file, done.file);
    await refused(() => client.uploads.complete(upload.id, { part_ids: [last.id, first.id] }),
      OpenAI.UnprocessableEntityError, { param: "part_ids" });
  },
  "uploads.cancel": async () => {
    assert.equal((await client.uploads.cancel((await newUpload()).id)).status, "cancelled");
  },
  "batches.create": async () => {
    const batch = await newBatch({ metadata: { a: "b" }, x_broker: { priority: -3, tags: { team: "x" } } });
    assert.deepEqual([batch.object, batch.status, batch.metadata], ["batch", "validating", { a: "b" }]);
    assert.equal(batch.expires_at, batch.created_at + 86400);
    assert.deepEqual([batch.x_broker.priority, batch.x_broker.tags], [-3, { team: "x" }]);
  },
  "batches.retrieve": async () => {
    const batch = await client.batches.retrieve(BATCH);
    assert.deepEqual([batch.status, batch.metadata], ["completed", { run: "one" }]);
    assert.deepEqual(batch.request_counts, { total: LINES, completed: LINES - 1, failed: 1 });
    assert.equal(batch.usage.total_tokens, batch.usage.input_tokens + batch.usage.output_tokens);
    assert.equal(batch.x_broker.counts.total, LINES);
  },
  "batches.list": async () => {
    const made = [];
    for (let n = 0; n < 3; n++) made.push((await newBatch()).id);
    const seen = (await all(client.batches.list({ limit: 2 }))).map((batch) => batch.id);
    assert.deepEqual(seen.slice(0, 3), made.toReversed());
    assert.equal(seen.at(-1), BATCH);
    assert.equal(new Set(seen).size, seen.length);
  },
  "batches.cancel": async () => {
    const { id } = await newBatch();
    assert.match((await client.batches.cancel(id)).status, /^cancell(ing|ed)$/);
  },
  "models.list": async () => {
    assert.ok((await all(client.models.list())).some((model) => model.id === MODEL));
  },
  "models.retrieve": async () => {
    const model = await client.models.retrieve(MODEL);
    assert.deepEqual([model.id, model.object, model.owned_by], [MODEL, "model", "broker"]);
  },
  "models.delete": async () => {
    // OpenAI deletes models that were fine-tuned, and no others; ours are settings, so there is nothing to delete.
    await refused(() => client.models.delete(MODEL), OpenAI.APIError, { status: 405, code: "method_not_allowed" });
  },
  "errors.NotFoundError": async () => {
    const kind = { type: "not_found_error" };
    await refused(() => client.batches.retrieve("batch_none"), OpenAI.NotFoundError, { code: "batch_not_found", ...kind });
    await refused(() => client.files.retrieve("file-none"), OpenAI.NotFoundError, { code: "file_not_found", ...kind });
    await refused(() => client.models.retrieve("no/model"), OpenAI.NotFoundError, { code: "model_not_found", ...kind });
    await refused(() => client.uploads.cancel("upload_none"), OpenAI.NotFoundError, { code: "upload_not_found", ...kind });
  },
  "errors.BadRequestError": async () => {
    await refused(async () => client.files.create({ file: await toFile(CONTENT, "a"), purpose: "fine-tune" }),
      OpenAI.BadRequestError, { param: "purpose", code: "invalid_purpose", type: "invalid_request_error" });
    await refused(() => newBatch({ x_broker: { residency: ["Atlantis"] } }),
      OpenAI.BadRequestError, { param: "x_broker.residency" });
  },
  "errors.AuthenticationError": async () => {
    const stranger = new OpenAI({ baseURL, apiKey: "brk_wrong", maxRetries: 0 });
    await refused(() => stranger.models.list(), OpenAI.AuthenticationError,
      { code: "invalid_api_key", type: "authentication_error" });
  },
  "errors.PermissionDeniedError": async () => {
    const viewer = new OpenAI({ baseURL, apiKey: VIEWER_KEY, maxRetries: 0 });
    await refused(async () => viewer.files.create({ file: await toFile(CONTENT, "a"), purpose: "batch" }),
      OpenAI.PermissionDeniedError, { code: "role_required", type: "permission_error" });
  },
  "errors.UnprocessableEntityError": async () => {
    await refused(() => client.batches.cancel(BATCH), OpenAI.UnprocessableEntityError, { code: "invalid_state" });
  },
  "retries": async () => {
    // A network that delivers the request and loses the first answer: the retry is the same batch.
    const counts = [];
    const lossy = async (url, init) => {
      const answer = await fetch(url, init);
      if (!String(url).endsWith("/batches")) return answer;
      counts.push(new Headers(init.headers).get("x-stainless-retry-count"));
      if (counts.length > 1) return answer;
      await answer.text();
      throw new Error("the answer was lost");
    };
    const before = (await all(client.batches.list())).length;
    const { id } = await newFile();
    const retrying = new OpenAI({ baseURL, apiKey, maxRetries: 2, fetch: lossy });
    await retrying.batches.create({ input_file_id: id, endpoint: "/v1/chat/completions", completion_window: "24h" });
    assert.deepEqual(counts, ["0", "1"]);
    assert.equal((await all(client.batches.list())).length, before + 1);
  },
};

const methods = {
  files: client.files, uploads: client.uploads, "uploads.parts": client.uploads.parts,
  batches: client.batches, models: client.models,
};
const offered = Object.entries(methods).flatMap(([name, resource]) =>
  Object.getOwnPropertyNames(Object.getPrototypeOf(resource))
    .filter((method) => method !== "constructor" && typeof resource[method] === "function")
    .map((method) => `${name}.${method}`));
const results = {};
for (const [name, call] of Object.entries(calls)) {
  results[name] = await call().then(() => "ok", (error) => String(error.stack ?? error));
}
console.log(JSON.stringify({ results, offered }));
