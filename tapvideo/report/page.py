"""A page that is one file: styles, script and data inside it, other people's text only ever as text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(
    template: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    filters: dict[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """A template with its own styles and scripts, which lie beside it and are put into the page in this order."""
    # Prompts and paths are anybody's text: autoescape is on whatever the template is called, and `tojson` escapes "</".
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(filters or {})
    return environment.get_template(template).render(css=_own_files(styles), js=_own_files(scripts), **values)


def _own_files(names: Sequence[str]) -> Markup:
    return Markup("\n").join(Markup((_TEMPLATES / name).read_text(encoding="utf-8")) for name in names)
