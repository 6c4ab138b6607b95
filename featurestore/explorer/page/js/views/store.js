// What is in the store: its run, its SAEs, its pictures, its tables; and what is missing.
import { html } from "../../vendor/preact.js";
import { Steps } from "../charts.js";
import { useAsk, useLater, useShared } from "../hooks.js";
import { Table } from "../list.js";
import { to } from "../state.js";
import { Answered, Code, Help, Panel, Thumb } from "../ui.js";
import { bytes, number, short } from "../words.js";

const WALL = 12;
const CELL = 92;

export function Store() {
  const { overview } = useShared();
  const { run } = overview;
  const scheduler = run.scheduler?.class || run.scheduler;
  const facts = [["model", run.model], ["scheduler", scheduler], ["steps", run.n_steps], ["guidance", run.guidance],
    ["picture", run.height && `${run.height} × ${run.width}`], ["precision", run.dtype], ["run", overview.run_id]];
  const n_concepts = overview.families.reduce((sum, family) => sum + family.concepts.length, 0);
  const size = overview.tables.reduce((sum, table) => sum + table.bytes, 0);
  return html`<header class="title"><h1>${short(overview.name, 80)}</h1>
      <dl class="facts">${facts.filter(([, value]) => value !== undefined && value !== "").map(([key, value]) => html`<div><dt>${key}</dt><dd>${short(String(value), 60)}</dd></div>`)}</dl></header>
    <ul class="tiles"><${Tile} n=${overview.n_samples} text="samples" href=${to("samples")} /><${Tile} n=${n_concepts} text="concepts" href=${to("concepts")} />
      <${Tile} n=${overview.hooks.length} text="hooks" /><${Tile} n=${overview.saes.length} text="SAEs" href=${to("features")} /><${Tile} n=${bytes(size)} text="of data" /></ul>
    ${overview.missing.map((one) => html`<section class="panel lacking" key=${one.why}><h2>${one.why}</h2><${Code} text=${one.command} label="Command" /></section>`)}
    ${overview.n_samples > 0 && html`<${Wall} />`}
    <div class="columns">${overview.saes.map((sae) => html`<${Sae} key=${sae.name} sae=${sae} />`)}</div>
    <${Tables} />`;
}

const Tile = ({ n, text, href }) => {
  const inner = html`<b>${typeof n === "number" ? number(n) : n}</b> ${text}`;
  return html`<li>${href ? html`<a href=${href}>${inner}</a>` : html`<span>${inner}</span>`}</li>`;
};

function Sae({ sae }) {
  const { config, metrics } = sae;
  const steps = useAsk("sae_steps", sae.encoded === "all" ? { sae: sae.name, branch: Object.keys(sae.steps)[0] } : null);
  const fvu = (metrics?.timesteps || []).filter((t) => t.fvu !== null && t.branch === metrics.timesteps[0].branch).map((t) => ({ x: t.timestep, y: t.fvu }));
  const dead = steps.data ? steps.data.columns.timestep.map((t, i) => ({ x: t, y: steps.data.columns.n_dead[i] })) : [];
  return html`<${Panel} title=${`SAE ${sae.name}`} answer=${steps.data}>
    <p class="muted hook">${config.architecture} on the ${config.io || "output"} of <code>${config.hook || "an unknown hook"}</code></p>
    <dl class="numbers">
      <div><dt>latents</dt><dd>${number(config.n_latents)}</dd></div><div><dt>channels</dt><dd>${number(config.d_in)}</dd></div>
      ${metrics && html`<div><dt>FVU<${Help} word="fvu" /></dt><dd>${number(metrics.fvu)}</dd></div><div><dt>L0<${Help} word="l0" /></dt><dd>${number(metrics.l0)}</dd></div>
        <div><dt>dead<${Help} word="dead" /></dt><dd>${number(metrics.n_dead)}</dd></div>`}
    </dl>
    ${fvu.length > 1 && html`<h3>FVU by timestep</h3><${Steps} label=${`FVU of SAE ${sae.name} by timestep`} points=${fvu} y="FVU" />`}
    ${sae.encoded === "all" && html`<h3>Dead latents by timestep</h3><${Answered} answer=${steps} height=${150}>${() => html`<${Steps} label=${`Dead latents of SAE ${sae.name} by timestep`} points=${dead} y="dead" />`}</${Answered}>`}
    ${!metrics && html`<p class="muted">Its checkpoint came without measures.</p>`}</${Panel}>`;
}

// A grid of two families, or rows of one: the first picture of each cell.
function Wall() {
  const { provider, overview } = useShared();
  const samples = useLater("samples", () => provider.samples());
  const [first, second] = overview.families;
  return html`<${Panel} title="Samples" wide aside=${html`<a href=${to("samples")}>all ${number(overview.n_samples)}</a>`}>
    <${Answered} answer=${samples} height=${300}>${(data) => (first && second ? html`<${Grid} data=${data} first=${first} second=${second} />`
      : first ? html`<${Rows} data=${data} family=${first} />` : html`<div class="thumbs">${data.columns.sample_id.slice(0, 40).map((id, i) => html`<${Thumb} sample=${id} prompt=${data.columns.prompt[i]} />`)}</div>`)}</${Answered}></${Panel}>`;
}

function Grid({ data, first, second }) {
  const { columns } = data;
  const cells = new Map();
  columns.sample_id.forEach((id, i) => {
    const key = `${columns[first.name][i]}\n${columns[second.name][i]}`;
    if (!cells.has(key)) cells.set(key, i);
  });
  const [down, across] = [first.concepts.slice(0, WALL), second.concepts.slice(0, WALL)];
  return html`<div class="scroll wall" tabindex="0" role="region" aria-label=${`Samples by ${first.name} and ${second.name}`}><table><thead><tr><td></td>
    ${across.map((c) => html`<th scope="col"><a href=${to("concept", [second.name, c.name])}>${short(c.name, 16)}</a></th>`)}</tr></thead>
    <tbody>${down.map((row) => html`<tr><th scope="row"><a href=${to("concept", [first.name, row.name])}>${short(row.name, 16)}</a></th>
      ${across.map((column) => { const i = cells.get(`${row.name}\n${column.name}`); return html`<td>${i !== undefined && html`<${Thumb} size=${CELL} sample=${columns.sample_id[i]} prompt=${columns.prompt[i]} />`}</td>`; })}</tr>`)}</tbody></table></div>`;
}

function Rows({ data, family }) {
  const { columns } = data;
  return html`${family.concepts.slice(0, 2 * WALL).map((concept) => html`<h3><a href=${to("concept", [family.name, concept.name])}>${short(concept.name, 60)}</a> <small class="muted">${number(concept.n_samples)}</small></h3>
    <div class="thumbs">${columns.sample_id.map((id, i) => [id, i]).filter(([, i]) => columns[family.name][i] === concept.name).slice(0, 10)
      .map(([id, i]) => html`<${Thumb} sample=${id} prompt=${columns.prompt[i]} />`)}</div>`)}`;
}

function Tables() {
  const { overview } = useShared();
  const data = { name: overview.tables.map((t) => t.name), rows: overview.tables.map((t) => t.rows), shards: overview.tables.map((t) => t.shards), bytes: overview.tables.map((t) => t.bytes) };
  const columns = [{ key: "name", label: "table" }, { key: "rows", label: "rows", numeric: true }, { key: "shards", label: "files", numeric: true }, { key: "bytes", label: "size", numeric: true, render: bytes }];
  return html`<${Panel} title="Tables" wide answer=${{ name: "tables", columns: data, n_rows: data.name.length }}>
    <${Table} label="Tables" columns=${columns} data=${data} n=${data.name.length} height=${420} /></${Panel}>`;
}
