"""What does the model draw when a feature is turned up? One row of pictures, by strength.

python examples/steer.py neon.json "An image of cat." steered.png --strengths 0,5,20
"""

import argparse

from PIL import Image

from featurestore import Selection
from featurestore.prompts import Prompt
from sae import Intervention, RunSettings, load_model
from sae.intervention.generate import generate_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("selection")
    parser.add_argument("prompt")
    parser.add_argument("out")
    parser.add_argument("--strengths", default="0,2,5,10,20")
    parser.add_argument("--model", default="minicanvas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="denoising steps; default: the model's")
    args = parser.parse_args()

    selection = Selection.load(args.selection)
    model = load_model(args.model)
    run = RunSettings(n_steps=args.steps or model.steps, guidance=model.guidance)
    pictures = []
    for strength in map(float, args.strengths.split(",")):
        steering = [Intervention(selection, "add", strength=strength)] if strength else []
        pictures += generate_images(model, [Prompt(args.prompt, args.seed, {}, 1)], run, steering)
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * width, 0))
    row.save(args.out)


if __name__ == "__main__":
    main()
