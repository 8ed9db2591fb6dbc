"""HTML reports: a single file that contains its pictures."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path


def write_page(path: Path, template: Path, values: Mapping, filters: Mapping[str, Callable] | None = None) -> None:
    """Write a report from a Jinja2 template that extends `page.html.j2`; its folder is made if needed.

    All values are escaped, since they contain names from files and tables; so are bytes that are not text.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"embedded": embedded} | (filters or {})
    html = environment.get_template(template.name).render(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8", errors="backslashreplace")


def embedded(picture: bytes) -> str:
    """A PNG or GIF file as a data URL: a filter of the templates."""
    kind = "gif" if picture[:3] == b"GIF" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
