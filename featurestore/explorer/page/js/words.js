// What the numbers mean: shown behind the "?" beside each of them.
export const WORDS = {
  score: ["Score", "How much more of the activity a feature has in a concept's samples than in the others of its family, at one step: "
    + "μ(i,t,D_c) / (Σ_j μ(j,t,D_c) + δ) − μ(i,t,D_¬c) / (Σ_j μ(j,t,D_¬c) + δ). Between −1 and 1; 0 says nothing about the concept."],
  mean: ["Mean μ", "μ(i,t,D): the activation of feature i at step t, averaged over all positions of the map and all samples of D. "
    + "A position where it does not fire counts as 0."],
  density: ["Density", "The share of samples in which the feature fires at one position or more at that step."],
  fvu: ["FVU", "Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean(x)‖². 0 is a perfect reconstruction, 1 no better than the mean."],
  l0: ["L0", "Features that fire at a position, on average."],
  dead: ["Dead latents", "Latents that fire in no encoded sample; by step: in none at that step."],
  interval: ["Interval", "The samples of each concept are drawn anew, with replacement, 200 times; the interval is the score ± Student’s t times the "
    + "standard deviation of the scores so obtained, for 95 %."],
  jaccard: ["Shared", "Of the (step, feature) pairs that either of two concepts selects, the share that both select: |A ∩ B| / |A ∪ B|."],
  total: ["Total", "The sum of the feature's activations over all positions and steps of a sample."],
  together: ["Fires with", "|both| / |either|, over samples and steps. Lift: how many times more often together than by chance."],
  direction: ["Nearest directions", "Cosine between rows of the decoder W_dec: what the features add to the model's activations."],
  multiplier: ["Multiplier γ", "f ← γ · μ(i,t,D_c) · f where f > μ(i,t,D): 0 removes the feature where it is stronger than usual, a negative "
    + "number pushes the other way. The reconstruction error is kept, so with nothing selected the picture stays the same bit for bit."],
  bands: ["Bands", "The samples in which the feature fires, in four groups of equal size by their total: not only the strongest tell what "
    + "a feature means."],
};

const SHORT = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const WHOLE = new Intl.NumberFormat("en");

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return WHOLE.format(value + 0); // + 0: no minus before a zero
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(1) : SHORT.format(value);
}
export const percent = (value) => (value === null || value === undefined ? "–" : `${SHORT.format(100 * value)} %`);

export function bytes(size) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (size < 1000) return `${unit === "B" ? size : size.toFixed(1)} ${unit}`;
    size /= 1000;
  }
  return `${size.toFixed(1)} TB`;
}
export const short = (text, n = 80) => (text.length > n ? `${text.slice(0, n - 1)}…` : text);
