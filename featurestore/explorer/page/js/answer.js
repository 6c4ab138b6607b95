// An answer is {name, columns: {name: [values]}, types, n_rows}; ids are text.

export class AnswerError extends Error {}

// Column by column to row by row.
export function rows(answer) {
  const names = Object.keys(answer.columns);
  return Array.from({ length: answer.n_rows }, (_, i) => Object.fromEntries(names.map((n) => [n, answer.columns[n][i]])));
}

// Rows by the value of a column, in the order in which the values come.
export function groups(list, key) {
  const found = new Map();
  for (const row of list) {
    const name = row[key];
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(row);
  }
  return found;
}

export function csv(answer) {
  const names = Object.keys(answer.columns);
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = Array.from({ length: answer.n_rows }, (_, i) => names.map((n) => cell(answer.columns[n][i])).join(","));
  return `${[names.map(cell).join(","), ...lines].join("\n")}\n`;
}

export function save(name, data, type = "text/csv") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(data instanceof Blob ? data : new Blob([data], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
