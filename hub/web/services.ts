// What runs in a cave for whoever dials it: ports that an agent's programs listen on, and services that Ghost starts.
import { type Service, get, one, post } from "./api";
import { bytes, h } from "./dom";
import { FOCUS_KEY, attempt, button, refill, say } from "./parts";

const WAIT_MS = 700;
/** A service for programs, which has nothing to show. */
const SILENT = "kernels";
const TITLES: Record<string, string> = { vnc: "Desktop", "code-server": "VS Code", jupyter: "JupyterLab", kernels: "Jupyter kernels" };

const door = (service: string, cave: string): string => `/services/${encodeURIComponent(service)}/?${new URLSearchParams({ cave })}`;
const away = { class: "button", target: "_blank", rel: "noopener" };

async function known(name: string): Promise<Service[]> {
  return (await get<{ services: Service[] }>(`${one(name)}/services`)).services;
}

/** Links to the pages of a cave: the terminal, and the services that it has the programs for. */
export async function pages(name: string): Promise<HTMLElement[]> {
  const found = await known(name).catch(() => null); // it does not run
  if (found === null) return [];
  return [h("a", { ...away, href: `/terminal/?${new URLSearchParams({ cave: name })}` }, "Terminal"),
    ...found.filter((service) => service.state !== "missing" && service.name !== SILENT)
      .map((service) => h("a", { ...away, href: door(service.name, name) }, TITLES[service.name] ?? service.name))];
}

/** A tab for a port. It is opened before the link is there, while the browser still knows that somebody asked. */
async function show(name: string, port: number): Promise<void> {
  const tab = window.open("about:blank", "_blank");
  if (tab) tab.opener = null;
  try {
    const { url } = await post<{ url: string }>(`${one(name)}/previews`, { port });
    if (tab) tab.location.replace(url);
    else say("The browser does not let this page open a tab.", true);
  } catch (error) {
    tab?.close();
    throw error;
  }
}

export function previews(panel: HTMLElement, name: string, events: EventTarget): () => void {
  const list = h("ul", { class: "files" }), none = h("p", { class: "quiet" }, "Looking …");
  const form = h("form", { class: "row" }, h("label", {}, "Another port ", h("input", { name: "port", type: "number", min: 1, max: 65535, required: true, value: 8000 })), h("button", {}, "Open"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void attempt(() => show(name, Number(new FormData(form).get("port"))));
  });
  const draw = async () => {
    const { ports } = await get<{ ports: number[] }>(`${one(name)}/previews`);
    none.textContent = ports.length ? "" : "Nothing listens in this cave.";
    refill(list, ...ports.map((port) => h("li", {}, h("span", { class: "name" }, "Port ", h("code", {}, port)), button("Open", () => show(name, port), { "aria-label": `Open port ${port}` }))));
  };
  panel.replaceChildren(h("p", {}, "What programs in the cave serve, each at an address of its own. No port of this machine is opened."),
    list, none, h("div", { class: "row" }, form, button("Look again", draw)));
  let timer = 0;
  const called = (event: Event) => { // an agent may have started something
    const { cave, state } = (event as CustomEvent<{ cave: string | null; state: string }>).detail;
    if (state !== "ended" || (cave !== null && cave !== name)) return;
    clearTimeout(timer);
    timer = window.setTimeout(() => void draw().catch(() => undefined), WAIT_MS);
  };
  events.addEventListener("call", called);
  void attempt(draw);
  return () => { clearTimeout(timer); events.removeEventListener("call", called); };
}

export function services(panel: HTMLElement, name: string): () => void {
  const list = h("ul", { class: "cards" });
  const draw = async () => refill(list, ...(await known(name)).map(card));
  const act = (service: Service, word: string) => async () => {
    await post(`${one(name)}/services/${encodeURIComponent(service.name)}/${word}`);
    await draw();
  };
  const card = (service: Service) => {
    const live = ["ready", "starting", "waiting"].includes(service.state);
    const kind = service.state === "ready" ? "running" : service.state === "failed" ? "failed" : live ? "busy" : "";
    return h("li", { class: "card" },
      h("div", { class: "row" }, h("h2", {}, TITLES[service.name] ?? service.name), h("span", { class: `state ${kind}` }, service.state)),
      h("p", {}, service.about || service.name),
      live ? h("p", { class: "quiet" }, `${bytes(service.memory_bytes)}${service.restarts ? `, started again ${service.restarts} times` : ""}`) : null,
      service.state === "missing" ? h("p", { class: "quiet" }, service.hint) : h("div", { class: "row end" },
        live ? button("Stop", act(service, "stop"), { "aria-label": `Stop ${service.name}`, [FOCUS_KEY]: service.name }) : button("Start", act(service, "start"), { "aria-label": `Start ${service.name}`, [FOCUS_KEY]: service.name }),
        service.name === SILENT ? null : h("a", { ...away, href: door(service.name, name), "aria-label": `Open ${TITLES[service.name] ?? service.name}` }, "Open")));
  };
  panel.replaceChildren(h("p", {}, "Programs that the cave keeps running for whoever opens them: started on first use, stopped when idle."), list, h("div", { class: "row" }, button("Look again", draw)));
  void attempt(draw);
  return () => undefined;
}
