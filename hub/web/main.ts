// The address after # says what is shown; one stream of events serves all views.
import { cavePage } from "./cave";
import { overview } from "./overview";
import { say } from "./parts";

const events = new EventTarget();
const main = document.querySelector("main")!;
const live = document.getElementById("live")!;
let leave = (): void => undefined;

let cave: string | undefined;

function show(): void {
  leave();
  const [, kind, name, tab] = location.hash.split("/");
  const before = cave, held = main.contains(document.activeElement);
  cave = kind === "cave" && name ? named(name) : "";
  document.title = cave ? `${cave} · Ghost` : "Ghost";
  leave = cave ? cavePage(main, cave, tab ?? "", events) : overview(main, events);
  // What was followed is gone: the keyboard goes on from the view that was chosen, or from the start of another page.
  if (held) (cave === before ? main.querySelector<HTMLElement>("nav [aria-current]") ?? main : main).focus();
}

function named(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return ""; // an address that somebody has cut off
  }
}

function listen(): void {
  const source = new EventSource("/v1/events");
  for (const kind of ["call", "cave"]) {
    source.addEventListener(kind, (event) => events.dispatchEvent(new CustomEvent(kind, { detail: JSON.parse((event as MessageEvent<string>).data) })));
  }
  source.addEventListener("missed", () => say("Some calls went by too fast to be shown."));
  source.addEventListener("open", () => { live.textContent = "live"; live.className = "state running"; });
  source.addEventListener("error", () => { live.textContent = "not connected"; live.className = "state failed"; });
}

addEventListener("hashchange", show);
show();
listen();
performance.mark("interactive");
