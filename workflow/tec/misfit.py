"""What does not fit a model, in words."""

from __future__ import annotations

from pydantic import ValidationError


def misfits(error: ValidationError) -> list[str]:
    """Return one line per misfit: key path (`file` for the whole), then message."""
    return [
        f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()
    ]
