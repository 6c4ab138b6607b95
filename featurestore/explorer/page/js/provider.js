// Where answers come from. Both providers have the same methods; a test runs both over one store.
//
//   overview()                     what is in the store
//   samples()                      {columns, types, n_rows}: ids, prompts, seeds, labels
//   ask(name, parameters)          the answer to a named question, with its SQL and command
//   directions(sae, feature, top)  the nearest rows of the decoder
//   picture(sample, size)          the address of a picture; size 0: as it was kept
//   tables(), sql(statement)       what a statement can name, and its answer
//   selections(basket)             a basket as files, commands and lines
//   loadSelection(file)            the basket's entry of a selection file
//   download(answer, format)       saves what an answer showed
//   can                            {live, grow, forms}: what else this provider does; of an export, ladders() has what was drawn
import { HttpProvider } from "./http.js";

export async function openProvider() {
  const exported = document.querySelector('meta[name="featurestore-export"]');
  if (!exported) return new HttpProvider();
  const { FileProvider } = await import("./files.js");
  return FileProvider.open(exported.content);
}
