"""The ablation's arithmetic for one denoiser call: our shortcut against the full encode, edit, decode.

python benchmarks/ablate.py
"""

import torch
from record import interleaved, record

from sae.ablate import Rule, ablation_change
from sae.model import SAE, SAEConfig

D_IN, N_LATENTS, K, POSITIONS = 1280, 20480, 32, 256


def dense(sae: SAE, x: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The paper's rule, written out: encode everything, edit, decode, keep the error."""
    z = sae.encode_dense(x)
    error = x - (z @ sae.W_dec + sae.b_dec)
    f = z[:, rule.features]
    z[:, rule.features] = torch.where(f > rule.threshold, rule.factor * f, f)
    return z @ sae.W_dec + sae.b_dec + error


def ours(sae: SAE, x: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The same by the shortcut."""
    rows, change = ablation_change(sae, x, [rule])
    edited = x.clone()
    edited[rows] += change
    return edited


@torch.no_grad()
def main() -> None:
    """Check that both agree, then time them where the concept is absent, and where it is present at a tenth of the positions."""
    torch.manual_seed(0)
    sae = SAE(SAEConfig(d_in=D_IN, n_latents=N_LATENTS, k=K))
    x = torch.randn(POSITIONS, D_IN)
    strongest = torch.topk(sae.encode_dense(x).amax(0), 2).indices.sort().values
    values = sae.encode_dense(x)[:, strongest]
    figures: dict[str, float] = {}
    positive = values[values > 0].sort().values
    # Between two values: at one, the last digit of a sum would decide.
    middle = float(positive[len(positive) // 2 : len(positive) // 2 + 2].mean())
    for name, level in (("absent", 1e9), ("present", middle)):
        rule = Rule(strongest, torch.full((2,), -2.0), torch.full((2,), level))
        torch.testing.assert_close(ours(sae, x, rule), dense(sae, x, rule), atol=1e-5, rtol=1e-5)
        seconds = interleaved(5, ours=lambda r=rule: ours(sae, x, r), dense=lambda r=rule: dense(sae, x, r))
        figures |= {f"{name}_{who}_ms": 1000 * s for who, s in seconds.items()}
        figures[f"{name}_dense_over_ours"] = seconds["dense"] / seconds["ours"]
    record("ablate", figures)


if __name__ == "__main__":
    main()
