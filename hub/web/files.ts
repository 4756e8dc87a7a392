// Files of a cave: browse, view, edit, drop, download. What a file holds is shown as text, never as a page.
import { type Entry, ask, post, query } from "./api";
import { bytes, h } from "./dom";
import { attempt, button, say } from "./parts";

const EDITED_BYTES = 256 * 1024;

export function files(place: HTMLElement, cave: string): () => void {
  let folder = "/workspace";
  const where = h("nav", { class: "where", "aria-label": "Folder" });
  const list = h("ul", { class: "files" });
  const editor = h("div", { class: "editor" });
  const chosen = h("input", { type: "file", multiple: true, hidden: true, "aria-label": "Files to upload" });
  const drop = h("div", { class: "drop" }, h("p", { class: "quiet" }, "Drop files here, or "), button("choose files", () => chosen.click()), chosen);
  place.replaceChildren(where, drop, h("div", { class: "split" }, list, editor));

  const full = (name: string) => (name.startsWith("/") ? name : `${folder.replace(/\/$/, "")}/${name}`);
  const go = (to: string) => attempt(async () => {
    const found = await post<{ entries?: Entry[]; truncated?: boolean }>("/v1/file/list", { path: to, cave, hidden: true });
    folder = to;
    crumbs();
    const entries = (found.entries ?? []).slice().sort((a, b) => Number(b.type === "directory") - Number(a.type === "directory") || a.path.localeCompare(b.path));
    list.replaceChildren(...entries.map(row));
    if (!entries.length) list.append(h("li", { class: "quiet" }, "This folder is empty."));
    if (found.truncated) list.append(h("li", { class: "quiet" }, "There is more in it than is shown."));
  });
  const crumbs = () => {
    const parts = folder.split("/").filter(Boolean);
    where.replaceChildren(button("/", () => go("/"), { "aria-label": "Root folder" }),
      ...parts.map((part, at) => button(`${part}/`, () => go(`/${parts.slice(0, at + 1).join("/")}`))));
  };
  const row = (entry: Entry) => {
    const path = full(entry.path), name = path.slice(path.lastIndexOf("/") + 1);
    const inside = entry.type !== "file" && entry.type !== "symlink" && entry.type !== "link";
    return h("li", {}, button(inside ? `${name}/` : name, () => (inside ? go(path) : open(path, entry.size ?? 0)), { class: inside ? "folder" : "file" }),
      inside ? null : h("span", { class: "quiet" }, bytes(entry.size)),
      inside ? null : h("a", { href: `/v1/filesystem/download${query({ path, cave })}`, download: name, "aria-label": `Download ${name}` }, "download"));
  };
  const open = async (path: string, size: number) => {
    if (size > EDITED_BYTES) return say(`${path} is too large to be shown here: download it.`);
    const answer = await ask(`/v1/filesystem/download${query({ path, cave })}`);
    let version = (answer.headers.get("etag") ?? "").replaceAll('"', "");
    let text: string;
    try {
      text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(await answer.arrayBuffer());
    } catch {
      return say(`${path} is not text: download it.`);
    }
    const area = h("textarea", { spellcheck: "false", "aria-label": `Content of ${path}`, rows: 18 });
    area.value = text;
    const ends = text.includes("\r\n") ? "\r\n" : "\n"; // a text area makes all of them plain
    const save = async () => {
      const kept = await ask(`/v1/filesystem/upload${query({ path, cave, version })}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: area.value.replaceAll("\n", ends) });
      version = ((await kept.json()) as { version: string }).version;
      say(`${path} is saved.`);
    };
    area.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "s") { event.preventDefault(); void attempt(save); }
    });
    editor.replaceChildren(h("h3", {}, path), area, h("div", { class: "row end" }, button("Close", () => editor.replaceChildren()), button("Save", save, { class: "main" })));
    area.setSelectionRange(0, 0); // a text is read from its start
    area.focus();
  };
  const upload = (given: Iterable<File>) => attempt(async () => {
    for (const file of given) {
      await ask(`/v1/filesystem/upload${query({ path: full(file.name), cave })}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
      say(`${file.name} is uploaded.`);
    }
    await go(folder);
  });
  chosen.addEventListener("change", () => void upload([...(chosen.files ?? [])]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    place.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.toggle("over", kind === "dragover"); });
  }
  const dropped = (event: DragEvent) => void upload([...(event.dataTransfer?.files ?? [])]);
  place.addEventListener("drop", dropped);
  void go(folder);
  return () => place.removeEventListener("drop", dropped);
}
