"""The small language that makes a text, or a group, of columns: `{title}: {description}`, `{code[:4]}`.

It does not know tables.
"""

import re
import string

# A part of a template: the literal text before a column, the column (none after the last), the length of its prefix.
TemplatePart = tuple[str, str | None, int | None]


def template_parts(template: str) -> list[TemplatePart]:
    """Split a template into literal texts and the columns in braces; doubled braces stand for themselves.

    Raises:
        ValueError: Unbalanced braces, an empty name, or anything but `{column}` and `{column[:N]}` in braces.
    """
    parts: list[TemplatePart] = []
    for literal, field, format_code, conversion in string.Formatter().parse(template):
        found = re.fullmatch(r"(?P<column>[^\[\]]+)(?:\[:(?P<length>[1-9][0-9]*)\])?", field) if field else None
        if field is not None and (found is None or format_code or conversion):
            shown = field + (f"!{conversion}" if conversion else "") + (f":{format_code}" if format_code else "")
            raise ValueError(f"must hold {{column}} or {{column[:N]}} in braces, not {{{shown}}}")
        length = found["length"] if found else None
        parts.append((literal, found["column"] if found else None, int(length) if length else None))
    return parts


def template_columns(template: str) -> list[str]:
    """List the columns a template names, in order, each once.

    Raises:
        ValueError: See `template_parts`.
    """
    return list(dict.fromkeys(column for _, column, _ in template_parts(template) if column is not None))


def is_blank(text: str) -> bool:
    """Tell whether a text has nothing but white space and invisible characters."""
    return not any(character.isprintable() and character != " " for character in text)
