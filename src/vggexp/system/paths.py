"""Where the configs, the runs and the data cache lie."""

import os
from pathlib import Path

WINDOWS = os.name == "nt"

_PACKAGED, _CHECKOUT = Path(__file__).parents[1] / "conf", Path(__file__).parents[3] / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
"""The folder of the YAML files: inside an installed package, at the top of a checkout."""


def install(extra: str) -> str:
    """The command that installs the packages of an extra of pyproject.toml."""
    return f"make setup EXTRAS={extra}" if CONF == _CHECKOUT else f"pip install 'vggexp[{extra}]'"


def outputs() -> Path:
    """The folder that holds all runs: `outputs`, or what VGGEXP_OUTPUTS names."""
    return Path(os.environ.get("VGGEXP_OUTPUTS") or "outputs")


def cache(folder: str | None = None) -> Path:
    """The folder that keeps verified data: `folder`, else VGGEXP_CACHE, else `vggexp` in the user's cache folder."""
    if named := folder or os.environ.get("VGGEXP_CACHE"):
        return Path(named).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vggexp"
    except RuntimeError:  # the user has no home
        return outputs() / ".cache"
