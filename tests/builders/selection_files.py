"""Selections that need no store."""

import pyarrow as pa

from featurestore import Selection
from featurestore.selection_files import ROWS


def selection(
    store="/somewhere/store",
    concept="neon",
    rows=((0, 981.0, 3, 0.1, 0.2, 1 / 3, 0.4),),
    timesteps=(981.0, 961.0),
):
    table = pa.Table.from_pylist(
        [dict(zip(ROWS.names, row, strict=True)) for row in rows], schema=ROWS
    )
    return Selection(
        family="style", concept=concept, branch="cond", rule={"top": 2}, model="m", model_hash="f16:0", hook="unet.mid_block",
        io="output", sae="s", sae_hash="1", d_in=8, n_latents=16, k=4, run={"n_steps": 2}, store=str(store), timesteps=timesteps,
        rows=table,
    )  # fmt: skip
