// One box for concepts, features and prompts.
import { html, useRef, useState } from "../vendor/preact.js";
import { useChosen, useLater, useShared } from "./hooks.js";
import { go, to } from "./state.js";
import { short } from "./words.js";

const SHOWN = 12;

export function Search() {
  const { provider, overview } = useShared();
  const { sae } = useChosen();
  const [text, setText] = useState("");
  const [open, setOpen] = useState(false);
  const [at, setAt] = useState(0);
  const input = useRef(null);
  const samples = useLater(text.length > 1 && overview.n_samples ? "samples" : null, () => provider.samples());
  const found = open && text ? matches(text, overview, sae, samples.data) : [];
  const leave = () => { setOpen(false); setText(""); };
  const pick = (one) => { leave(); input.current.blur(); go(one.href); };
  const pressed = (event) => {
    if (event.key === "Escape") { leave(); input.current.blur(); }
    if (event.key === "ArrowDown") { event.preventDefault(); setAt(Math.min(found.length - 1, at + 1)); }
    if (event.key === "ArrowUp") { event.preventDefault(); setAt(Math.max(0, at - 1)); }
    if (event.key === "Enter" && found[at]) pick(found[at]);
  };
  return html`<div class="search" role="search"><input id="search" ref=${input} type="search" placeholder="Search  /" autocomplete="off"
      role="combobox" aria-label="Search concepts, features and prompts" aria-expanded=${found.length > 0 ? "true" : "false"} aria-controls="found" aria-autocomplete="list"
      aria-activedescendant=${found[at] ? `found-${at}` : null} value=${text}
      onInput=${(e) => { setText(e.currentTarget.value); setOpen(true); setAt(0); }} onFocus=${() => setOpen(true)}
      onBlur=${() => setTimeout(() => setOpen(false), 150)} onKeyDown=${pressed} />
    <ul id="found" role="listbox" aria-label="Found" hidden=${!found.length}>${found.map((one, i) => html`<li id=${`found-${i}`} role="option" aria-selected=${i === at ? "true" : "false"}
      onPointerDown=${(e) => { e.preventDefault(); pick(one); }}><small>${one.kind}</small> ${short(one.text, 90)}</li>`)}</ul></div>`;
}

function matches(text, overview, sae, samples) {
  const wanted = text.toLowerCase();
  const found = [];
  const number = text.match(/^#?(\d+)$/);
  if (number && sae && Number(number[1]) < sae.config.n_latents) found.push({ kind: "feature", text: number[1], href: to("feature", [number[1]]) });
  for (const family of overview.families) {
    for (const concept of family.concepts) {
      if (concept.name.toLowerCase().includes(wanted)) found.push({ kind: family.name, text: concept.name, href: to("concept", [family.name, concept.name]) });
    }
  }
  const { prompt = [], sample_id = [], seed = [] } = samples?.columns || {};
  for (let i = 0; i < prompt.length && found.length < SHOWN; i += 1) {
    if (prompt[i].toLowerCase().includes(wanted)) found.push({ kind: "sample", text: `${prompt[i]} (seed ${seed[i]})`, href: to("samples", [sample_id[i]]) });
  }
  return found.slice(0, SHOWN);
}
