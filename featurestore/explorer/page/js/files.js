// Answers from the files of an export: computed when it was written, read as Parquet. The same methods as HttpProvider.
import { compressors, parquetReadObjects } from "../vendor/hyparquet.js";
import { AnswerError, csv, rows as byRow, save } from "./answer.js";
import { commands, entryKey, fileNames, loadEntry, pythonLines } from "./exported_basket.js";
import { exportedSql, exportedTables } from "./exported_sql.js";

const fetched = async (path) => {
  const response = await fetch(path);
  if (!response.ok) throw new AnswerError(`${path} is missing from this export.`);
  return response;
};

export class FileProvider {
  can = { live: false, grow: false, forms: ["csv", "json"] };
  #files = new Map();

  static async open(root) {
    const [about, index] = await Promise.all(["overview", "index"].map(async (name) => (await fetched(`${root}/${name}.json`)).json()));
    return new FileProvider(root, about, index);
  }

  constructor(root, about, index) {
    Object.assign(this, { root, about, index });
  }

  overview = async () => this.about;
  state = async () => this.about.state;
  picture = (sample, size) => `${this.root}/pictures/${size === 0 ? 0 : 192}/${sample}.png`;

  async samples() {
    return answer("samples", await this.#rows("samples"), null);
  }

  async ask(name, given) {
    const parameters = Object.fromEntries(Object.entries(given).filter(([, v]) => v !== undefined && v !== null && v !== ""));
    const command = `featurestore query ${this.about.root} ${name} ${Object.entries(parameters).map(([k, v]) => `-p ${k}=${v}`).join(" ")}`;
    const shown = { ...(this.index[name]?.sql ? { sql: this.index[name].sql } : {}), parameters, command };
    if (name === "feature_map" || name === "position_features") return { ...(await this.#codes(name, parameters)), ...shown };
    const asked = this.index[name];
    const { at_step: step, ...every } = parameters; // kept are the answers of all steps together
    const key = Object.entries(every).map(([k, v]) => `${k}=${v}`).sort().join("&");
    const place = asked?.answers[key];
    if (!place) throw new AnswerError(this.#without(name));
    const [file, number] = place;
    const rows = (await this.#rows(`answers/${file}`)).filter((row) => row.answer === number && (step === undefined || row.step === Number(step)));
    return { ...answer(name, rows, asked.types), ...shown };
  }

  async directions(sae, feature, top) {
    const { command, parameters, sql, ...found } = await this.ask("directions", { sae, feature, top });
    return { ...found, python: this.index.directions.python[sae].replaceAll("{feature}", feature).replaceAll("{top}", top) };
  }

  tables = async () => exportedTables(this.about, this.index);
  sql = async (statement, signal) => exportedSql({ statement, signal, tables: await this.tables(), load: (name) => this.#table(name) });

  // All rows of a question, each with the parameters that it was asked with.
  async #table(name) {
    if (name === "samples") return byRow(await this.samples());
    const { files, given } = this.index[name];
    const parts = Object.entries(files).flatMap(([sae, mine]) => mine.map(async (file) =>
      (await this.#rows(`answers/${file}`)).map(({ answer: number, ...row }) => ({ ...given[sae][number], ...row }))));
    return (await Promise.all(parts)).flat();
  }

  ladders = async () => (this.about.export.ladders ? (await fetched(`${this.root}/ladders.json`)).json() : []);
  drawn = (key) => `${this.root}/drawn/${key}.png`;
  loadSelection = (file) => loadEntry(this.about, file);

  // The files that were written for the best features of each step; of features chosen by hand there are none.
  async selections({ entries, prompt, seed = 0, steps, guidance }) {
    const { run, root } = this.about;
    const asked = { model: run.model ?? "MODEL", prompt: prompt || "PROMPT", seed, steps: steps || run.n_steps || 50, guidance: guidance || run.guidance || 1 };
    const kept = entries.map((entry) => (entry.features ? null : this.about.export.selections[entryKey(entry)]));
    const names = fileNames(kept.map((one, i) => one?.name ?? `${entries[i].family}-${i + 1}`), "json");
    const files = await Promise.all(kept.map(async (one, i) => one && { name: names[i], text: await (await fetched(`${this.root}/${one.file}`)).text(), rows: one.rows }));
    return { files: files.filter(Boolean), commands: commands(root, entries, names, asked), python: pythonLines(root, entries, names, asked) };
  }

  // Where a feature fires, and what fires at a step: both from the codes of one sample.
  async #codes(name, { sae, sample, feature, step }) {
    if (!this.about.export.samples.includes(String(sample))) throw new AnswerError(this.#without(name));
    const rows = await this.#rows(`codes/${sae}/${sample}`);
    const { width } = this.about.saes.find((one) => one.name === sae).config;
    const place = ({ position }) => ({ position, map_row: Math.floor(position / width), map_column: position % width });
    if (name === "feature_map") {
      const found = rows.filter((row) => row.feature === Number(feature));
      return answer(name, found.map((row) => ({ step: row.step, timestep: row.timestep, ...place(row), value: row.value })), MAP);
    }
    const found = rows.filter((row) => row.step === Number(step));
    found.sort((a, b) => a.position - b.position || b.value - a.value || a.feature - b.feature);
    return answer(name, found.map((row) => ({ ...place(row), feature: row.feature, value: row.value })), POSITIONS);
  }

  #without(name) {
    return `This export does not hold that (${name}): it has the ${this.about.export.features} best features of each concept and ${this.about.export.samples.length} samples. `
      + `Where the store is, 'featurestore explore' answers everything.`;
  }

  // The last files that were read stay.
  #rows(path) {
    if (!this.#files.has(path)) {
      const rows = fetched(`${this.root}/${path}.parquet`).then((r) => r.arrayBuffer()).then((file) => parquetReadObjects({ file, compressors }));
      rows.catch(() => this.#files.delete(path));
      this.#files.set(path, rows);
      if (this.#files.size > 40) this.#files.delete(this.#files.keys().next().value);
    }
    return this.#files.get(path);
  }

  download = async (given, form) => (form === "json" ? save(`${given.name}.json`, JSON.stringify(byRow(given), null, 1), "application/json") : save(`${given.name}.csv`, csv(given)));
}

const MAP = { step: "int32", timestep: "float", position: "int64", map_row: "int64", map_column: "int64", value: "float" };
const POSITIONS = { position: "int64", map_row: "int64", map_column: "int64", feature: "int32", value: "float" };
const plain = (value) => (typeof value === "bigint" ? (Number.isSafeInteger(Number(value)) ? Number(value) : String(value)) : value ?? null);

// Rows to an answer, column by column; the names come from the types where there are no rows.
function answer(name, rows, types) {
  const names = types ? Object.keys(types) : Object.keys(rows[0] || {});
  const columns = Object.fromEntries(names.map((n) => [n, rows.map((row) => plain(row[n]))]));
  return { name, columns, types: types || {}, n_rows: rows.length };
}
