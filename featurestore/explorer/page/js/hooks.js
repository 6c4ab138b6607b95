// What views share: the open store, the address, answers that come later.
import { createContext, useContext, useEffect, useMemo, useRef, useState } from "../vendor/preact.js";

export const Shared = createContext(null);
export const useShared = () => useContext(Shared);

const kept = new Map();
const KEPT = 80;

function remembered(key, make) {
  if (!kept.has(key)) {
    const promise = make();
    promise.catch(() => kept.delete(key));
    kept.set(key, promise);
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return kept.get(key);
}

// {data, error, loading}; what was shown before stays (data, loading) until the next answer is there.
export function useLater(key, make) {
  const [shown, setShown] = useState({ key: null, data: null, error: null });
  const { overview } = useShared();
  const whole = key === null ? null : `${overview.state} ${key}`;
  useEffect(() => {
    if (whole === null) return undefined;
    let wanted = true;
    const controller = new AbortController();
    const found = remembered(whole, () => make(controller.signal));
    let settled = false;
    found.then(
      (data) => { settled = true; if (wanted) setShown({ key: whole, data, error: null }); },
      (error) => { settled = true; if (wanted && error.name !== "AbortError") setShown({ key: whole, data: null, error }); },
    );
    return () => {
      wanted = false;
      if (!settled) { kept.delete(whole); controller.abort(); }
    };
  }, [whole]);
  return { data: shown.data, error: shown.key === whole ? shown.error : null, loading: whole !== null && shown.key !== whole };
}

export function useAsk(name, parameters) {
  const { provider } = useShared();
  const key = parameters === null ? null : `${name} ${JSON.stringify(parameters)}`;
  return useLater(key, (signal) => provider.ask(name, parameters, signal));
}

export function useDark() {
  const query = useMemo(() => matchMedia("(prefers-color-scheme: dark)"), []);
  const [dark, setDark] = useState(query.matches);
  useEffect(() => {
    const tell = () => setDark(query.matches);
    query.addEventListener("change", tell);
    return () => query.removeEventListener("change", tell);
  }, []);
  return dark;
}

// The width of an element, as it changes.
export function useWidth(first = 600) {
  const ref = useRef(null);
  const [width, setWidth] = useState(first);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return [ref, width];
}

// True once an element has been near the screen: what is far down waits.
export function useSeen() {
  const ref = useRef(null);
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    const observer = new IntersectionObserver(([entry]) => {
      if (entry.isIntersecting) { setSeen(true); observer.disconnect(); }
    }, { rootMargin: "200px" });
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return [ref, seen];
}

// SAEs are often named after the family that they are for: such a one is shown first.
const isNamedAfter = (sae, family) => sae.name.toLowerCase().startsWith(family.slice(0, 4));
export function saeFor(overview, family) {
  const usable = overview.saes.filter((sae) => sae.encoded === "all");
  return ((family && usable.find((sae) => isNamedAfter(sae, family))) || usable[0] || overview.saes[0])?.name;
}

// The SAE, branch, family and steps that the address names, else the first that can be shown.
export function useChosen() {
  const { overview, address } = useShared();
  const { params } = address;
  const named = params.family || (address.view === "concept" ? address.args[0] : null);
  const saeName = params.sae || saeFor(overview, named);
  const sae = overview.saes.find((one) => one.name === saeName);
  const branches = Object.keys(sae?.steps || {});
  const branch = params.branch || (branches.includes("cond") ? "cond" : branches[0]) || "cond";
  const families = overview.families.map((one) => one.name);
  const own = families.find((name) => sae && isNamedAfter(sae, name));
  const family = named || own || families[0];
  const steps = (sae?.steps[branch] || []).slice().sort((a, b) => a[0] - b[0]);
  return { sae, saeName, branch, branches, family, families, steps };
}

export function useStep(steps) {
  const { address } = useShared();
  const last = steps.length - 1;
  const given = address.params.step === undefined ? Math.floor(last / 2) : steps.findIndex(([s]) => s === Number(address.params.step));
  const index = Math.max(0, Math.min(last, given));
  return { index, step: steps[index]?.[0] ?? 0, timestep: steps[index]?.[1] ?? 0 };
}
