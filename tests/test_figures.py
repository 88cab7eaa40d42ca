"""Figures: any numbers can be drawn, each has its table, and nothing is told by its colour alone."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from unrollax import _draw
from unrollax._draw import draw
from unrollax._figures import Bars, Contour, HeatMap, Histogram, Plot, Scatter, coarser
from unrollax._ink import COLOURS, GREY, MARKERS, looks_of
from unrollax._report import render

NAN, INF = float("nan"), float("inf")
STEPS = np.arange(6)
LOWER = np.where(np.tri(6) > 0, 0.5 ** (STEPS[:, None] - STEPS), NAN)


def heat(cells, rows=None, columns=None):
    cells = np.asarray(cells, float)
    rows = range(cells.shape[0]) if rows is None else rows
    columns = range(cells.shape[1]) if columns is None else columns
    return HeatMap("heat", "s", "t", columns, rows, cells, "norm")


def bars(heights, errors=None):
    names = [str(i + 1) for i in range(len(heights))]
    return Bars("bars", "direction", "nats", names, heights, np.zeros(len(heights)) if errors is None else errors)


def scatter(**points):
    return Scatter("scatter", "cost", "error", points)


def contour(heights, **paths):
    heights = np.asarray(heights, float)
    x, y = np.linspace(-1, 1, heights.shape[1]), np.linspace(-1, 1, heights.shape[0])
    return Contour("contour", "a", "b", x, y, heights, "loss", paths)


def histogram(**panels):
    return Histogram("histogram", "value", panels)


def two(a, b, **options):
    return Plot("plot", "x", range(len(a)), {"a": a, "b": b}, **options)


ODD = {
    "heat of zeros": heat(np.zeros((3, 3))),
    "heat of NaN": heat(np.full((2, 3), NAN)),
    "heat of infinity": heat(np.full((3, 2), INF)),
    "heat of one": heat([[3.0]]),
    "heat of one and zero": heat([[3.0, 0.0]]),
    "heat of far apart": heat([[1e-300, 1e300]]),
    "heat of denormal": heat([[5e-324, 1e-310]]),
    "bars of nothing": bars([]),
    "bars of odd numbers": bars([NAN, INF, -INF, 1.0, 1e300], [1.0, 1.0, NAN, INF, NAN]),
    "histogram of nothing": histogram(),
    "histogram of no counts": histogram(a=([0, 1], [0]), b=([0.0, 0.5, 1.0], [0, 4])),
    "scatter of nothing": scatter(),
    "scatter of one": scatter(a=(1.0, 1.0)),
    "scatter of odd numbers": scatter(a=(0.0, 0.0), b=(1.0, INF), c=(5.0, -1.0), d=(NAN, 1.0)),
    "scatter of far apart": scatter(a=(1e-320, 1e300), b=(1.0, 1e-300), c=(1e150, 1e-150)),
    "scatter of equals": scatter(a=(1.0, 1.0), b=(1.0, 1.0), c=(1.0, 1.0)),
    "contour of ones": contour(np.ones((2, 2))),
    "contour of zeros and a path": contour(np.zeros((2, 2)), p=[[0.5, 0.5]]),
    "contour of NaN": contour(np.full((2, 2), NAN)),
    "contour of odd numbers": contour([[1.0, INF], [1e300, 0.0]], p=[[NAN, 0.5], [INF, 1.0]]),
    "contour of tiny differences": contour([[1.0, 1.0], [1.0, np.nextafter(1.0, 2)]]),
    "plot of nothing": two([], [], log="xy"),
    "plot of no positive": two([0.0, -1.0], [NAN, 0.0], log="xy", points=("a",), marks={"m": NAN, "k": 0}),
    "plot of one": two([1.0], [2.0], log="y", marks={"here": 0.0}),
    "plot of far apart": two([1e-300, 1e300], [5e-324, 1.0], log="y"),
}


@pytest.mark.parametrize("name", ODD)
def test_any_numbers_can_be_drawn_and_are_well_formed(name):
    figure = ODD[name]
    root = ElementTree.fromstring(draw(figure))
    assert root.get("role") == "img"
    assert root.get("aria-label") == figure.says()
    table = figure.numbers()
    assert all(len(row) == len(table.head) for row in table.rows)


FIGURES = {
    "heat": heat(LOWER),
    "bars": bars([0.1, -0.5], [0.01, 0.02]),
    "histogram": histogram(f=([0, 0.5, 1], [3, 1])),
    "scatter": scatter(bptt=(1.0, 0.1), es=(2.0, 0.5)),
    "contour": contour(np.add.outer(STEPS**2.0, STEPS), path=[[0.0, 0.0], [0.5, 0.5]]),
    "surface": contour(np.add.outer(STEPS**2.0, STEPS)),
    "plot": two([1.0, 2.0, 3.0], [3.0, NAN, 1.0], points=("b",), marks={"half-life": 1.5}),
}
EVIL = "<script>alert('&amp;')</script>\"' $x_$"


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_becomes_markup_and_any_text_can_be_drawn(name):
    figure = FIGURES[name]
    words = {field: EVIL for field in figure._fields if isinstance(getattr(figure, field), str) and field != "log"}
    named = {
        field: dict(zip([EVIL], getattr(figure, field).values(), strict=False))
        for field in ("lines", "marks", "panels", "points", "paths")
        if isinstance(getattr(figure, field, None), dict)
    }
    page = render("a page", {}, [figure._replace(**words, **named)], {}, "")
    assert "<script" not in page
    assert "$x_$" in page


@pytest.mark.parametrize("name", FIGURES)
def test_colours_are_those_of_the_page_so_that_they_suit_light_and_dark(name):
    svg = draw(FIGURES[name])
    svg = re.sub(r"data:image/png;base64,[^\"]*", "", svg)
    named = set(re.findall(r"var\((--\w+), (#\w+)\)", svg))
    assert ("--grey", GREY[0]) in named
    assert named <= {("--grey", GREY[0]), *((f"--c{i}", light) for i, (light, _) in enumerate(COLOURS))}
    page = render("a page", {}, [], {}, "")
    for variable, _ in named:
        assert len(re.findall(rf"{variable}: #\w+", page)) == 2, "once for light and once for dark"
    if name in ("bars", "histogram", "scatter", "plot"):
        assert not re.findall(r"(?:fill|stroke): #", svg)


def luminance(colour):
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize(("side", "page"), [(0, "#ffffff"), (1, "#121212")])
def test_lines_and_text_stand_out_from_the_page(side, page):
    """The contrast that WCAG 2 asks for: 3 for graphics, 4.5 for text."""

    def contrast(colour):
        low, high = sorted([luminance(colour), luminance(page)])
        return (high + 0.05) / (low + 0.05)

    assert contrast(GREY[side]) >= 4.5
    assert all(contrast(colour[side]) >= 3 for colour in COLOURS)


DEFICIENCIES = {  # Viénot, Brettel and Mollon 1999, on linear RGB
    "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("kind", DEFICIENCIES)
def test_the_first_five_colours_differ_for_the_colour_blind(kind, side):
    def seen(colour):
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.clip(np.array(DEFICIENCIES[kind]) @ rgb**2.2, 0, 1)
        return 255 * linear ** (1 / 2.2)

    looks = [seen(colour[side]) for colour in COLOURS[:5]]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(looks) for b in looks[:i]]
    assert min(distances) > 75


def test_lines_differ_by_more_than_colour():
    looks = looks_of(12)
    assert len({(str(look["linestyle"]), look["color"]) for look in looks}) == 12
    assert len({str(look["linestyle"]) for look in looks[:6]}) == 6
    assert len(set(MARKERS)) == 6


def raster(svg):
    """The pixels of a drawing's first image, as they are before the browser magnifies them."""
    return imread(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]*)\"", svg.replace("\n", ""))[1])))


def test_a_heat_map_leaves_blank_what_is_not_there_and_shows_zero_and_infinity():
    cells = np.array([[1.0, NAN], [0.0, INF]])
    pixels = np.round(255 * raster(draw(heat(cells)))).astype(int)
    assert pixels.shape[:2] == (2, 2)
    assert pixels[0, 1, 3] == 0
    assert (pixels[[0, 1, 1], [0, 0, 1], 3] == 255).all()
    orange = [int(COLOURS[1][0][i : i + 2], 16) for i in (1, 3, 5)]
    assert list(pixels[1, 1, :3]) == orange
    assert luminance_of(pixels[1, 0]) < luminance_of(pixels[0, 0])


def luminance_of(pixel):
    return float(np.asarray(pixel[:3]) @ [0.2126, 0.7152, 0.0722])


def test_the_colours_of_a_heat_map_follow_the_logarithm():
    pixels = raster(draw(heat([[1e-6, 1e-4, 1e-2, 1.0]])))
    bright = np.array([luminance_of(pixel) for pixel in pixels[0]])
    assert (np.diff(bright) > 0).all()
    steps = np.diff(bright)
    assert steps.max() < 2 * steps.min()


def test_a_large_table_is_drawn_by_blocks_that_show_their_largest():
    cells = np.zeros((1000, 300))
    cells[517, 211] = 2.0
    cells[:, :3] = NAN
    blocks, rows, columns = _draw._blocks(cells, range(1000), range(300))
    assert blocks.shape == (125, 100)
    assert np.argwhere(blocks == 2.0).tolist() == [[517 // 8, 211 // 3]]
    assert np.isnan(blocks[:, 0]).all()
    assert not np.isnan(blocks[:, 1:]).any()
    assert (rows[64], columns[70]) == (512, 210)
    assert len(draw(heat(np.random.default_rng(0).random((1000, 300))))) < 150_000


def test_the_table_of_a_heat_map_is_short_and_has_its_corners():
    table = heat(np.arange(1.0, 2501.0).reshape(50, 50), rows=range(100, 150)).numbers()
    assert len(table.rows) == 16
    assert len(table.head) == 17
    assert (table.head[1], table.head[-1]) == ("0", "49")
    assert table.rows[0][:2] == ("100", "1")
    assert (table.rows[-1][0], table.rows[-1][-1]) == ("149", "2.5e+03")
    assert heat([[1.0, NAN]]).numbers().rows == [("0", "1", "")]


def test_the_front_holds_who_is_beaten_by_none():
    rng = np.random.default_rng(0)
    points = {str(i): (float(x), float(y)) for i, (x, y) in enumerate(rng.integers(1, 8, (30, 2)))}
    points |= {"nan": (NAN, 0.0), "inf": (0.5, INF)}
    found = scatter(**points).front()
    finite = {name: point for name, point in points.items() if np.isfinite(point).all()}
    beaten = {
        name
        for name, (x, y) in finite.items()
        if any(a <= x and b <= y and (a, b) != (x, y) for a, b in finite.values())
    }
    assert {finite[name] for name in found} == {point for name, point in finite.items() if name not in beaten}
    assert [finite[name][0] for name in found] == sorted({finite[name][0] for name in found})
    rows = {row[0]: row[3] for row in scatter(**points).numbers().rows}
    assert {name for name, best in rows.items() if best} == set(found)


def test_bins_are_joined_without_losing_a_share():
    edges, shares = coarser(np.linspace(0, 1, 65), np.full(64, 1 / 64))
    assert len(shares) <= 20
    assert len(edges) == len(shares) + 1
    assert (edges[0], edges[-1]) == (0, 1)
    np.testing.assert_allclose(shares, np.diff(edges), rtol=1e-12)
    rows = histogram(f=(np.linspace(0, 1, 65), np.ones(64)), g=([0, 1], [7])).numbers().rows
    assert rows[-1] == ("g", "0 to 1", "100.00%")


def texts(svg):
    return [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    ]


def test_names_of_points_that_lie_on_each_other_are_apart():
    svg = draw(scatter(**{f"same{i}": (10.0, 0.5) for i in range(4)}, far=(1000.0, 0.1)))
    places = {}
    for node in ElementTree.fromstring(svg).iter():
        if node.tag.endswith("text") and "same" in "".join(node.itertext()):
            places["".join(node.itertext()).strip()] = float(re.findall(r"-?[\d.]+", node.get("transform"))[-1])
    heights = sorted(places.values())
    assert len(heights) == 4
    assert np.diff(heights).min() >= 9


def test_a_short_logarithmic_axis_has_plain_numbers():
    assert {"1", "2", "5", "10", "20", "50"} <= set(texts(draw(two([1.0, 3.0], [20.0, 60.0], log="y"))))


def test_a_line_with_nothing_to_draw_says_so():
    assert "b (nothing to draw)" in texts(draw(two([1.0, 2.0], [0.0, 0.0], log="y")))


@pytest.mark.parametrize("name", ["heat", "plot"])
def test_the_same_figure_gives_the_same_drawing(name):
    assert draw(FIGURES[name]) == draw(FIGURES[name])
