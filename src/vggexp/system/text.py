"""Foreign text on its way out: names, notes and messages that come from a file someone else may have written."""

import re
from typing import Any

LONGEST = 400  # characters of a message

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
    "|[\U000e0000-\U000e007f\ud800-\udfff]"
)
"""What a terminal or an editor obeys instead of showing it: escape sequences, other lines, another direction."""


def clean(text: str) -> str:
    """The text in which each control character is spelled out, such as `\\x1b`."""
    return CONTROL.sub(lambda found: f"{found[0].encode('unicode_escape').decode()}", text)


def label(text: str) -> str:
    """A name in one line."""
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


def message(text: str) -> str:
    """The text in one line; of a long one the beginning and the end."""
    line = clean(" ".join(text.split("\n")))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 153]} … {line[-150:]}"


def cell(value: Any) -> Any:
    """A value for a CSV file, which a spreadsheet does not take for a formula."""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) and not is_number(text) else text


def is_number(text: str) -> bool:
    """Whether a text is that of a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def markdown(value: Any) -> str:
    """A value for Markdown, without links, pictures, code or HTML of its own, in one line."""
    text = clean(" ".join(str(value).split("\n")))
    return re.sub(r"([\[\]`])", r"\\\1", text).replace("<", "&lt;")


def everywhere(tree: Any) -> Any:
    """Plain values whose texts a page can show: clean, and without what a charting library would take for markup."""
    if isinstance(tree, str):
        return clean(tree).replace("<", "‹").replace("%{", "% {")
    if isinstance(tree, dict):
        return {everywhere(key): everywhere(value) for key, value in tree.items()}
    return [everywhere(value) for value in tree] if isinstance(tree, list | tuple) else tree
