"""Reads a file of weights without running anything that it holds."""

import pickle
import struct
from pathlib import Path
from typing import Any

import torch

from vggexp.errors import UserError


def read(path: Path, key: str) -> dict[str, Any]:
    """The content of a checkpoint (.ckpt), a state dict (.pth, .pt) or a safetensors file, on the CPU.

    Args:
        key: the config key that named the file, for the message.

    Raises:
        UserError: there is no such file, or it is none of these, or it is damaged.
    """
    place = f"{key}={path}"
    if "://" in str(path) or str(path).startswith(("http:/", "https:/", "s3:/", "gs:/")):
        raise UserError(f"{place}: is a URL; download the file first and name it")
    if not path.is_file():
        raise UserError(f"{place}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{place}: is empty (0 bytes); name an intact file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, place)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "holds more than weights and plain values" if "Weights only" in str(error) else "is no file of weights"
        raise UserError(f"{place}: {reason}; only files that torch.load(weights_only=True) reads are let in") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, struct.error) as error:
        raise UserError(f"{place}: is damaged or no file of weights; name an intact one") from error
    if not isinstance(content, dict):
        raise UserError(f"{place}: holds no state dict but a {type(content).__name__}")
    return content


def _read_safetensors(path: Path, place: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{place}: needs the package safetensors: pip install 'vggexp[export]'", 1) from error
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{place}: is damaged or no safetensors file; name an intact one") from error


def state_dict(content: dict[str, Any], place: str) -> dict[str, torch.Tensor]:
    """A network's weights by name: those of a checkpoint of ours, or the content itself.

    Raises:
        UserError: something in it is not a tensor.
    """
    found = content.get("state_dict", content)
    if not isinstance(found, dict) or not found or not all(isinstance(x, torch.Tensor) for x in found.values()):
        raise UserError(f"{place}: holds no state dict")
    return {name.removeprefix("net."): tensor for name, tensor in found.items()}
