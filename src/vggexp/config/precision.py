"""Which precision `trainer.precision=auto` means on this machine."""

from vggexp.config.schema import Config
from vggexp.system import hardware


def resolved(cfg: Config, before: str | None = None) -> Config:
    """The config with `auto` replaced: bf16-mixed where the hardware multiplies bfloat16 natively, else 32-true."""
    if cfg.trainer.precision != "auto":
        return cfg
    native = hardware.multiplies_bf16(hardware.device(cfg.trainer.accelerator).type)
    here = "bf16-mixed" if native else "32-true"
    chosen = before if before in ("bf16-mixed", "32-true") else here  # a checkpoint may say anything
    return cfg.model_copy(update={"trainer": cfg.trainer.model_copy(update={"precision": chosen})})


def line(cfg: Config) -> str:
    """Says what `auto` means, from the config that `resolved` returned."""
    bf16 = cfg.trainer.precision == "bf16-mixed"
    why = "native here; 32-true computes as the chapter does" if bf16 else "no bf16 here"
    return f"trainer.precision=auto: {cfg.trainer.precision} ({why})"
