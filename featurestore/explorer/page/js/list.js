// A real table of any length: only the rows near the screen are in the page.
import { html, useMemo, useRef, useState } from "../vendor/preact.js";
import { number } from "./words.js";

const ROW = 30;
const BEYOND = 12;

// columns: [{key, label, numeric, render}]; rows come from answer.columns. Sorted by clicking a head.
export function Table({ label, columns, data, n, height = 480, sort: given = null, onSort }) {
  const [top, setTop] = useState(0);
  const [own, setOwn] = useState(given);
  const box = useRef(null);
  const sort = onSort ? given : own;
  const order = useMemo(() => {
    const every = Array.from({ length: n }, (_, i) => i);
    if (!sort) return every;
    const values = data[sort.key];
    const sign = sort.down ? -1 : 1;
    const before = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : sign * (a < b ? -1 : a > b ? 1 : 0));
    return every.sort((i, j) => before(values[i], values[j]) || i - j);
  }, [data, n, sort?.key, sort?.down]);
  const shown = Math.ceil(height / ROW) + 2 * BEYOND;
  const first = Math.max(0, Math.min(Math.floor(top / ROW) - BEYOND, n - shown));
  const last = Math.min(n, first + shown);
  const choose = (column) => {
    const next = { key: column.key, down: sort?.key === column.key ? !sort.down : Boolean(column.numeric) };
    (onSort || setOwn)(next);
    box.current.scrollTop = 0;
  };
  const state = (column) => (sort?.key === column.key ? (sort.down ? "descending" : "ascending") : "none");
  return html`<div class="scroll" ref=${box} style=${{ maxHeight: `${height}px` }} tabindex="0" role="region" aria-label=${`${label}, table`}
      onScroll=${(e) => setTop(e.currentTarget.scrollTop)}>
    <table aria-rowcount=${n + 1}><thead><tr>${columns.map((c) => html`<th scope="col" class=${c.numeric ? "number" : ""} aria-sort=${state(c)}>
      <button type="button" onClick=${() => choose(c)}>${c.label}<i aria-hidden="true">${{ ascending: " ↑", descending: " ↓", none: "" }[state(c)]}</i></button></th>`)}</tr></thead>
    <tbody>
      ${first > 0 && html`<tr class="space" aria-hidden="true"><td style=${{ height: `${first * ROW}px` }} colspan=${columns.length}></td></tr>`}
      ${order.slice(first, last).map((i, k) => html`<tr key=${i} aria-rowindex=${first + k + 2}>${columns.map((c) => html`<td class=${c.numeric ? "number" : ""}>
        ${c.render ? c.render(data[c.key][i], i) : c.numeric ? number(data[c.key][i]) : cell(data[c.key][i])}</td>`)}</tr>`)}
      ${last < n && html`<tr class="space" aria-hidden="true"><td style=${{ height: `${(n - last) * ROW}px` }} colspan=${columns.length}></td></tr>`}
    </tbody></table></div>`;
}

function cell(value) {
  if (value === null || value === undefined) return html`<span class="muted">null</span>`;
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return text.length > 200 ? `${text.slice(0, 199)}…` : text;
}
