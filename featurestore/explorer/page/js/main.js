// The shell: opens the store, reads the address, shows a view; search, keys, and what to do when the store grows.
import { html, render, useEffect, useState } from "../vendor/preact.js";
import { Shared, useChosen, useShared } from "./hooks.js";
import { openProvider } from "./provider.js";
import { Search } from "./search.js";
import { VIEWS, change, current, parseBasket, to } from "./state.js";
import { Dialog, Problem, Select } from "./ui.js";
import { short } from "./words.js";
import { Basket } from "./views/basket.js";
import { Concept } from "./views/concept.js";
import { Concepts } from "./views/concepts.js";
import { Feature, Features } from "./views/feature.js";
import { Sample, Samples } from "./views/sample.js";
import { Sql } from "./views/sql.js";
import { Store } from "./views/store.js";

const PAGES = {
  store: [Store], concepts: [Concepts], concept: [Concept, "concepts"], features: [Features], feature: [Feature, "features"],
  samples: [Sample, "samples", Samples], basket: [Basket], sql: [Sql],
};
const OF_ONE_SAE = ["concepts", "concept", "features", "feature", "samples"];
const KEYS = [
  ["/", "search concepts, features and prompts"], ["j  k", "next and previous item of a list"], ["[  ]", "previous and next step"],
  ["Enter", "open what is chosen"], ["← → ↑ ↓", "cells of a heat map"], ["?", "this list"],
];

function App({ provider, first }) {
  const [overview, setOverview] = useState(first);
  const [address, setAddress] = useState(current());
  const [grown, setGrown] = useState(false);
  const [help, setHelp] = useState(false);
  const [said, say] = useState("");
  useEffect(() => {
    const moved = () => {
      const next = current();
      setAddress((before) => {
        if (before.view !== next.view || before.args.join() !== next.args.join()) scrollTo(0, 0);
        return next;
      });
    };
    addEventListener("hashchange", moved);
    moved(); // it may have changed before anybody listened
    return () => removeEventListener("hashchange", moved);
  }, []);
  useEffect(() => {
    if (!provider.can.grow) return undefined;
    const look = async () => {
      try {
        if (document.visibilityState === "visible") setGrown((await provider.state()) !== overview.state);
      } catch (error) { say(error.message); }
    };
    const timer = setInterval(look, 4000);
    return () => clearInterval(timer);
  }, [overview.state]);
  useEffect(() => {
    const pressed = (event) => onKey(event, () => setHelp(true));
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
  useEffect(() => {
    if (!said) return undefined;
    const timer = setTimeout(() => say(""), 8000);
    return () => clearTimeout(timer);
  }, [said]);
  const renew = async () => {
    setOverview(await provider.overview());
    setGrown(false);
  };
  return html`<${Shared.Provider} value=${{ provider, overview, address, say }}>
    <a class="skip" href="#main" onClick=${(e) => { e.preventDefault(); document.querySelector("main").focus(); }}>Skip to the page</a>
    <${Header} onHelp=${() => setHelp(true)} />
    ${grown && html`<div class="notice" role="status">The store has changed since this page was opened. <button type="button" onClick=${renew}>Show what it holds now</button></div>`}
    <main id="main" tabindex="-1"><${View} key=${overview.state} /></main>
    ${said && html`<div class="toast" role="alert">${said}<button type="button" class="quiet" onClick=${() => say("")}>Close</button></div>`}
    ${help && html`<${Dialog} title="Keys" onClose=${() => setHelp(false)}><dl class="keys">${KEYS.map(([key, text]) => html`<dt><kbd>${key}</kbd></dt><dd>${text}</dd>`)}</dl></${Dialog}>`}
  </${Shared.Provider}>`;
}

function Header({ onHelp }) {
  const { overview, address } = useShared();
  const { sae, saeName, branch, branches } = useChosen();
  const page = PAGES[address.view];
  const place = page?.[1] || address.view;
  const n = parseBasket(address.params.basket).length;
  const saes = overview.saes.map((one) => [one.name, one.name]);
  const views = Object.entries(VIEWS);
  return html`<header class="top">
    <a class="brand" href=${to("store")}><img src="page/icon.svg" alt="" width="22" height="22" /><b>featurestore</b><span>${short(overview.name, 40)}</span></a>
    <nav class="views" aria-label="Views">${views.map(([key, name]) => html`<a href=${to(key)} aria-current=${key === place ? "page" : null}>${name}${key === "basket" && n > 0 && html` <span class="count">${n}</span>`}</a>`)}</nav>
    <div class="tools"><${Search} />
      ${saes.length > 1 && html`<${Select} label="SAE" value=${saeName} options=${saes} onChange=${(name) => change({ sae: name, branch: "", step: "" })} />`}
      ${sae && branches.length > 1 && html`<${Select} label="Branch" value=${branch} options=${branches.map((b) => [b, b])} onChange=${(b) => change({ branch: b })} />`}
      <button type="button" class="round" aria-label="Keys" onClick=${onHelp}>?</button></div>
  </header>`;
}

function View() {
  const { address, overview } = useShared();
  const { sae, saeName } = useChosen();
  const page = PAGES[address.view];
  // A feature's number means something together with its SAE only: a copied address names it.
  useEffect(() => {
    if (saeName && !address.params.sae && OF_ONE_SAE.includes(address.view)) change({ sae: saeName }, true);
  }, [saeName, address]);
  useEffect(() => {
    const [name] = address.args.slice(-1);
    document.title = `${name ? `${short(name, 40)} · ` : ""}${VIEWS[page?.[1] || address.view] || "Not found"} · ${overview.name}`;
  }, [address.view, address.args.join("/")]);
  if (!page) {
    return html`<section class="panel lacking"><h1>There is no view “${short(address.view, 60)}”.</h1><p>There are: ${Object.entries(VIEWS).map(([key, name]) => html`<a href=${to(key)}>${name}</a> `)}</p></section>`;
  }
  const { params } = address;
  if (params.sae && !sae) {
    return html`<section class="panel lacking"><h1>This store has no SAE “${short(params.sae, 60)}”.</h1>
      <p>${overview.saes.length ? "It has: " : "It has none yet: featurestore train makes one."}${overview.saes.map((one) => html`<a href=${to(address.view, address.args, { sae: one.name })}>${one.name}</a> `)}</p></section>`;
  }
  if (params.family && !overview.families.some((one) => one.name === params.family)) {
    return html`<section class="panel lacking"><h1>This store has no concept family “${short(params.family, 60)}”.</h1>
      <p>${overview.families.map((one) => html`<a href=${to("concepts", [], { family: one.name })}>${one.name}</a> `)}</p></section>`;
  }
  const Page = page[2] && address.args.length === 0 ? page[2] : page[0];
  return html`<${Page} key=${address.view + address.args[0]} args=${address.args} />`;
}

function onKey(event, help) {
  const inField = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (inField && !(event.target.type === "range" && "[]/?".includes(event.key))) return;
  const act = {
    "/": () => document.querySelector("#search").focus(),
    "?": help,
    j: () => step(1), k: () => step(-1),
    "[": () => slide(-1), "]": () => slide(1),
  }[event.key];
  if (act) { event.preventDefault(); act(); }
}

// The next or previous item of the lists on this page.
function step(by) {
  const items = [...document.querySelectorAll("main [data-item]")].filter((item) => item.offsetParent !== null);
  if (!items.length) return;
  const at = items.indexOf(document.activeElement);
  const next = items[at < 0 ? (by > 0 ? 0 : items.length - 1) : Math.max(0, Math.min(items.length - 1, at + by))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

function slide(by) {
  const slider = document.querySelector("main .steps input[type=range]");
  if (!slider) return;
  slider.value = String(Number(slider.value) + by);
  slider.dispatchEvent(new Event("input", { bubbles: true }));
}

const root = document.querySelector("#app");
try {
  const provider = await openProvider();
  const first = await provider.overview();
  root.replaceChildren();
  render(html`<${App} provider=${provider} first=${first} />`, root);
} catch (error) {
  root.replaceChildren();
  render(html`<main><${Problem} error=${error} /></main>`, root);
}
