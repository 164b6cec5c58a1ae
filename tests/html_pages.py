"""Reading a page as a browser would, strictly: elements must close in order."""

from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input"}
REQUESTS = {"src", "href", "xlink:href", "srcset", "action", "data", "onclick", "onload"}


class Page(HTMLParser):
    """Collects what a page holds; elements must close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def needs_nothing(page):
    """Asserts that the page asks for no file and no script, and that names in it are unique."""
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert not REQUESTS & {name for _, name, _ in page.attributes}
    assert "@import" not in page.text and "url(" not in page.text
    names = [value for _, name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names)) and len(names) == 2 * page.tags.count("svg")
