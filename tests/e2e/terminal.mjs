// Drives Chromium through the page of a terminal. Prints one JSON document; a failed expectation ends it.
// Usage: terminal.mjs MODULES URL TOKEN READER CAVE PICTURES
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, url, token, reader, cave, pictures] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
mkdirSync(pictures, { recursive: true });

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
const errors = [];
const open = async (with_token, options) => {
  const page = await (await browser.newContext(options)).newPage();
  page.setDefaultTimeout(60_000);
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (line) => {
    // The last is said by what stands in for the routed socket, while it closes: the page's own code asks first.
    const expected = ["Failed to load resource", "WebSocket is already in CLOSING or CLOSED state"];
    if (line.type() === "error" && !expected.some((text) => line.text().includes(text))) errors.push(line.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) errors.push(`asked ${request.url()}`);
  });
  await page.goto(`${url}/?token=${with_token}`);
  return page;
};
const check = async (page, name) => {
  await page.screenshot({ path: `${pictures}/${name}.png` });
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] }));
  assert.deepEqual(violations.map((v) => `${name}: ${v.id}: ${v.nodes.map((n) => `${n.html} ${n.failureSummary}`).join("; ")}`.slice(0, 1500)), []);
};
const state = (page, text) => page.getByRole("status").filter({ hasText: text }).waitFor();
// What the shell says of its size, once it is as wanted: the page tells of a change a moment after it is drawn.
let asked = 0;
const sized = async (page, wanted) => {
  for (const end = Date.now() + 60_000; ;) {
    asked += 1;
    await page.keyboard.type(`clear; stty size; echo si''zed-${asked}\n`);
    await shown(page, `sized-${asked}`);
    const [rows, columns] = (await page.locator(".xterm-rows").innerText()).match(/(\d+) (\d+)/).slice(1).map(Number);
    if (wanted(rows, columns)) return columns;
    assert.ok(Date.now() < end, `${rows} ${columns}`);
  }
};
const shown = (page, text) => page.waitForFunction((wanted) => document.querySelector(".xterm-rows")?.innerText.replaceAll("\u00a0", " ").includes(wanted), text);

try {
  const page = await open(token, { viewport: { width: 1000, height: 640 } });
  let line, hub;
  await page.routeWebSocket(/\/v1\/shell\/ws/, (socket) => { line = socket; hub = socket.connectToServer(); });
  await page.getByRole("link", { name: cave, exact: true }).click();
  const opened = page.waitForEvent("popup");
  await page.getByRole("link", { name: "Terminal" }).click();
  await (await opened).close();

  await page.goto(`${url}/terminal/?cave=${cave}`);
  await state(page, "you type");
  await page.keyboard.type("PS1='$ '\n");
  const columns = await sized(page, (rows, columns) => columns > 80 && rows > 20);
  await page.keyboard.type("echo gr''üße; printf '\\e[1;32mgreen\\e[0m \\e[38;2;200;80;0mtrue colour\\e[0m\\n'");
  await page.keyboard.press("Enter");
  await shown(page, "grüße");
  await shown(page, "true colour");
  await check(page, "terminal");

  await page.setViewportSize({ width: 700, height: 500 });
  await sized(page, (_, now) => now < columns);
  await page.keyboard.type("echo resi''zed\n");
  await shown(page, "resized");

  // The connection breaks, and the page comes back to the same shell with what it had shown.
  await page.keyboard.type("kept=here\n");
  const broken = hub; // which does not know yet
  await page.evaluate(() => { // it may be told for a moment only
    const place = document.getElementById("state");
    globalThis.told = [];
    new MutationObserver(() => globalThis.told.push(place.textContent)).observe(place, { childList: true });
  });
  await line.close({ code: 1001 });
  await page.waitForFunction(() => globalThis.told.some((text) => text.startsWith("not connected")));
  await state(page, "you type");
  await shown(page, "resized");
  await page.keyboard.type("echo still $kept\n");
  await shown(page, "still here");
  await broken.close();
  await page.reload();
  await state(page, "you type");
  await shown(page, "still here");

  const second = await open(token, { viewport: { width: 1000, height: 640 } });
  await second.goto(page.url());
  await state(second, "read only: somebody else types");
  await state(page, "1 more looks on");
  await shown(second, "still here");
  await second.keyboard.type("echo for''bidden\n");
  await check(second, "terminal-looking-on");
  await page.keyboard.type("echo al''lowed\n");
  await shown(second, "allowed");
  assert.ok(!(await second.locator(".xterm-rows").innerText()).includes("forbidden"));
  await second.getByRole("button", { name: "Take the keyboard" }).click();
  await state(second, "you type");
  await state(page, "read only: somebody else types");
  await second.keyboard.type("echo ta''ken\n");
  await shown(page, "taken");

  const looking = await open(reader);
  await looking.goto(page.url());
  await state(looking, "read only: your token may look on");
  await shown(looking, "taken");

  // More than the page can draw at once comes as fast as it draws.
  const began = performance.now();
  await second.keyboard.type("head -c 2000000 /dev/zero | tr '\\0' x | fold -w 79; echo fl''ood over\n");
  await shown(second, "flood over");
  const flood = Math.round(performance.now() - began);

  await second.keyboard.type("exit 3\n");
  await state(second, "ended with exit code 3");
  await second.getByRole("button", { name: "New terminal" }).click();
  await state(second, "you type");

  const phone = await open(token, { viewport: { width: 390, height: 760 }, colorScheme: "dark", hasTouch: true, isMobile: true });
  await phone.goto(`${url}/terminal/?cave=${cave}`);
  await state(phone, "you type");
  await phone.keyboard.type("PS1='$ '; clear; ls -la / | head -8\n");
  await shown(phone, "total");
  await phone.getByRole("button", { name: "Ctrl-C" }).tap();
  await shown(phone, "^C");
  assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  await check(phone, "terminal-phone-dark");
  await phone.keyboard.type("exit\n");
  await state(phone, "ended");

  await phone.goto(`${url}/terminal/?cave=resting`);
  await state(phone, "resting is stopped: start it first");
  assert.deepEqual(errors, []);
  console.log(JSON.stringify({ flood_ms: flood }));
} catch (error) {
  // What was to be seen, for who looks for the reason.
  for (const [at, page] of browser.contexts().flatMap((one) => one.pages()).entries()) await page.screenshot({ path: `${pictures}/terminal-failed-${at}.png` });
  console.error(errors);
  throw error;
} finally {
  await browser.close();
}
