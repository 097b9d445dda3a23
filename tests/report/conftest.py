"""What holds for every page: tags nest, and it needs neither a network nor a script."""

import html.parser
import re

import pytest

VOID = {"meta", "img", "circle", "path", "br"}
# An SVG names its languages by addresses that nothing is read from.
NAMES = re.compile(r"(xmlns(:\w+)?|rdf:resource)$")


class Checker(html.parser.HTMLParser):
    """Counts tags and insists that they nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.count, self.attributes = [], {}, []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(file):
    """A page's tags and attributes, once it is known to be one file that needs nothing."""
    text = file.read_text("utf-8")
    page = Checker(text)
    assert not page.count.keys() & {"script", "link", "iframe", "object", "base"}
    used = [(name, value or "") for name, value in page.attributes if not NAMES.match(name)]
    assert not [name for name, _ in used if name.startswith("on")]
    sources = [value for name, value in used if re.match(r"(xlink:)?(src|srcset|href|data)$", name)]
    assert all(value.startswith(("data:image/", "#")) for value in sources)
    # All that is left of the text, styles included.
    bare = re.sub(r'(xmlns(:\w+)?|rdf:resource)="[^"]*"', "", text)
    assert not re.search(r"https?://|@import|url\((?!#)", bare)
    assert "prefers-color-scheme:dark" in text.replace(" ", "")
    assert 'name="viewport"' in text and 'name="color-scheme" content="light dark"' in text
    return page


@pytest.fixture
def checked():
    return check
