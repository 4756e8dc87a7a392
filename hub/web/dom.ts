// All text that comes from a cave is hostile: it reaches the page through these functions, as text and as nothing else.

type Child = Node | string | number | null | undefined | false;
type Props = Record<string, unknown>;

const SVG = "http://www.w3.org/2000/svg";

/** An element. Functions become listeners, true and false become bare attributes, the rest attributes. */
export function h<K extends keyof HTMLElementTagNameMap>(name: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  return put(document.createElement(name), props, children);
}

export function svg(name: string, props: Props, ...children: Child[]): SVGElement {
  return put(document.createElementNS(SVG, name), props, children);
}

function put<E extends Element>(element: E, props: Props, children: Child[]): E {
  for (const [key, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(key.slice(2), value as EventListener);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(key, String(value));
  }
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    element.append(typeof child === "number" ? String(child) : child);
  }
  return element;
}

export function bytes(count: number | null | undefined): string {
  if (count === null || count === undefined) return "–";
  let size = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (size < 1024 || unit === "GiB") return unit === "B" ? `${size} B` : `${size.toFixed(size < 10 ? 1 : 0)} ${unit}`;
    size /= 1024;
  }
  return "";
}

export function span(seconds: number): string {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export const age = (seconds: number): string => (seconds < 60 ? "just made" : `${span(seconds)} old`);

export const clock = (at: number): string => new Date(at * 1000).toLocaleTimeString();

/** A line of numbers with the area below it. What it shows is said in ``label`` for those who do not see it. */
export function chart(values: (number | null)[], most: number, label: string): SVGElement {
  const seen = values.map((value) => value ?? 0);
  const top = Math.max(most, ...seen, 1e-9);
  const width = 240, height = 48, room = Math.max(seen.length - 1, 1);
  const points = seen.map((value, at) => `${((at / room) * width).toFixed(1)},${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`);
  const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  if (seen.length > 1) {
    drawing.append(
      svg("polygon", { points: `0,${height} ${points.join(" ")} ${width},${height}` }),
      svg("polyline", { points: points.join(" "), "vector-effect": "non-scaling-stroke" }),
    );
  }
  return drawing;
}
