// Try it: before beside after, a ladder of multipliers drawn ahead so that the slider never waits.
import { html, useEffect, useRef, useState } from "../../vendor/preact.js";
import { useLater, useShared } from "../hooks.js";
import { change } from "../state.js";
import { Field, Help, Number_, Panel, Problem } from "../ui.js";
import { number } from "../words.js";

export const FACTORS = [0, 0.2, 0.5, 1, 2, 4, 6];

// The prompt of the address, else that of a sample that carries the first concept.
export function usePrompt(entries) {
  const { overview, provider, address } = useShared();
  const samples = useLater(overview.n_samples ? "samples" : null, () => provider.samples());
  return address.params.prompt ?? suggestion(samples.data, entries) ?? "";
}

export function Try({ entries, prompt }) {
  const { overview, provider, address } = useShared();
  const { params } = address;
  const seed = Number(params.seed) || 0;
  const [drawing, setDrawing] = useState(null);
  const events = useRef(null);
  useEffect(() => () => events.current?.close(), []);
  const draw = async (event) => {
    event.preventDefault();
    events.current?.close();
    setDrawing({ plan: [], done: {}, now: null, said: "Asking …", error: null, over: false });
    try {
      const { job } = await provider.draw({ entries, prompt, seed, factors: ordered(), ...optional(params) });
      events.current = provider.events(job);
      events.current.onmessage = ({ data }) => setDrawing((before) => after(before, JSON.parse(data), () => events.current.close()));
      events.current.onerror = () => { events.current.close(); setDrawing((before) => (before.over ? before : { ...before, error: { message: "The drawing was cut off. Draw again." }, over: true })); };
    } catch (error) { setDrawing({ plan: [], done: {}, error, over: true }); }
  };
  const set = (key) => (value) => change({ [key]: value }, true);
  return html`<${Panel} title="Try it" help="multiplier" wide>
    <form class="try" onSubmit=${draw}><${Field} label="Prompt"><textarea rows="2" value=${prompt} onChange=${(e) => set("prompt")(e.currentTarget.value)}></textarea></${Field}>
      <div class="row"><${Number_} label="Seed" value=${seed} min=${0} onChange=${set("seed")} />
        <${Number_} label="Steps" value=${params.steps ?? overview.run.n_steps} min=${1} max=${1000} onChange=${set("steps")} />
        <${Number_} label="Guidance" value=${params.guidance ?? overview.run.guidance} step="any" onChange=${set("guidance")} />
        <button class="main">Draw</button></div></form>
    <p class="muted">${overview.model ? html`With the model <b>${overview.model}</b>, loaded when the first picture is asked for; equal bit for bit to <code>featurestore generate</code>.` : "The store names no model: start the explorer with --model."}</p>
    ${drawing && html`<${Drawing} drawing=${drawing} entries=${entries} />`}</${Panel}>`;
}

// The one asked for first, then outwards from it.
const ordered = () => [...FACTORS].sort((a, b) => Math.abs(Math.log((a || 0.1))) - Math.abs(Math.log(b || 0.1)));
const optional = ({ steps, guidance }) => ({ ...(steps ? { steps: Number(steps) } : {}), ...(guidance ? { guidance: Number(guidance) } : {}) });

function suggestion(samples, entries) {
  const [entry] = entries;
  if (!samples || !entry) return samples?.columns.prompt[0];
  const i = samples.columns[entry.family]?.indexOf(entry.concept) ?? -1;
  return samples.columns.prompt[Math.max(0, i)];
}

function after(state, event, close) {
  if (!state) return state;
  const next = { ...state };
  if (event.event === "loading") next.said = `Loading ${event.model} …`;
  if (event.event === "planned") next.plan = event.pictures;
  if (event.event === "step") { next.now = event; next.said = `Picture ${event.picture + 1} of ${event.of}, step ${event.step} of ${event.steps}`; }
  if (event.event === "picture") next.done = { ...state.done, [String(event.factor)]: event.key };
  if (event.event === "failed") next.error = { message: event.error };
  if (event.event === "stopped") next.said = "Stopped.";
  if (event.event === "done") next.said = "";
  if (["done", "failed", "stopped"].includes(event.event)) { next.over = true; next.now = null; close(); }
  return next;
}

export function Drawing({ drawing, entries, factors = FACTORS }) {
  const { provider, address } = useShared();
  const rung = factors.indexOf(Number(address.params.factor ?? 1));
  const at = rung < 0 ? Math.max(0, factors.indexOf(1)) : rung;
  const [before, key] = [drawing.done.null, drawing.done[String(factors[at])]];
  const strength = entries.length === 1 ? `multiplier ${number(entries[0].multiplier * factors[at])}` : `multipliers × ${factors[at]}`;
  const { now } = drawing;
  return html`${drawing.error && html`<${Problem} error=${drawing.error} />`}
    ${!drawing.over && html`<p class="progress" role="status"><progress max="1" value=${now ? (now.picture + now.step / now.steps) / now.of : null} aria-label="Drawing"></progress> ${drawing.said}</p>`}
    <div class="before-after"><${Drawn} src=${before && provider.drawn(before)} caption="before" />
      ${entries.length > 0 && html`<${Drawn} src=${key && provider.drawn(key)} caption=${`after, ${strength}`} />`}</div>
    ${entries.length > 0 && html`<label class="ladder"><span>Multiplier<${Help} word="multiplier" /></span><input type="range" min="0" max=${factors.length - 1} value=${at} aria-valuetext=${strength}
      onInput=${(e) => change({ factor: factors[Number(e.currentTarget.value)] }, true)} /><output>${strength}</output></label>
      <ol class="rungs" aria-label="Ladder">${factors.map((f) => html`<li class=${drawing.done[String(f)] ? "done" : ""}>${entries.length === 1 ? number(entries[0].multiplier * f) : `×${f}`}</li>`)}</ol>`}`;
}

const Drawn = ({ src, caption }) => html`<figure>${src ? html`<img src=${src} alt=${caption} />` : html`<div class="waiting square"></div>`}<figcaption>${caption}</figcaption></figure>`;
