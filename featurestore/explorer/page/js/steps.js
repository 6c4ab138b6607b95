// The slider over timesteps, with play: one place in the address, moved by hand, by [ and ], or by itself.
import { html, useEffect, useState } from "../vendor/preact.js";
import { change } from "./state.js";

export function StepSlider({ steps, index }) {
  const [playing, setPlaying] = useState(false);
  const move = (i) => change({ step: steps[Math.max(0, Math.min(steps.length - 1, i))][0] }, true);
  useEffect(() => {
    if (!playing) return undefined;
    const timer = setTimeout(() => (index + 1 < steps.length ? move(index + 1) : setPlaying(false)), 220);
    return () => clearTimeout(timer);
  }, [playing, index]);
  if (!steps.length) return null;
  const play = () => {
    if (!playing && index === steps.length - 1) move(0);
    setPlaying(!playing);
  };
  const said = `step ${steps[index][0]} of ${steps[steps.length - 1][0]}, timestep ${Math.round(steps[index][1])}`;
  return html`<div class="steps"><button type="button" class="round" onClick=${play} aria-label=${playing ? "Pause" : "Play through the denoising"}>${playing ? "❚❚" : "▶"}</button>
    <input type="range" min="0" max=${steps.length - 1} value=${index} aria-label="Step" aria-valuetext=${said}
      onInput=${(e) => { setPlaying(false); move(Number(e.currentTarget.value)); }} />
    <output>${said}</output></div>`;
}
