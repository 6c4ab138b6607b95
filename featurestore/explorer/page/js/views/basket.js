// Chosen features: how strongly and when they are taken out; what the model draws then; files, commands and lines that do the same.
import { html, useState } from "../../vendor/preact.js";
import { save } from "../answer.js";
import { useLater, useShared } from "../hooks.js";
import { addToBasket, change, formatBasket, parseBasket, to } from "../state.js";
import { Code, Field, Help, Number_, Panel, Problem, Select } from "../ui.js";
import { number, short } from "../words.js";
import { Drawing, Try, usePrompt } from "./try.js";

export function Basket() {
  const { address, overview, provider } = useShared();
  const entries = parseBasket(address.params.basket);
  const keep = (next) => change({ basket: formatBasket(next) }, true);
  const set = (i, changed) => keep(entries.map((e, k) => (k === i ? { ...e, ...changed } : e)));
  const prompt = usePrompt(entries);
  const wrong = entries.map((e) => mistake(e, overview)).find(Boolean);
  return html`<header class="title"><h1>Basket</h1><p class="muted">Features to take out while the model draws.</p></header>
    ${wrong && html`<${Problem} error=${{ message: wrong }} />`}
    ${entries.length === 0 ? html`<${Empty} />` : html`<ul class="entries">${entries.map((e, i) => html`<li class="panel" key=${i}><${Entry} entry=${e} set=${(c) => set(i, c)} remove=${() => keep(entries.filter((_, k) => k !== i))} /></li>`)}</ul>`}
    ${provider.can.live ? html`<${Try} entries=${wrong ? [] : entries} prompt=${prompt} />` : html`<${Finished} entries=${entries} />`}
    ${entries.length > 0 && !wrong && html`<${Files} entries=${entries} prompt=${prompt} />`}
    <${Load} />`;
}

function mistake(entry, overview) {
  const sae = overview.saes.find((one) => one.name === entry.sae);
  if (!sae) return `The basket names SAE “${short(entry.sae, 40)}”; this store has ${overview.saes.map((s) => s.name).join(", ") || "none"}.`;
  const family = overview.families.find((one) => one.name === entry.family);
  if (!family?.concepts.some((c) => c.name === entry.concept)) return `The basket names ${short(entry.family || "", 40)} = “${short(entry.concept || "", 40)}”, which no sample carries.`;
  if (sae.encoded !== "all") return `The samples are not encoded with SAE ${sae.name}: featurestore encode --store ${overview.root} --sae ${sae.name}`;
  if (family.concepts.length < 2) return `The family ${family.name} has one concept only: a score compares a concept with others.`;
  return null;
}

const Empty = () => html`<section class="panel lacking"><h2>Nothing chosen yet.</h2>
  <p>Open a <a href=${to("concepts")}>concept</a> and put its features into the basket, or load a selection file below.</p></section>`;

function Entry({ entry, set, remove }) {
  const { overview } = useShared();
  const sae = overview.saes.find((one) => one.name === entry.sae);
  const steps = (sae?.steps[entry.branch] || []).map(([, t]) => t);
  const [first, last] = entry.window || [steps[0], steps[steps.length - 1]];
  const options = steps.map((t) => [String(t), String(Math.round(t))]);
  const window = (from, until) => set({ window: from === steps[0] && until === steps[steps.length - 1] ? null : [Math.max(from, until), Math.min(from, until)] });
  return html`<header><h2><a href=${to("concept", [entry.family, entry.concept])}>${short(entry.concept || "", 80)}</a> <small class="muted">${entry.family} · SAE ${entry.sae}${entry.branch === "cond" ? "" : ` · ${entry.branch}`}</small></h2>
      <button type="button" class="quiet" onClick=${remove} aria-label=${`Remove ${short(entry.concept || "", 40)}`}>Remove</button></header>
    <div class="row">${entry.features ? html`<ul class="chips" aria-label="Features">${entry.features.map((f) => html`<li class="chip"><a href=${to("feature", [f])}>${f}</a>${entry.features.length > 1 && html`<button type="button" class="quiet" aria-label=${`Leave out feature ${f}`} onClick=${() => set({ features: entry.features.filter((x) => x !== f) })}>×</button>`}</li>`)}</ul>`
      : html`<${Number_} label="Best features of each step" value=${entry.top} min=${1} max=${1000} onChange=${(n) => set({ top: n })} />`}
      <${Number_} label="Multiplier" value=${entry.multiplier} min=${-1000} max=${1000} step="any" onChange=${(n) => set({ multiplier: n })} /><${Help} word="multiplier" />
      ${options.length > 1 && html`<${Select} label="From timestep" value=${String(first)} options=${options} onChange=${(t) => window(Number(t), last)} />
      <${Select} label="to" value=${String(last)} options=${options} onChange=${(t) => window(first, Number(t))} />`}</div>`;
}

// A page without a server draws nothing: what was drawn before it was exported, and how to draw more.
function Finished({ entries }) {
  const { overview, provider, address } = useShared();
  const ladders = useLater("ladders", () => provider.ladders());
  const { params } = address;
  const list = ladders.data || [];
  const basket = formatBasket(entries);
  const shown = list.find((one) => formatBasket(one.entries) === basket && one.prompt === params.prompt && one.seed === Number(params.seed)) || list.find((one) => formatBasket(one.entries) === basket);
  const text = `featurestore explore ${overview.root}\n# then open in it:\n${location.hash}`;
  const open = (one) => change({ basket: formatBasket(one.entries), prompt: one.prompt, seed: one.seed, steps: one.steps, guidance: one.guidance });
  return html`${list.length > 0 && html`<${Panel} title="Drawn before" wide><ul class="chips" aria-label="Ladders of pictures">${list.map((one) => html`<li><button type="button" aria-pressed=${one === shown ? "true" : "false"} onClick=${() => open(one)}>${short(one.entries.map((e) => e.concept).join(", "), 40)} <small>${short(one.prompt, 60)}, seed ${one.seed}</small></button></li>`)}</ul>
      ${shown && html`<p class="muted">“${short(shown.prompt, 200)}”, seed ${shown.seed}, ${shown.steps} steps of ${shown.model}, guidance ${number(shown.guidance)}.</p><${Drawing} drawing=${drawn(shown)} entries=${shown.entries} factors=${factors(shown)} />`}</${Panel}>`}
    <${Panel} title="Draw where the store is" wide><p>This page was exported: it shows what was drawn before. More is drawn by the explorer itself.</p><${Code} text=${text} label="Command" /></${Panel}>`;
}
const factors = (one) => one.pictures.map((picture) => picture.factor).filter((f) => f !== null).sort((a, b) => a - b);
const drawn = (one) => ({ over: true, done: Object.fromEntries(one.pictures.map((picture) => [String(picture.factor), picture.key])) });

// What the basket is as files, as commands and as Python.
function Files({ entries, prompt }) {
  const { provider, address } = useShared();
  const { params } = address;
  const [form, setForm] = useState("json");
  const body = { entries, format: form, prompt, seed: Number(params.seed) || 0,
    ...(params.steps ? { steps: Number(params.steps) } : {}), ...(params.guidance ? { guidance: Number(params.guidance) } : {}) };
  const made = useLater(`basket ${JSON.stringify(body)}`, (signal) => provider.selections(body, signal));
  const choose = provider.can.live && html`<${Select} label="Format" value=${form} options=${[["json", "JSON"], ["csv", "CSV"], ["md", "Markdown"]]} onChange=${setForm} />`;
  return html`<${Panel} title="The same elsewhere" aside=${choose} wide>
    ${made.error && html`<${Problem} error=${made.error} />`}
    ${made.data && html`<div class="buttons">${made.data.files.map((file) => html`<button type="button" onClick=${() => save(file.name, file.text, "text/plain")}>Save ${file.name}${file.rows !== undefined ? html` <small>${number(file.rows)} rows</small>` : ""}</button>`)}</div>
      <div class="columns"><div><h3>In a terminal</h3><${Code} text=${made.data.commands} label="Commands" /></div>
      <div><h3>In Python</h3><${Code} text=${made.data.python} label="Python" /></div></div>`}</${Panel}>`;
}

function Load() {
  const { provider, say } = useShared();
  const [note, setNote] = useState("");
  const load = async (event) => {
    const [file] = event.currentTarget.files;
    if (!file) return;
    try {
      const { entry, note: told } = await provider.loadSelection(file);
      addToBasket(entry);
      setNote(told || `${file.name} is in the basket.`);
    } catch (error) { say(error.message); }
  };
  return html`<${Panel} title="Load a selection file" wide><${Field} label="A file that 'featurestore export' or this page has saved"><input type="file" accept=${provider.can.live ? ".json,.csv,.parquet,.md,.zst" : ".json"} onChange=${load} /></${Field}>
    ${note && html`<p role="status">${note}</p>`}</${Panel}>`;
}
