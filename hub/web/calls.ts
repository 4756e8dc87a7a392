// The agent's calls as they happen.
import { type Call, get, query } from "./api";
import { clock, h, span } from "./dom";
import { attempt } from "./parts";

const KEPT = 200;

/** The one line of a call that tells most: its command, path or address. */
function gist(given: unknown): string {
  if (given === null || typeof given !== "object") return "";
  const words = given as Record<string, unknown>;
  for (const key of ["command", "path", "url", "pattern", "text", "selector", "session", "source"]) {
    if (typeof words[key] === "string") return words[key].slice(0, 200);
  }
  return "";
}

function shown(call: Call, open: boolean): HTMLElement {
  const ended = call.state === "ended";
  const good = call.outcome === "ok";
  const result = ended ? (good ? "done" : call.outcome ?? "") : "running";
  return h("li", {}, h("details", { open, "data-call": call.id },
    h("summary", {},
      h("span", { class: `state ${ended ? (good ? "running" : "failed") : "busy"}` }, result),
      h("strong", {}, call.tool), h("code", { class: "gist" }, gist(call.arguments)),
      h("span", { class: "quiet" }, `${clock(call.began_at ?? call.at)}${call.duration_s === undefined ? "" : ` · ${span(call.duration_s)}`}`)),
    h("h3", {}, "Asked"), h("pre", { tabindex: 0, "aria-label": "Arguments" }, call.arguments === undefined ? "told when the call has ended" : JSON.stringify(call.arguments, null, 2)),
    ended ? h("h3", {}, "Answered") : null, ended ? h("pre", { tabindex: 0, "aria-label": "Answer" }, call.text || "(nothing)") : null,
    ...Array.from({ length: call.pictures ?? 0 }, (_, n) => h("img", { src: `/v1/calls/${call.id}/pictures/${n}`, alt: `Picture ${n + 1} that ${call.tool} answered with`, loading: "lazy" }))));
}

export function activity(place: HTMLElement, cave: string, events: EventTarget): () => void {
  const list = h("ol", { class: "calls" });
  const nothing = h("p", { class: "quiet" }, "No calls yet: what an agent does here shows up as it happens.");
  place.replaceChildren(nothing, list);
  const put = (call: Call) => {
    nothing.hidden = true;
    const there = list.querySelector<HTMLDetailsElement>(`[data-call="${CSS.escape(call.id)}"]`);
    const made = shown(call, there?.open ?? false);
    if (!there) list.prepend(made);
    else {
      const held = there.contains(document.activeElement);
      there.parentElement!.replaceWith(made);
      if (held) made.querySelector("summary")!.focus();
    }
    while (list.children.length > KEPT) list.lastElementChild!.remove();
  };
  const heard = (event: Event) => {
    const call = (event as CustomEvent<Call>).detail;
    if (call.cave === cave || (call.cave === null && cave === "default")) put(call);
  };
  events.addEventListener("call", heard);
  void attempt(async () => (await get<{ calls: Call[] }>(`/v1/calls${query({ cave })}`)).calls.forEach((call) => {
    if (!list.querySelector(`[data-call="${CSS.escape(call.id)}"]`)) put(call);
  }));
  return () => events.removeEventListener("call", heard);
}
