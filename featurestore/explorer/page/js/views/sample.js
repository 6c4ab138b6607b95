// One sample: its picture, the features that fire in it, where and when; beside another one. And the list of all.
import { html, useMemo } from "../../vendor/preact.js";
import { groups, rows } from "../answer.js";
import { Overlay } from "../heat.js";
import { useAsk, useChosen, useLater, useShared, useStep } from "../hooks.js";
import { Table } from "../list.js";
import { change, current, to } from "../state.js";
import { StepSlider } from "../steps.js";
import { Answered, Lacking, Panel } from "../ui.js";
import { number, short } from "../words.js";
import { SampleWall } from "./walls.js";

export function Samples() {
  const { overview, address } = useShared();
  if (!overview.n_samples) return html`<${Lacking} page what=${["samples"]}>No samples yet.</${Lacking}>`;
  const { compare, q = "" } = address.params;
  const href = compare ? (id) => to("samples", [compare, id], { step: address.params.step, feature: address.params.feature }) : null;
  const wanted = q.toLowerCase();
  const filter = html`<label class="field"><span>Prompt contains</span><input type="search" value=${q} onInput=${(e) => change({ q: e.currentTarget.value }, true)} /></label>`;
  return html`<header class="title"><h1>${compare ? "Compare with …" : "Samples"}</h1></header>
    <${SampleWall} title=${`${number(overview.n_samples)} pictures`} href=${href} aside=${filter} keep=${(columns, i) => columns.prompt[i].toLowerCase().includes(wanted)} />`;
}

export function Sample({ args }) {
  const { provider, overview, address } = useShared();
  const { sae, steps } = useChosen();
  const samples = useLater(overview.n_samples ? "samples" : null, () => provider.samples());
  const { index, step } = useStep(steps);
  if (!overview.n_samples) return html`<${Lacking} page what=${["samples"]}>No samples yet.</${Lacking}>`;
  if (!samples.data) return html`<${Answered} answer=${samples} height=${400}>${() => null}</${Answered}>`;
  const { columns } = samples.data;
  const found = args.slice(0, 2).map((id) => columns.sample_id.indexOf(id));
  const lost = found.findIndex((i) => i < 0);
  if (lost >= 0) return html`<section class="panel lacking"><h1>This store has no sample “${short(args[lost], 40)}”.</h1><p><a href=${to("samples")}>All samples</a></p></section>`;
  const usable = sae?.encoded === "all";
  const { feature, at } = address.params;
  const compare = found.length < 2 ? html`<a class="button" href=${to("samples", [], { compare: args[0], step: address.params.step, feature })}>Compare with another</a>`
    : html`<a class="button" href=${to("samples", [args[0]], { step: address.params.step, feature })}>Close the second</a>`;
  return html`<header class="title"><p class="crumbs"><a href=${to("samples")}>Samples</a></p><h1>${short(columns.prompt[found[0]], 200)}</h1><div class="row">${compare}
      ${usable && html`<${StepSlider} steps=${steps} index=${index} />`}</div></header>
    <div class=${found.length > 1 ? "columns" : ""}>${found.map((i, place) => html`<${One} key=${place} columns=${columns} i=${i} step=${step} usable=${usable} feature=${feature} at=${at} place=${found.length < 2 ? "" : place === 0 ? "left" : "right"} />`)}</div>
    ${!usable && html`<${Lacking} what=${["sae", "codes"]}>Which features fire here needs codes of an SAE.</${Lacking}>`}`;
}

function One({ columns, i, step, usable, feature, at, place }) {
  const { overview } = useShared();
  const labels = overview.families.map((f) => [f.name, columns[f.name]?.[i]]).filter(([, concept]) => concept !== null && concept !== undefined);
  const id = columns.sample_id[i];
  return html`<div class=${place ? "sample" : "sample alone"}>
    <section class="panel picture"><${Picture} id=${id} prompt=${columns.prompt[i]} step=${step} usable=${usable} feature=${feature} at=${at} />
      <dl class="facts">${labels.map(([family, concept]) => html`<div><dt>${family}</dt><dd><a href=${to("concept", [family, concept])}>${short(concept, 60)}</a></dd></div>`)}<div><dt>seed</dt><dd>${columns.seed[i]}</dd></div><div><dt>sample_id</dt><dd>${id}</dd></div></dl></section>
    ${usable && html`<${Firing} id=${id} step=${step} feature=${feature} at=${at} place=${place} />`}</div>`;
}

// The picture with a grid of positions: one that is chosen shows its features, a feature that is chosen its map.
function Picture({ id, prompt, step, usable, feature, at }) {
  const { provider, overview } = useShared();
  const { sae, saeName, branch } = useChosen();
  const map = useAsk("feature_map", usable && feature !== undefined ? { sae: saeName, branch, feature, sample: id } : null);
  const every = useMemo(() => (map.data ? rows(map.data) : []), [map.data]);
  const largest = every.reduce((m, c) => Math.max(m, c.value), 0);
  const [height, width] = [sae?.config.height || 1, sae?.config.width || 1];
  const [row, column] = at === undefined ? [null, null] : [Math.floor(at / width), at % width];
  const choose = (position) => change({ at: String(position) === current().params.at ? "" : position }, true);
  const click = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    choose(Math.min(height - 1, y) * width + Math.min(width - 1, x));
  };
  const move = (event) => {
    const by = { ArrowUp: -width, ArrowDown: width, ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    change({ at: Math.max(0, Math.min(height * width - 1, Number(at ?? 0) + by)) }, true);
  };
  const shown = html`${overview.has_pictures ? html`<img src=${provider.picture(id, 0)} alt=${short(prompt, 200)} />` : html`<span class="nopicture large"></span>`}
    ${feature !== undefined && html`<${Overlay} cells=${every.filter((c) => c.step === step)} height=${height} width=${width} largest=${largest} />`}
    ${row !== null && html`<span class="position" style=${{ left: `${(100 * column) / width}%`, top: `${(100 * row) / height}%`, width: `${100 / width}%`, height: `${100 / height}%` }}></span>`}`;
  if (!usable) return html`<div class="frame">${shown}</div>`;
  return html`<div class="frame positions" tabindex="0" aria-busy=${map.loading ? "true" : "false"} role="application" aria-label=${`Picture, ${height} × ${width} positions; arrow keys choose one${at === undefined ? "" : `; now row ${row}, column ${column}`}`} onClick=${click} onKeyDown=${move}>${shown}</div>
    <p class="muted hint">${feature === undefined ? "Choose a position to see what fires there, or a feature to see where it fires." : html`Where feature <a href=${to("feature", [feature], { step })}>${feature}</a> fires. <button type="button" class="quiet" onClick=${() => change({ feature: "" }, true)}>Hide it</button>`}</p>`;
}

function Firing({ id, step, feature, at, place }) {
  const { saeName, branch } = useChosen();
  const asked = { sae: saeName, branch, sample: id };
  const here = useAsk("position_features", at === undefined ? null : { ...asked, step });
  const every = useAsk("sample_features", at === undefined ? { ...asked, top: 100 } : null);
  const answer = at === undefined ? every : here;
  const title = `${at === undefined ? "Fires at this step" : `Fires at position ${at}`}${place ? `, ${place}` : ""}`;
  const aside = at !== undefined && html`<button type="button" class="quiet" onClick=${() => change({ at: "" }, true)}>All positions</button>`;
  return html`<${Panel} title=${title} answer=${answer.data} aside=${aside}><${Answered} answer=${answer} height=${420} empty="Nothing fires.">${(data) => html`<${List} data=${data} step=${step} at=${at} feature=${feature} every=${at === undefined} place=${place} />`}</${Answered}></${Panel}>`;
}

function List({ data, step, at, feature, every, place }) {
  const chosen = useMemo(() => {
    const key = every ? "step" : "position";
    const found = groups(rows(data), key).get(Number(every ? step : at)) || [];
    const names = every ? ["feature", "total", "max", "n_positions"] : ["feature", "value"];
    return { n: found.length, columns: Object.fromEntries(names.map((n) => [n, found.map((r) => r[n])])) };
  }, [data, step, at, every]);
  const show = (f) => html`<button type="button" data-item class="link" aria-pressed=${String(f) === feature ? "true" : "false"} onClick=${() => change({ feature: String(f) === feature ? "" : f }, true)}>${f}</button>`;
  const open = (f) => html`<a href=${to("feature", [f], { step })} aria-label=${`Open feature ${f}`}>open</a>`;
  const table = { ...chosen.columns, open: chosen.columns.feature };
  const columns = [{ key: "feature", label: "feature", numeric: true, render: show },
    ...(every ? [{ key: "total", label: "total", numeric: true }, { key: "max", label: "max", numeric: true }, { key: "n_positions", label: "positions", numeric: true }] : [{ key: "value", label: "activation", numeric: true }]),
    { key: "open", label: "page", render: open }];
  if (!chosen.n) return html`<p class="muted">Nothing fires here at this step.</p>`;
  return html`<${Table} label=${`Features that fire${place ? `, ${place}` : ""}`} columns=${columns} data=${table} n=${chosen.n} height=${520} />`;
}
