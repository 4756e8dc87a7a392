// What Ghost sees of a page. Runs beside the page's own scripts, in a world they cannot reach: it reads the
// page's tree but shares no object with it. Everything here is bounded: nodes, items, characters, time.
//
// It has the shape of a Playwright selector engine: `e12` selects the element with that reference; any other
// selector is a command, base64 of JSON, and selects one element that is not in the page and holds the answer.
(() => {
  const MAX_NODES = 30000, MAX_ITEMS = 1200, MAX_MS = 400, NAME = 100, TEXT = 200, OPTIONS = 8;
  const refs = new WeakMap();   // element -> its reference
  const elements = new Map();   // reference -> WeakRef of the element
  let next = 1, changes = 0;

  const watcher = new MutationObserver((records) => { changes += records.length; });
  watcher.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
  for (const kind of ["input", "change", "toggle"]) document.addEventListener(kind, () => { changes += 1; }, true);

  const squeeze = (text, limit) => String(text ?? "").slice(0, 4 * limit).replace(/\s+/g, " ").trim().slice(0, limit);
  const attribute = (element, name) => Element.prototype.getAttribute.call(element, name);
  const has = (element, name) => Element.prototype.hasAttribute.call(element, name);
  const tag = (element) => element.localName;

  const ROLES = {
    a: (e) => (has(e, "href") ? "link" : ""), area: (e) => (has(e, "href") ? "link" : ""),
    button: "button", summary: "button", textarea: "textbox", option: "option",
    select: (e) => (e.multiple || e.size > 1 ? "listbox" : "combobox"),
    input: (e) => ({
      button: "button", submit: "button", reset: "button", image: "button", checkbox: "checkbox", radio: "radio",
      range: "slider", number: "spinbutton", search: "searchbox", hidden: "", file: "file", color: "color",
    })[e.type] ?? "textbox",
    h1: "heading", h2: "heading", h3: "heading", h4: "heading", h5: "heading", h6: "heading",
    main: "main", nav: "navigation", aside: "complementary", dialog: "dialog", search: "search",
    header: (e) => (inSection(e) ? "" : "banner"), footer: (e) => (inSection(e) ? "" : "contentinfo"),
    form: (e) => (has(e, "aria-label") || has(e, "aria-labelledby") ? "form" : ""),
    img: (e) => (attribute(e, "alt") === "" ? "" : "image"), iframe: "iframe", tr: "row",
    video: "video", audio: "audio",
  };
  const inSection = (e) => e.parentElement?.closest("article,aside,main,nav,section") != null;
  const ACTING = new Set(["link", "button", "textbox", "searchbox", "combobox", "listbox", "checkbox", "radio", "switch",
    "tab", "menuitem", "menuitemcheckbox", "menuitemradio", "option", "slider", "spinbutton", "treeitem", "file", "color",
    "video", "audio", "clickable"]);
  const PLACES = new Set(["main", "navigation", "complementary", "dialog", "alertdialog", "search", "banner", "contentinfo",
    "form", "region", "alert", "status", "tablist", "menu", "tree"]);
  const EDITED = new Set(["textbox", "searchbox", "combobox", "listbox", "slider", "spinbutton", "file", "color"]);

  // A label that is drawn in place of its checkbox or radio button.
  const stands = (label) => ["checkbox", "radio"].includes(label.control?.type) && label.control.getClientRects().length === 0;

  function roleOf(element, style, parentStyle) {
    const given = squeeze(attribute(element, "role"), 30).split(" ")[0].toLowerCase();
    if (given && given !== "none" && given !== "presentation") return given;
    if (tag(element) === "label" && stands(element)) return element.control.type;
    const implied = ROLES[tag(element)];
    const role = typeof implied === "function" ? implied(element) : implied;
    if (role) return role;
    if (element.isContentEditable && !element.parentElement?.isContentEditable) return "textbox";
    const reacts = has(element, "onclick") || (has(element, "tabindex") && attribute(element, "tabindex") !== "-1");
    const pointed = style.cursor === "pointer" && parentStyle?.cursor !== "pointer";
    return reacts || pointed ? "clickable" : "";
  }

  function byIds(element, name) {
    const ids = squeeze(attribute(element, name), 200).split(" ").filter(Boolean);
    return ids.map((id) => element.getRootNode().getElementById?.(id)?.textContent ?? "").join(" ");
  }

  // The words of a label without those of the control it holds.
  function wordsBeside(label, control) {
    const walker = document.createTreeWalker(label, NodeFilter.SHOW_TEXT);
    const words = [];
    while (words.length < 50 && walker.nextNode()) {
      if (!control.contains(walker.currentNode)) words.push(walker.currentNode.data);
    }
    return words.join(" ");
  }

  function nameOf(element, role) {
    const label = () => [...(element.labels ?? [])].map((l) => wordsBeside(l, element)).join(" ");
    const inner = () => (EDITED.has(role) ? "" : element.innerText);
    const pictured = () => element.querySelector?.("img[alt],svg title,[aria-label]");
    const sources = [
      () => byIds(element, "aria-labelledby"), () => attribute(element, "aria-label"), label,
      () => (tag(element) === "input" && role === "button" ? element.value || attribute(element, "alt") : ""), inner,
      () => attribute(element, "alt"), () => attribute(element, "placeholder"), () => attribute(element, "title"),
      () => { const p = pictured(); return p && (attribute(p, "alt") || attribute(p, "aria-label") || p.textContent); },
      () => attribute(element, "name"), () => (role === "link" ? attribute(element, "href") : ""),
    ];
    for (const source of sources) {
      const name = squeeze(source(), NAME);
      if (name) return name;
    }
    return "";
  }

  function valueOf(element, role) {
    if (tag(element) === "input" && element.type === "password") return element.value ? `(${element.value.length} hidden characters)` : "";
    if (tag(element) === "select") return squeeze([...element.selectedOptions].slice(0, OPTIONS).map((o) => o.label).join(", "), NAME);
    if (tag(element) === "input" && element.type === "file") return squeeze([...element.files].map((f) => f.name).join(", "), NAME);
    if ("value" in element && (tag(element) === "input" || tag(element) === "textarea")) return squeeze(element.value, NAME);
    if (element.isContentEditable) return squeeze(element.innerText, NAME);
    return squeeze(attribute(element, "aria-valuetext") ?? attribute(element, "aria-valuenow"), NAME);
  }

  function statesOf(element, role) {
    const states = [];
    const aria = (name) => attribute(element, `aria-${name}`);
    if (["checkbox", "radio", "switch", "menuitemcheckbox", "menuitemradio"].includes(role)) {
      const box = tag(element) === "label" ? element.control : element;
      const checked = tag(box) === "input" ? (box.indeterminate ? "mixed" : String(box.checked)) : aria("checked") ?? "false";
      states.push({ true: "checked", mixed: "mixed" }[checked] ?? "unchecked");
    }
    if (element.disabled === true || aria("disabled") === "true" || element.matches(":disabled")) states.push("disabled");
    if (element.readOnly === true) states.push("read-only");
    if (element.required === true) states.push("required");
    if (aria("expanded") != null) states.push(aria("expanded") === "true" ? "expanded" : "collapsed");
    if (tag(element) === "summary") states.push(element.parentElement?.open ? "expanded" : "collapsed");
    if (aria("pressed") === "true") states.push("pressed");
    if (aria("selected") === "true" || (tag(element) === "option" && element.selected)) states.push("selected");
    if (aria("current") && aria("current") !== "false") states.push("current");
    if (aria("invalid") === "true") states.push("invalid");
    return states;
  }

  function refOf(element) {
    let ref = refs.get(element);
    if (!ref) {
      ref = `e${next++}`;
      refs.set(element, ref);
      elements.set(ref, new WeakRef(element));
    }
    return ref;
  }

  function describe(element, role) {
    const item = { role, name: nameOf(element, role) };
    if (ACTING.has(role)) item.ref = refOf(element);
    if (element.getRootNode().activeElement === element && element !== document.body) item.focused = true;
    if (role === "heading") item.level = Number(attribute(element, "aria-level") ?? tag(element).slice(1)) || 2;
    if (EDITED.has(role)) item.value = valueOf(element, role);
    if (tag(element) === "select") {
      item.options = [...element.options].slice(0, OPTIONS).map((o) => squeeze(o.label, 40));
      item.more = Math.max(0, element.options.length - OPTIONS);
    }
    const states = ACTING.has(role) ? statesOf(element, role) : [];
    if (states.length) item.states = states;
    return item;
  }

  // Where the element lies: -1 above what is seen, 0 in it, 1 below. What is seen is the window, or a pane's part of it.
  function where(rect, seen) {
    if (rect.bottom <= seen.top || rect.right <= seen.left) return -1;
    return rect.top >= seen.bottom || rect.left >= seen.right ? 1 : 0;
  }

  function within(seen, rect) {
    const top = Math.max(seen.top, rect.top), left = Math.max(seen.left, rect.left);
    return { top, left, bottom: Math.max(top, Math.min(seen.bottom, rect.bottom)), right: Math.max(left, Math.min(seen.right, rect.right)) };
  }

  class Collector {
    constructor() {
      this.items = [];
      this.nodes = 0;
      this.end = performance.now() + MAX_MS;
      this.text = "";
      this.textElement = null;
      this.seen = { top: 0, left: 0, bottom: innerHeight, right: innerWidth };
      this.cut = false;
    }
    full() {
      if (this.nodes++ > MAX_NODES || this.items.length >= MAX_ITEMS || (this.nodes % 64 === 0 && performance.now() > this.end)) this.cut = true;
      return this.cut;
    }
    flush() {
      const name = squeeze(this.text, TEXT);
      if (name && /[\p{L}\p{N}\p{S}]/u.test(name)) {
        this.items.push({ role: "text", name, at: where(this.textElement.getBoundingClientRect(), this.seen) });
      }
      this.text = "";
      this.textElement = null;
    }
    children(element, parts, style, quiet) {
      for (const child of parts) {
        if (this.cut) return;
        if (child.nodeType === 3 && !quiet && style.visibility === "visible") {
          if (this.text.length < 4 * TEXT && child.data.trim()) this.textElement ??= element;
          if (this.text.length < 4 * TEXT) this.text += child.data;
        } else if (child.nodeType === 1) {
          this.element(child, style, quiet);
        }
      }
    }
    // `quiet`: the words in here were told already, only what can be acted on is looked for.
    element(element, parentStyle, quiet) {
      if (this.full() || ["script", "style", "noscript", "template", "head"].includes(tag(element))) return;
      const style = getComputedStyle(element);
      if (style.display === "none" || style.contentVisibility === "hidden" || attribute(element, "aria-hidden") === "true") return;
      const role = roleOf(element, style, parentStyle);
      const rect = element.getBoundingClientRect();
      const shown = style.visibility === "visible" && style.display !== "contents" && (rect.width > 0 || rect.height > 0);
      const inline = style.display.startsWith("inline") || style.display === "contents";
      const acting = ACTING.has(role), row = role === "row" && !element.querySelector("table");
      const told = acting || role === "heading" || role === "image" || row;
      if (!inline || told) this.flush();
      if (shown && (told || role === "iframe" || PLACES.has(role)) && !(quiet && !acting)) this.tell(element, row ? "row" : role, rect);
      // Words that are not all in the element's name are told by themselves.
      const long = (role === "link" || role === "clickable") && squeeze(element.textContent, NAME + 1).length > NAME;
      const named = shown && told && !long;
      const silent = quiet || named || (tag(element) === "label" && element.control != null);
      const outer = this.seen;
      if (style.overflow !== "visible") this.seen = within(outer, rect);
      if (!(acting && EDITED.has(role)) && tag(element) !== "select") this.children(element, this.parts(element), style, silent);
      if (!inline || told) this.flush();
      this.seen = outer;
    }
    tell(element, role, rect) {
      const item = PLACES.has(role) || role === "iframe"
        ? { role, name: squeeze(attribute(element, "aria-label") ?? attribute(element, "title"), NAME) }
        : role === "row"
          ? { role: "text", name: squeeze([...element.cells ?? element.children].map((c) => squeeze(c.innerText, 60)).filter(Boolean).join(" | "), TEXT) }
          : describe(element, role);
      if (item.name || item.ref || PLACES.has(role) || role === "iframe") this.items.push({ ...item, at: where(rect, this.seen) });
    }
    parts(element) {
      if (tag(element) === "slot") {
        const given = element.assignedNodes();
        return given.length ? given : element.childNodes;
      }
      return element.shadowRoot?.childNodes ?? element.childNodes;
    }
  }

  const scroller = () => document.scrollingElement ?? document.documentElement;
  const canScroll = (e) => e && (e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1);

  // What scrolling means for a person who points at the middle of the window: the page, or a pane in it.
  function pane(root) {
    let element = root instanceof Element ? root : document.elementFromPoint(innerWidth / 2, innerHeight / 2);
    if (!(root instanceof Element) && canScroll(scroller()) && getComputedStyle(scroller()).overflowY !== "hidden") return scroller();
    for (; element; element = element.parentElement ?? element.getRootNode().host) {
      if (canScroll(element) && /auto|scroll|overlay/.test(getComputedStyle(element).overflow)) return element;
    }
    return scroller();
  }

  const COMMANDS = {
    outline() {
      const collector = new Collector();
      const top = document.documentElement;
      if (top && innerWidth > 8 && innerHeight > 8) collector.element(top, null, false);
      collector.flush();
      return { items: collector.items, cut: collector.cut };
    },
    changes: () => ({ changes }),
    describe(root) {
      const element = root instanceof Element ? root : document.activeElement;
      if (!element || (element === document.body && !element.isContentEditable)) return { item: null };
      const role = roleOf(element, getComputedStyle(element), null) || "element";
      const type = tag(element) === "input" ? element.type : tag(element);
      const item = { ...describe(element, role), ref: refOf(element), at: 0 };
      return { item, type, editable: Boolean(element.isContentEditable) };
    },
    scroll(root, { x, y, to }) {
      const element = pane(root);
      const left = element.scrollLeft, top = element.scrollTop;
      const width = element.clientWidth * 0.8, height = element.clientHeight * 0.8;
      const goal = to === "top" ? { top: 0 } : to === "bottom" ? { top: element.scrollHeight }
        : { left: left + (x.pages ? x.pages * width : x.px ?? 0), top: top + (y.pages ? y.pages * height : y.px ?? 0) };
      element.scrollTo({ ...goal, behavior: "instant" });
      return {
        moved: [Math.round(element.scrollLeft - left), Math.round(element.scrollTop - top)],
        top: Math.round(element.scrollTop), rest: Math.round(element.scrollHeight - element.clientHeight - element.scrollTop),
        pane: element === scroller() ? "" : nameOf(element, "pane").slice(0, 40) || tag(element),
      };
    },
  };

  function answer(root, selector) {
    const asked = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(selector), (c) => c.charCodeAt(0))));
    next = Math.max(next, asked.next ?? 1);
    return { ...COMMANDS[asked.do](root, asked), next };
  }

  return {
    query(root, selector) { return this.queryAll(root, selector)[0] ?? null; },
    queryAll(root, selector) {
      if (/^e\d+$/.test(selector)) {
        const element = elements.get(selector)?.deref();
        return element?.isConnected ? [element] : [];
      }
      const carrier = document.createElement("pre");
      carrier.textContent = JSON.stringify(answer(root, selector));
      return [carrier];
    },
  };
})()
