// What several views show.
import { Refusal } from "./api";
import { h } from "./dom";

/** The attribute that says which thing takes another's place when its label changes with what it does. */
export const FOCUS_KEY = "data-key";
let shown = 0;

/** Say a thing to everybody, also to those who listen to the page. */
export function say(text: string, bad = false): void {
  const place = document.getElementById("said")!;
  place.replaceChildren(h("p", { class: bad ? "bad" : "" }, text));
  const mine = ++shown;
  setTimeout(() => { if (mine === shown) place.replaceChildren(); }, bad ? 12000 : 5000);
}

/** What was refused and what helps, in sentences. */
export function words(error: unknown): string {
  if (!(error instanceof Refusal)) return String(error);
  if (error.status === 401) return "You are signed out: your token has ended. Load this page again to see how to come back.";
  return [error.message, error.hint].filter(Boolean).map((text) => `${text[0]!.toUpperCase()}${text.slice(1)}`.replace(/([^.?!])$/, "$1.")).join(" ");
}

/** Do a thing that the hub may refuse, and say so. */
export async function attempt(act: () => Promise<void>): Promise<void> {
  try {
    await act();
  } catch (error) {
    say(words(error), true);
  }
}

/** Replace what stands in a place. Who has the focus there keeps it: on what has the same key, or the same label. */
export function refill(place: Element, ...content: (Node | string)[]): void {
  const held = place.contains(document.activeElement) ? document.activeElement! : null;
  const name = held?.hasAttribute(FOCUS_KEY) ? FOCUS_KEY : "aria-label", value = held?.getAttribute(name);
  place.replaceChildren(...content);
  if (value) place.querySelector<HTMLElement>(`[${name}="${CSS.escape(value)}"]`)?.focus();
}

export function button(text: string, act: () => Promise<void> | void, props: Record<string, unknown> = {}): HTMLButtonElement {
  const made = h("button", { type: "button", ...props }, text);
  made.addEventListener("click", async () => {
    if (made.ariaDisabled) return; // and not disabled, which would lose the focus
    made.ariaDisabled = "true";
    await attempt(async () => { await act(); });
    made.ariaDisabled = null;
  });
  return made;
}

export function state(word: string): HTMLElement {
  return h("span", { class: `state ${["running", "paused", "stopped", "ended"].includes(word) ? word : ""}` }, word);
}

/** Use against a limit, as words and as a bar. */
export function use(title: string, value: string, part: number | null): HTMLElement {
  return h("div", { class: "use" }, h("span", { class: "quiet" }, title), h("span", { class: "value" }, value),
    part === null ? null : h("meter", { min: 0, max: 1, high: 0.9, optimum: 0, value: Math.min(1, part), "aria-label": `${title}: ${value}` }));
}

/** A dialog that gives itself back when it is closed; Escape closes it, the browser keeps the focus inside. */
export function dialog(title: string, ...content: (Node | string)[]): HTMLDialogElement {
  const made = h("dialog", { "aria-label": title }, h("h2", {}, title), ...content);
  made.addEventListener("close", () => made.remove());
  document.body.append(made);
  made.showModal();
  return made;
}

export function confirmed(title: string, text: string, word: string, act: () => Promise<void>): void {
  const made = dialog(title, h("p", {}, text), h("div", { class: "row end" },
    button("Cancel", () => made.close()),
    button(word, async () => { made.close(); await act(); }, { class: "danger" })));
}
