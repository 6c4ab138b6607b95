// The concepts of a family: their best features with when they matter, and what two concepts share.
import { html } from "../../vendor/preact.js";
import { groups, rows } from "../answer.js";
import { Spark } from "../charts.js";
import { HeatMap } from "../heat.js";
import { saeFor, useAsk, useChosen, useLater, useShared } from "../hooks.js";
import { change, go, to } from "../state.js";
import { Answered, Lacking, Number_, Panel, Tabs, Thumb } from "../ui.js";
import { number, short } from "../words.js";

const SHOWN = 20;

// A value of each concept, in the order in which the overview has the family's concepts.
const inOrder = (known, by) => known.concepts.filter((c) => by.has(c.name)).map((c) => [c.name, by.get(c.name)]);

export function Concepts() {
  const { overview, address } = useShared();
  const { sae, saeName, branch, family, families } = useChosen();
  const known = overview.families.find((one) => one.name === family);
  if (!families.length) return html`<${Lacking} page what=${["samples", "labels"]}>No concepts: the samples carry no labels.</${Lacking}>`;
  const tabs = html`<${Tabs} label="Family" names=${families} chosen=${family} link=${(name) => to("concepts", [], { family: name, sae: saeFor(overview, name) })} />`;
  const top = Number(address.params.top) || 6;
  return html`<header class="title"><h1>Concepts</h1>${tabs}</header>
    ${scorable(sae, known) ? html`<${Scored} asked=${{ sae: saeName, branch, family }} known=${known} top=${top} />` : html`<${Unscored} known=${known} />`}`;
}

export const scorable = (sae, family) => sae?.encoded === "all" && family.concepts.length > 1;

// Without scores the concepts still have samples.
function Unscored({ known }) {
  return html`<${Lacking} what=${["sae", "codes", "concepts"]}>Features of a concept need codes of an SAE, and a second concept to compare with.</${Lacking}>
    <section class="panel"><ul class="plain-list">${known.concepts.map((c) => html`<li><a data-item href=${to("concept", [known.name, c.name])}>${short(c.name, 80)}</a> <span class="muted">${number(c.n_samples)} samples</span></li>`)}</ul></section>`;
}

function Scored({ asked, known, top }) {
  const best = useAsk("best_scores", { ...asked, top });
  // After the first answer: the family's sums, which both are made of, are computed once.
  const shared = useAsk("overlap_matrix", best.data ? { ...asked, top: 2 } : null);
  const { provider } = useShared();
  const samples = useLater("samples", () => provider.samples());
  const first = new Map();
  samples.data?.columns[known.name]?.forEach((concept, i) => { if (!first.has(concept)) first.set(concept, i); });
  const { address } = useShared();
  const all = address.params.all || known.concepts.length <= SHOWN + 4;
  const choose = html`<${Number_} label="Features" value=${top} min=${1} max=${24} onChange=${(n) => change({ top: n })} />`;
  return html`<${Panel} title="Best features of each concept" help="score" aside=${choose} answer=${best.data} busy=${best.loading} wide>
      <${Answered} answer=${best} height=${420} empty="No feature fired in any of these samples.">${(data) => html`<ul class="concepts">${inOrder(known, groups(rows(data), "concept")).slice(0, all ? undefined : SHOWN).map(([concept, list]) => html`<li key=${concept}>
        ${first.has(concept) && html`<${Thumb} aside size=${56} sample=${samples.data.columns.sample_id[first.get(concept)]} prompt=${concept} href=${to("concept", [known.name, concept])} />`}
        <div><h3><a data-item href=${to("concept", [known.name, concept])}>${short(concept, 60)}</a> <small class="muted">${number(known.concepts.find((c) => c.name === concept)?.n_samples)} samples</small></h3>
        <ul class="chips">${[...groups(list, "feature")].map(([feature, steps]) => html`<li><${FeatureChip} feature=${feature} values=${steps.map((s) => s.score)} score=${steps[0].mean_score} /></li>`)}</ul></div></li>`)}</ul>
        ${!all && html`<div class="buttons"><button type="button" onClick=${() => change({ all: 1 }, true)}>Show all ${known.concepts.length}</button></div>`}`}</${Answered}></${Panel}>
    ${!best.error && html`<${Panel} title="What two concepts share" help="jaccard" answer=${shared.data} busy=${shared.loading} wide>
      <p class="muted">Of the two best features of each step. Choose a cell to open the concept of its row.</p>
      <${Answered} answer=${shared} height=${240}>${(data) => html`<${Shared2} data=${data} known=${known} />`}</${Answered}></${Panel}>`}`;
}

export function FeatureChip({ feature, values, score, href }) {
  const peak = values.reduce((m, v) => Math.max(m, v), 0);
  return html`<a class="chip" href=${href || to("feature", [feature])}><${Spark} values=${values} label=${`score over the steps, at most ${number(peak)}`} /><b>${feature}</b>${score !== undefined && html`<small>${number(score)}</small>`}</a>`;
}

function Shared2({ data, known }) {
  const list = rows(data);
  const concepts = inOrder(known, groups(list, "concept"));
  const names = concepts.map(([name]) => name);
  // A concept shares everything with itself: left out, so that the others can be told apart.
  const table = concepts.map(([name, found]) => {
    const by = new Map(found.map((r) => [r.other_concept, r.jaccard]));
    return { key: name, label: name, href: to("concept", [known.name, name]), values: names.map((other) => (other === name ? null : by.get(other))) };
  });
  if (list.every((r) => r.other_concept === r.concept || !r.jaccard)) return html`<p class="muted">No two concepts select the same feature at any step.</p>`;
  return html`<${HeatMap} label="Share of selected features that two concepts have in common" rows=${table} columns=${names.map((n) => ({ key: n, label: short(n, 9) }))}
    rowHeight=${26} labelWidth=${104} columnName="and" onChoose=${({ row }) => go(to("concept", [known.name, names[row]]))} />`;
}
