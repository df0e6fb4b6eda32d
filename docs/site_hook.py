"""What the site says otherwise than the repository: SECURITY.md lies outside of the pages (``mkdocs.yml``, hooks)."""

from typing import Any

OUTSIDE = "[SECURITY.md](../SECURITY.md)"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page, with a name where it has a link out of the pages."""
    return markdown.replace(OUTSIDE, "`SECURITY.md` in the repository")
