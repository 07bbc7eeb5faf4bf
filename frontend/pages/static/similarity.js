// Texts → vectors → a heat map of cosines.
import { element, make, say } from "./dom.js";
import { authorization, isSendable, keepKey, key } from "./key.js";

const MOST_TEXTS = 16;
// With more texts than these, rows are named by their numbers alone.
const MOST_NAMED = 8;

export function startSimilarity() {
  const form = element("compare");
  const button = form.querySelector("button");
  const input = element("key");
  input.value = key();
  input.addEventListener("input", () => keepKey(isSendable(input.value.trim()) ? input.value.trim() : ""));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const note = element("compare-note");
    say(note, null);
    button.disabled = true;
    try {
      const texts = read();
      show(texts, await embed(texts));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      say(note, problem.message);
      problem.field?.focus();
    } finally {
      button.disabled = false;
    }
  });
}

// What went wrong, as a sentence for people, and the field where it can be put right.
class Problem extends Error {
  constructor(message, field = null) {
    super(message);
    this.field = field;
  }
}

function read() {
  const field = element("texts");
  const texts = field.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (texts.length < 2) throw new Problem("Type at least two texts, one a line.", field);
  if (texts.length > MOST_TEXTS) {
    throw new Problem(`These are ${texts.length} texts: at most ${MOST_TEXTS} fit in the heat map.`, field);
  }
  const input = element("key");
  if (!input.value.trim()) throw new Problem("Type the API key: the server printed it when it started.", input);
  if (!isSendable(input.value.trim())) throw new Problem("This is no API key: it has spaces or special characters.", input);
  return texts;
}

async function embed(texts) {
  let answer;
  try {
    answer = await fetch("/v1/embeddings", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...authorization() },
      body: JSON.stringify({ input: texts, truncate: true }),
    });
  } catch {
    throw new Problem(`The server at ${location.host} does not answer: check that it runs, and try again.`);
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok || !body) throw refusal(answer, body);
  const time = (name) => Number(answer.headers.get(`x-${name}-time`));
  return {
    vectors: body.data.map(({ embedding }) => embedding),
    tokens: body.usage.total_tokens,
    truncated: Number(answer.headers.get("x-truncated-texts")),
    total: time("total"),
    inference: time("inference"),
  };
}

function refusal(answer, body) {
  const seconds = answer.headers.get("retry-after");
  const later = seconds ? ` Try again in ${seconds} s.` : "";
  if (answer.status === 401) {
    return new Problem("The server does not know this key: compare it with the one that it printed.", element("key"));
  }
  if (answer.status === 503) return new Problem(`The model is not running just now.${later}`);
  return new Problem(`The server refused: ${body?.error?.message ?? `status ${answer.status}.`}${later}`);
}

// Of two vectors of any length.
function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

function show(texts, { vectors, tokens, truncated, total, inference }) {
  const cosines = vectors.map((a) => vectors.map((b) => cosine(a, b)));
  const pairs = cosines.flatMap((row, i) => row.slice(0, i).map((value, j) => ({ value, name: `${j + 1} and ${i + 1}` })));
  pairs.sort((a, b) => b.value - a.value);
  const told = ({ name, value }) => `${name} (${written(value)})`;
  const cut = truncated ? ` ${truncated} cut to what the model takes.` : "";
  const from = inference ? `of which ${inference.toFixed(1)} ms in the model` : "all from its cache";
  const caption = make("caption", { className: "hidden", textContent: "The cosine of each pair of texts" });
  element("heat").querySelector("table").replaceChildren(caption, head(texts), body(texts, cosines));
  element("heat-note").replaceChildren(
    make("strong", { textContent: `Most alike: ${told(pairs[0])}. Least alike: ${told(pairs.at(-1))}. ` }),
    make("span", {
      textContent: `${texts.length} texts, ${tokens} tokens, ${total.toFixed(1)} ms in the server, ${from}.${cut}`,
    }),
  );
  element("heat").dataset.dense = texts.length > MOST_NAMED;
  element("empty").hidden = true;
  element("heat").hidden = false;
  // On a phone it is below the form.
  element("result").scrollIntoView({ block: "nearest" });
}

function head(texts) {
  const numbers = texts.map((text, i) => make("th", { scope: "col", textContent: i + 1, title: text }));
  return make("thead", {}, make("tr", {}, make("td"), ...numbers));
}

function body(texts, cosines) {
  const rows = cosines.map((row, i) => {
    const label = make("div", {}, make("b", { textContent: i + 1 }), make("span", { textContent: texts[i] }));
    return make("tr", {}, make("th", { scope: "row", title: texts[i] }, label), ...row.map((value, j) => cell(value, i, j)));
  });
  return make("tbody", {}, ...rows);
}

function cell(value, i, j) {
  const shade = Math.min(1, Math.max(0, value));
  const strength = shade >= 0.85 ? "high" : shade >= 0.62 ? "mid" : "low";
  const node = make("td", { textContent: written(value), title: `${i + 1} and ${j + 1}: ${value.toFixed(6)}` });
  node.dataset.strength = strength;
  node.dataset.self = i === j;
  node.style.setProperty("--shade", `${(100 * shade).toFixed(1)}%`);
  return node;
}

// Two digits, and no "-0.00".
const written = (value) => (Math.round(value * 100) / 100 + 0).toFixed(2);
