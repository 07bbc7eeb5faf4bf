// Prometheus' text format, and figures from two readings of it. No element of the page is touched here.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const INFINITE = { "+Inf": Infinity, "-Inf": -Infinity };

// Text → Map of name → array of {id, labels, value}; `id` is the labels as they were written.
export function parse(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found) continue;
    const [, name, id = "", value] = found;
    const labels = {};
    for (const [, label, written] of id.matchAll(LABEL)) {
      labels[label] = written.replace(/\\(.)/g, (_, sign) => (sign === "n" ? "\n" : sign));
    }
    if (!families.has(name)) families.set(name, []);
    families.get(name).push({ id, labels, value: INFINITE[value] ?? Number(value) });
  }
  return families;
}

const every = () => true;

// The series' sum; `where` takes labels.
export function total(reading, name, where = every) {
  return (reading.get(name) ?? []).filter(({ labels }) => where(labels)).reduce((sum, { value }) => sum + value, 0);
}

// By how much counters grew from one reading to the next. One that fell began anew at 0.
export function increase(before, after, name, where = every) {
  const old = new Map((before.get(name) ?? []).map(({ id, value }) => [id, value]));
  return (after.get(name) ?? [])
    .filter(({ labels }) => where(labels))
    .reduce((sum, { id, value }) => sum + value - (value >= (old.get(id) ?? 0) ? (old.get(id) ?? 0) : 0), 0);
}

// A histogram's quantile (0 to 1) of what came between two readings, as Prometheus' histogram_quantile computes it:
// linear within a bucket, and the last finite bound beyond it. null where nothing came.
export function quantile(q, before, after, name, where = every) {
  const bounds = [...new Set((after.get(`${name}_bucket`) ?? []).map(({ labels }) => labels.le))];
  const buckets = bounds
    .map((le) => ({
      bound: INFINITE[le] ?? Number(le),
      count: increase(before, after, `${name}_bucket`, (labels) => labels.le === le && where(labels)),
    }))
    .sort((a, b) => a.bound - b.bound);
  const all = buckets.at(-1)?.count ?? 0;
  if (!all) return null;
  const rank = q * all;
  const at = buckets.findIndex(({ count }) => count >= rank);
  const below = buckets[at - 1] ?? { bound: 0, count: 0 };
  const { bound, count } = buckets[at];
  if (bound === Infinity) return below.bound;
  return below.bound + ((bound - below.bound) * (rank - below.count)) / (count - below.count);
}

const EMBEDDING = new Set(["/v1/embeddings", "/embeddings", "/embed", "/similarity", "/v1/embed", "/"]);
// A GET of `/` is this page itself, and has no key.
const embeds = ({ route, key, status }) => EMBEDDING.has(route) && (key !== "none" || status >= "400");
const ratio = (part, whole) => (whole ? part / whole : null);

// Everything the page shows, of what happened between two readings and of how things are at the second.
export function figures(before, after, seconds) {
  const grown = (name, where) => increase(before, after, `embedlane_${name}`, where);
  const now = (name, where) => total(after, `embedlane_${name}`, where);
  const requests = grown("requests_total", embeds);
  const asked = new Set(
    [...EMBEDDING].filter((path) => grown("requests_total", (labels) => labels.route === path && embeds(labels))),
  );
  const latency = (q) => quantile(q, before, after, "embedlane_request_seconds", ({ route }) => asked.has(route));
  const batches = grown("engine_batch_texts_count");
  const looked = grown("cache_texts_total");
  const free = now("slab_rows", ({ state }) => state === "free");
  const rows = now("slab_rows");
  return {
    requests: requests / seconds,
    texts: grown("texts_total") / seconds,
    tokens: grown("tokens_total") / seconds,
    errors: grown("requests_total", (labels) => embeds(labels) && labels.status >= "400") / seconds,
    p50: latency(0.5),
    p99: latency(0.99),
    batch: ratio(grown("engine_batch_texts_sum"), batches),
    batchTokens: ratio(grown("engine_batch_tokens_sum"), batches),
    batches: batches / seconds,
    queued: now("engine_queued_texts"),
    queuedTokens: now("engine_queued_tokens"),
    wait: quantile(0.5, before, after, "embedlane_engine_wait_seconds"),
    rows,
    used: rows - free,
    computing: now("slab_rows", ({ state }) => state === "computing"),
    hits: ratio(looked - grown("cache_texts_total", ({ result }) => result === "miss"), looked),
    looked: looked / seconds,
  };
}
