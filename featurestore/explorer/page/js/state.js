// The state of the page is its address: #/view/argument/…?key=value. Nothing else is remembered.

export const VIEWS = {
  store: "Store", concepts: "Concepts", features: "Features", samples: "Samples", basket: "Basket",
  sql: "SQL",
};
const KEPT = ["sae", "branch", "family", "basket"];

export function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decode);
  return { view: parts[0] || "store", args: parts.slice(1), params: Object.fromEntries(new URLSearchParams(query)) };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a stray % in an address that someone typed
  }
}

export function format({ view, args = [], params = {} }) {
  const given = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(given).toString();
  return `#/${[view, ...args].map((part) => encodeURIComponent(part)).join("/")}${query ? `?${query}` : ""}`;
}

export const current = () => parse(location.hash);

// The address of a view: SAE, branch, family and basket go along, the rest does not.
export function to(view, args = [], params = {}) {
  const kept = Object.fromEntries(Object.entries(current().params).filter(([key]) => KEPT.includes(key)));
  return format({ view, args: args.map(String), params: { ...kept, ...params } });
}

// This view with some parameters changed; `replace` leaves no entry in the history.
export function change(params, replace = false) {
  const now = current();
  go(format({ ...now, params: { ...now.params, ...params } }), replace);
}

export function go(address, replace = false) {
  if (address === location.hash) return;
  if (replace) {
    history.replaceState(null, "", address);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = address;
  }
}

// A basket as text: entries with ";" between them, their parts with ","; names are percent-encoded.
export function parseBasket(text) {
  return (text || "").split(";").filter(Boolean).map((part) => {
    const [sae, family, concept, branch, what, multiplier, window] = part.split(",").map(decode);
    const features = what?.startsWith("f") ? what.slice(1).split(".").map(Number) : null;
    return {
      sae, family, concept, branch: branch || "cond",
      ...(features ? { features } : { top: Number(what?.slice(1)) || 2 }),
      multiplier: Number.isFinite(Number(multiplier)) && multiplier ? Number(multiplier) : -5,
      window: window ? window.split(":").map(Number) : null,
    };
  });
}

export function formatBasket(entries) {
  return entries.map((e) => [
    e.sae, e.family, e.concept, e.branch, e.features ? `f${e.features.join(".")}` : `t${e.top}`,
    e.multiplier, e.window ? e.window.join(":") : "",
  ].map(encodeURIComponent).join(",")).join(";");
}

const sameGroup = (a, b) =>
  a.sae === b.sae && a.family === b.family && a.concept === b.concept && a.branch === b.branch
  && String(a.window) === String(b.window) && !a.features === !b.features;

// Features chosen by hand join those of the same concept and steps; a top n takes the place of another one.
export function addToBasket(entry) {
  const entries = parseBasket(current().params.basket);
  const found = entries.find((other) => sameGroup(other, entry));
  if (found && entry.features) found.features = [...new Set([...found.features, ...entry.features])].sort((a, b) => a - b);
  else if (found) found.top = entry.top;
  else entries.push({ multiplier: -5, window: null, ...entry });
  change({ basket: formatBasket(entries) });
}
