// One cave's page.
import { type Cave, type Connection, type Limits, Refusal, type Sample, ask, get, one } from "./api";
import { activity } from "./calls";
import { bytes, chart, clock, h } from "./dom";
import { files } from "./files";
import { actions, uses } from "./overview";
import { attempt, button, refill, state } from "./parts";
import { pages, previews, services } from "./services";

const TABS = ["Activity", "Files", "Usage", "Network", "Previews", "Services", "Log", "Walls"] as const;
const LOG_CHARS = 200_000;
const REACH: Record<string, string> = {
  none: "This cave has no network: nothing leaves it.",
  allow: "This cave reaches what its list allows, and nothing else:",
  open: "This cave reaches the internet, but never this machine or its networks.",
};

async function found(name: string): Promise<Cave | null> {
  try {
    return await get<Cave>(one(name));
  } catch (error) {
    if (error instanceof Refusal && error.status === 404) return null;
    throw error;
  }
}

export function cavePage(main: HTMLElement, name: string, wanted: string, events: EventTarget): () => void {
  const here = TABS.find((tab) => tab.toLowerCase() === wanted) ?? "Activity";
  const head = h("div", { class: "row" }, h("h1", {}, name));
  const links = h("p", { class: "links" });
  const panel = h("section", { "aria-label": here });
  const tabs = h("nav", { class: "tabs", "aria-label": `Views of ${name}` }, ...TABS.map((tab) =>
    h("a", { href: `#/cave/${encodeURIComponent(name)}/${tab.toLowerCase()}`, "aria-current": tab === here ? "page" : false }, tab)));
  main.replaceChildren(h("p", {}, h("a", { href: "#/" }, "← All caves")), head, links, tabs, panel);
  tabs.querySelector("[aria-current]")!.scrollIntoView({ block: "nearest", inline: "nearest" }); // a phone's are wider than it
  let ended = false, gone = false;
  const draw = () => void attempt(async () => {
    const cave = await found(name);
    if (ended) return;
    if (!cave) { // destroyed meanwhile, or never there: its views would only show that there is nothing
      gone = true;
      leave();
      tabs.remove();
      links.replaceChildren();
      head.replaceChildren(h("h1", {}, name));
      panel.replaceChildren(h("p", {}, "There is no cave of this name."));
      return;
    }
    if (gone) return void dispatchEvent(new Event("hashchange")); // made anew: all is shown anew
    refill(head, h("h1", {}, name), state(cave.state), h("span", { class: "quiet" }, cave.backend), h("span", { class: "row end" }, ...actions(cave, () => draw())));
    const doors = cave.state === "running" ? await pages(name) : [];
    if (!ended) refill(links, ...doors);
  });
  draw();
  const changed = (event: Event) => { if ((event as CustomEvent<{ cave: string }>).detail.cave === name) draw(); };
  events.addEventListener("cave", changed);
  const views = { Activity: () => activity(panel, name, events), Files: () => files(panel, name), Usage: () => usage(panel, name), Network: () => network(panel, name), Previews: () => previews(panel, name, events), Services: () => services(panel, name), Log: () => log(panel, name), Walls: () => walls(panel, name) };
  const leave = views[here]();
  return () => { ended = true; leave(); events.removeEventListener("cave", changed); };
}

function usage(panel: HTMLElement, name: string): () => void {
  const source = new EventSource(`${one(name)}/stats/events`);
  let samples: Sample[] = [], limits: Limits | undefined;
  panel.replaceChildren(h("p", { class: "quiet" }, "Measuring …"));
  const draw = () => {
    const last = samples.at(-1);
    if (!last) return;
    const drawn = (title: string, values: (number | null)[], most: number, now: string) => h("div", { class: "card" }, h("h2", {}, title), chart(values, most, `${title} in the last hour, now ${now}`), h("p", { class: "quiet" }, now));
    const of = (pick: (sample: Sample) => number | null) => samples.map(pick);
    panel.replaceChildren(h("div", { class: "uses wide" }, ...uses(limits, last)), h("div", { class: "cards" },
      drawn("Processors", of((s) => s.cpus), limits?.cpus ?? 1, last.cpus === null ? "–" : last.cpus.toFixed(2)),
      drawn("Memory", of((s) => s.memory_bytes), limits?.memory_bytes ?? 0, bytes(last.memory_bytes)),
      drawn("Processes", of((s) => s.pids), 0, String(last.pids ?? "–")),
      last.disk_bytes === null ? "" : drawn("Disk", of((s) => s.disk_bytes), limits?.disk_bytes ?? 0, bytes(last.disk_bytes)),
      drawn("Network, moved in all", of((s) => s.sent_bytes + s.received_bytes), 0, `${bytes(last.sent_bytes)} out, ${bytes(last.received_bytes)} in`)),
      h("p", { class: "quiet" }, "Every five seconds, while somebody looks and for an hour after; a dash where the backend cannot tell."));
  };
  void attempt(async () => {
    const found = await get<{ samples: Sample[]; limits: Limits }>(`${one(name)}/stats/history`);
    limits = found.limits;
    samples = found.samples;
    draw();
  });
  source.addEventListener("sample", (event) => {
    const sample = JSON.parse((event as MessageEvent<string>).data) as Sample;
    if (sample.at > (samples.at(-1)?.at ?? 0)) samples = [...samples, sample].slice(-720);
    draw();
  });
  return () => source.close();
}

/** Its role is said: a phone shows a row as a block, which would not be one any more to a screen reader. */
const cell = (content: Node | string): HTMLElement => h("td", { role: "cell" }, content);

function network(panel: HTMLElement, name: string): () => void {
  let drawn = "";
  const draw = () => attempt(async () => {
    const [told, cave] = await Promise.all([get<{ mode: string; connections: Connection[] }>(`${one(name)}/egress`), get<Cave>(one(name))]);
    const { mode, connections } = told, allowed = cave.spec.network?.allow ?? [];
    const now = JSON.stringify([told, allowed]);
    if (now === drawn) return; // who reads, or has scrolled, is not disturbed
    drawn = now;
    const rows = connections.slice().reverse().map((c) => h("tr", { role: "row", class: c.event === "refused" ? "bad" : "" },
      cell(clock(c.at)), cell(c.event), cell(h("code", {}, c.target)), cell(c.why || c.rule || ""),
      cell(c.event === "closed" ? `${bytes(c.sent_bytes)} out, ${bytes(c.received_bytes)} in` : "")));
    panel.replaceChildren(h("p", {}, REACH[mode] ?? `Network: ${mode}.`), mode === "allow" && allowed.length ? h("p", {}, ...allowed.flatMap((rule) => [h("code", { class: "rule" }, rule), " "])) : "",
      rows.length ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Connections" }, h("table", { role: "table" }, h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...["Time", "What", "Where", "Why", "Moved"].map((t) => h("th", { scope: "col", role: "columnheader" }, t)))), h("tbody", { role: "rowgroup" }, ...rows))) : h("p", { class: "quiet" }, mode === "none" ? "" : "No connections yet."));
  });
  void draw();
  const timer = setInterval(() => void draw(), 4000);
  return () => clearInterval(timer);
}

function log(panel: HTMLElement, name: string): () => void {
  const text = h("pre", { tabindex: 0, "aria-label": "Log of the cave" }, "…");
  const draw = async () => { text.textContent = (await (await ask(`${one(name)}/logs`)).text()).slice(-LOG_CHARS) || "(nothing yet)"; };
  panel.replaceChildren(h("div", { class: "row" }, button("Read again", draw)), text);
  void attempt(draw);
  return () => undefined;
}

function walls(panel: HTMLElement, name: string): () => void {
  void attempt(async () => {
    const cave = await get<Cave>(one(name));
    panel.replaceChildren(h("p", {}, "What is really enforced around this cave."), h("dl", {}, ...Object.entries(cave.assurance).map(([what, told]) =>
      h("div", {}, h("dt", {}, what, " ", h("span", { class: `state ${told.enforced ? "running" : "failed"}` }, told.enforced ? "enforced" : "not enforced")), h("dd", {}, told.how)))));
  });
  return () => undefined;
}
