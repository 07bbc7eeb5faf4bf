// Small helpers for elements. Text from people and servers gets onto the page as text only.

export const element = (id) => document.getElementById(id);

export function make(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

// A sentence in its place, or nothing there.
export function say(node, sentence, kind = "error") {
  node.textContent = sentence ?? "";
  node.dataset.kind = kind;
  node.hidden = !sentence;
}
