// xterm.js writes its colours and sizes into <style> elements and style attributes, which the page's policy forbids. The
// same through the object model is allowed: so the policy stays as it is, and this stands before xterm.js is opened.

const create = document.createElement.bind(document) as (name: string, options?: ElementCreationOptions) => HTMLElement;

/** An element that stands where xterm.js puts its <style>; what is written into it goes into a sheet of the document. */
function style(): HTMLElement {
  const element = create("template");
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(element, "textContent", { set: (text: string) => sheet.replaceSync(text) });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}

export function withoutInlineStyles(): void {
  document.createElement = ((name: string, options?: ElementCreationOptions) => (name === "style" ? style() : create(name, options))) as typeof document.createElement;
  const set = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (this: Element, name: string, value: string) {
    if (name === "style" && this instanceof HTMLElement) this.style.cssText = value;
    else set.call(this, name, value);
  };
}
