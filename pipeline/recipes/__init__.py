"""Ready params.yaml files, one for each kind of raw data; the first line of each says what it is."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError, nearest
from pipeline.imageset.files import write_atomically

_FOLDER = Path(__file__).parent


def titles() -> dict[str, str]:
    """What each recipe is for, by name."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.yaml"))}
    return {name: text.splitlines()[0].lstrip("# ") for name, text in texts.items()}


def use(name: str, target: Path, *, force: bool = False) -> None:
    """Make the recipe the file `target`. UserError when `target` was edited by hand, unless `force`."""
    texts = {path.stem: path.read_bytes() for path in _FOLDER.glob("*.yaml")}
    if name not in texts:
        raise UserError(f"'{name}' is not a recipe; {nearest(name, texts)}")
    if target.exists() and target.read_bytes() not in texts.values() and not force:
        raise UserError(f"{target}: was edited by hand and is kept; needed --force to overwrite it with '{name}'")
    write_atomically(target, texts[name])
