"""Which precision `trainer.precision=auto` means on this machine."""

import torch

from vggexp.config.schema import Config


def resolved(cfg: Config, before: str | None = None) -> Config:
    """The config with `auto` replaced: bf16-mixed where the hardware multiplies bfloat16 natively, else 32-true.

    Args:
        before: what it has meant so far, for a run that goes on or a network that is used.
    """
    if cfg.trainer.precision != "auto":
        return cfg
    here = "bf16-mixed" if multiplies_bf16(_device(cfg.trainer.accelerator)) else "32-true"
    chosen = before if before in ("bf16-mixed", "32-true") else here  # a checkpoint may say anything
    return cfg.model_copy(update={"trainer": cfg.trainer.model_copy(update={"precision": chosen})})


def line(cfg: Config) -> str:
    """Says what `auto` means, from the config that `resolved` has given."""
    why = (
        "native here; 32-true computes as the chapter does" if cfg.trainer.precision == "bf16-mixed" else "no bf16 here"
    )
    return f"trainer.precision=auto: {cfg.trainer.precision} ({why})"


def _device(accelerator: str) -> str:
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator == "cpu" or best is None else best.type


def multiplies_bf16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 natively."""
    if device == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
