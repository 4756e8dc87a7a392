// Drives Chromium through the dashboard of a served hub. Prints one JSON document; a failed expectation ends it.
// Usage: board.mjs MODULES URL TOKEN PICTURES
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, url, token, pictures] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
mkdirSync(pictures, { recursive: true });

const tool = async (name, args) => {
  const answer = await fetch(`${url}/mcp/execute`, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ tool: name, arguments: args }),
  });
  assert.ok(answer.ok, await answer.clone().text());
  return answer.json();
};

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
const errors = [];
const open = async (options) => {
  const page = await (await browser.newContext(options)).newPage();
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (line) => {
    if (line.type() === "error" && !line.text().includes("Failed to load resource")) errors.push(line.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) errors.push(`asked ${request.url()}`);
  });
  return page;
};
// Evaluated by the DevTools, as no page could: its policy stays as strict as it is.
const check = async (page, name) => {
  await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] }));
  assert.deepEqual(violations.map((v) => `${name}: ${v.id}: ${v.nodes.map((n) => `${n.html} ${n.failureSummary}`).join("; ")}`.slice(0, 1500)), []);
};
// A server that an agent starts meanwhile appears, and is opened at a host of its own.
const preview = async (page) => {
  await see(page, "Nothing listens in this cave");
  await tool("shell_exec", { command: "mkdir -p site && echo '<h1>served in a cave</h1>' > site/index.html && exec python3 -m http.server 8123 -d site", background: true, cave: "dev" });
  await tool("shell_exec", { command: "until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8123))' 2>/dev/null; do sleep 0.1; done", cave: "dev" });
  const popup = page.waitForEvent("popup");
  await page.getByRole("button", { name: "Open port 8123" }).click();
  const opened = await popup;
  await opened.getByRole("heading", { name: "served in a cave" }).waitFor();
  assert.equal(new URL(opened.url()).hostname, "8123--dev.caves.localhost");
  assert.equal(await opened.evaluate(() => globalThis.opener), null);
  await opened.close();
};
const focused = (page, text) => page.waitForFunction((text) => document.activeElement?.textContent === text, text);
const see = (page, text) => page.getByText(text).first().waitFor();

try {
  const stranger = await open();
  assert.equal((await stranger.goto(url)).status(), 401);
  await see(stranger, "You are signed out");
  await check(stranger, "signed-out");

  const page = await open({ viewport: { width: 1200, height: 800 } });
  page.setDefaultTimeout(60_000);
  await page.goto(`${url}/?token=${token}`);
  assert.equal(page.url(), `${url}/`);
  await page.getByRole("heading", { name: "Caves" }).waitFor();
  const interactive = await page.evaluate(() => performance.getEntriesByName("interactive")[0].startTime);

  await page.getByRole("button", { name: "New cave" }).click();
  await check(page, "new-cave");
  await page.getByLabel("Name").fill("dev");
  await page.keyboard.press("Enter");
  await page.getByRole("link", { name: "dev", exact: true }).waitFor();
  await page.getByRole("img", { name: /Processors in use by dev/ }).waitFor();
  await check(page, "caves");

  await page.getByRole("link", { name: "dev", exact: true }).click();
  await see(page, "No calls yet");
  const hostile = "<img src=x onerror=document.title='pwned'>";
  const slow = tool("shell_exec", { command: "echo warm", cave: "dev" });
  await slow;
  const running = tool("shell_exec", { command: `until [ -e go ]; do sleep 0.05; done; echo "${hostile}"`, cave: "dev" });
  await page.locator("li", { hasText: "until [ -e go ]" }).getByText("running", { exact: true }).waitFor();
  await tool("file_write", { path: "go", content: "", cave: "dev" });
  await running;
  const call = page.locator("details", { hasText: "until [ -e go ]" });
  await call.getByText("done", { exact: true }).waitFor();
  await call.locator("summary").focus();
  await page.keyboard.press("Enter");
  await call.getByLabel("Answer").getByText(hostile).waitFor();
  assert.equal(await page.title(), "dev · Ghost");
  await check(page, "activity");

  await page.getByRole("link", { name: "Files" }).click();
  const given = await page.evaluateHandle(() => {
    const carried = new DataTransfer();
    carried.items.add(new File(["dropped here\r\n"], "drop.txt", { type: "text/plain" }));
    return carried;
  });
  await page.locator(".drop").dispatchEvent("drop", { dataTransfer: given });
  await page.getByRole("button", { name: "drop.txt" }).click();
  const area = page.getByRole("textbox");
  assert.equal(await area.inputValue(), "dropped here\n");
  await area.fill("dropped here\nand edited\n");
  await page.keyboard.press("Control+s");
  await see(page, "is saved");
  await check(page, "files");
  const read = await tool("shell_exec", { command: "cat drop.txt | od -c | head -3", cave: "dev" });
  assert.match(JSON.stringify(read), /e   d/);

  for (const tab of ["Usage", "Network", "Previews", "Services", "Log", "Walls"]) {
    await page.getByRole("navigation", { name: "Views of dev" }).getByRole("link", { name: tab }).click();
    await focused(page, tab); // and not lost with the view that is gone
    if (tab === "Usage") await page.getByRole("img", { name: /Memory in the last hour/ }).waitFor();
    if (tab === "Network") await see(page, "This cave has no network");
    if (tab === "Previews") await preview(page);
    if (tab === "Services") await see(page, "JupyterLab");
    if (tab === "Walls") await see(page, "enforced");
    await check(page, tab.toLowerCase());
  }

  const phone = await open({ viewport: { width: 390, height: 800 }, colorScheme: "dark" });
  await phone.goto(`${url}/?token=${token}`);
  await phone.getByRole("img", { name: /Processors in use by dev/ }).waitFor();
  await check(phone, "phone-dark-caves");
  await phone.getByRole("link", { name: "dev", exact: true }).click();
  await phone.locator("details").first().waitFor();
  await check(phone, "phone-dark-activity");
  assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth));

  await page.goto(`${url}/#/cave/nobody`);
  await see(page, "There is no cave of this name");
  await check(page, "nobody");
  await page.goto(`${url}/#/cave/dev`);
  await page.getByRole("button", { name: "Stop dev" }).press("Enter");
  await focused(page, "Start");
  await page.getByRole("link", { name: "All caves" }).click();
  await page.getByRole("button", { name: "Destroy dev" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Destroy" }).click();
  await see(page, "No caves yet");
  await check(page, "empty");
  assert.deepEqual(errors, []);
  console.log(JSON.stringify({ interactive_ms: interactive }));
} finally {
  await browser.close();
}
