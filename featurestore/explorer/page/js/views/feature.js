// One feature: for which concepts and when it fires, where in the pictures, what fires with it; and the list of all.
import { html, useMemo } from "../../vendor/preact.js";
import { groups, rows } from "../answer.js";
import { Steps } from "../charts.js";
import { HeatMap, Overlay, Ramp } from "../heat.js";
import { useAsk, useChosen, useLater, useSeen, useShared, useStep } from "../hooks.js";
import { Table } from "../list.js";
import { addToBasket, change, go, to } from "../state.js";
import { StepSlider } from "../steps.js";
import { Answered, Lacking, Panel, Tabs, Thumb } from "../ui.js";
import { number, percent, short } from "../words.js";

export function Feature({ args: [text] }) {
  const { sae, saeName, branch, steps } = useChosen();
  if (sae?.encoded !== "all") return html`<${Lacking} page what=${["samples", "sae", "codes"]}>Features need codes of an SAE.</${Lacking}>`;
  const feature = Number(text);
  const n = sae.config.n_latents;
  if (!Number.isInteger(feature) || feature < 0 || feature >= n) {
    return html`<section class="panel lacking"><h1>SAE ${sae.name} has no feature “${short(text, 40)}”.</h1><p>It has the features <a href=${to("feature", [0])}>0</a> to <a href=${to("feature", [n - 1])}>${n - 1}</a>; <a href=${to("features")}>all of them</a>.</p></section>`;
  }
  const asked = { sae: saeName, branch, feature };
  return html`<header class="title"><p class="crumbs"><a href=${to("features")}>Features</a> · SAE ${sae.name}</p>
      <h1>Feature ${feature} <span class="pager"><a href=${to("feature", [Math.max(0, feature - 1)])} aria-label="Previous feature">←</a><a href=${to("feature", [Math.min(n - 1, feature + 1)])} aria-label="Next feature">→</a></span></h1></header>
    <${Profile} asked=${asked} /><${Where} asked=${asked} steps=${steps} sae=${sae} /><${Bands} asked=${asked} steps=${steps} />
    <div class="columns"><${Together} asked=${asked} /><${Near} asked=${asked} /></div>`;
}

function Profile({ asked }) {
  const { overview } = useShared();
  const { family, families, steps } = useChosen();
  const { timestep } = useStep(steps);
  const profile = useAsk("timestep_profile", asked);
  const concepts = useAsk("feature_concepts", asked);
  const points = (key) => profile.data.columns.timestep.map((t, i) => ({ x: t, y: profile.data.columns[key][i] }));
  const tabs = html`<${Tabs} label="Family" names=${families} chosen=${family} link=${(name) => to("feature", [asked.feature], { family: name })} />`;
  return html`<div class="columns"><${Panel} title="When it fires" help="mean" answer=${profile.data}>
      <${Answered} answer=${profile} height=${340}>${() => html`<h3>Mean activation</h3><${Steps} label="Mean activation by timestep" points=${points("mean")} y="μ" mark=${timestep} />
        <h3>Density</h3><${Steps} label="Share of samples in which it fires, by timestep" points=${points("density")} y="share of samples" mark=${timestep} />`}</${Answered}></${Panel}>
    ${overview.families.length > 0 && html`<${Panel} title="For which concepts" help="mean" aside=${tabs} answer=${concepts.data}><${Answered} answer=${concepts} height=${340}>${(data) => html`<${Concepts} data=${data} family=${family} asked=${asked} />`}</${Answered}></${Panel}>`}</div>`;
}

function Concepts({ data, family, asked }) {
  const { table, columns } = useMemo(() => {
    const list = rows(data).filter((r) => r.family === family);
    const steps = [...new Map(list.map((r) => [r.step, r.timestep]))].sort((a, b) => a[0] - b[0]);
    const made = [...groups(list, "concept")].map(([concept, found]) => {
      const by = new Map(found.map((r) => [r.step, r.mean]));
      return { key: concept, label: concept, href: to("concept", [family, concept], { feature: asked.feature }), values: steps.map(([s]) => by.get(s) ?? null) };
    });
    const total = (row) => row.values.reduce((sum, v) => sum + (v ?? 0), 0);
    return { table: made.sort((a, b) => total(b) - total(a)), columns: steps.map(([s, t]) => ({ key: s, step: s, label: String(Math.round(t)) })) };
  }, [data, family]);
  const { address } = useShared();
  const given = columns.findIndex((c) => c.step === Number(address.params.step));
  return html`<${HeatMap} label="Mean activation by concept and step" rows=${table} columns=${columns} rowHeight=${22} labelWidth=${96} columnName="timestep"
      chosen=${given < 0 ? null : { row: 0, column: given }} onChoose=${({ column }) => change({ step: columns[column].step }, true)} />
    <div class="buttons">${table.slice(0, 1).map((row) => html`<button type="button" onClick=${() => addToBasket({ sae: asked.sae, branch: asked.branch, family, concept: row.key, features: [asked.feature] })}>Into the basket, for ${short(row.label, 30)}</button>`)}</div>`;
}

// The samples with most of it, with its map at one step.
function Where({ asked, steps, sae }) {
  const { index, step } = useStep(steps);
  const top = useAsk("top_samples", { ...asked, top: 12 });
  return html`<${Panel} title="Where it fires most" help="total" answer=${top.data} wide aside=${html`<${StepSlider} steps=${steps} index=${index} />`}>
    <${Answered} answer=${top} height=${220} empty="It fires in no encoded sample: a dead latent.">${() => null}</${Answered}>
    ${top.data?.n_rows > 0 && html`<div class="maps">${rows(top.data).map((r) => html`<${Mapped} key=${r.sample_id} row=${r} asked=${asked} step=${step} sae=${sae} />`)}</div>
      <p class="legend">weak <${Ramp} overPicture /> strong, on one scale for each picture</p>`}</${Panel}>`;
}

export function Mapped({ row, asked, step, sae, size = 152 }) {
  const [box, seen] = useSeen();
  const map = useAsk("feature_map", seen ? { ...asked, sample: row.sample_id } : null);
  const { cells, largest } = useMemo(() => {
    const every = map.data ? rows(map.data) : [];
    return { cells: every.filter((c) => c.step === step), largest: every.reduce((m, c) => Math.max(m, c.value), 0) };
  }, [map.data, step]);
  return html`<span ref=${box}><${Thumb} size=${size} sample=${row.sample_id} prompt=${row.prompt} note=${number(row.total)} href=${to("samples", [row.sample_id], { feature: asked.feature, step })}>
    <${Overlay} cells=${cells} height=${sae.config.height || 1} width=${sae.config.width || 1} largest=${largest} /></${Thumb}></span>`;
}

function Bands({ asked, steps }) {
  const bands = useAsk("sample_bands", { ...asked, bands: 4, top: 8 });
  const names = ["most", "more than half", "less than half", "least"];
  return html`<${Panel} title="From much to little" help="bands" answer=${bands.data} wide><${Answered} answer=${bands} height=${160} empty="It fires in no encoded sample.">${(data) => html`<div class="bands">${[...groups(rows(data), "band")].map(([band, list]) => html`<div key=${band}><h3>${names[band - 1]} <small class="muted">${list[0].n_samples} samples</small></h3>
    <div class="thumbs small">${list.map((r) => html`<${Thumb} size=${72} sample=${r.sample_id} prompt=${r.prompt} note=${number(r.total)} href=${to("samples", [r.sample_id], { feature: asked.feature, step: r.peak_step })} />`)}</div></div>`)}</div>`}</${Answered}></${Panel}>`;
}

function Together({ asked }) {
  const found = useAsk("coactivation", { ...asked, top: 15 });
  return html`<${Panel} title="Fires with" help="together" answer=${found.data}><${Answered} answer=${found} height=${200} empty="No other feature fires in the same rows.">${(data) => html`<${Table} label="Features that fire with it" height=${320} data=${data.columns} n=${data.n_rows}
    columns=${[{ key: "feature", label: "feature", numeric: true, render: link }, { key: "jaccard", label: "shared", numeric: true }, { key: "lift", label: "lift", numeric: true }]} />`}</${Answered}></${Panel}>`;
}

function Near({ asked }) {
  const { provider } = useShared();
  const found = useLater(`directions ${asked.sae} ${asked.feature}`, (signal) => provider.directions(asked.sae, asked.feature, 15, signal));
  return html`<${Panel} title="Nearest directions" help="direction" answer=${found.data}><${Answered} answer=${found} height=${200}>${(data) => html`<${Table} label="Nearest decoder directions" height=${320} data=${data.columns} n=${data.n_rows}
    columns=${[{ key: "feature", label: "feature", numeric: true, render: link }, { key: "cosine", label: "cosine", numeric: true }]} />`}</${Answered}></${Panel}>`;
}
const link = (feature) => html`<a data-item href=${to("feature", [feature])}>${feature}</a>`;

export function Features() {
  const { address } = useShared();
  const { sae, saeName, branch } = useChosen();
  const usable = sae?.encoded === "all";
  const dense = useAsk("dense_features", usable ? { sae: saeName, branch, threshold: 0 } : null);
  if (!usable) return html`<${Lacking} page what=${["samples", "sae", "codes"]}>Features need codes of an SAE.</${Lacking}>`;
  const sort = address.params.sort ? { key: address.params.sort.replace("-", ""), down: address.params.sort.startsWith("-") } : { key: "density", down: true };
  const columns = [
    { key: "feature", label: "feature", numeric: true, render: link },
    { key: "density", label: "density", numeric: true, render: percent },
    { key: "position_density", label: "of positions", numeric: true, render: percent },
    { key: "mean", label: "mean μ", numeric: true }, { key: "max", label: "max", numeric: true },
  ];
  const open = (event) => { event.preventDefault(); go(to("feature", [new FormData(event.currentTarget).get("feature")])); };
  return html`<header class="title"><h1>Features</h1><p class="muted">SAE ${sae.name}: ${number(sae.config.n_latents)} latents, ${dense.data ? `${number(dense.data.n_rows)} fired` : "…"}</p></header>
    <${Panel} title="All that fired" help="density" answer=${dense.data} busy=${dense.loading} wide aside=${html`<form onSubmit=${open} class="row"><label class="field"><span>Open</span><input name="feature" type="number" min="0" max=${sae.config.n_latents - 1} required /></label><button>Go</button></form>`}>
      <${Answered} answer=${dense} height=${560} empty="No feature fired.">${(data) => html`<${Table} label="Features" columns=${columns} data=${data.columns} n=${data.n_rows} height=${640} sort=${sort} onSort=${(s) => change({ sort: `${s.down ? "-" : ""}${s.key}` }, true)} />`}</${Answered}></${Panel}>`;
}
