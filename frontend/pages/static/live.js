// The live cards: reads /metrics every two seconds and draws what came between.
import { draw, follow } from "./charts.js";
import { element, make, say } from "./dom.js";
import { authorization, key } from "./key.js";
import { figures, parse } from "./metrics.js";

const EVERY_MS = 2000;
const PATIENCE_MS = 10000;
// Figures are over three intervals: what the server tells may be a second old, and one alone would jump.
const INTERVALS = 3;
const KEPT_SECONDS = 120;

// Each card: its figure and unit, the sentence under it, and what its chart draws, by name.
const CARDS = [
  {
    title: "Requests",
    unit: "a second",
    value: ({ requests }) => rate(requests),
    detail: ({ texts, errors }) => `${rate(texts)} texts/s · ${errors ? `${rate(errors)} errors/s` : "no errors"}`,
    lines: { requests: ({ requests }) => requests },
  },
  {
    title: "Latency",
    unit: "ms, median",
    value: ({ p50 }) => ms(p50),
    detail: ({ p99 }) => (p99 === null ? "no requests" : `99 % within ${ms(p99)} ms`),
    lines: { median: ({ p50 }) => thousandfold(p50), "99 %": ({ p99 }) => thousandfold(p99) },
  },
  {
    title: "Batch",
    unit: "texts, mean",
    value: ({ batch }) => (batch === null ? "–" : batch.toFixed(1)),
    detail: ({ batches, batchTokens }) =>
      batches ? `${rate(batches)} batches/s · ${Math.round(batchTokens)} tokens each` : "no batches",
    lines: { texts: ({ batch }) => batch },
  },
  {
    title: "Queue",
    unit: "texts waiting",
    value: ({ queued }) => count(queued),
    detail: ({ queuedTokens, wait }) =>
      wait === null ? "nothing waited" : `${count(queuedTokens)} tokens · median wait ${ms(wait)} ms`,
    lines: { texts: ({ queued }) => queued },
  },
  {
    title: "Slab",
    unit: "rows in use",
    value: ({ used }) => count(used),
    detail: ({ rows, used, computing }) =>
      rows ? `of ${count(rows)} · ${count(computing)} computing, ${count(used - computing)} lent` : "no engine",
    lines: { rows: ({ used }) => used },
  },
  {
    title: "Cache",
    unit: "% found",
    value: ({ hits }) => (hits === null ? "–" : (100 * hits).toFixed(0)),
    detail: ({ looked }) => (looked ? `of ${rate(looked)} texts/s` : "nothing looked up"),
    lines: { "%": ({ hits }) => (hits === null ? null : 100 * hits) },
  },
];

export function startLive({ onModel }) {
  const readings = [];
  const points = [];
  let hovered = null;
  const cards = CARDS.map(build);
  element("cards").append(...cards.map(({ node }) => node));
  element("window").textContent = `${(INTERVALS * EVERY_MS) / 1000} s`;

  // The figures of a point in the past while the pointer is on a chart, else the newest.
  function show() {
    const point = points[hovered] ?? points.at(-1);
    if (!point) return;
    element("moment").textContent = hovered === null ? "" : `${Math.round((points.at(-1).at - point.at) / 1000)} s ago`;
    for (const card of cards) card.show(point);
  }
  follow((index) => {
    hovered = index;
    show();
  });

  async function poll() {
    try {
      const families = parse(await read());
      say(element("live-note"), null);
      readings.push({ at: performance.now(), families });
      if (readings.length > INTERVALS + 1) readings.shift();
      if (readings.length > 1) {
        const [first, last] = [readings[0], readings.at(-1)];
        points.push({ at: last.at, ...figures(first.families, last.families, (last.at - first.at) / 1000) });
        while (points[0].at < last.at - 1000 * KEPT_SECONDS) points.shift();
      }
      announce(families, onModel);
      for (const card of cards) card.draw(points, KEPT_SECONDS);
      show();
    } catch (problem) {
      if (!(problem instanceof Away)) throw problem;
      readings.length = 0;
      say(element("live-note"), problem.message);
      state("away", "No figures");
    }
  }

  async function forever() {
    for (;;) {
      // Nobody looks at a hidden tab, and what it missed is not drawn as a rate.
      if (document.hidden) readings.length = 0;
      else await poll();
      await new Promise((done) => setTimeout(done, EVERY_MS));
    }
  }
  forever();
}

class Away extends Error {}

async function read() {
  let answer;
  try {
    answer = await fetch("/metrics", { headers: authorization(), signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch {
    throw new Away(`The server at ${location.host} does not answer. This page keeps trying.`);
  }
  if (answer.status === 401) {
    throw new Away(key() ? "The live figures need a key that this server knows." : "The live figures need the API key: type it above.");
  }
  if (!answer.ok) throw new Away(`The server gives no figures just now (status ${answer.status}). This page keeps trying.`);
  return answer.text();
}

function announce(families, onModel) {
  const [engine] = families.get("embedlane_engine_info") ?? [];
  if (!engine) return state("away", "No engine: requests wait for it");
  const { model, device, precision } = engine.labels;
  state("there", `${model.split("/").at(-1)} · ${device} · ${precision}`);
  onModel(model);
}

function state(name, sentence) {
  const node = element("engine");
  // Said again only where it changed, for screen readers.
  if (node.textContent !== sentence) node.textContent = sentence;
  node.dataset.state = name;
}

function build({ title, unit, value, detail, lines }) {
  const id = `card-${title.toLowerCase()}`;
  const figure = make("b", { textContent: "–" });
  const words = make("p", { className: "detail", textContent: "measuring …" });
  const canvas = make("div", { className: "chart" });
  canvas.ariaHidden = "true";
  const node = make(
    "article",
    { id, className: "panel" },
    make("h3", {}, title, ...(Object.keys(lines).length > 1 ? Object.keys(lines).map(sample) : [])),
    make("p", { className: "figure" }, figure, " ", make("span", { textContent: unit })),
    words,
    canvas,
  );
  const chart = draw(canvas, lines);
  return {
    node,
    draw: chart,
    show(point) {
      figure.textContent = value(point);
      words.textContent = detail(point);
    },
  };
}

// What a line of a chart with several is.
const sample = (name) => make("small", { textContent: name });

const thousandfold = (value) => (value === null ? null : 1000 * value);
const count = (value) => value.toLocaleString("en");
const rate = (value) => (value >= 100 ? count(Math.round(value)) : value ? value.toFixed(1) : "0");

function ms(seconds) {
  if (seconds === null) return "–";
  const value = 1000 * seconds;
  return value >= 100 ? count(Math.round(value)) : value.toFixed(1);
}
