// All caves of the owner.
import { type Cave, type Limits, type Sample, ask, get, one, post } from "./api";
import { age, bytes, chart, h } from "./dom";
import { FOCUS_KEY, button, confirmed, dialog, refill, say, state, use, words } from "./parts";

/** So many caves are looked through rather than seen. */
const MANY = 9;

interface Stats { caves: Record<string, { limits: Limits; samples: Sample[] }> }

export function actions(cave: Cave, changed: () => void): HTMLElement[] {
  const act = (word: string, done: string) => async () => {
    await post(`${one(cave.name)}/${word}`);
    say(`${cave.name} is ${done}.`);
    changed();
  };
  const destroy = () => confirmed(`Destroy ${cave.name}?`, "Its processes end and all its files are deleted. This cannot be undone.", "Destroy", async () => {
    await ask(one(cave.name), { method: "DELETE" });
    say(`${cave.name} is destroyed.`);
    changed();
  });
  const running = cave.state === "running";
  return [
    running ? button("Stop", act("stop", "stopped"), { "aria-label": `Stop ${cave.name}`, [FOCUS_KEY]: cave.name }) : button("Start", act("start", "running"), { "aria-label": `Start ${cave.name}`, [FOCUS_KEY]: cave.name }),
    button("Destroy", destroy, { class: "danger", "aria-label": `Destroy ${cave.name}` }),
  ];
}

export function uses(limits: Limits | undefined, last: Sample | undefined): HTMLElement[] {
  const of = (value: number | null | undefined, limit: number | null | undefined) => (limit && value !== null && value !== undefined ? value / limit : null);
  const against = (text: string, limit: string | null) => (limit === null ? text : `${text} of ${limit}`);
  const cpus = last?.cpus;
  const rows = [
    use("CPU", against(cpus === null || cpus === undefined ? "–" : cpus.toFixed(2), limits?.cpus ? String(limits.cpus) : null), of(cpus, limits?.cpus)),
    use("Memory", against(bytes(last?.memory_bytes), limits?.memory_bytes ? bytes(limits.memory_bytes) : null), of(last?.memory_bytes, limits?.memory_bytes)),
    use("Processes", against(String(last?.pids ?? "–"), limits?.pids ? String(limits.pids) : null), of(last?.pids, limits?.pids)),
  ];
  if (last?.disk_bytes !== null && last?.disk_bytes !== undefined) rows.push(use("Disk", against(bytes(last.disk_bytes), limits?.disk_bytes ? bytes(limits.disk_bytes) : null), of(last.disk_bytes, limits?.disk_bytes)));
  return rows;
}

function card(cave: Cave, stats: Stats["caves"][string] | undefined, changed: () => void): HTMLElement {
  const samples = stats?.samples ?? [];
  const cpus = samples.map((sample) => sample.cpus);
  const running = cave.state === "running";
  return h("li", { class: "card" },
    h("div", { class: "row" }, h("h2", {}, h("a", { href: `#/cave/${encodeURIComponent(cave.name)}`, [FOCUS_KEY]: `open ${cave.name}` }, cave.name)), state(cave.state)),
    h("p", { class: "quiet" }, `${cave.backend}${cave.spec.image ? ` · ${cave.spec.image}` : ""} · ${age(Date.now() / 1000 - cave.created_at)}`),
    running ? chart(cpus, stats?.limits.cpus ?? 1, `Processors in use by ${cave.name} in the last five minutes`) : null,
    running ? h("div", { class: "uses" }, ...uses(stats?.limits, samples.at(-1))) : h("p", { class: "quiet" }, "Not running; its files are kept."),
    h("div", { class: "row end" }, ...actions(cave, changed)));
}

function create(changed: () => void): void {
  const field = (label: string, props: Record<string, unknown>, hint: string) => h("label", {}, label, h("input", { autocomplete: "off", ...props }), h("small", { class: "quiet" }, hint));
  const form = h("form", { method: "dialog" },
    field("Name", { name: "name", pattern: "[a-z0-9\\-]{1,40}", autofocus: true }, "a-z, 0-9 and -; made up when left out"),
    h("label", {}, "Backend", h("select", { name: "backend" }, h("option", { value: "" }, "the hub's own"), ...["local", "docker", "compose", "kubernetes"].map((name) => h("option", { value: name }, name)))),
    field("Image", { name: "image" }, "where the backend has images; else left out"),
    field("Memory in MiB", { name: "memory", type: "number", min: 32 }, "the usual limit when left out"),
    h("div", { class: "row end" }, button("Cancel", () => made.close()), h("button", { class: "main" }, "Create")));
  const made = dialog("New cave", form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const given = new FormData(form);
    const text = (name: string) => String(given.get(name) ?? "").trim();
    const body: Record<string, unknown> = { name: text("name"), backend: text("backend") };
    if (text("image")) body.image = text("image");
    if (text("memory")) body.memory_bytes = Number(text("memory")) << 20;
    try {
      const cave = await post<Cave>("/v1/caves", body);
      made.close();
      say(`${cave.name} is there.`);
      changed();
    } catch (error) {
      form.querySelector(".bad")?.remove();
      form.prepend(h("p", { class: "bad", role: "alert" }, words(error)));
    }
  });
}

function nothing(): HTMLElement {
  return h("li", { class: "empty" }, h("p", {}, "No caves yet."),
    h("p", { class: "quiet" }, "An agent's first call makes one, and so does the button above. Your agent is given this hub by:"),
    h("p", {}, h("code", {}, `ghost install CLIENT --http ${location.origin}/mcp`)));
}

/** The view; what it returns ends it. */
export function overview(main: HTMLElement, events: EventTarget): () => void {
  let ended = false, caves: Cave[] = [], stats: Stats["caves"] = {};
  const list = h("ul", { class: "cards" }), count = h("span", { class: "quiet", role: "status" });
  const wanted = h("input", { type: "search", placeholder: "Filter", "aria-label": "Filter caves", autocomplete: "off", hidden: true });
  const show = () => {
    const words = wanted.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = caves.filter((cave) => words.every((word) => `${cave.name} ${cave.state} ${cave.backend}`.includes(word)));
    refill(list, ...found.map((cave) => card(cave, stats[cave.name], redraw)));
    if (!caves.length) list.append(nothing());
    const running = caves.filter((cave) => cave.state === "running").length;
    const told = words.length ? `${found.length} of ${caves.length}` : caves.length ? `${running} of ${caves.length} running` : "";
    if (count.textContent !== told) count.textContent = told;
    wanted.hidden = caves.length < MANY && !wanted.value;
  };
  const draw = async () => {
    const [listed, measured] = await Promise.all([get<{ caves: Cave[] }>("/v1/caves"), get<{ caves: Stats["caves"] }>("/v1/stats")]);
    if (ended) return;
    caves = listed.caves;
    stats = measured.caves;
    show();
  };
  const redraw = () => void draw().catch((error) => { if (!ended) say(words(error), true); });
  wanted.addEventListener("input", show);
  main.replaceChildren(h("div", { class: "row" }, h("h1", {}, "Caves"), count, wanted, button("New cave", () => create(redraw), { class: "main" })), list);
  redraw();
  events.addEventListener("cave", redraw);
  const timer = setInterval(redraw, 5000);
  return () => { ended = true; clearInterval(timer); events.removeEventListener("cave", redraw); };
}
