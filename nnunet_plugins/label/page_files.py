"""The files of the page at `/`: the same for everybody, and no secret in them.

They alone are given away without the token, which the page then asks for.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
MODULES = (
    "actions",
    "api",
    "dom",
    "jobs",
    "legend",
    "main",
    "models",
    "overlay",
    "pane",
    "pictures",
    "readout",
    "studies",
    "viewer",
)
FILES = {"/": "index.html", "/page/style.css": "style.css", "/page/icon.svg": "icon.svg"} | {
    f"/page/{name}.js": f"{name}.js" for name in MODULES
}
"""Addresses and their files: every one there is, by name."""
