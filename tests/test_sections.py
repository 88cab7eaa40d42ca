"""Sections of a report: what they say is what the numbers say, and every figure has its table."""

import math
import re
from html.parser import HTMLParser
from typing import Any, NamedTuple

import numpy as np
import pytest

import unrollax as ux
from unrollax._sections import READINGS, sections_of, write_report
from unrollax.diagnosis import _schedule_report
from unrollax.diagnosis._decay import Decay
from unrollax.diagnosis._depth import Depth
from unrollax.diagnosis._flow import Flow, StateFlow
from unrollax.readings import _words

NAN, INF = float("nan"), float("inf")
T = 12
AT = np.arange(3, T)
LAGS = AT[:, None] - np.arange(T)
RATE = -0.1


def decay(rate=RATE, error=0.001, underflow=None, overflow=None):
    norms = 2.0 * np.exp(rate * np.arange(T))
    half_life = math.log(2) / abs(rate) if rate else INF
    return Decay(rate, error, half_life, np.arange(T), norms, (2, 8), math.log(2.0), underflow, overflow)


def flow(**fields):
    table = np.where(LAGS >= 0, 2.0 * np.exp(RATE * np.abs(LAGS)), 0.0)
    leaves = {"['w']": 0.8 * table, "['b']": 0.6 * table}
    made = Flow(AT, np.ones(len(AT)), table, leaves, table, np.ones(len(AT)), None,
                np.array([1, 4, 6]), np.array([0.9, 0.08, 0.005]), decay(), decay())  # fmt: skip
    return made._replace(**fields)


def only(result):
    (section,) = sections_of(result)
    return section


def figure(section, title):
    (found,) = [each for each in section.figures if each.title == title]
    return found


def test_the_flow_says_what_a_step_back_does_and_which_windows_keep_it():
    text = only(flow()).text
    assert "multiplies it by 0.905 on average (-0.1 +- 0.001 nats): it halves every 6.93 steps" in text
    assert (
        "at most 10% of the gradient with windows of 4 steps, and at most 1% of the gradient with windows of 6" in text
    )
    assert "No window that was tried keeps 90 %" in only(flow(lost=np.array([0.9, 0.5, 0.2]))).text
    lost = only(flow(lost=np.full(3, NAN)))
    assert "What a truncation loses can't be told" in lost.text
    assert "What a truncation loses" not in [each.title for each in lost.figures]
    assert "window" not in only(flow(windows=np.array([]), lost=np.array([]))).text.split("In the picture")[0]


def test_the_picture_leaves_out_later_steps_and_shows_lost_ones_as_zero_or_infinite():
    table = flow().table.copy()
    table[5, 2], table[6, 0], table[7, 1] = 0.0, NAN, INF
    cells = figure(only(flow(table=table)), "Gradient by loss and step").cells
    assert (np.isnan(cells) == (LAGS < 0)).all()
    assert (cells[5, 2], cells[6, 0], cells[7, 1]) == (0.0, INF, INF)
    kept = (LAGS >= 0) & np.isfinite(table)
    assert (cells[kept] == table[kept]).all()


def test_a_decay_is_drawn_with_its_line_over_the_lags_of_the_fit_only():
    plot = figure(only(decay(underflow=9)), "Decay with the distance")
    line = plot.lines[_words.FIT]
    np.testing.assert_allclose(line[2:9], 2.0 * np.exp(RATE * np.arange(2, 9)), rtol=1e-12)
    assert np.isnan(line[[0, 1, 9, 10, 11]]).all()
    assert plot.marks == {"below the smallest normal number": 9}
    assert "From 9 steps back on it is below the smallest normal number" in only(decay(underflow=9)).text
    assert "From 5 steps back on it is beyond the largest number of its dtype" in only(decay(overflow=5)).text


@pytest.mark.parametrize(
    ("rate", "error", "says"),
    [
        (0.2, 0.01, "it doubles every 3.47 steps"),
        (0.01, 0.01, "no decay and no growth can be told from it"),
        (0.0, 0.0, "no decay and no growth can be told from it"),
        (1000.0, 1.0, "it doubles every 0.000693 steps"),
        (NAN, NAN, "could not be followed"),
        (-0.2, NAN, "no decay and no growth can be told from it"),
    ],
)
def test_a_rate_is_put_in_words(rate, error, says):
    assert says in _words.by_step(rate, error)


def test_the_lines_of_the_leaves_are_root_mean_squares_by_lag():
    rng = np.random.default_rng(0)
    table = np.where(LAGS >= 0, rng.random(LAGS.shape), 0.0)
    table[4, 1] = INF
    plot = figure(only(flow(leaves={"w": table, "big": 1e200 * table, "zero": 0 * LAGS})), "Decay by parameter")
    for lag in range(T):
        found = table[(lag == LAGS) & np.isfinite(table)]
        assert plot.lines["w"][lag] == pytest.approx(math.sqrt((found**2).mean()), rel=1e-12)
        assert plot.lines["big"][lag] == pytest.approx(1e200 * plot.lines["w"][lag], rel=1e-12)
    assert next(iter(plot.lines)) == "big"
    assert not plot.lines["zero"].any()


def test_the_shares_of_the_leaves_add_up():
    rows = only(flow()).tables["By parameter"].rows
    assert [(name, share) for name, _, share in rows] == [("['w']", "64.0%"), ("['b']", "36.0%")]


def test_the_flow_through_the_state_has_the_same_picture():
    section = only(StateFlow(AT, np.ones(len(AT)), flow().state, decay()))
    np.testing.assert_array_equal(
        figure(section, "Gradient by loss and state").cells, figure(only(flow()), "Gradient by loss and step").cells
    )


class Lyapunov(NamedTuple):
    exponents: Any = np.array([0.5, -1.0, -INF])
    errors: Any = np.array([0.01, 0.02, NAN])
    growth: Any = np.outer(np.arange(1, 5), [0.5, -1.0, -INF])
    at: Any = np.arange(1, 5)
    spectral_radius: float = 1.5
    verdict: str = "exploding"
    confidence: float = 0.995


def test_dynamics_have_a_verdict_and_bars_with_errors():
    section = only(Lyapunov())
    assert section.text.startswith(
        "Verdict: exploding, with 99.5% confidence. Small differences between two states grow"
    )
    assert "a factor of 1.65 a step (0.5 +- 0.01 nats)" in section.text
    assert figure(section, "Lyapunov spectrum").numbers().rows[2] == ("3", "-inf", "nan")
    forgets = Lyapunov(np.array([-INF]), np.array([NAN]), np.full((4, 1), -INF), spectral_radius=NAN)
    assert "nan" not in only(forgets).text


class Gate(NamedTuple):
    name: str
    mean: float
    std: float
    saturated: float
    edges: Any
    counts: Any
    units: Any


class Gates(NamedTuple):
    cell: str
    gates: Any
    keep: str
    predicted: float
    measured: float
    error: float
    slowest_predicted: float = -0.02
    slowest: float = -0.01


def gates(measured=-0.3, error=0.01):
    one = Gate("f", 0.9, 0.05, 0.25, np.linspace(0, 1, 5), np.array([0, 1, 2, 7]), np.array([0.8, 1.0]))
    return Gates("LSTMCell", {"f": one}, "f", -0.1, measured, error)


def test_gates_say_what_the_recurrent_weights_add():
    section = only(gates())
    assert "its gate f: on average 0.9, saturated 25% of the time" in section.text
    assert "they speed up the decay by 0.2 nats a step" in section.text
    assert "they slow the decay by 0.05 nats a step" in only(gates(-0.05)).text
    assert "no difference that can be told from noise" in only(gates(-0.11)).text
    assert "recurrent weights" not in only(gates(NAN, NAN)).text
    assert section.tables[""].rows == [("f", "0.9", "0.05", "25.0%", "0.8 to 1")]
    assert figure(section, "Gates").numbers().rows[-1] == ("f", "0.75 to 1", "70.00%")


def depth():
    layers = np.array([1.0, 2.0, 3.0])
    nan = np.full(3, NAN)
    numbers = dict.fromkeys(Depth._fields, NAN) | {
        "names": ["first", "second", "last"], "activations": layers, "norms": layers, "gradients": 0.5 ** (3 - layers),
        "params": layers, "factors": np.array([NAN, 0.5, 0.5]), "predictions": np.full(3, 0.6), "predicted": 0.6,
        "saturated": nan, "dead": np.array([0.0, 0.3, 0.1]), "verdict": "healthy", "underflow": None, "overflow": None,
    }  # fmt: skip
    return Depth(**numbers)


def test_depth_names_the_layer_with_dead_units_and_the_theory():
    section = only(depth())
    assert "multiplies the gradient's norm by 0.5 on average, and all 3 of them by 0.125" in section.text
    assert "theory predicts 0.6" in section.text
    assert "In second 30% of the units pass no gradient" in section.text
    assert list(figure(section, "Saturated activations, dead units").lines) == ["dead"]
    assert [row[3] for row in section.tables[""].rows] == ["nan", "0.5", "0.5"]


class Row(NamedTuple):
    name: str
    bias: float
    std: float
    seconds: float
    cost_to: float
    resolved: bool = True
    bias_error: float = 0.01
    cosine: float = 1.0
    snr: float = INF
    steps: float = 300.0
    bytes: int = 2000
    updates: int = 1
    note: str = ""
    limit: float = 0.05


class Reference(NamedTuple):
    norm: float = 1.0

    def __str__(self):
        return "exact gradient"


class Comparison(NamedTuple):
    rows: Any = (
        Row("bptt", 0.0, 0.0, 1e-3, 1e-3, resolved=False),
        Row("tbptt:5", 0.3, 0.0, 5e-4, INF, note="cut off"),
        Row("es", 0.04, 0.4, 1e-2, 0.5, resolved=False),
    )
    reference: Any = Reference()
    recommended: str = "bptt"
    reason: str = "bptt is exact."
    unit: str = "seconds"
    tolerance: float = 0.1

    def cost(self, row):
        return row.seconds

    def curves(self):
        return {"compute": [1e-3, 1e-2], "error": {"bptt": [0.0, 0.0], "tbptt:5": [0.3, 0.3], "es": [INF, 0.4]}}

    def frontier(self):
        return ["bptt"]


def test_a_comparison_says_which_pays_and_which_never_will():
    section = only(Comparison())
    assert section.text.startswith("Recommended: bptt. bptt is exact.")
    assert "tbptt:5: cut off." in section.text
    rows = {row[0]: row for row in section.tables[""].rows}
    assert rows["bptt"][1] == "below 0.05"
    assert (rows["tbptt:5"][1], rows["tbptt:5"][-1]) == ("0.3 +- 0.01", "never")
    points = figure(section, "Error against cost of one horizon").points
    assert points == {"bptt": (1e-3, 0.05), "tbptt:5": (5e-4, 0.3), "es": (1e-2, 0.4)}
    lines = figure(section, "Error of the mean of many horizons").lines
    assert list(lines) == ["bptt", "es", "tbptt:5"], "those of the frontier, then the cheapest"
    assert math.isnan(lines["es"][0])


class LRRange(NamedTuple):
    rates: Any = np.geomspace(1e-3, 1, 4)
    losses: Any = np.array([1.0, 0.9, 0.5, 7.0])
    smoothed: Any = np.array([1.0, 0.9, 0.6, 5.0])
    low: float = 0.01
    best: float = 0.05
    high: float = 0.1
    diverged: Any = 1.0
    note: str = "all in vain."


def test_a_range_of_learning_rates_is_marked_or_said_to_be_missing():
    section = only(LRRange())
    assert "from 0.01 to 0.1 make the loss fall, most steeply at 0.05" in section.text
    assert "From 1 on the loss grows for good." in section.text
    assert section.figures[0].marks == {"low": 0.01, "steepest": 0.05, "high": 0.1, "diverges": 1.0}
    assert only(LRRange(low=NAN, best=NAN, high=NAN, diverged=None)).text == "No range to suggest: all in vain."


class Surface(NamedTuple):
    a: Any
    b: Any
    losses: Any
    center: float = 1.0


class Trajectories(NamedTuple):
    paths: Any
    losses: Any
    x: Any
    y: Any
    grid: Any


def test_the_first_direction_of_a_surface_is_drawn_across():
    a, b = np.linspace(-1, 1, 3), np.linspace(-2, 2, 5)
    contour = only(Surface(a, b, np.add.outer(10 * a, b))).figures[0]
    rows = contour.numbers().rows
    assert [float(row[0]) for row in rows] == [2, 1, 0, -1, -2]
    assert [float(cell) for cell in rows[0][1:]] == [-8, 2, 12]


def test_optimisers_are_ranked_by_their_last_loss():
    found = Trajectories(
        {"a": np.zeros((3, 2)), "b": np.ones((3, 2))}, {"a": [3.0, 2.0, NAN], "b": [3.0, 2.0, 1.0]},
        np.arange(2.0), np.arange(2.0), np.arange(4.0).reshape(2, 2),
    )  # fmt: skip
    assert only(found).text == "After 2 updates the loss is 1 with b, nan with a."


class Advice(NamedTuple):
    rank: int
    title: str = "Raise the forget bias"
    why: str = "it vanishes"
    effect: str = "half-life"
    predicted: float = 50.0
    measured: Any = None
    held: Any = None
    option: str = "ux.LSTMCell(2, 8, forget_bias=2.0)"
    command: str = "--window 5"


class Diagnosis(NamedTuple):
    flow: Any
    dynamics: Any
    gates: Any
    advice: Any
    comparison: Any = None


def test_advice_is_ranked_and_can_be_copied():
    section = only([Advice(2, title="Clip"), Advice(1, measured=40.0, held=False)])
    assert [row[:2] for row in section.tables[""].rows] == [("1", "Raise the forget bias"), ("2", "Clip")]
    assert [row[-2:] for row in section.tables[""].rows] == [("40", "no"), ("", "")]
    code = section.code["1. Raise the forget bias"]
    assert code == "ux.LSTMCell(2, 8, forget_bias=2.0)\nunrollax train TARGET --window 5"
    assert "measured" not in only([Advice(1)]).tables[""].head
    assert "Nothing to mend" in only([]).text


def test_a_diagnosis_begins_with_what_to_do():
    found = Diagnosis(flow(), Lyapunov(), gates(), [Advice(1)])
    assert [each.heading for each in sections_of(found)] == ["Advice", "Gradient flow", "Dynamics", "Gates"]
    assert len(sections_of(found._replace(gates=None))) == 3
    assert len(sections_of(found._replace(gates=(), dynamics=None))) == 2
    both = sections_of(found._replace(gates=(gates(), gates()), comparison=Comparison()))
    assert [each.heading for each in both[3:]] == ["Gates, layer 1", "Gates, layer 2", "Estimators"]


class Entries(NamedTuple):
    kind: str = "per_step"
    values: Any = np.array([1.0, 2.0, 40.0, 40.0])
    grad: Any = np.array([0.0, 1.0, 2.0, 2.0])
    by_iteration: Any = np.array([0.0, 1.0, 0.05, 0.05])
    unused: Any = (0,)
    flat: Any = ()
    tied: Any = ((2, 3),)


class Theory(NamedTuple):
    error: Any = np.array([4.0, 2.0, 1.0, 0.5, 0.25])
    amplification: Any = np.array([1.0, 0.9, 0.8, 0.7, 0.6])
    floor: Any = np.array([0.0, 1e-3, 1e-2, 0.1, 3.0])
    stable: Any = np.array([0.0, 1e-3, 1e-3, 1e-3, 2e-3])


class Finding(NamedTuple):
    where: str
    what: str
    remedy: str
    kind: str = "unused"


class ScheduleReport(NamedTuple):
    schedules: Any
    errors: Any = np.array([8.0, 4.0, 2.0, 1.0, 0.5])
    amplification: Any = np.array([1.0, 3.0, 2.0, 0.5, 0.25])
    accumulation: Any = np.array([1.0, 3.5, 4.5, 1.5, 1.25])
    float32: Any = np.array([8.0, 4.0, 2.0, 1.0, 0.75])
    float64: Any = np.array([8.0, 4.0, 2.0, 1.0, 0.5])
    theory: Any = None
    findings: Any = (Finding("['step']", "entry 0 has no influence", "Drop it."), Finding("", "it grows", "Reorder."))


def scheduled(**fields):
    """The findings' section and that of the measurements."""
    return sections_of(ScheduleReport(**{"schedules": {"['step']": Entries()}} | fields))


def test_schedules_begin_with_what_to_do():
    first, second = scheduled()
    assert first.tables[""].rows == [
        ("step", "Entry 0 has no influence.", "Drop it."),
        ("all iterations", "It grows.", "Reorder."),
    ]
    assert "the mean error falls from 8 to 0.5." in second.text.lower()
    assert "over 4 iterations" in second.text
    assert "ends at 0.75 in float32 and at 0.5 in float64" in second.text
    assert "multiplied by 0.25 in the end, and by 3 where it is largest" in second.text
    assert "come to at most 4.5 times" in second.text
    nothing = scheduled(findings=(), amplification=np.array([1, 0.5, 0.4, 0.3, 0.2]))
    assert "Nothing to mend" in nothing[0].text
    assert "multiplied by 0.2 in the end, and never grows" in nothing[1].text


def test_entries_that_no_training_moves_or_parts_are_named_and_pointed_out():
    _, section = scheduled()
    table = section.tables["By schedule"]
    assert table.head == ("schedule", "kind", "entries", "numbers", "no influence", "tied", "gradient by iteration")
    assert table.rows == [("step", "per_step", "4", "1 to 40", "0", "2 to 3", "0 to 1")]
    plot = figure(section, "Numbers of step")
    assert (plot.points, plot.log, plot.over) == (("no influence", "tied"), "y", "iteration")
    np.testing.assert_array_equal(plot.lines["number"], [1, 2, 40, 40])
    np.testing.assert_array_equal(plot.lines["no influence"], [1, NAN, NAN, NAN])
    np.testing.assert_array_equal(plot.lines["tied"], [NAN, NAN, 40, 40])
    np.testing.assert_array_equal(figure(section, "Gradient by iteration").lines["step"], Entries().by_iteration)


def test_numbers_of_many_entries_are_drawn_by_their_root_mean_square_and_one_for_all_is_no_curve():
    schedules = {
        "['net']['w']": Entries(values=np.array([[3.0, 4.0], [0.0, 0.0]]), flat=(1,), unused=(), tied=()),
        "['lam']": Entries("shared", np.array([3.0]), unused=(), tied=()),
    }
    _, section = scheduled(schedules=schedules)
    plot = figure(section, "Numbers of net.w")
    np.testing.assert_allclose(plot.lines["root mean square of 2 numbers"], [np.sqrt(12.5), 0])
    assert plot.log == ""
    assert "Numbers of lam" not in [each.title for each in section.figures]
    assert [row[:5] for row in section.tables["By schedule"].rows] == [
        ("net.w", "per_step", "2", "0 to 4", "1"),
        ("lam", "shared", "1", "3", ""),
    ]


def test_theory_is_drawn_from_where_the_batch_begins():
    _, section = scheduled(theory=Theory())
    assert "from 4 to 0.25. Rounding in float32 leaves about 3, and 0.002 if" in section.text
    assert "multiplied by 2, so that" in section.text
    lines = figure(section, "Error by precision").lines
    assert list(lines)[:2] == ["in float32", "in float64"]
    np.testing.assert_array_equal(lines["theory: no rounding"], 2 * Theory().error)
    np.testing.assert_array_equal(lines["theory: float32 rounding"], 2 * Theory().floor)
    np.testing.assert_array_equal(lines["theory: the same, stable order"], 2 * Theory().stable)
    growth = figure(section, "Growth of small changes").lines
    np.testing.assert_array_equal(growth["theory: a change of the start, at most"], Theory().amplification)
    assert "theory" not in scheduled()[1].text


def test_what_was_not_measured_of_a_schedule_is_said_and_not_drawn():
    _, section = scheduled(float32=None, float64=None, amplification=None, accumulation=None)
    assert "What float32 does to it was not measured" in section.text
    assert "no forward derivative" in section.text
    assert "Growth of small changes" not in [each.title for each in section.figures]
    assert list(figure(section, "Error by precision").lines) == ["in its own dtype"]
    _, one = scheduled(float32=None)
    assert "In float64 the error ends at 0.5; in float32 the iteration can't be run." in one.text
    assert list(figure(one, "Error by precision").lines) == ["in its own dtype", "in float64"]


def test_schedules_of_a_run_that_broke_are_a_page_all_the_same(tmp_path):
    broken = np.array([8.0, 4.0, INF, NAN, NAN])
    each = Entries(values=np.array([1.0, NAN, INF, 2.0]), by_iteration=np.array([NAN, 3.0, INF, 0.0]))
    fields = {"schedules": {"(root)": each}, "errors": broken, "float32": broken, "theory": Theory(error=broken)}
    _, section = scheduled(**fields, amplification=broken, accumulation=broken)
    assert "NaN or infinite after 2 iterations" in section.text
    row = section.tables["By schedule"].rows[0]
    assert row[:4] == ("the schedule", "per_step", "4", "1 to 2, 2 NaN or infinite")
    assert row[-1] == "0 to 3, 2 NaN or infinite"
    assert "from the start" in scheduled(errors=broken[::-1])[1].text
    page = write_report(tmp_path / "broken.html", ScheduleReport(**fields)).read_text(encoding="utf-8")
    assert page.count("<figure>") == 4


def test_the_schedules_here_have_the_fields_of_real_ones():
    for fake in (ScheduleReport, Entries, Theory, Finding):
        real = getattr(_schedule_report, "ScheduleEntries" if fake is Entries else fake.__name__)
        assert set(fake._fields) == set(real._fields)


def test_every_public_result_has_a_section():
    import unrollax.diagnosis as family

    results = {name for name in family.__all__ if hasattr(getattr(family, name), "_fields") and name not in PARTS}
    assert results <= {*READINGS, "Advice", "Diagnosis"}


PARTS = {"Watched", "Gate", "Row", "Reference", "ScheduleEntries"}  # of results, or what is seen during training


def test_what_has_no_section_is_refused():
    with pytest.raises(ux.InvalidArgument, match=r"must be what the functions of diagnosis return, got float"):
        sections_of(1.0)


class Count(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)


def test_the_page_is_whole_and_every_figure_has_its_table(tmp_path):
    path = write_report(tmp_path / "r.html", flow(), depth(), title="<mine>", summary={"a < b": 1})
    text = path.read_text(encoding="utf-8")
    tags = Count(text).tags
    assert text.startswith("<!doctype html>")
    assert "<h1>&lt;mine&gt;</h1>" in text
    assert "a &lt; b" in text
    assert tags.count("svg") == tags.count("figure") == tags.count("details") == 8
    assert len(re.findall(r"</figure><details><summary>Numbers</summary><div class=\"wide\"><table>", text)) == 8
    assert not {"script", "link", "img", "iframe"} & set(tags)
    assert set(re.findall(r"href=\"(.)", text)) <= {"#", "d"}, "only to itself: # and data:"
