// Only this file talks to the hub.

export interface Limits { cpus: number | null; memory_bytes: number | null; pids: number | null; disk_bytes: number | null }
export interface Cave {
  id: string; name: string; backend: string; state: string; created_at: number; deadline_at: number | null;
  spec: { limits?: Limits; image?: string | null; network?: { mode: string; allow?: string[] } };
  assurance: Record<string, { enforced: boolean; how: string }>;
}
export interface Sample {
  at: number; cpus: number | null; memory_bytes: number | null; pids: number | null;
  disk_bytes: number | null; sent_bytes: number; received_bytes: number;
}
export interface Call {
  id: string; tool: string; cave: string | null; state: "began" | "ended"; at: number; began_at?: number;
  arguments?: unknown; outcome?: string; text?: string; duration_s?: number; pictures?: number;
}
export interface Entry { path: string; type: string; size?: number; mtime?: number }
export interface Connection { at: number; event: string; how: string; target: string; why?: string; rule?: string; sent_bytes?: number; received_bytes?: number }
export interface Service { name: string; about: string; state: string; memory_bytes: number; restarts: number; hint: string }

/** What the hub refuses, in its own words. */
export class Refusal extends Error {
  constructor(readonly status: number, detail: string, readonly hint: string) {
    super(detail);
  }
}

export async function ask(path: string, options: RequestInit = {}): Promise<Response> {
  const answer = await fetch(path, { cache: "no-store", ...options }).catch(() => {
    throw new Refusal(0, "The hub does not answer", "Is it running, and is this machine connected?");
  });
  if (answer.ok) return answer;
  const problem = (await answer.json().catch(() => ({}))) as { detail?: string; hint?: string };
  throw new Refusal(answer.status, problem.detail ?? `the hub answered ${answer.status}`, problem.hint ?? "");
}

export async function get<T>(path: string): Promise<T> {
  return (await (await ask(path)).json()) as T;
}

export async function post<T>(path: string, body: unknown = {}): Promise<T> {
  const headers = { "Content-Type": "application/json" };
  return (await (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json()) as T;
}

export const one = (name: string): string => `/v1/caves/${encodeURIComponent(name)}`;
export const query = (words: Record<string, string>): string => `?${new URLSearchParams(words)}`;
