// uPlot in the page's colours. All charts share their cursor.

const HEIGHT = 96;
const INKS = ["--accent", "--soft"];
// Steps between marks: no less than one text, one request, one millisecond.
const STEPS = [1, 10, 100, 1000, 10000, 100000].flatMap((step) => [step, 2 * step, 5 * step]);
const charts = [];
let onHover = () => {};

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const tick = (value) => (value >= 10000 ? `${value / 1000}k` : `${value}`);

// Calls `hovered` with the index of the point under the pointer, or null.
export function follow(hovered) {
  onHover = hovered;
}

// A chart within `node`, of what each of `lines` (name → function of a point) gives. The function that comes back draws
// points (each with `at` in ms) of the last so many seconds.
export function draw(node, lines) {
  const getters = Object.values(lines);
  const series = Object.keys(lines).map((label, i) => ({
    label,
    width: i ? 1 : 2,
    stroke: () => ink(INKS[i]),
    fill: i ? undefined : () => ink("--wash"),
    points: { show: false },
  }));
  const plot = new uPlot(
    {
      width: 300,
      height: HEIGHT,
      series: [{}, ...series],
      legend: { show: false },
      padding: [6, 0, 4, 0],
      scales: { x: { time: false }, y: { range: (_, low, high) => [0, Math.max(2, 1.15 * (high ?? 0))] } },
      axes: [
        { show: false },
        {
          size: 36,
          gap: 4,
          space: 32,
          incrs: STEPS,
          font: "11px Arial, sans-serif",
          stroke: () => ink("--soft"),
          grid: { stroke: () => ink("--line"), width: 1 },
          ticks: { show: false },
          values: (_, splits) => splits.map(tick),
        },
      ],
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "live" }, points: { size: 6 } },
      hooks: { setCursor: [({ cursor }) => onHover(cursor.idx ?? null)] },
    },
    [[], ...getters.map(() => [])],
    node,
  );
  charts.push(plot);
  new ResizeObserver(([{ contentRect }]) => plot.setSize({ width: contentRect.width, height: HEIGHT })).observe(node);
  return (points, seconds) => {
    const ats = points.map(({ at }) => at / 1000);
    plot.setData([ats, ...getters.map((get) => points.map(get))], false);
    const last = ats.at(-1) ?? 0;
    plot.setScale("x", { min: last - seconds, max: last });
  };
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of charts) plot.redraw();
});
