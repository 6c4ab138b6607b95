// What a basket is elsewhere, on a page without a server: the words of baskets.py, which a test compares.
import { AnswerError } from "./answer.js";

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
const literal = (text) => (text.includes("'") && !text.includes('"') ? `"${escaped(text)}"` : `'${escaped(text).replaceAll("'", "\\'")}'`);
const escaped = (text) => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t").replaceAll("\r", "\\r");
const float = (value) => (Number.isInteger(value) ? `${value}.0` : String(value));
const short = (value) => String(Number(Number(value).toPrecision(6)));

export const entryKey = ({ sae, family, concept, branch, top }) => [sae, family, concept, branch, top].join("\n");

// Names of the selections' files, none twice.
export function fileNames(chosen, form) {
  const names = [];
  for (const name of chosen) {
    let [free, number] = [name, 1];
    while (names.includes(`${free}.${form}`)) free = `${name}-${number += 1}`;
    names.push(`${free}.${form}`);
  }
  return names;
}

export function commands(root, entries, names, asked) {
  const lines = entries.map((entry, i) => {
    if (entry.features) return `# ${names[i]}: features chosen by hand; save it from the explorer's basket`;
    const branch = entry.branch === "cond" ? "" : ` --branch ${entry.branch}`;
    return `featurestore export ${quoted(root)} --sae ${quoted(entry.sae)} --concept ${quoted(`${entry.family}=${entry.concept}`)} --top ${entry.top}${branch} -o ${quoted(names[i])}`;
  });
  const generate = ["featurestore generate", `--model ${quoted(asked.model)}`, `--prompt ${quoted(asked.prompt)}`,
    `--seeds ${asked.seed}`, `--steps ${asked.steps}`, `--guidance ${short(asked.guidance)}`, ...names.map((name) => `--ablate ${quoted(name)}`),
    ...entries.map((entry) => `--multiplier ${short(entry.multiplier)}`)];
  const window = ({ window: ends }) => `--window ${(ends || [100000, 0]).map((t, i) => (ends ? short(t) : ["100000", "0"][i])).join(":")}`;
  if (entries.some((entry) => entry.window)) generate.push(...entries.map(window));
  return [...lines, [...generate, "--out pictures"].join(" \\\n    ")].join("\n");
}

export function pythonLines(root, entries, names, asked) {
  const wanted = entries.map((entry, i) => {
    const what = entry.features ? `Selection.load(${literal(names[i])})`
      : `select(store, ${[entry.sae, entry.family, entry.concept].map(literal).join(", ")}, top=${entry.top}, branch=${literal(entry.branch)})`;
    const window = entry.window ? `, window=Window(${entry.window.map(float).join(", ")})` : "";
    return `    Intervention(${what}, strength=${float(entry.multiplier)}${window}),`;
  });
  return ["from featurestore import Selection, Store", "from queries import select",
    "from sae import Intervention, RunSettings, Window, ablate, load_model", "from sae.diffusion.pipelines import generate", "",
    `store = Store.open(${literal(root)})`, `model = load_model(${literal(asked.model)})`, "wanted = [", ...wanted, "]",
    "with ablate(model.pipe, wanted):",
    `    [picture] = generate(model, RunSettings(${asked.steps}, ${float(asked.guidance)}), [${literal(asked.prompt)}], [${asked.seed}])`].join("\n");
}

// The entry of a selection file; of this store's SAEs only.
export async function loadEntry(about, file) {
  let header;
  try {
    header = JSON.parse(await file.text());
  } catch {
    throw new AnswerError(`${file.name} is no selection in JSON: this page reads no other form.`);
  }
  const { sae, family, concept, branch, rule, timesteps } = header ?? {};
  if (![sae, family, concept, branch].every((text) => typeof text === "string") || !Array.isArray(timesteps)) {
    throw new AnswerError(`${file.name} is no selection: sae, family, concept, branch and timesteps are expected.`);
  }
  const known = about.saes.map((one) => one.name);
  if (!known.includes(sae)) throw new AnswerError(`${file.name} is about SAE '${sae}'; this store has ${known.join(", ") || "none"}.`);
  const features = [...new Set(timesteps.flatMap((step) => (step.features || []).map((row) => row.feature)))].sort((a, b) => a - b);
  return { entry: { sae, family, concept, branch, ...(rule?.top ? { top: rule.top } : { features }) }, note: "" };
}
