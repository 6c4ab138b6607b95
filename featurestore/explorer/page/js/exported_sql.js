// SQL over the tables of an export: an engine of 100 kB in plain JavaScript, loaded when the first statement is run.
import { AnswerError } from "./answer.js";

const LEFT_OUT = ["feature_map", "position_features"]; // they stand in files of single samples
const ROWS = 10_000;
const AT_ONCE = 5_000;

// The tables: the samples, and each question with the parameters that it was asked with before its answer.
export function exportedTables(about, index) {
  const families = about.families.map(({ name }) => ({ name, type: "string" }));
  const samples = [{ name: "sample_id", type: "int64" }, { name: "prompt", type: "string" }, { name: "seed", type: "int64" }, ...families];
  const asked = Object.entries(index).filter(([name, entry]) => !LEFT_OUT.includes(name) && entry.files).map(([name, entry]) => {
    const [given] = Object.values(entry.given).flat();
    const before = Object.entries(given || {}).filter(([key]) => !(key in entry.types))
      .map(([key, value]) => ({ name: key, type: typeof value === "number" ? "int64" : "string" }));
    return { name, columns: [...before, ...Object.entries(entry.types).map(([key, type]) => ({ name: key, type }))] };
  });
  return [...(about.n_samples ? [{ name: "samples", columns: samples }] : []), ...asked];
}

export async function exportedSql({ statement, tables, load, signal }) {
  const { executeSql, asyncRow } = await import("../vendor/squirreling.js");
  const began = performance.now();
  const source = ({ name, columns }) => {
    const names = columns.map((column) => column.name);
    return {
      columns: names,
      scan: () => ({
        appliedWhere: false,
        appliedLimitOffset: false,
        async* rows() {
          for (const [i, row] of (await load(name)).entries()) {
            if (i % AT_ONCE === 0) await pause(signal);
            yield asyncRow(row, names);
          }
        },
      }),
    };
  };
  try {
    const result = executeSql({ tables: Object.fromEntries(tables.map((table) => [table.name, source(table)])), query: statement, signal });
    return { ...(await collected(result, signal)), seconds: (performance.now() - began) / 1000 };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AnswerError(error.message);
  }
}

// Lets the page draw, and a press of Cancel arrive.
async function pause(signal) {
  await new Promise((resolve) => { setTimeout(resolve); });
  signal?.throwIfAborted();
}

async function collected(result, signal) {
  const columns = Object.fromEntries(result.columns.map((name) => [name, []]));
  let n = 0;
  for await (const row of result.rows()) {
    n += 1;
    if (n > ROWS) break;
    for (const name of result.columns) columns[name].push(plain(await row.cells[name]()));
  }
  signal?.throwIfAborted();
  const types = Object.fromEntries(result.columns.map((name) => [name, kind(columns[name])]));
  return { name: "answer", columns, types, n_rows: Math.min(n, ROWS), truncated: n > ROWS };
}

const plain = (value) => (typeof value === "bigint" ? Number(value) : value ?? null);
const kind = (values) => (values.every((v) => v === null || typeof v === "number") ? "double" : "string");
