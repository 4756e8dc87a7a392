// One terminal of a cave over its WebSocket, come back to whenever the connection breaks. See ghost_hub/terminal.py.

export type Told =
  | { type: "session_id"; data: string }
  | { type: "ready" | "replayed"; data: null }
  | { type: "output"; data: string }
  | { type: "typing"; data: boolean | null }
  | { type: "viewers"; data: number }
  | { type: "size"; data: { rows: number; cols: number } }
  | { type: "exit"; data: number | null };

const PAUSES_MS = [300, 1000, 2000, 4000];

export class Session extends EventTarget {
  private socket: WebSocket | null = null;
  private failures = 0;
  private taken = 0;
  private ended = false;
  private timer = 0;

  /** ``id`` is empty for a new terminal. ``told`` is given each message; ``lost`` each time the connection breaks. */
  constructor(readonly cave: string, public id: string, private readonly told: (message: Told) => void, private readonly lost: (gone: boolean) => void) {
    super();
    this.open();
  }

  private open(): void {
    const words = new URLSearchParams({ cave: this.cave, ...(this.id ? { session: this.id } : {}) });
    const socket = new WebSocket(`${location.origin.replace("http", "ws")}/v1/shell/ws?${words}`);
    let began = false;
    this.socket = socket;
    this.taken = 0;
    socket.addEventListener("open", () => this.send("ack", 0));
    socket.addEventListener("message", (event) => {
      const message = JSON.parse(event.data as string) as Told;
      if (message.type === "session_id") { began = true; this.failures = 0; this.id = message.data; }
      if (message.type === "exit") this.ended = true;
      this.told(message);
    });
    socket.addEventListener("close", () => {
      if (this.ended || this.socket !== socket) return;
      // Refused by a hub that answers otherwise: a terminal of that id is no more; for a new one it is tried some times.
      void (began ? Promise.resolve(false) : this.answers()).then((answers) => {
        if (this.ended) return;
        const gone = answers && (this.id !== "" || this.failures >= PAUSES_MS.length);
        this.lost(gone);
        if (gone) { this.ended = true; return; }
        this.timer = window.setTimeout(() => this.open(), PAUSES_MS[Math.min(this.failures++, PAUSES_MS.length - 1)]);
      });
    });
  }

  private async answers(): Promise<boolean> {
    return fetch(`/v1/caves/${encodeURIComponent(this.cave)}`, { cache: "no-store" }).then((answer) => answer.status < 500, () => false);
  }

  send(type: "input" | "resize" | "take" | "ack", data?: unknown): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, data }));
  }

  /** To be called when an output has been drawn: the hub sends no more than a few ahead of it. */
  drawn(): void {
    this.send("ack", ++this.taken);
  }

  leave(): void {
    this.ended = true;
    clearTimeout(this.timer);
    this.socket?.close();
  }
}
