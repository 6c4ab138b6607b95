// The small parts that every view is made of.
import { html, useEffect, useId, useRef, useState } from "../vendor/preact.js";
import { useShared } from "./hooks.js";
import { to } from "./state.js";
import { WORDS, short } from "./words.js";

// "?" beside a number: what it means.
export function Help({ word }) {
  const id = useId();
  const box = useRef(null);
  const [title, text] = WORDS[word];
  const place = (event) => {
    if (event.newState !== "open") return;
    const at = event.target.previousElementSibling.getBoundingClientRect();
    const width = Math.min(360, innerWidth - 32);
    box.current.style.width = `${width}px`;
    box.current.style.left = `${Math.max(16, Math.min(at.left - 12, innerWidth - width - 16))}px`;
    box.current.style.top = `${Math.min(at.bottom + 6, innerHeight - 160)}px`;
  };
  return html`<button type="button" class="help" popovertarget=${id} aria-label=${`What is ${title}?`}>?</button
    ><span id=${id} popover="auto" class="tip" ref=${box} onToggle=${place}><b>${title}</b> ${text}</span>`;
}

export function Copy({ text, label = "Copy" }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" class="quiet" onClick=${copy} aria-live="polite">${done ? "Copied" : label}</button>`;
}

export function Dialog({ title, onClose, children }) {
  const ref = useRef(null);
  const id = useId();
  useEffect(() => { ref.current.showModal(); }, []);
  const outside = (event) => { if (event.target === ref.current) ref.current.close(); };
  return html`<dialog ref=${ref} onClose=${onClose} onClick=${outside} aria-labelledby=${id}>
    <div class="dialog"><header><h2 id=${id}>${title}</h2>
      <button type="button" class="quiet" onClick=${() => ref.current.close()}>Close</button></header>${children}</div></dialog>`;
}

// A block of code that can be copied.
export const Code = ({ text, label }) => html`<div class="code"><${Copy} text=${text} /><pre tabindex="0" aria-label=${label}>${text}</pre></div>`;

function Query({ answer, onClose }) {
  const given = Object.entries(answer.parameters || {}).map(([key, value]) => `$${key} = ${value}`).join("\n");
  return html`<${Dialog} title=${`The query behind it: ${answer.name}`} onClose=${onClose}>
    ${answer.command && html`<p>The same answer in a terminal:</p><${Code} text=${answer.command} label="Command" />`}
    ${given && html`<p>Parameters:</p><pre class="plain" tabindex="0">${given}</pre>`}
    ${answer.sql ? html`<p>The SQL file:</p><${Code} text=${answer.sql} label="SQL" />`
      : html`<p>No table holds a decoder: it is read from the weights' file, as these lines do.</p><${Code} text=${answer.python} label="Python" />`}</${Dialog}>`;
}

// Below what an answer shows: its query, and the numbers as CSV.
export function Source({ answer }) {
  const { provider, say } = useShared();
  const [open, setOpen] = useState(false);
  if (!answer) return null;
  const csv = () => provider.download(answer, "csv").catch((error) => say(error.message));
  return html`<footer class="source">
    ${(answer.sql || answer.python) && html`<button type="button" class="quiet" onClick=${() => setOpen(true)}>Show the query</button>`}
    <button type="button" class="quiet" onClick=${csv} aria-label=${`CSV of ${answer.name}`}>CSV</button>
    ${open && html`<${Query} answer=${answer} onClose=${() => setOpen(false)} />`}</footer>`;
}

export function Panel({ title, help, aside, answer, busy, wide, children }) {
  const id = useId();
  return html`<section class=${`panel ${wide ? "wide" : ""}`} aria-labelledby=${id} aria-busy=${busy ? "true" : "false"}>
    <header><h2 id=${id}>${title}${help && html` <${Help} word=${help} />`}</h2>${aside && html`<div class="aside">${aside}</div>`}</header>
    ${children}<${Source} answer=${answer} /></section>`;
}

// What an answer shows, or that it is on its way, or why it is missing.
export function Answered({ answer, height = 120, empty = "Nothing here.", children }) {
  if (answer.error) return html`<${Problem} error=${answer.error} />`;
  if (!answer.data) return html`<div class="waiting" style=${{ height: `${height}px` }} role="status"><span class="sr">Computing …</span></div>`;
  if (answer.data.n_rows === 0) return html`<p class="muted">${empty}</p>`;
  return html`<div class=${answer.loading ? "older" : ""}>${children(answer.data)}</div>`;
}

export const Problem = ({ error }) => html`<p class="problem" role="alert">${error.message}</p>`;

// Said instead of a view: what is missing, and the command that makes it.
// `page`: it stands alone and is the page's heading.
export function Lacking({ what, page, children }) {
  const { overview } = useShared();
  const found = overview.missing.filter((one) => what.includes(one.what));
  return html`<section class="panel lacking">${page ? html`<h1>${children}</h1>` : html`<h2>${children}</h2>`}
    ${found.map((one) => html`<p>${one.why}</p><${Code} text=${one.command} label="Command" />`)}</section>`;
}

// `aside`: beside a link to the same place, so not another stop for keys and screen readers.
export function Thumb({ sample, prompt, size = 96, note, href, aside, children }) {
  const { provider, overview } = useShared();
  const picture = overview.has_pictures
    ? html`<img src=${provider.picture(sample, size > 192 ? 384 : size > 96 ? 192 : 96)} alt="" loading="lazy" decoding="async" width=${size} height=${size} />`
    : html`<span class="nopicture" aria-hidden="true"></span>`;
  return html`<a class="thumb" data-item=${!aside} tabindex=${aside ? -1 : null} aria-hidden=${aside ? "true" : null} href=${href || to("samples", [sample])} title=${short(prompt, 300)}>
    <span class="frame">${picture}${children}</span><span class="sr">${short(prompt, 120)}</span>${note && html`<span class="note">${note}</span>`}</a>`;
}

export function Tabs({ label, names, chosen, link }) {
  if (names.length < 2) return null;
  return html`<nav class="tabs" aria-label=${label}>${names.map((name) =>
    html`<a href=${link(name)} aria-current=${name === chosen ? "true" : null}>${short(name, 40)}</a>`)}</nav>`;
}

export const Field = ({ label, children }) => html`<label class="field"><span>${label}</span>${children}</label>`;

export function Select({ label, value, options, onChange }) {
  return html`<${Field} label=${label}><select value=${value} aria-label=${label} onChange=${(e) => onChange(e.currentTarget.value)}>
    ${options.map(([key, text]) => html`<option value=${key} selected=${key === value}>${text}</option>`)}</select></${Field}>`;
}

// A number that is applied when it is committed, not at every keystroke.
export function Number_({ label, value, min, max, step = 1, onChange }) {
  return html`<${Field} label=${label}><input type="number" value=${value} min=${min} max=${max} step=${step}
    onChange=${(e) => e.currentTarget.value !== "" && onChange(Number(e.currentTarget.value))} /></${Field}>`;
}
