// The official TypeScript client against a served hub: `node peer.mjs FOLDER-OF-THE-CLIENT`, what to do as JSON on stdin,
// what was seen as JSON on stdout.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const folder = process.argv[2];
const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
const entry = about.exports["."].import?.default ?? about.exports["."].import ?? about.module;
const { Client, StreamableHTTPClientTransport, SSEClientTransport } = await import(pathToFileURL(join(folder, entry)));

const asked = JSON.parse(readFileSync(0, "utf8"));
const url = new URL(asked.url);
// What the SSE client fetches for its stream takes no requestInit: the header goes in here, for both.
const authorized = (to, init) => {
  const sent = new Headers(init?.headers);
  sent.set("Authorization", `Bearer ${asked.token}`);
  return fetch(to, { ...init, headers: sent });
};
const Transport = url.pathname === "/sse" ? SSEClientTransport : StreamableHTTPClientTransport;
const transport = new Transport(url, { fetch: authorized });
const mode = asked.mode === "legacy" ? "legacy" : { pin: asked.mode };
const client = new Client({ name: "peer", version: "1" }, { versionNegotiation: { mode } });
await client.connect(transport);

const call = (name, args, options) => client.callTool({ name, arguments: args }, options);
const text = (result) => result.content.filter((part) => part.type === "text").map((part) => part.text).join("\n");
const seen = { version: client.getNegotiatedProtocolVersion?.() ?? transport.protocolVersion };
seen.tools = (await client.listTools()).tools.length;
seen.called = (await call("shell_exec", { command: "echo $((6*7))" })).structuredContent.stdout;

const told = [];
await call("shell_exec", { command: "for i in 1 2 3 4; do echo step $i; sleep 0.8; done" }, { onprogress: (progress) => told.push(progress.message ?? "") });
seen.progress = told.some((message) => message.startsWith("step"));

const nap = `1000.${Math.floor(Math.random() * 1e9)}`;
const stop = new AbortController();
setTimeout(() => stop.abort(), 1000);
seen.cancelled = await call("shell_exec", { command: `sleep ${nap}`, timeout_s: 60 }, { signal: stop.signal }).then(() => false, () => true);
for (const end = Date.now() + 60_000; Date.now() < end;) {
  seen.left = text(await call("shell_exec", { command: `cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[s]leep ${nap}'` })).trim().split(/\s/)[0];
  if (seen.left === "0") break;
}

await call("file_write", { path: "p.png", content: Buffer.from(asked.png, "hex").toString("base64"), encoding: "base64" });
seen.picture = (await call("file_read", { path: "p.png" })).content.find((part) => part.type === "image")?.mimeType;

const flood = await call("shell_exec", { command: "head -c 5000000 /dev/zero | tr '\\0' x" });
const link = flood.content.find((part) => part.type === "resource_link");
seen.flood = link.size;
seen.piece = (await client.readResource({ uri: `${link.uri}?offset=4999990&limit=10` })).contents[0].text;

seen.failed = (await call("file_read", { path: "no-such" })).isError === true;
seen.unknown = await call("no_such_tool", {}).then(() => null, (error) => error.code);
await client.close();
console.log(JSON.stringify(seen));
