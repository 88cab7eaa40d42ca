"""`unrollax unfold --search`: what is tried, what is kept, and what becomes of trials that go wrong."""

import csv
import json
import math
import sys
import tomllib

import numpy as np
import pytest
from typer.testing import CliRunner

from unrollax.cli import _search, _search_config, _search_report, _unfold
from unrollax.cli._app import app
from unrollax.cli._search_config import Choices, Interval
from unrollax.cli._search_report import Trial
from unrollax.cli._unfold_config import resolve

SMALL = "unfold ridge --set rows=20 --set columns=10 --depth 4 --period 2 --steps 20 --batch 10 -q"
MINE = """
import jax, jax.numpy as jnp, optax
import unrollax as ux

tried = []


def mine(rate=0.05, kind="good", *, seed=0):
    tried.append(rate)
    if kind == "impossible":
        raise ux.InvalidArgument("mine: kind must be another.")
    if kind == "broken":
        raise RuntimeError("broken for good")
    fast = {"good": rate, "bad": 1e300}[kind]
    net = ux.Unfold(lambda theta, x, problem: x - theta["eta"] * (x - problem), lambda problem: jnp.zeros(2),
                    lambda x, problem: ((x - problem) ** 2).sum(), lambda key: jax.random.normal(key, (2,)), 1, 4)
    params = {"eta": ux.per_step(jnp.array([0.1]), 1, transform="log")}
    return ux.Unfolding(net, params, ux.one_shot(1, 12), optax.sgd(fast))
"""

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(autouse=True)
def undiagnosed(monkeypatch):
    """Leave out what is found of the schedules of the best, which has its own tests and takes as long as a trial."""
    monkeypatch.setattr(_unfold, "diagnosed", lambda *_: None)


def run(arguments, code=0):
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == code, done.output
    return done


def config_of(folder):
    return tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search on a small target: its folder, and its JSON."""
    folder = tmp_path_factory.mktemp("search") / "found"
    return folder, json.loads(run(f"{SMALL} --search 4 --json --out {folder}").stdout)


def test_the_best_trial_is_the_run_and_run_toml_repeats_it_to_the_bit_without_a_search(searched):
    folder, result = searched
    best = min((trial for trial in result["search"] if trial["error"] is not None), key=lambda trial: trial["error"])
    assert config_of(folder)["settings"]["lr"] == best["settings"]["lr"]
    again = json.loads(run(f"unfold {folder / 'run.toml'} -q --json --out again").stdout)
    assert again["errors"] == result["errors"]
    assert "search" not in again


def test_all_trials_are_in_the_folder_and_in_the_report(searched):
    folder, result = searched
    rows = rows_of(folder / "search.csv")
    assert [float(row["lr"]) for row in rows] == [trial["settings"]["lr"] for trial in result["search"]]
    assert [row["trial"] for row in rows] == ["1", "2", "3", "4"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Error by lr" in page
    assert "4 trials" in page
    assert len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 20  # of the best one only


def test_the_first_trial_is_what_is_usual_and_the_others_lie_a_decade_around_it(searched):
    rates = [trial["settings"]["lr"] for trial in searched[1]["search"]]
    assert rates[0] == 0.03
    assert len(set(rates)) == 4
    assert all(0.003 <= rate <= 0.3 for rate in rates)


def test_trials_are_compared_on_problems_that_the_table_does_not_show(searched):
    _, result = searched
    shown = min(trial["error"] for trial in result["search"] if trial["error"] is not None)
    assert shown != result["errors"]["trained"][-1]
    np.testing.assert_allclose(shown, result["errors"]["trained"][-1], rtol=0.3)  # 500 problems each


def test_a_search_is_repeatable_and_a_shorter_one_tries_the_first_of_the_same(searched):
    again = json.loads(run(f"{SMALL} --search 2 --json --out again").stdout)["search"]
    assert [dict(trial, seconds=0) for trial in again] == [
        dict(trial, seconds=0) for trial in searched[1]["search"][:2]
    ]


def test_few_choices_are_all_tried_once_the_usual_one_first():
    done = run(f"{SMALL} --search 9 --range plan=incremental,one-shot --json")
    tried = [trial["settings"]["plan"] for trial in json.loads(done.stdout)["search"]]
    assert tried == ["one-shot", "incremental"]


def test_options_of_ones_own_file_are_searched_and_the_best_is_known(tmp_path):
    """From eta = 0.1 after 12 steps of SGD the logarithm of the error falls the more, the larger the rate."""
    done = run("unfold mine.py:mine -q --search 3 --range set.rate=0.01,0.05 --json --out own")
    result = json.loads(done.stdout)
    assert [trial["state"] for trial in result["search"]] == ["done"] * 2
    assert config_of(tmp_path / "own")["options"]["rate"] == 0.05
    errors = {trial["settings"]["set.rate"]: trial["error"] for trial in result["search"]}
    assert errors[0.05] < errors[0.01]


def test_a_trial_worse_than_most_is_stopped_early_after_half_of_its_updates():
    arguments = "--search 5 --range set.rate=0.05,0.04,0.03,0.02,1e-9 --json --out early"
    done = run(f"unfold mine.py:mine -q {arguments}")
    *others, last = json.loads(done.stdout)["search"]
    assert {trial["state"] for trial in others} == {"done"}
    assert (last["state"], last["updates"], last["error"]) == ("stopped early", 6, None)


def test_trials_that_diverge_or_are_impossible_are_bad_and_no_crash(tmp_path):
    arguments = "--search 3 --range set.kind=good,bad,impossible --json --out mixed"
    result = json.loads(run(f"unfold mine.py:mine -q {arguments}").stdout)
    assert [trial["state"] for trial in result["search"]] == ["done", "diverged", "impossible"]
    assert np.isfinite(result["errors"]["trained"]).all()
    assert [row["state"] for row in rows_of(tmp_path / "mixed" / "search.csv")] == ["done", "diverged", "impossible"]


def test_a_first_trial_that_diverges_gives_way_to_a_better_one(tmp_path):
    run("unfold mine.py:mine -q --search 2 --range set.kind=bad,good --out turned")
    assert config_of(tmp_path / "turned")["options"]["kind"] == "good"


def test_a_search_in_which_all_diverge_says_so():
    done = run("unfold mine.py:mine -q --set kind=bad --search 2 --range set.rate=0.1,0.2", code=4)
    assert "no trial came to its end" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("mine --range set.rte=0.1:1", 2, "takes no option 'rte'"),
        ("mine --set kind=impossible --range set.rate=0.1:1", 2, "kind must be another"),
        ("mine --set kind=broken --range set.rate=0.1:1", 3, "RuntimeError: broken for good"),
    ],
)
def test_what_is_wrong_with_all_trials_ends_the_search_and_leaves_no_folder(tmp_path, arguments, code, says):
    assert says in run(f"unfold mine.py:{arguments} -q --search 3", code=code).stderr
    assert not list(tmp_path.glob("runs/*"))


def test_an_error_of_a_later_trial_ends_the_search_and_keeps_the_best_so_far(tmp_path):
    done = run("unfold mine.py:mine -q --search 2 --range set.kind=good,broken --json --out most", code=3)
    assert "RuntimeError: broken for good\nThe best so far is in most." in done.stderr
    assert [trial["state"] for trial in json.loads(done.stdout)["search"]] == ["done", "failed"]
    assert config_of(tmp_path / "most")["options"]["kind"] == "good"


def interrupt(monkeypatch, number, step):
    """Press Ctrl-C in a trial, at an update."""
    watch = _search._Searching._watch

    def stop(self, attempt, asked, row):
        if (attempt.number, row["step"]) == (number, step):
            raise KeyboardInterrupt
        watch(self, attempt, asked, row)

    monkeypatch.setattr(_search._Searching, "_watch", stop)


def test_an_interrupted_search_keeps_the_best_so_far(tmp_path, monkeypatch):
    interrupt(monkeypatch, 3, 2)
    arguments = "--search 3 --range set.rate=0.01,0.05,0.04 --json --out half"
    done = run(f"unfold mine.py:mine -q {arguments}", code=130)
    assert "interrupted in trial 3 of 3.\nThe best so far is in half." in done.stderr
    result = json.loads(done.stdout)
    assert [trial["state"] for trial in result["search"]] == ["done", "done", "interrupted"]
    assert result["updates"] == 12
    assert config_of(tmp_path / "half")["options"]["rate"] == 0.05
    assert (tmp_path / "half" / "report.html").exists()


def test_a_search_that_is_interrupted_in_its_first_trial_keeps_that(tmp_path, monkeypatch):
    interrupt(monkeypatch, 1, 5)
    result = json.loads(run("unfold mine.py:mine -q --search 3 --range set.rate=0.01:0.05 --json", code=130).stdout)
    assert result["updates"] == 5
    assert (tmp_path / "runs" / "mine-mine-1" / "params.safetensors").exists()


def test_settings_that_were_tried_are_not_trained_again(monkeypatch):
    """Of 30 settings that differ in one choice of two only, as the sampler sees them."""
    monkeypatch.setattr(_search, "_suggest", lambda asked, name, found: asked.suggest_categorical(name, [1, 2]))
    done = run("unfold mine.py:mine -q --search 6 --set kind=good --range set.rate=1:30 --json")
    assert sorted(trial["settings"]["set.rate"] for trial in json.loads(done.stdout)["search"]) == [1, 2]


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    says = run("unfold ridge --search 3", code=2).stderr
    assert says == "unrollax: --search needs optuna. Install it with: pip install 'unrollax[search]'\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("ridge --search 3 --range foo=1:2", "there is no setting 'foo' to search. The choices are algorithm, batch"),
        ("ridge --search 3 --range perod=1:2", "Did you mean period?"),
        ("ridge --search 3 --range lr=5", "--range lr must be LOW:HIGH or CHOICE,CHOICE, got '5'."),
        ("ridge --search 3 --range lr", "--range must be NAME=LOW:HIGH or NAME=CHOICE,CHOICE, got 'lr'."),
        ("ridge --search 3 --range lr=0.1:0.01", "--range lr must be from a number to a larger one"),
        ("ridge --search 3 --range lr=a:b", "--range lr must be from a number to a larger one"),
        ("ridge --search 3 --range lr=-1:1", "lr: input should be greater than 0, got -1.0."),
        ("ridge --search 3 --range batch=1.5:3", "batch: input should be a valid integer"),
        ("ridge --search 3 --range lr=0.1:1 --range lr=1:2", "--range must name each setting once."),
        ("ridge --search 3 --range period=2:60", "--period must be at most --depth, got 60 for 50."),
        ("ridge --search 3 --range plan=one-shot,steep", "plan"),
        ("ridge --search 3 --range algorithm=ista,heavy-ball", "--algorithm of ridge must be gradient-descent"),
        ("ridge --search 3 --range set.rows=5:10", "set.rows can't be searched: the options of ridge say"),
        ("ridge --search 3 --range depth=5:10", "depth can't be searched: errors would fall with it"),
        ("ridge --search 0", "--search"),
        ("ridge --range lr=0.1:1", "got --range lr=0.1:1. Add --search 20"),
        ("mine.py:mine --search 3", "must be told what to try: add --range set.OPTION=LOW:HIGH"),
        ("mine.py:mine --search 3 --range lr=0.1:1", "Search its options: set.OPTION."),
    ],
)
def test_wrong_searches_are_answered(arguments, says):
    assert says in run(f"unfold {arguments} -q", code=2).stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lr=1:2", Interval(1.0, 2.0)),
        ("lr=0.01,1", Choices((0.01, 1.0))),
        ("batch=10:1000", Interval(10, 1000)),
        ("period=4,8,none", Choices((4, 8, None))),
    ],
)
def test_ranges_are_read(text, found):
    ranges = _search_config.search_of(3, [text], resolve("ridge", {}, None, {})).ranges
    assert ranges == {text.partition("=")[0]: found}
    ends = ranges[text.partition("=")[0]].ends
    assert [type(end) for end in ends] == [type(end) for end in found.ends]


def test_whole_numbers_stay_whole_and_decades_are_logarithmic():
    assert Interval(2, 30).whole
    assert not Interval(2, 30.0).whole
    assert Interval(2, 30).log
    assert not Interval(2, 19).log
    assert not Interval(0, 30).log
    assert _search_config.size({"a": Interval(2, 5), "b": Choices(("x", "y"))}) == 8
    assert math.isinf(_search_config.size({"a": Interval(2, 5.5)}))


def test_the_table_has_the_ten_best_best_first(tmp_path):
    trials = [Trial(n, {"lr": n / 10}, "done", 1.0 / n, 9, 1.0) for n in range(1, 12)]
    lines = _search_report.text([*trials, Trial(12, {"lr": 9.0}, "diverged", None, 1, 1.0)], tmp_path).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["trial", *map(str, range(11, 1, -1))]
    assert lines[-1].startswith("12 trials in 12 s, 1 diverged. All of them:")


def test_the_report_has_a_plot_for_numbers_and_a_table_for_choices():
    trials = [Trial(n, {"lr": 0.1**n, "plan": plan}, "done", 2.0 ** (4 - n), 9, 1.0) for n, plan in enumerate("aab", 1)]
    ranges = {"lr": Interval(0.001, 0.1), "plan": Choices(("a", "b"))}
    found = _search_report.section(trials, ranges, "error")
    (plot,) = found.figures
    assert (plot.over, plot.log, plot.marks) == ("lr", "xy", {"best": 0.1**3})
    assert list(plot.x) == sorted(0.1**n for n in (1, 2, 3))
    assert found.tables["By plan"].rows == [("b", "1", "2", "2"), ("a", "2", "4", "6")]
