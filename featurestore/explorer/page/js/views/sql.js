// Any SELECT over the store: editor with the columns beside it, a table of the answer, a quick chart, downloads.
import { html, useEffect, useRef, useState } from "../../vendor/preact.js";
import { Chart } from "../charts.js";
import { useLater, useShared } from "../hooks.js";
import { Table } from "../list.js";
import { change, to } from "../state.js";
import { Copy, Panel, Problem, Select } from "../ui.js";
import { number, short } from "../words.js";

const EXAMPLES = [
  ["Samples of each concept", "select family, concept, count(*) as n\nfrom labels\ngroup by all\norder by family, n desc, concept"],
  ["Strongest features of a step", "select feature, avg(sum) as mean, count(*) as n\nfrom stats\nwhere step = 10\ngroup by feature\norder by mean desc\nlimit 50"],
  ["Activity over the steps", "select timestep, sum(sum) as total, count(distinct feature) as n_features\nfrom stats\ngroup by timestep\norder by timestep desc"],
  ["A feature's activity by concept", "select family, concept, timestep, avg(sum) as mean\nfrom stats\njoin labels using (sample_id)\nwhere feature = 0\ngroup by all\norder by family, concept, timestep desc"],
];

const EXPORTED = [
  ["Samples", "select *\nfrom samples\nlimit 50"],
  ["Best features of each concept", "select family, concept, feature, max(score) as best\nfrom concept_scores\ngroup by family, concept, feature\norder by best desc\nlimit 50"],
  ["Densest features", "select feature, density, mean\nfrom dense_features\norder by density desc\nlimit 50"],
  ["How the SAE is used over the steps", "select sae, timestep, l0, n_dead\nfrom sae_steps\norder by sae, timestep desc"],
];

export function Sql() {
  const { provider, overview, address, say } = useShared();
  const examples = provider.can.live ? EXAMPLES : EXPORTED;
  const statement = address.params.q ?? examples[0][1];
  const [text, setText] = useState(statement);
  const [run, setRun] = useState({ answer: null, error: null, busy: false });
  const controller = useRef(null);
  const editor = useRef(null);
  const start = async (given) => {
    controller.current?.abort();
    const mine = new AbortController();
    controller.current = mine;
    setRun((before) => ({ ...before, error: null, busy: true }));
    try {
      const answer = { ...(await provider.sql(given, mine.signal)), statement: given };
      setRun({ answer, error: null, busy: false });
    } catch (error) {
      if (mine !== controller.current) return;
      setRun((before) => ({ ...before, busy: false, error: error.name === "AbortError" ? { message: "Cancelled." } : error }));
    }
  };
  useEffect(() => {
    setText(statement);
    if (address.params.q) start(statement);
    return () => controller.current?.abort();
  }, [statement]);
  const submit = (event) => {
    event?.preventDefault();
    if (text === address.params.q) start(text); else change({ q: text });
  };
  const insert = (name) => {
    const box = editor.current;
    box.setRangeText(name, box.selectionStart, box.selectionEnd, "end");
    setText(box.value);
    box.focus();
  };
  const download = (form) => provider.download(run.answer, form).catch((error) => say(error.message));
  return html`<header class="title"><h1>SQL</h1><p class="muted">${provider.can.live ? "One SELECT over the store's tables, as DuckDB reads it. Nothing can be changed, and nothing else can be read."
    : html`One SELECT over the samples and the answers that this page was exported with, run in this browser. Where the store is, <code>featurestore explore ${overview.root}</code> asks DuckDB about all of its tables.`}</p></header>
    <div class="sql"><section class="panel editor"><form onSubmit=${submit}>
        <textarea ref=${editor} aria-label="Statement" spellcheck="false" rows=${Math.max(7, Math.min(20, text.split("\n").length + 1))} value=${text} onInput=${(e) => setText(e.currentTarget.value)}
          onKeyDown=${(e) => (e.ctrlKey || e.metaKey) && e.key === "Enter" && submit(e)}></textarea>
        <div class="row"><button class="main" disabled=${run.busy}>Run</button><small class="muted">Ctrl + Enter</small>
          ${run.busy && html`<button type="button" onClick=${() => controller.current.abort()}>Cancel</button>`}
          <${Copy} text=${text} label="Copy" />
          <${Select} label="Examples" value="" options=${[["", "choose …"], ...examples.map(([name]) => [name, name])]} onChange=${(name) => { const found = examples.find(([n]) => n === name); if (found) change({ q: found[1] }); }} /></div></form>
        ${run.busy && html`<div class="waiting thin" role="status"><span class="sr">Running …</span></div>`}
        ${run.error && html`<${Problem} error=${run.error} />`}</section><${Views} insert=${insert} /></div>
    ${run.answer && html`<${Answer} answer=${run.answer} download=${download} />`}`;
}

function Views({ insert }) {
  const { provider } = useShared();
  const views = useLater("tables", () => provider.tables());
  return html`<section class="panel views-list" aria-label="Tables and columns"><h2>Tables</h2>${(views.data || []).map((view) => html`<details key=${view.name}><summary>${view.name}</summary>
    <ul>${view.columns.map((c) => html`<li><button type="button" class="link" onClick=${() => insert(c.name)}>${c.name}</button> <small class="muted">${short(c.type, 24)}</small></li>`)}</ul></details>`)}</section>`;
}

const isNumber = (type) => /^(u?int|float|double|decimal|halffloat)/.test(type);

function Answer({ answer, download }) {
  const { provider } = useShared();
  const names = Object.keys(answer.columns);
  const columns = names.map((name) => ({ key: name, label: name, numeric: isNumber(answer.types[name]), render: name === "sample_id" ? (id) => html`<a href=${to("samples", [id])}>${id}</a>` : null }));
  const said = `${number(answer.n_rows)} row${answer.n_rows === 1 ? "" : "s"} in ${answer.seconds.toFixed(2)} s${answer.truncated ? `, the first of more: ${provider.can.live ? "a download has them all" : "ask for less"}` : ""}`;
  const aside = html`<div class="buttons">${provider.can.forms.map((form) => html`<button type="button" onClick=${() => download(form)}>${{ csv: "CSV", parquet: "Parquet", json: "JSON" }[form]}</button>`)}</div>`;
  return html`<${Panel} title="Answer" wide aside=${aside}><p class="muted" role="status">${said}</p>
      <${Table} label="Answer" columns=${columns} data=${answer.columns} n=${answer.n_rows} height=${420} /></${Panel}>
    ${answer.n_rows > 1 && names.length > 1 && html`<${Quick} answer=${answer} names=${names} />`}`;
}

// x, y and colour of a chart: in the address too.
function Quick({ answer, names }) {
  const { address } = useShared();
  const { params } = address;
  const numeric = names.filter((n) => isNumber(answer.types[n]));
  const y = names.includes(params.y) ? params.y : numeric[numeric.length - 1];
  const x = names.includes(params.x) ? params.x : names.find((n) => n !== y);
  const colour = names.includes(params.colour) ? params.colour : "";
  const mark = ["dot", "line", "bar"].includes(params.mark) ? params.mark : isNumber(answer.types[x]) ? "line" : "bar";
  if (!y) return null;
  const options = names.map((n) => [n, n]);
  const pick = (key) => (value) => change({ [key]: value }, true);
  const points = answer.columns[x].map((value, i) => ({ x: value, y: answer.columns[y][i], c: colour ? String(answer.columns[colour][i]) : "" })).slice(0, 5000);
  const aside = html`<div class="row"><${Select} label="Chart" value=${mark} options=${[["dot", "points"], ["line", "lines"], ["bar", "bars"]]} onChange=${pick("mark")} />
    <${Select} label="x" value=${x} options=${options} onChange=${pick("x")} /><${Select} label="y" value=${y} options=${options} onChange=${pick("y")} />
    <${Select} label="Colour" value=${colour} options=${[["", "none"], ...options]} onChange=${pick("colour")} /></div>`;
  return html`<${Panel} title="Chart" wide aside=${aside}><${Chart} label=${`${y} by ${x}`} height=${300} depends=${[points.length, answer, x, y, colour, mark]} make=${(Plot, { colours }) => {
    const paint = colour ? "c" : colours[0];
    const shared = { x: "x", y: "y" };
    const drawn = { dot: () => Plot.dot(points, { ...shared, stroke: paint, r: 2.5, tip: true }), line: () => Plot.lineY(points, { ...shared, stroke: paint, z: colour ? "c" : null, strokeWidth: 2, tip: true }), bar: () => Plot.barY(points, { ...shared, fill: paint, tip: true }) };
    return { x: { label: x, ...(mark === "bar" ? { type: "band", tickRotate: points.length > 12 ? -40 : 0 } : {}) }, y: { label: y, grid: true }, marginBottom: mark === "bar" ? 64 : 36, color: { legend: false, scheme: "observable10" }, marks: [Plot.ruleY([0]), drawn[mark]()] };
  }} /></${Panel}>`;
}
