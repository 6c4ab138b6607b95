// Heat maps on a canvas: rows with names, columns are steps; and the map of a feature over a picture.
import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { css, glow, shade } from "./colour.js";
import { useDark, useWidth } from "./hooks.js";
import { number } from "./words.js";

// rows: [{key, label, href, values: [number | null]}]; columns: [{key, label}]; chosen: {row, column} indices.
export function HeatMap({ label, rows, columns, chosen, onChoose, unit = "", rowHeight = 20, labelWidth = 72, columnName = "step" }) {
  const [box, width] = useWidth();
  const canvas = useRef(null);
  const dark = useDark();
  const [over, setOver] = useState(null);
  const inner = Math.max(80, width - labelWidth);
  const height = rows.length * rowHeight;
  const largest = rows.reduce((m, row) => row.values.reduce((n, v) => Math.max(n, Math.abs(v ?? 0)), m), 0) || 1;
  const size = inner / columns.length;

  useEffect(() => {
    const ratio = devicePixelRatio || 1;
    canvas.current.width = Math.round(inner * ratio);
    canvas.current.height = Math.round(height * ratio);
    const pen = canvas.current.getContext("2d");
    pen.scale(ratio, ratio);
    rows.forEach((row, y) => row.values.forEach((value, x) => {
      const part = (value ?? 0) / largest;
      pen.fillStyle = value === null ? dark ? "#2a2d30" : "#eceae4" : css(shade(Math.sign(part) * Math.sqrt(Math.abs(part)), dark));
      const left = Math.round(x * size);
      pen.fillRect(left, y * rowHeight, Math.round((x + 1) * size) - left, rowHeight - 1);
    }));
  }, [rows, columns.length, inner, dark, largest]);

  const cell = (event) => {
    const at = canvas.current.getBoundingClientRect();
    const column = Math.floor((event.clientX - at.left) / size);
    const row = Math.floor((event.clientY - at.top) / rowHeight);
    return rows[row] && columns[column] ? { row, column } : null;
  };
  const move = (event) => {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!by || !onChoose) return;
    event.preventDefault();
    const from = chosen || { row: 0, column: 0 };
    onChoose({
      row: Math.max(0, Math.min(rows.length - 1, from.row + by[0])),
      column: Math.max(0, Math.min(columns.length - 1, from.column + by[1])),
    });
  };
  const told = over || chosen;
  const row = told && rows[told.row];
  const said = row && columns[told.column]
    ? `${row.label}, ${columnName} ${columns[told.column].label}: ${number(row.values[told.column])}${unit}` : "";
  const every = Math.ceil(columns.length / Math.max(2, Math.floor(inner / 52)));
  return html`<div class="heat" ref=${box} style=${{ "--label": `${labelWidth}px` }}>
    <div class="heat-body">
      <ul class="heat-labels" style=${{ lineHeight: `${rowHeight}px` }}>${rows.map((r, i) => html`<li class=${chosen?.row === i ? "chosen" : ""}>
        ${r.href ? html`<a data-item href=${r.href} title=${r.label}>${r.label}</a>` : html`<span title=${r.label}>${r.label}</span>`}</li>`)}</ul>
      <div class="heat-canvas" tabindex="0" role="application" aria-roledescription="heat map"
        aria-label=${`${label}. ${onChoose ? "Arrow keys choose a cell. " : ""}${said}`} onKeyDown=${move}>
        <canvas ref=${canvas} style=${{ width: `${inner}px`, height: `${height}px` }}
          onPointerMove=${(e) => setOver(cell(e))} onPointerLeave=${() => setOver(null)}
          onClick=${(e) => { const at = cell(e); if (at && onChoose) onChoose(at); }}></canvas>
        ${chosen && rows[chosen.row] && html`<span class="heat-chosen" style=${{ left: `${Math.round(chosen.column * size)}px`, top: `${chosen.row * rowHeight}px`,
          width: `${Math.max(4, Math.ceil(size))}px`, height: `${rowHeight - 1}px` }}></span>`}
      </div>
    </div>
    <div class="heat-axis" aria-hidden="true">${columns.map((c, i) => (i % every === 0
      ? html`<span style=${{ left: `${labelWidth + (i + 0.5) * size}px` }}>${c.label}</span>` : null))}</div>
    <p class="heat-said" aria-live="off">${said || `strongest: ${number(largest)}${unit}; the colour follows the square root`}</p>
  </div>`;
}

export function Ramp({ signed, overPicture }) {
  const dark = useDark();
  const parts = Array.from({ length: 24 }, (_, i) => (signed ? (i / 23) * 2 - 1 : i / 23));
  return html`<span class="ramp" aria-hidden="true">${parts.map((p) => html`<i style=${{ background: css(overPicture ? glow(p) : shade(p, dark)) }}></i>`)}</span>`;
}

// The values of a map over a picture: cells = [{map_row, map_column, value}].
export function Overlay({ cells, height, width, largest }) {
  const canvas = useRef(null);
  useEffect(() => {
    canvas.current.width = width;
    canvas.current.height = height;
    const pen = canvas.current.getContext("2d");
    const image = pen.createImageData(width, height);
    for (const { map_row, map_column, value } of cells) {
      image.data.set(glow(Math.min(1, value / (largest || 1))), 4 * (map_row * width + map_column));
    }
    pen.putImageData(image, 0, 0);
  }, [cells, height, width, largest]);
  return html`<canvas ref=${canvas} class="overlay" aria-hidden="true"></canvas>`;
}
