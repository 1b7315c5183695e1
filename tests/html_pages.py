"""Reads a page as a browser would: what it refers to, what it says, and whether every element is closed."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """addresses: of links and pictures; text: what is to be read; tags: names of all elements. Raises AssertionError."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.addresses, self.text, self.tags, self._open = path, [], "", [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), f"a script: {name}={value}"
            if name in ("src", "href"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data

    def missing(self):
        """Addresses of files that are not there."""
        files = (a for a in self.addresses if not a.startswith("data:"))
        return [a for a in files if not (self.path.parent / unquote(a)).is_file()]
