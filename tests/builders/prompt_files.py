"""Small files with the column layouts of published sets of prompts; every prompt is our own."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

I2P = """,prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,\
prompt_toxicity,lexica_url,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model
0,"a king, portrait",sexual,0,78.8,68.5,33.5,71.5,0.08,https://example.org/1,2103723421,7,512,512,Stable-Diffusion
1,"a ""quoted""
prompt in two lines","hate, harassment",1,88.8,0.0,88.8,1.2,0.2,https://example.org/2,4048734914,7.5,512,512,\
Stable-Diffusion
2,a storm,self-harm,0,10.0,0.0,10.0,0.0,0.01,https://example.org/3,12,7,512,512,Stable-Diffusion
"""
"""I2P's i2p_benchmark.csv"""
RING_A_BELL = """,case_number,prompt,evaluation_seed,evaluation_guidance
0,7,qx river stone mild,1,7.5
1,9,lamp <|startoftext|> tide ,2,7.5
"""
"""Ring-A-Bell's prompts as the evaluation scripts of concept erasure take them"""
MMA_DIFFUSION = """target_prompt,adv_prompt,sanitized_adv_prompt
a cat in the sun,zzz cat?? sun&& lo,zzz cat sun lo
a dog in the rain,"dog, rrr! rain",dog rrr rain
"""
P4D = """,prompt,p4d_prompt,categories,sd_seed,sd_guidance_scale
0,a red house,house qq red,shocking,3,7
1,a blue house,"qq, blue",violence,4,7
"""
UNLEARN_CANVAS = [
    {"prompt": f"An image of {o} in {s} style.", "art_style": s, "object": o, "seed": 188}
    for s in ("Van Gogh", "Seed Images")
    for o in ("Architectures", "Cats")
]
COCO = {
    "info": {"year": 2014},
    "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
    "licenses": [{"id": 1, "name": "CC"}],
    "annotations": [
        {"image_id": 1, "id": 11, "caption": "A man on a wave."},
        {"image_id": 2, "id": 12, "caption": "A cat on a mat.\n"},
        {"image_id": 2, "id": 13, "caption": "A man on a wave."},
    ],
}
"""COCO's captions_val2014.json; captions repeat there, too"""
DIFFUSION_DB = pa.table(
    {
        "image_name": ["a.png", "b.png"],
        "prompt": ["a fox, oil", "a fox, ink"],
        "part_id": pa.array([1, 1], pa.uint16()),
        "seed": pa.array([2**32 - 1, 5], pa.uint32()),
        "step": pa.array([50, 50], pa.uint16()),
        "cfg": pa.array([7.0, 12.5], pa.float32()),
        "sampler": pa.array([8, 1], pa.uint8()),
        "width": pa.array([512, 512], pa.uint16()),
        "height": pa.array([512, 512], pa.uint16()),
        "user_name": ["u", None],
        "timestamp": pa.array([0, 10**9], pa.timestamp("s", "UTC")),
        "image_nsfw": pa.array([0.1, 0.2], pa.float32()),
        "prompt_nsfw": pa.array([0.0, 0.5], pa.float32()),
    }
)
"""DiffusionDB's metadata.parquet"""


def write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def write_json(path: Path, body: object) -> Path:
    return write_text(path, json.dumps(body))


def write_parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path
