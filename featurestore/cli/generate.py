"""``featurestore generate``."""

from pathlib import Path

import click

from featurestore.cli.options import (
    DrawingOptions,
    InterventionOptions,
    drawing_options,
    intervention_options,
    mode_option,
    quiet_option,
    sae_directories_option,
)
from featurestore.cli.terminal.hints import say_next


@click.command()
@click.option("--prompt", "texts", multiple=True, help="A prompt; several times for several.")
@drawing_options(out="Directory for PNG files and generated.jsonl.", prompts_required=False)
@intervention_options
@mode_option
@sae_directories_option
@quiet_option
def generate(
    *,
    texts: tuple[str, ...],
    drawing: DrawingOptions,
    edits: InterventionOptions,
    mode: str,
    saes: tuple[Path, ...],
    quiet: bool,
) -> None:
    """Generate pictures, with the features of selections ablated if there are any.

    Writes one PNG per (prompt, seed), and generated.jsonl, which says what each file is and how it
    was made. --multiplier, --intervention, --branch, --window, --mask, --mask-from, --threshold,
    --toward and --pull are given once for all selections, or once for each, in their order.

    \b
    Example:
      featurestore generate --model minicanvas --prompt "An image of cat in neon style." --seeds 0-3 --out before
      featurestore generate --model minicanvas --prompt "An image of cat in neon style." --seeds 0-3 --out after \\
          --ablate neon.json --multiplier -20
      featurestore generate --model minicanvas --prompt "An image of cat in neon style." --out half \\
          --ablate neon.json --multiplier -1 --ablate cat.json --multiplier -20 --window 0%:50%
    """  # fmt: skip
    from featurestore.errors import UsageError
    from featurestore.prompts import Prompt
    from sae.intervention.generate import generate_files

    prompted, seeds = drawing.prompts.source is not None, drawing.run.seeds
    if not texts and not prompted:
        raise UsageError("nothing to generate: give --prompt or --prompts.")
    interventions = edits.interventions()
    wanted = [Prompt(text, seed, {}, 0) for text in dict.fromkeys(texts) for seed in seeds]
    wanted += drawing.asked() if prompted else []
    model, run = drawing.load(wanted)
    files = generate_files(
        drawing.out,
        model,
        wanted,
        run,
        interventions=interventions,
        saes=saes,
        mode=mode,
        batch_size=drawing.run.batch_size,
        progress=not quiet,
    )
    click.echo(f"{len(files)} pictures in {drawing.out}")
    removed = [f"{one.selection.family}={one.selection.concept}" for one in interventions]
    if removed:
        targets = [word for name in dict.fromkeys(removed) for word in ("--target", name)]
        say_next("judge", drawing.out, "--judge", "JUDGE", *targets)
    else:
        asked = (
            drawing.words()
            if prompted
            else ["--model", drawing.model.model, "--prompt", *texts[:1]]
        )
        say_next("generate", *asked, "--out", "OUT", "--ablate", "SELECTION.json")
