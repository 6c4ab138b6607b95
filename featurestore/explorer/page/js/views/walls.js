// Walls of samples: some of them at first, more when asked for.
import { html, useState } from "../../vendor/preact.js";
import { useLater, useShared } from "../hooks.js";
import { Answered, Panel, Thumb } from "../ui.js";
import { number } from "../words.js";

const AT_ONCE = 48;

export function SampleWall({ title, keep, href, aside }) {
  const { provider, overview } = useShared();
  const samples = useLater(overview.n_samples ? "samples" : null, () => provider.samples());
  const [shown, setShown] = useState(AT_ONCE);
  return html`<${Panel} title=${title} aside=${aside} wide><${Answered} answer=${samples} height=${240}>${({ columns }) => {
    const found = columns.sample_id.map((_, i) => i).filter((i) => !keep || keep(columns, i));
    return html`${found.length === 0 && html`<p class="muted">No sample.</p>`}
      <div class="thumbs">${found.slice(0, shown).map((i) => html`<${Thumb} key=${columns.sample_id[i]} sample=${columns.sample_id[i]} prompt=${columns.prompt[i]} href=${href?.(columns.sample_id[i])} />`)}</div>
      ${found.length > shown && html`<button type="button" onClick=${() => setShown(shown + 4 * AT_ONCE)}>${number(found.length - shown)} more</button>`}`;
  }}</${Answered}></${Panel}>`;
}
