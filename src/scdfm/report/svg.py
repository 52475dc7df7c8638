"""An SVG file made fit to stand inside an HTML page, beside others."""

from __future__ import annotations

import re
from xml.etree import ElementTree  # reads what matplotlib drew a moment before  # nosec B405

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


def inlined(svg: bytes, name: str, alt: str) -> str:
    """`svg` (our own, as matplotlib writes it) as an element that scales to its place and is read aloud as `alt`.

    Identifiers are shared by everything on a page, so each gets the figure's `name` in front.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)  # nosec B314
    metadata = root.find(f"{{{SVG}}}metadata")
    if metadata is not None:
        root.remove(metadata)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ElementTree.tostring(root, encoding="unicode")
