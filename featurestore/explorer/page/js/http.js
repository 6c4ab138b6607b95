// Answers from the server on this machine.
import { AnswerError, csv, save } from "./answer.js";

async function json(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AnswerError("The explorer does not answer. Is it still running in its terminal?");
  }
  const text = await response.text();
  if (response.ok) return JSON.parse(text);
  let said = text.trim();
  try {
    said = JSON.parse(text).error;
  } catch { /* a refusal is plain text */ }
  throw new AnswerError(said || `The server answered ${response.status}.`);
}

const post = (path, body, signal) =>
  json(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

const query = (parameters) => new URLSearchParams(
  Object.entries(parameters).filter(([, v]) => v !== undefined && v !== null && v !== ""),
).toString();

export class HttpProvider {
  can = { live: true, grow: true, forms: ["csv", "parquet", "json"] };

  overview = () => json("api/overview");
  state = async () => (await json("api/state")).state;
  samples = () => json("api/samples");
  ask = (name, parameters, signal) => json(`api/ask/${name}?${query(parameters)}`, { signal });
  directions = (sae, feature, top, signal) => json(`api/directions/${encodeURIComponent(sae)}/${feature}?top=${top}`, { signal });
  picture = (sample, size) => `pictures/${sample}/${size}`;
  tables = () => json("api/tables");
  sql = (statement, signal) => post("api/sql", { statement }, signal);
  selections = (body, signal) => post("api/basket", body, signal);
  draw = (body) => post("api/draw", body);
  events = (job) => new EventSource(`api/draw/${job}/events`);
  drawn = (key) => `drawn/${key}.png`;

  async loadSelection(file) {
    return json(`api/basket/load?name=${encodeURIComponent(file.name)}`, { method: "POST", body: await file.arrayBuffer() });
  }

  async download(answer, form) {
    if (form === "csv" && !answer.truncated) save(`${answer.name}.csv`, csv(answer));
    else if (answer.statement) await this.#saved("api/sql", answer, form);
    else await this.#saved(`api/ask/${answer.name}`, answer, form);
  }

  async #saved(path, answer, form) {
    const options = answer.statement
      ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ statement: answer.statement }) }
      : {};
    const response = await fetch(`${path}?${query({ ...answer.parameters, format: form })}`, options);
    if (!response.ok) throw new AnswerError((await response.json()).error);
    save(`${answer.name}.${form}`, await response.blob());
  }
}
