// Drives Chromium through previews of a served hub. Prints one JSON document; a failed expectation ends it.
// Usage: previews.mjs MODULES URL TOKEN PICTURES
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, url, token, pictures] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
mkdirSync(pictures, { recursive: true });

const ask = async (path, body) => {
  const answer = await fetch(`${url}${path}`, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  assert.ok(answer.ok, await answer.clone().text());
  return answer.json();
};
const link = async (port) => (await ask("/v1/caves/apps/previews", { port })).url;
const edit = (path, old, now) => ask("/v1/file/replace", { cave: "apps", path, old, new: now });

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
const errors = [];
const open = async () => {
  const page = await (await browser.newContext({ viewport: { width: 900, height: 600 } })).newPage();
  page.setDefaultTimeout(60_000);
  page.on("pageerror", (error) => errors.push(String(error)));
  return page;
};

try {
  const page = await open();
  const first = await link(5173);
  const connected = page.waitForEvent("console", (line) => line.text().includes("[vite] connected"));
  await page.goto(first);
  const vite = new URL(first).origin;
  assert.equal(page.url(), `${vite}/`);
  await page.getByRole("heading", { name: "Hello one" }).waitFor();
  await connected;
  await page.evaluate(() => { globalThis.kept = "since the page was loaded"; });
  await edit("web/main.js", "Hello one", "Hello two");
  const changed = performance.now();
  await page.getByRole("heading", { name: "Hello two" }).waitFor();
  const hot = performance.now() - changed;
  assert.equal(await page.evaluate(() => globalThis.kept), "since the page was loaded");
  await page.screenshot({ path: `${pictures}/preview-vite.png` });

  const flask = await page.context().newPage();
  const second = await link(5000);
  await flask.goto(second);
  await flask.getByRole("heading", { name: "Hello one, nobody" }).waitFor();
  await flask.getByRole("textbox").fill("Ada");
  await flask.getByRole("button").click();
  await flask.getByRole("heading", { name: "Hello one, Ada" }).waitFor();
  await edit("board.py", "Hello one", "Hello three");
  // Its reloader ends the server and starts another: a request meanwhile waits for it.
  for (const end = Date.now() + 30_000; Date.now() < end; await flask.waitForTimeout(100)) {
    await flask.reload();
    if ((await flask.getByRole("heading").innerText()).startsWith("Hello three")) break;
  }
  await flask.getByRole("heading", { name: "Hello three, Ada" }).waitFor();
  await flask.screenshot({ path: `${pictures}/preview-flask.png` });
  const told = await flask.evaluate(async () => (await fetch("/told")).json());
  assert.equal(told.Host, "localhost:5000");
  assert.match(told.Cookie, /^session=[^;]*$/);
  assert.ok(!JSON.stringify(told).includes("ghost-"));
  assert.equal(await flask.evaluate(() => document.cookie), "");

  const streamlit = await page.context().newPage();
  await streamlit.goto(await link(8501));
  await streamlit.getByRole("heading", { name: "Hello one, 0" }).waitFor();
  await streamlit.getByRole("button", { name: "Count" }).click();
  await streamlit.getByRole("heading", { name: "Hello one, 1" }).waitFor();
  await edit("counter.py", "Hello one", "Hello four");
  await streamlit.getByRole("button", { name: "Rerun", exact: true }).click(); // which it offers now
  await streamlit.getByRole("heading", { name: "Hello four, 1" }).waitFor();
  await streamlit.screenshot({ path: `${pictures}/preview-streamlit.png` });

  // A page of one preview asks for another, with all that its browser has.
  const refused = page.waitForResponse((answer) => answer.url().endsWith("/told"));
  await page.evaluate((at) => fetch(`${at}/told`, { mode: "no-cors", credentials: "include" }), new URL(second).origin);
  assert.equal((await refused).status(), 401);

  const stranger = await open();
  assert.equal((await stranger.goto(first)).status(), 401);
  await stranger.getByRole("heading", { name: "This preview wants a link" }).waitFor();
  await stranger.screenshot({ path: `${pictures}/preview-stranger.png` });
  await stranger.evaluate(axe);
  const { violations } = await stranger.evaluate(() => globalThis.axe.run());
  assert.deepEqual(violations.map((one) => one.id), []);
  assert.deepEqual(errors, []);
  console.log(JSON.stringify({ hot_ms: Math.round(hot) }));
} finally {
  await browser.close();
}
