"""The report: one page that needs nothing else, and that no text or number of a run can break."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from unrollax._report import Curve, render

NAN, INF = float("nan"), float("inf")
VOID = {"meta"}


class Page(HTMLParser):
    """Every tag with its attributes, and the text of each table as rows; tags must close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.tables, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def curve(y, x=None, title="Training loss", label="mean step loss"):
    return Curve(title, label, range(1, len(y) + 1) if x is None else x, y)


def page(*curves, title="a run", summary=None, tables=None, repeat="unrollax train a"):
    return render(title, summary or {}, curves, tables or {}, repeat)


def axis_is_logarithmic(y):
    """Powers of ten are drawn with a raised exponent, which is in a smaller size than its base."""
    texts = [tag for tag, _ in Page(page(curve(y))).tags if tag == "tspan"]
    return bool(texts)


def test_the_page_needs_nothing_but_itself():
    text = page(curve([3.0, 2.0, 1.0]), curve(np.geomspace(1e-3, 1e3, 50), title="Gradient"), tables={"A": {"b": 1}})
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form")
        for name, content in attributes.items():
            assert name not in ("src", "srcset", "data", "action")
            assert not name.startswith("on")
            if name.endswith("href"):
                assert content.startswith("#")
            if "://" in (content or ""):
                assert name.startswith("xmlns")
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "metadata" not in text


def test_the_drawing_is_well_formed_and_says_what_it_shows():
    text = page(curve([3.0, 2.0], title='loss <of "two">', label="a & b"))
    svg = text[text.index("<svg") : text.index("</svg>") + len("</svg>")]
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'loss <of "two">, a & b against update'


def test_the_same_run_gives_the_same_page():
    assert page(curve([3.0, 2.0])) == page(curve([3.0, 2.0]))


EVIL = "<script>alert('&amp;')</script>\"'"


def test_no_text_of_a_run_becomes_markup():
    text = page(
        curve([1.0, 2.0], title=EVIL, label=EVIL),
        title=EVIL,
        summary={EVIL: EVIL},
        tables={EVIL: {EVIL: EVIL}},
        repeat=EVIL,
    )
    parsed = Page(text)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert "<script" not in text
    assert parsed.tables[0] == [[EVIL, EVIL]]
    assert parsed.tables[-1] == [[EVIL, EVIL]]
    assert "".join(parsed.texts).count(EVIL) == 11  # twice the title, twice the curve's label


@pytest.mark.parametrize("label", ["cost in $", r"$\nothing$", "a_b^{c", "准确率", "é ∂ 🙂", "%s {} \\"])
def test_any_name_can_be_drawn(label):
    assert label in "".join(Page(page(curve([1.0, 2.0], title=label, label=label))).texts)


@pytest.mark.parametrize(
    "y",
    [
        [],
        [1.0],
        [NAN],
        [NAN, NAN],
        [INF, -INF],
        [1.0, NAN, 3.0, INF],
        [0.0, 0.0],
        [1e-300, 1e300],
        [-1e308, 1e308],
        [5e-324, 1.0],
    ],
)
def test_any_numbers_can_be_drawn(y):
    parsed = Page(page(curve(y)))
    assert [row[1] for row in parsed.tables[1][1:]] == [f"{number:.6g}" for number in y]
    assert "Training loss, mean step loss against update" in {row.get("aria-label") for _, row in parsed.tags}


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 100, 1001])
def test_the_table_of_numbers_is_short_and_holds_the_first_and_the_last(count):
    y = np.linspace(0, 1, count)
    rows = Page(page(curve(y, x=range(1, count + 1)))).tables[1]
    assert rows[0] == ["update", "mean step loss"]
    assert rows[1] == ["1", f"{y[0]:.6g}"]
    assert rows[-1] == [str(count), f"{y[-1]:.6g}"]
    assert len(rows) - 1 == min(count, 20)


def test_a_large_number_of_updates_is_shown_to_the_last_digit():
    assert Page(page(curve([1.0, 2.0], x=[1, 12_345_678]))).tables[1][-1][0] == "12345678"


@pytest.mark.parametrize(
    ("y", "logarithmic"),
    [
        ([1e-4, 1e-2, 1.0], True),
        ([1e-4, NAN, 1.0], True),
        ([1e-4, INF, 1.0], True),
        ([1.0, 2.0, 3.0], False),
        ([0.0, 1e-2, 1.0], False),
        ([-1e-4, 1e-2, 1.0], False),
        ([-1.0, -100.0], False),
        ([], False),
        ([NAN], False),
    ],
)
def test_the_axis_is_logarithmic_only_where_all_is_positive_and_far_apart(y, logarithmic):
    assert axis_is_logarithmic(y) == logarithmic


def test_the_summary_comes_first_and_the_command_that_repeats_it_last():
    text = page(curve([1.0]), summary={"state": "done", "loss": 0.123456789}, repeat="unrollax train runs/a/run.toml")
    assert Page(text).tables[0] == [["state", "done"], ["loss", "0.12346"]]
    assert text.index("state") < text.index("<svg") < text.index("unrollax train runs/a/run.toml")
