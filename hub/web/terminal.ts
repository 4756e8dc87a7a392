// The page at /terminal/: a terminal of a cave, which others may look at, and which outlives the page.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";
import "./terminal.css";
import { type Cave, Refusal, get, one } from "./api";
import { h } from "./dom";
import { attempt, button } from "./parts";
import { Session, type Told } from "./session";
import { withoutInlineStyles } from "./sheets";

withoutInlineStyles();
const place = document.getElementById("terminal")!;
const state = document.getElementById("state")!;
const choice = document.querySelector("select")!;
const dark = matchMedia("(prefers-color-scheme: dark)");
const KEYS: [string, string][] = [["Esc", "\x1b"], ["Tab", "\t"], ["Ctrl-C", "\x03"], ["Ctrl-D", "\x04"], ["↑", "\x1b[A"], ["↓", "\x1b[B"], ["←", "\x1b[D"], ["→", "\x1b[C"]];

const theme = () => (dark.matches
  ? { background: "#1d2026", foreground: "#e8e9ec", cursor: "#aaa5ff", selectionBackground: "#4a4e78", black: "#343944", brightBlack: "#a2a9b4", blue: "#8ab4ff" }
  : { background: "#ffffff", foreground: "#1d2126", cursor: "#3f3aa8", selectionBackground: "#cfcdf5", black: "#1d2126", brightBlack: "#5a616b", white: "#5a616b", brightWhite: "#3c4149", red: "#a3241b", brightRed: "#a3241b", green: "#17663a", brightGreen: "#17663a", yellow: "#7a4d00", brightYellow: "#7a4d00", blue: "#2b4fb8", brightBlue: "#2b4fb8", magenta: "#86287f", brightMagenta: "#86287f", cyan: "#0b6170", brightCyan: "#0b6170" });
const term = new Terminal({ theme: theme(), minimumContrastRatio: 4.5, scrollback: 10_000, fontSize: innerWidth < 600 ? 13 : 15, fontFamily: "ui-monospace, monospace", cursorBlink: false });
const fit = new FitAddon();
term.loadAddon(fit);
term.open(place);
dark.addEventListener("change", () => { term.options.theme = theme(); });

const take = button("Take the keyboard", () => { session?.send("take"); term.focus(); });
const fresh = button("New terminal", () => start(choice.value, ""));
const aloud = h("input", { type: "checkbox" });
const READER = "ghost-terminal-reader";
aloud.addEventListener("change", () => {
  localStorage.setItem(READER, aloud.checked ? "on" : "");
  term.options.screenReaderMode = aloud.checked;
});
aloud.checked = term.options.screenReaderMode = localStorage.getItem(READER) === "on";
document.getElementById("acts")!.append(take, fresh, h("label", {}, aloud, "Screen reader"));
document.getElementById("keys")!.append(...KEYS.map(([name, data]) => {
  const key = button(name, () => type(data));
  key.addEventListener("pointerdown", (event) => event.preventDefault()); // the keyboard of a phone stays
  return key;
}));

let session: Session | undefined;
let typing: boolean | null = null, viewers = 1, replayed = false, typed = false;

function tell(text: string, kind: "running" | "busy" | "failed" | ""): void {
  state.textContent = text;
  state.className = `state ${kind}`;
}

function drawState(): void {
  const others = viewers > 1 ? `, ${viewers - 1} more ${viewers === 2 ? "looks" : "look"} on` : "";
  if (typing) tell(`you type${others}`, "running");
  else tell(typing === null ? "read only: your token may look on" : "read only: somebody else types", "busy");
  take.hidden = typing !== false;
  fresh.hidden = true;
}

function type(data: string): void {
  // What was shown before asks no questions now: a program's are answered once, by who was there.
  if (typing && replayed) session?.send("input", data);
  term.focus();
}

function fitted(): void {
  if (!typing) return;
  fit.fit();
  session?.send("resize", { cols: term.cols, rows: term.rows });
}

function heard(message: Told): void {
  if (message.type === "session_id") {
    term.reset();
    replayed = false;
    history.replaceState(null, "", `?${new URLSearchParams({ cave: choice.value, session: message.data })}`);
  } else if (message.type === "output") term.write(message.data, () => session?.drawn());
  else if (message.type === "replayed") term.write("", () => { replayed = true; });
  else if (message.type === "size") { if (!typing) term.resize(message.data.cols, message.data.rows); }
  else if (message.type === "exit") over(message.data === null ? "ended" : `ended with exit code ${message.data}`);
  else if (message.type === "viewers") { viewers = message.data; drawState(); }
  else if (message.type === "typing") {
    typing = message.data;
    // Come back, while the hub still waits for the connection that broke: the keyboard was here.
    if (typed && typing === false) session?.send("take");
    typed = false;
    drawState();
    fitted();
  }
}

function over(text: string): void {
  tell(text, "");
  typing = null;
  take.hidden = true;
  fresh.hidden = false;
  history.replaceState(null, "", `?${new URLSearchParams({ cave: choice.value })}`);
}

function name(cave: string): void {
  document.title = `${cave} · Terminal · Ghost`;
  document.querySelector<HTMLAnchorElement>("#back")!.href = `/#/cave/${encodeURIComponent(cave)}`;
}

function start(cave: string, id: string): void {
  session?.leave();
  typing = null;
  typed = false;
  tell("connecting", "busy");
  take.hidden = fresh.hidden = true;
  name(cave);
  term.reset();
  const mine: Session = new Session(cave, id, (message) => { if (session === mine) heard(message); }, (gone) => {
    if (session !== mine) return;
    if (gone) over(mine.id ? "this terminal has ended" : "no terminal: does the cave run, and may your token use it?");
    else {
      typed ||= typing === true;
      typing = false;
      tell("not connected, trying again", "failed");
    }
  });
  session = mine;
  term.focus();
}

const missing = (cave: string): Promise<boolean> => get(one(cave)).then(() => false, (error) => error instanceof Refusal && error.status === 404);

term.onData(type);
term.onBinary(type);
new ResizeObserver(() => fitted()).observe(place);
choice.addEventListener("change", () => start(choice.value, ""));

void attempt(async () => {
  const words = new URLSearchParams(location.search);
  const { caves } = await get<{ caves: Cave[] }>("/v1/caves");
  const names = caves.filter((cave) => cave.state === "running").map((cave) => cave.name);
  const wanted = words.get("cave") ?? names[0] ?? "default"; // which the first call makes
  choice.replaceChildren(...[...new Set([wanted, ...names])].sort().map((name) => h("option", { value: name, selected: name === wanted }, name)));
  const resting = caves.find((cave) => cave.name === wanted && !names.includes(wanted));
  const unknown = !resting && !names.includes(wanted) && wanted !== "default" && await missing(wanted);
  if (!resting && !unknown) return start(wanted, words.get("session") ?? "");
  name(wanted);
  over(resting ? `${wanted} is ${resting.state}: start it first` : `there is no cave ${wanted}`);
});
