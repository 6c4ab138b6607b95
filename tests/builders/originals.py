"""Checkpoints under the names of the original Stable Diffusion code, from models of diffusers."""

import re

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def original_unet(unet):
    """The state of a UNet with one resnet per block, under the original names."""
    n_layers = unet.config.layers_per_block
    return {
        f"model.diffusion_model.{_unet_name(name, n_layers, unet)}": t.clone()
        for name, t in unet.state_dict().items()
    }


def _unet_name(name, n_layers, unet):
    for ours, theirs in _OUTER.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    side, number, kind, layer, rest = _parts(name)
    if kind == "resnets":
        rest = ".".join([_RESNET[rest.split(".")[0]], *rest.split(".")[1:]])
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{rest}"
    has_attention = hasattr(getattr(unet, side)[number], "attentions")
    if side == "down_blocks":
        block, inner = 1 + number * (n_layers + 1) + layer, 1 if kind == "attentions" else 0
        if kind == "downsamplers":
            return f"input_blocks.{(number + 1) * (n_layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{block}.{inner}.{rest}"
    if kind == "upsamplers":
        return (
            f"output_blocks.{number * (n_layers + 1) + n_layers}.{2 if has_attention else 1}.{rest}"
        )
    return (
        f"output_blocks.{number * (n_layers + 1) + layer}.{1 if kind == 'attentions' else 0}.{rest}"
    )


def _parts(name):
    match = re.match(
        r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.*)|(mid_block)\.(\w+)\.(\d+)\.(.*)", name
    )
    if match[6]:
        return match[6], 0, match[7], int(match[8]), match[9]
    return match[1], int(match[2]), match[3], int(match[4]), match[5]


def original_vae(vae):
    """The state of an autoencoder, under the original names."""
    return {
        f"first_stage_model.{_vae_name(name, vae)}": _as_conv(name, t)
        for name, t in vae.state_dict().items()
    }


def _as_conv(name, tensor):
    if re.search(r"mid_block\.attentions\.0\.to_.*weight", name):
        return tensor[:, :, None, None].clone()
    return tensor.clone()


def _vae_name(name, vae):
    n_blocks = len(vae.config.block_out_channels)
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    for ours, theirs in {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }.items():
        if "attn_1" in name:
            name = name.replace(f".{ours}.", f".{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)",
        lambda m: f"up.{n_blocks - 1 - int(m[1])}.block.{m[2]}",
        name,
    )
    return re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{n_blocks - 1 - int(m[1])}.upsample", name
    )


def original_pipeline(pipe):
    """The single file of a Stable Diffusion pipeline."""
    prefix = "cond_stage_model.transformer.text_model."
    text = {
        prefix + name.removeprefix("text_model."): t.clone()
        for name, t in pipe.text_encoder.state_dict().items()
    }
    return {**original_unet(pipe.unet), **original_vae(pipe.vae), **text}
