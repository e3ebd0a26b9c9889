"""What is said, logged and shown holds no credentials: those of the environment and of URLs are blotted out."""

from __future__ import annotations

import os
import re

_NAMED = re.compile(r"(?!.*_(FILE|PATH|DIR)$).*(SECRET|TOKEN|PASSW|CREDENTIAL|WEBHOOK|AUTH_STRING|(^|_)KEY(_ID)?$)")
_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_LEAST = 6  # letters; shorter values are words of any text
HIDDEN = "***"


def hidden(text: str) -> str:
    """`text` without the values of variables that are named as secrets are, and without user:password@ in URLs."""
    values = {value for name, value in os.environ.items() if _NAMED.match(name) and len(value) >= _LEAST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _IN_URL.sub(f"{HIDDEN}@", text)
