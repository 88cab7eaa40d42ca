"""What a target keeps with its run: texts as files, tables as CSV and as drawings, whatever ends the run."""

import csv
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import unrollax as ux
from unrollax._figures import Plot
from unrollax._report import render, score_plots
from unrollax.cli._app import app
from unrollax.cli._artifacts import OWN, keep

pytestmark = pytest.mark.usefixtures("here")
MINE = """
import optax
import unrollax as ux

net = ux.system(init=lambda key, params: 0.0, step=lambda params, state, x, key: (state, params**2))
plain = ux.Experiment(net, ux.BPTT(net, 4), optax.sgd(0.1), 1.0, None, steps=4)


def artifacts(params):
    return {"said.txt": f"{params:.3f}", "two lines": {"t": [0, 1], "a <b>": [0.5, float(params)], "c": [2, 3]}}


good = plain._replace(artifacts=artifacts)
interrupted = good._replace(evaluate=lambda params: exec("raise KeyboardInterrupt"))
broken = plain._replace(artifacts=lambda params: {"a.txt": open("nowhere.txt").read()})
wrong = plain._replace(artifacts=lambda params: {"run.toml": "mine"})
"""


def train(name, code=0):
    result = CliRunner().invoke(app, ["train", f"mine.py:{name}", "-q", "--out", "r"], catch_exceptions=False)
    assert result.exit_code == code, result.stderr
    return result.stderr


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("interrupted", 130)])
def test_texts_are_files_and_tables_are_csv_and_drawn_at_the_last_parameters(name, code):
    train(name, code)
    params = float(ux.load_params("r/params.safetensors", like=1.0))
    assert params < 1
    assert Path("r/said.txt").read_text() == f"{params:.3f}"
    with Path("r/two-lines.csv").open() as file:
        head, *rows = csv.reader(file)
    assert head == ["t", "a <b>", "c"]
    assert rows == [["0", "0.5", "2"], ["1", f"{params:.9g}", "3"]]
    report = Path("r/report.html").read_text()
    assert 'aria-label="two lines, a &lt;b&gt;, c against t"' in report
    assert "<th>t</th><th>a &lt;b&gt;</th><th>c</th>" in report


def test_an_artifact_that_cannot_be_made_is_the_users_error_and_the_rest_is_kept():
    stderr = train("broken", 3)
    assert "nowhere.txt" in stderr
    assert 'mine.py", line' in stderr
    assert {path.name for path in Path("r").iterdir()} == set(OWN)


def test_files_of_the_run_are_not_written_over():
    assert "must be a file name not among run.toml, " in train("wrong", 2)
    assert Path("r/run.toml").read_text().startswith("# Repeat it")


@pytest.mark.parametrize(
    ("artifacts", "says"),
    [
        ([("a", "b")], "artifacts must return a mapping by name, got list."),
        ({"a/b.txt": "x"}, "a text's name must be a file name .*, got 'a/b.txt'."),
        ({"..": "x"}, "got '..'."),
        ({"a": 3}, "'a' must be a text or a table of two or more columns of one length, got int."),
        ({"a": {"x": [1]}}, r"'a' must be .*, got columns of \[1\] rows."),
        ({"a": {"x": [1], "y": [1, 2]}}, r"got columns of \[1, 2\] rows."),
        ({"a": {}}, r"got columns of \[\] rows."),
    ],
)
def test_what_artifacts_must_return_is_said(artifacts, says, tmp_path):
    with pytest.raises(ux.InvalidArgument, match=says):
        keep(tmp_path, artifacts)


def test_a_plot_of_many_lines_has_a_legend_of_their_names_and_all_their_numbers():
    lines = {f"line {n} $": [float(n), float("nan"), 1e6 * n] for n in range(7)}
    text = render("run", {}, [Plot("many", "year", [1700, 1701, 1702], lines)], {}, "again")
    svg = text[text.index("<svg") : text.index("</svg>")]
    for name in lines:
        assert name in re.sub(r"<[^>]*>", "", svg)
    rows = re.findall(r"<tr><td>(\d+)</td>(.*?)</tr>", text)
    assert [year for year, _ in rows] == ["1700", "1701", "1702"]
    assert rows[2][1] == "".join(f"<td>{1e6 * n:.6g}</td>" for n in range(7))


def test_scores_that_are_compared_share_a_plot_if_they_were_taken_together():
    here, there = [(1, 0.5), (2, 0.25)], [(2, 0.125)]
    plots = score_plots({"a": here, "b, of c": here, "a, of c": here, "a, late": there})
    assert plots == [
        Plot("a", "update", (1, 2), {"a": (0.5, 0.25), "of c": (0.5, 0.25)}),
        Plot("b, of c", "update", (1, 2), {"b, of c": (0.5, 0.25)}),
        Plot("a", "update", (2,), {"late": (0.125,)}),
    ]
