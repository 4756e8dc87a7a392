// Shows /openapi.json. All text goes in as text: nothing that the document holds becomes markup.
"use strict";

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// What stands between backticks is code.
function marked(text) {
  return text.split("`").map((part, at) => (at % 2 ? make("code", {}, part) : part));
}

function kind(schema) {
  if (!schema) return "";
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items) || "values"}`;
  return [].concat(schema.type ?? "any").join(" or ");
}

function fields(schema) {
  const rows = Object.entries(schema?.properties ?? {}).map(([name, field]) => {
    const needed = (schema.required ?? []).includes(name) ? " (required)" : "";
    return make("tr", {}, make("td", {}, make("code", {}, name), needed),
      make("td", {}, kind(field)), make("td", {}, field.description ?? ""));
  });
  return rows.length ? make("table", {}, make("tbody", {}, ...rows)) : make("p", { class: "soft" }, "nothing");
}

function curl(method, path, operation) {
  const body = operation.requestBody?.content?.["application/json"];
  const parts = [`curl -H "Authorization: Bearer $GHOST_TOKEN"`];
  if (method !== "get") parts.push(`-X ${method.toUpperCase()}`);
  if (body) parts.push(`--json '${JSON.stringify(body.example ?? {}).replaceAll("'", "'\\''")}'`);
  return [...parts, `${location.origin}${path}`].join(" \\\n  ");
}

function section(title, ...nodes) {
  return [make("p", {}, make("strong", {}, title)), ...nodes];
}

function entry(method, path, operation) {
  const summary = make("summary", {}, make("span", { class: "method" }, method.toUpperCase()),
    make("code", {}, path), make("span", { class: "soft" }, operation.summary));
  const body = make("div", { class: "body" }, make("p", {}, ...marked(operation.description)));
  if (operation.parameters.length) {
    const schema = { properties: {}, required: [] };
    for (const one of operation.parameters) {
      schema.properties[one.name] = { ...one.schema, description: one.description };
      if (one.required) schema.required.push(one.name);
    }
    body.append(...section("In the address", fields(schema)));
  }
  const taken = operation.requestBody?.content ?? {};
  for (const [media, content] of Object.entries(taken)) body.append(...section(`Body: ${media}`, fields(content.schema)));
  for (const [status, response] of Object.entries(operation.responses)) {
    for (const [media, content] of Object.entries(response.content ?? {})) {
      body.append(...section(`Answer ${status}: ${media}`, fields(content.schema)));
    }
  }
  body.append(...section("Try it", make("pre", {}, curl(method, path, operation))));
  const node = make("details", {}, summary, body);
  node.dataset.words = `${method} ${path} ${operation.summary}`.toLowerCase();
  return node;
}

function show(spec) {
  document.getElementById("about").textContent = `${spec.info.description} Version ${spec.info.version}.`;
  const groups = new Map();
  for (const [path, operations] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(entry(method, path, operation));
    }
  }
  const main = document.getElementById("operations");
  main.replaceChildren();
  for (const [tag, entries] of groups) {
    main.append(make("section", { id: tag }, make("h2", {}, tag), ...entries));
    document.getElementById("tags").append(make("a", { href: `#${tag}` }, tag));
  }
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const node of main.querySelectorAll("details")) node.hidden = !words.every((word) => node.dataset.words.includes(word));
    for (const group of main.querySelectorAll("section")) group.hidden = !group.querySelector("details:not([hidden])");
  });
}

fetch("/openapi.json").then((answer) => {
  if (!answer.ok) throw new Error(`the hub answered ${answer.status}`);
  return answer.json();
}).then(show).catch((error) => {
  document.getElementById("operations").replaceChildren(make("p", { role: "alert" }, `This page cannot be shown: ${error.message}`));
});
