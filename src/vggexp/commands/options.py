"""What the commands share: KEY=VALUE arguments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict

from vggexp.config import compose
from vggexp.config.messages import nearest
from vggexp.errors import UserError


class Options(BaseModel):
    """What a command accepts; the values come as text."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Words = Annotated[tuple[str, ...], BeforeValidator(lambda text: tuple(filter(None, text.split(","))))]
"""Several, with commas between them."""

T = TypeVar("T", bound=Options)


def folders(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folders among the arguments, and the others."""
    named = [arg for arg in args if "=" not in arg or Path(arg).exists()]
    return named, [arg for arg in args if arg not in named]


def take(key: str, args: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of KEY=VALUE among arguments, if it is there, and the other arguments."""
    found = [arg.partition("=")[2] for arg in args if arg.startswith(f"{key}=")]
    if len(found) > 1:
        raise UserError(f"{key}={found[1]}: is the second; give one at a time")
    return (found[0] if found else None), [arg for arg in args if not arg.startswith(f"{key}=")]


def parse(schema: type[T], args: Sequence[str], overridable: Sequence[str] = ()) -> tuple[T, dict[str, Any]]:
    """The options of a command, and the overrides of the run's config whose keys begin like one of `overridable`."""
    given: dict[str, str] = {}
    overrides = []
    names = list(schema.model_fields)
    for arg in args:
        key, equals, text = arg.partition("=")
        if not equals or not key:
            raise UserError(f"{arg}: is not KEY=VALUE; the keys are {', '.join(names)}")
        if key.startswith(tuple(overridable)):
            overrides.append(arg)
        elif key not in names:
            also = f", and {', '.join(f'{k}*' if k.endswith('.') else k for k in overridable)}" if overridable else ""
            raise UserError(f"{arg}: unknown key; the keys are {', '.join(names)}{also}{nearest(key, names)}")
        elif not text and Path in get_args(schema.model_fields[key].annotation):
            raise UserError(f"{arg}: is empty; name a file or folder, or leave it out")
        else:
            given[key] = text
    for name, field in schema.model_fields.items():
        if field.is_required() and name not in given:
            raise UserError(f"{name}: missing; give {name}=…")
    return compose.validate(given, schema), compose.values(overrides)
