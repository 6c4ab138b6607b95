// Lines: small ones by hand, large ones by Observable Plot, which is loaded when the first is drawn.
import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { useDark, useWidth } from "./hooks.js";
import { number } from "./words.js";

export function Spark({ values, width = 64, height = 18, label }) {
  const largest = Math.max(...values.map((v) => Math.max(0, v ?? 0)), 1e-300);
  const at = (v, i) => `${((i / Math.max(1, values.length - 1)) * (width - 2) + 1).toFixed(1)},${(height - 2 - (Math.max(0, v ?? 0) / largest) * (height - 4)).toFixed(1)}`;
  const line = values.map(at).join(" ");
  return html`<svg class="spark" width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`} role="img" aria-label=${label || `peak ${number(largest)}`}>
    <polygon points=${`1,${height - 2} ${line} ${width - 1},${height - 2}`} /><polyline points=${line} /></svg>`;
}

// options: what Plot.plot takes, but for the width; made by a function of (Plot, {dark, colours}).
export function Chart({ make, depends, label, height = 180 }) {
  const [box, width] = useWidth();
  const place = useRef(null);
  const dark = useDark();
  const [error, setError] = useState(null);
  useEffect(() => {
    let wanted = true;
    import("../vendor/plot.js").then((Plot) => {
      if (!wanted || !place.current) return;
      const colours = dark ? ["#7cc4de", "#fe9f6d", "#b5a8f0", "#8fd19e"] : ["#0f5e7a", "#c2542d", "#6a4fb3", "#2f7d4f"];
      const options = make(Plot, { dark, colours });
      const chart = Plot.plot({ width, height, marginLeft: 48, marginRight: 12, ...options });
      chart.setAttribute("aria-hidden", "true"); // the place that it stands in has the label
      place.current.replaceChildren(chart);
    }).catch((problem) => setError(problem));
    return () => { wanted = false; };
  }, [width, dark, ...depends]);
  return html`<div class="chart" ref=${box}><div ref=${place} role="img" aria-label=${label} style=${{ minHeight: `${height}px` }}></div>
    ${error && html`<p class="problem">${error.message}</p>`}</div>`;
}

// One line over the steps: values = [{x: timestep, y}].
export const Steps = ({ label, points, y, height = 150, mark }) => html`<${Chart} label=${label} height=${height} depends=${[points, mark]}
  make=${(Plot, { colours }) => ({
    x: { label: "timestep →  less noise", reverse: true, ticks: 6, tickFormat: (t) => String(Math.round(t)) },
    y: { label: y, grid: true, zero: true, nice: true, ticks: 4 },
    marks: [
      Plot.areaY(points, { x: "x", y: "y", fill: colours[0], fillOpacity: 0.12 }),
      Plot.lineY(points, { x: "x", y: "y", stroke: colours[0], strokeWidth: 2 }),
      ...(mark === undefined ? [] : [Plot.ruleX([mark], { stroke: colours[1], strokeWidth: 1.5 })]),
    ],
  })} />`;
