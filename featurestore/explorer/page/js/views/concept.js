// One concept: when which feature carries it; the pictures behind a cell; into the basket.
import { html, useMemo } from "../../vendor/preact.js";
import { groups, rows } from "../answer.js";
import { HeatMap, Ramp } from "../heat.js";
import { useAsk, useChosen, useShared } from "../hooks.js";
import { addToBasket, change, to } from "../state.js";
import { Answered, Lacking, Number_, Panel, Select, Thumb } from "../ui.js";
import { number, short } from "../words.js";
import { scorable } from "./concepts.js";
import { SampleWall } from "./walls.js";

const FEW = 20;
const ORDERS = [["mean", "mean score"], ["peak", "highest score"], ["first", "first step that matters"]];

export function Concept({ args: [familyName, concept] }) {
  const { overview } = useShared();
  const { sae, saeName, branch } = useChosen();
  const family = overview.families.find((one) => one.name === familyName);
  const known = family?.concepts.find((one) => one.name === concept);
  if (!known) {
    const names = family ? family.concepts.map((c) => [c.name, to("concept", [familyName, c.name])]) : overview.families.map((f) => [f.name, to("concepts", [], { family: f.name })]);
    return html`<section class="panel lacking"><h1>No sample carries ${short(familyName || "", 40)} = “${short(concept || "", 60)}”.</h1><p>There are: ${names.slice(0, 60).map(([name, href]) => html`<a href=${href}>${short(name, 60)}</a> `)}</p></section>`;
  }
  const asked = { sae: saeName, branch, family: familyName, concept };
  return html`<header class="title"><p class="crumbs"><a href=${to("concepts", [], { family: familyName })}>${familyName}</a></p><h1>${short(concept, 200)}</h1>
      <p class="muted">${number(known.n_samples)} samples${sae ? ` · SAE ${sae.name}` : ""}</p></header>
    ${scorable(sae, family) ? html`<${Scores} asked=${asked} n=${known.n_samples} />` : html`<${Lacking} what=${["sae", "codes", "concepts"]}>Scores need codes of an SAE, and a second concept to compare with.</${Lacking}>`}
    <${SampleWall} title="Its samples" keep=${(columns, i) => columns[familyName][i] === concept} />`;
}

function Scores({ asked, n }) {
  const { address } = useShared();
  const { params } = address;
  const top = Number(params.top) || 24;
  const order = params.order || "mean";
  const scores = useAsk("concept_scores", { ...asked, top });
  const side = html`<${Select} label="Order" value=${order} options=${ORDERS} onChange=${(o) => change({ order: o }, true)} />
    <${Number_} label="Features" value=${top} min=${1} max=${200} onChange=${(n) => change({ top: n })} />`;
  return html`<${Panel} title="When each feature matters" help="score" aside=${side} answer=${scores.data} busy=${scores.loading} wide>
    <${Answered} answer=${scores} height=${480} empty="No feature fired in any of these samples.">${(data) => html`<${Map_} data=${data} order=${order} asked=${asked} n=${n} />`}</${Answered}></${Panel}>`;
}

function Map_({ data, order, asked, n }) {
  const { address } = useShared();
  const { table, columns } = useMemo(() => arrange(data, order), [data, order]);
  const { params } = address;
  const row = Math.max(0, table.findIndex((r) => r.key === Number(params.feature)));
  const given = columns.findIndex((c) => c.step === Number(params.step));
  const peak = table[row].values.indexOf(Math.max(...table[row].values));
  const chosen = { row, column: given < 0 ? peak : given };
  const choose = (at) => change({ feature: table[at.row].key, step: columns[at.column].step }, true);
  return html`<div class="concept-map"><div><p class="legend">less <${Ramp} signed /> more than in other concepts</p>
      <${HeatMap} label="Scores by feature and step" rows=${table} columns=${columns} chosen=${chosen} onChoose=${choose} columnName="timestep" /></div>
    <${Cell} asked=${asked} n=${n} feature=${table[row].key} score=${table[row].values[chosen.column]} step=${columns[chosen.column]} columns=${columns} /></div>`;
}

function arrange(data, order) {
  const list = rows(data);
  const steps = [...new Map(list.map((r) => [r.step, r.timestep])).entries()].sort((a, b) => a[0] - b[0]);
  const columns = steps.map(([step, timestep]) => ({ key: step, step, timestep, label: String(Math.round(timestep)) }));
  const table = [...groups(list, "feature")].map(([feature, found]) => {
    const by = new Map(found.map((r) => [r.step, r.score]));
    const values = steps.map(([step]) => by.get(step) ?? 0);
    return { key: feature, label: String(feature), href: to("feature", [feature]), values, mean: found[0].mean_score };
  });
  const first = (r) => { const half = Math.max(...r.values) / 2; return r.values.findIndex((v) => v >= half); };
  const by = { mean: (r) => -r.mean, peak: (r) => -Math.max(...r.values), first }[order] || ((r) => -r.mean);
  return { table: table.sort((a, b) => by(a) - by(b) || a.key - b.key), columns };
}

// What is behind the chosen cell: its interval, its pictures, and what to put into the basket.
function Cell({ asked, n, feature, score, step, columns }) {
  const { sae, branch, family, concept } = asked;
  const pictures = useAsk("cell_samples", { sae, branch, feature, step: step.step, top: 8 });
  const interval = useAsk("bootstrap", { ...asked, top: 8, at_step: step.step });
  const found = interval.data && rows(interval.data).find((r) => r.step === step.step && r.feature === feature);
  const entry = { sae, family, concept, branch };
  const last = columns[columns.length - 1].timestep;
  return html`<aside class="cell"><h3>Feature <a href=${to("feature", [feature], { step: step.step })}>${feature}</a> at timestep ${Math.round(step.timestep)}</h3>
    <p class="big">${number(score)} <small>${found ? `95 %: ${number(found.low)} to ${number(found.high)}` : interval.loading ? "…" : ""}</small></p>
    <${Interval} answer=${interval} step=${step} feature=${feature} />
    ${n < FEW && html`<p class="muted"><small>${n} samples are few for an interval: the true score lies outside of it in up to one of six cases.</small></p>`}
    <h4>Strongest here</h4><${Answered} answer=${pictures} height=${150} empty="It fires in no sample at this step.">${(data) => html`<div class="thumbs small">${rows(data).map((r) => html`<${Thumb} size=${72} sample=${r.sample_id} prompt=${r.prompt}
      href=${to("samples", [r.sample_id], { step: step.step, feature })} note=${number(r.total)} />`)}</div>`}</${Answered}>
    <h4>Into the basket</h4><div class="buttons">
      <button type="button" class="main" onClick=${() => addToBasket({ ...entry, top: 2 })}>Two best of each step</button>
      <button type="button" onClick=${() => addToBasket({ ...entry, features: [feature] })}>Only feature ${feature}</button>
      <button type="button" onClick=${() => addToBasket({ ...entry, top: 2, window: [step.timestep, last] })}>Two best, from here on</button></div></aside>`;
}

// The best features of the step with their intervals.
function Interval({ answer, step, feature }) {
  if (answer.error) return html`<p class="muted">${answer.error.message}</p>`;
  const here = answer.data ? rows(answer.data).filter((r) => r.step === step.step) : [];
  if (!here.length) return null;
  const high = Math.max(...here.map((r) => r.high), 1e-9);
  const low = Math.min(0, ...here.map((r) => r.low));
  const at = (value) => `${Math.max(0, Math.min(100, (100 * (value - low)) / (high - low)))}%`;
  return html`<ul class="intervals" aria-label="Best features of this step with 95 % intervals">${here.map((r) => html`<li class=${r.feature === feature ? "chosen" : ""}><a href=${to("feature", [r.feature])}>${r.feature}</a>
    <span class="range" title=${`${number(r.score)}, 95 %: ${number(r.low)} to ${number(r.high)}`}><s style=${{ left: at(0) }}></s><i style=${{ left: at(r.low), right: `calc(100% - ${at(r.high)})` }}></i><b style=${{ left: at(r.score) }}></b></span><small>${number(r.score)}</small></li>`)}</ul>`;
}
