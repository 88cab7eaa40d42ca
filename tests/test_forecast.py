"""The forecast recipe: its file reading, its baselines against literal least squares, and that nothing sees the future."""

import csv
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import unrollax as ux
from unrollax._experiment import Windows
from unrollax.cli._app import app
from unrollax.recipes import _forecast
from unrollax.recipes._baselines import autoregression, best_order, choose_scale, make_scale, rmse
from unrollax.recipes._options import Forecast
from unrollax.recipes._series import read

SMALL = {"hidden": 3, "members": 2, "length": 8, "batch": 3}


def wave(count=60):
    rng = np.random.default_rng(0)
    return 5 + 3 * np.sin(0.6 * np.arange(count)) + 0.3 * rng.normal(size=count)


def write(folder, values, name="my.csv"):
    lines = ["day,load"] + [f"2020-{1 + day // 28:02}-{1 + day % 28:02},{value!r}" for day, value in enumerate(values)]
    (folder / name).write_text("\n".join(map(str, lines)) + "\n")
    return str(folder / name)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return write(tmp_path_factory.mktemp("forecast"), wave().tolist())


def options(path, **more):
    return Forecast(path=path, target="load", **{**SMALL, **more})


@functools.cache
def build(path, **more):
    return _forecast.build(options(path, **more), seed=0, steps=150)


# The file


def test_the_shipped_series_is_that_of_the_yearly_sunspots():
    series = read("", "sunspots")
    assert (series.over, len(series.values)) == ("year", 309)
    np.testing.assert_array_equal(series.x, np.arange(1700, 2009))
    known = {1700: 5, 1705: 58, 1778: 154.4, 1810: 0, 1913: 1.4, 1957: 190.2, 2008: 2.9}
    assert {year: series.values[year - 1700] for year in known} == known


FORMS = {
    "comma": "t,a,b\n{}",
    "semicolon": "t;a;b\n{}",
    "tab": "t\ta\tb\n{}",
    "bar": "t|a|b\n{}",
    "quotes": '"t","a","b"\n{}',
    "blanks": "t, a , b\n\n{}\n\n",
    "mark": "\ufefft,a,b\r\n{}",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_column_is_read_whatever_the_delimiter(form, tmp_path):
    text = FORMS[form]
    mark = next(each for each in ",;\t|" if each in text)
    rows = "\n".join(mark.join([f"2020-01-{day + 1:02}", str(day / 2), f"{-day}e3"]) for day in range(30))
    (tmp_path / "my.csv").write_text(text.format(rows), encoding="utf-8")
    series = read(str(tmp_path / "my.csv"), "b")
    assert (series.name, series.over) == ("b", "row")
    np.testing.assert_array_equal(series.values, -1000.0 * np.arange(30))
    np.testing.assert_array_equal(series.x, np.arange(1, 31))


def test_a_file_of_one_column_needs_no_target_and_a_first_column_that_grows_is_the_axis(tmp_path):
    one = tmp_path / "one.csv"
    one.write_text("load\n" + "\n".join(map(str, range(30))))
    np.testing.assert_array_equal(read(str(one), "").values, np.arange(30))
    two = tmp_path / "two.csv"
    two.write_text("hour,load\n" + "\n".join(f"{3 * row},{row}" for row in range(30)))
    assert read(str(two), "load").over == "hour"
    np.testing.assert_array_equal(read(str(two), "load").x, 3 * np.arange(30))
    two.write_text("level,load\n" + "\n".join(f"{row % 7},{row}" for row in range(30)))
    assert read(str(two), "load").over == "row"


def falling(form):
    return "".join(f"{form.format(year)},{year % 7}\n" for year in range(2030, 2000, -1))


ROWS = "".join(f"{day},{day}\n" for day in range(30))
SEMI = ROWS.replace(",", ";")
ONE = "".join(f"{day}\n" for day in range(30))


@pytest.mark.parametrize(
    "text",
    [
        "\n\nload\n\n" + ONE + "\n \n\n",
        "day,load\n" + ROWS + ",,\n,\n",
        "day,load\n" + ROWS.replace("\n", ",\n"),
        "day,load,note\n" + ROWS.replace("\n", ',"two\nlines, ""5"""\n'),
        "level,load\n" + "".join(f"{-day},{day}\n" for day in range(30)),
    ],
)
def test_what_is_no_damage_is_read(tmp_path, text):
    """Empty lines at the ends, empty cells beyond the header, cells of two lines, a falling column that is no time."""
    (tmp_path / "my.csv").write_text(text)
    np.testing.assert_array_equal(read(str(tmp_path / "my.csv"), "load").values, np.arange(30))


@pytest.mark.parametrize(
    ("content", "target", "says"),
    [
        ("day,load\n" + ROWS, "laod", "target must be a column of the file, got 'laod'. Did you mean load?"),
        ("day,load\n" + ROWS, "", "target must be a column of the file, got none. The choices are day, load."),
        ("day,load\n1,2\n2,much\n" + ROWS, "load", "must hold finite numbers, got 'much' in line 3."),
        ("day,load\n1,2\n2,inf\n" + ROWS, "load", "must hold finite numbers, got 'inf' in line 3."),
        ("day,load\n1,2\n2,\n" + ROWS, "load", "must have no gaps, got one in line 3. Fill it or cut there."),
        ("day,load\n1,2\n\n2,3\n" + ROWS, "load", "must have no gaps, got one in line 3."),
        ("day,load\n1,2\n , \n2,3\n" + ROWS, "load", "must have no gaps, got one in line 3."),
        ("load\n1\n\n3\n" + ONE, "", "column 'load' must have no gaps, got one in line 3."),
        ("day,load\n1,10,5\n" + ROWS, "load", "got 3 in line 2, the header names 2. Quote cells"),
        ("load\n10,5\n" + ONE, "load", "got 2 in line 2, the header names 1. .* decimal points"),
        ("day;load\n1;10,5\n" + SEMI, "load", "got '10,5' in line 2. Write a decimal point for its comma: 10.5."),
        (
            'day,load\n1,"2\n' + ROWS,
            "load",
            "unexpected end of data, in the row that begins in line 2. Close the quote",
        ),
        ("day,load\n1,2\n" + ROWS + '3,"4', "load", "unexpected end of data, in the row that begins in line 33."),
        ('day,load\n1,"2\n' + ROWS * 1000, "load", "field larger than .*, in the row that begins in line 2."),
        ("year,load\n" + falling("{}"), "load", "to the newest, got 2030 in line 2 and 2001 in line 31. Turn the file"),
        ("day,load\n" + falling("{}-06-01"), "load", "from the oldest to the newest, got 2030-06-01 in line 2"),
        ("day,load\n" + falling("{}-06"), "load", "from the oldest to the newest, got 2030-06 in line 2"),
        ("at,load\n" + falling("{}-06-01T10:00Z"), "load", "from the oldest to the newest, got 2030-06-01T10:00Z"),
        ("day,load\n1,2\n2\n" + ROWS, "load", "must have no gaps, got one in line 3."),
        ("day,load\n1,2\n2,NaN\n" + ROWS, "load", "must have no gaps, got one in line 3."),
        ("day,load\n1,2\n2,3\n", "load", "the series must have at least 30 values, got 2."),
        (ROWS, "load", "the file's first line must name its columns, got 0, 0."),
        ("", "load", "the file's first line must name its columns, got nothing."),
        (b"day,l\xf6ad\n1,2\n", "load", "path must be a readable CSV file, got .*: it is not UTF-8."),
        (None, "load", "path must be a readable CSV file, got .*: No such file or directory."),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, content, target, says):
    path = tmp_path / "my.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ux.InvalidArgument, match=f"^forecast: .*{says}"):
        read(str(path), target)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"test": 50}, "at least 17 values must be left to learn from, got 10."),
        ({"test": 100}, "got 0."),
        ({"ahead": 20}, "at least 55 values must be left to learn from, got 48."),
        ({"ar": 23}, "ar must be small beside the 48 training values, got 23."),
    ],
)
def test_too_little_to_learn_from_is_refused(mine, more, says):
    with pytest.raises(ux.InvalidArgument, match=says):
        build(mine, **more)


def test_a_scale_that_the_values_do_not_have_is_refused(tmp_path):
    for name, least in (("root", -1.0), ("log", 0.0)):
        path = write(tmp_path, (wave() - wave().min() + least).tolist())
        with pytest.raises(ux.InvalidArgument, match=f"scale={name} must have values of one sign, got {least:g}"):
            build(path, scale=name, test=1)
    path = write(tmp_path, [3.0] * 40)
    with pytest.raises(ux.InvalidArgument, match="must vary, got 3 throughout"):
        build(path)


# Baselines


def literal_autoregression(values, train, order, ahead):
    """One row of the design matrix at a time, as the definition has it."""
    n = len(values)
    rows = {i: [1.0, *(values[i - ahead - lag] for lag in range(order))] for i in range(order + ahead - 1, n)}
    fitted = [i for i in rows if i < train]
    weights = np.linalg.lstsq(np.array([rows[i] for i in fitted]), np.array([values[i] for i in fitted]), rcond=None)[0]
    return np.array([np.dot(rows[i], weights) if i in rows else np.nan for i in range(n)])


@pytest.mark.parametrize("order", [1, 2, 9])
@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_the_autoregression_is_least_squares_on_the_training_values(order, ahead):
    made = autoregression(wave(), 45, order, ahead)
    np.testing.assert_allclose(made, literal_autoregression(wave(), 45, order, ahead), rtol=1e-9)


@pytest.mark.parametrize("ahead", [1, 3])
def test_an_autoregression_continues_what_follows_one_exactly(ahead):
    values = np.sin(0.7 * np.arange(60))  # x[t+1] = 2 cos(0.7) x[t] - x[t-1]
    made = autoregression(values, 20, 2, ahead)
    np.testing.assert_allclose(made[ahead + 1 :], values[ahead + 1 :], atol=1e-10)


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_order_has_the_least_aic_with_all_orders_on_the_same_targets(ahead):
    rng = np.random.default_rng(1)
    values = [0.0, 0.0, 0.0]
    for noise in rng.normal(size=117):
        values.append(0.5 * values[-1] - 0.7 * values[-3] + noise)
    values = np.array(values)
    most = (120 - ahead) // 8
    criteria = {}
    for order in range(1, most + 1):
        targets = range(most + ahead - 1, 120)
        made = literal_autoregression(values, 120, order, ahead)
        error = np.mean([(made[i] - values[i]) ** 2 for i in targets])
        criteria[order] = len(targets) * np.log(error) + 2 * (order + 1)
    assert best_order(values, ahead) == min(criteria, key=criteria.get)


@pytest.mark.parametrize(("name", "function"), [("linear", lambda x: x), ("root", np.sqrt), ("log", np.log)])
def test_a_scale_standardises_the_training_values_and_is_undone(name, function):
    train = wave() + 1
    scale = make_scale(name, train)
    expected = (function(train) - function(train).mean()) / function(train).std()
    np.testing.assert_allclose(scale.forward(train), expected, rtol=1e-12)
    np.testing.assert_allclose(scale.back(scale.forward(train)), train, rtol=1e-12)


def test_what_lies_below_a_scale_counts_as_its_end():
    assert make_scale("root", wave() + 1).back(np.array([-99.0])) == 0
    log = make_scale("log", wave() + 1)
    assert log.back(log.forward(np.array([-3.0]))) == pytest.approx(wave().min() + 1)
    assert np.isfinite(log.back(np.array([1e9])))


def test_the_scale_is_the_one_on_which_errors_do_not_grow_with_the_level():
    walk = np.cumsum(np.random.default_rng(0).normal(size=400))
    walk = walk - walk.min() + 3
    made = {"linear": walk, "root": walk**2, "log": np.exp(walk / 10)}
    assert {name: choose_scale(values, 2, 1).name for name, values in made.items()} == {name: name for name in made}
    assert choose_scale(walk - 10, 2, 1).name == "linear"


def test_the_linear_forecasts_of_the_sunspots_are_those_of_1909_to_2008():
    data = _forecast.split(Forecast())
    assert (data.train, data.series.x[data.train], data.series.x[-1]) == (209, 1909, 2008)
    made = _forecast.linear(Forecast(), data)
    assert made.scale.name == "root"
    scores = _forecast.scores(data, made.forecasts)
    literal = literal_autoregression(data.series.values, 209, 9, 1)
    assert scores["test RMSE, AR(9)"] == pytest.approx(rmse(literal[209:], data.series.values[209:]), rel=1e-9)
    assert scores == pytest.approx(
        {"test RMSE, AR(9) of roots": 16.0060, "test RMSE, AR(9)": 17.6492, "test RMSE, persistence": 29.6047}, abs=1e-4
    )


# What the networks read and say


def test_validation_leaves_the_test_span_out(mine):
    test, validation = (_forecast.split(options(mine, score=score)) for score in ("test", "validation"))
    assert (test.train, len(test.series.values)) == (48, 60)
    assert (validation.train, len(validation.series.values)) == (36, 48)
    experiment = build(mine, score="validation")
    assert all(name.startswith("validation RMSE") for name in experiment.evaluate(experiment.params))
    assert list(experiment.artifacts(experiment.params)) == ["validation span"]


@pytest.mark.parametrize("ahead", [1, 3])
def test_stretches_are_literal_pieces_of_the_training_values(mine, ahead):
    experiment = build(mine, ahead=ahead, noise=0.0)
    values = np.asarray(experiment.data.make.values)
    assert len(values) == 48
    starts = set()
    for number in range(40):
        frames = experiment.data(8 * number, 8)
        assert frames.input.shape == frames.target.shape == (8, 2, 3, 1)
        assert frames.mask.all()
        assert (frames.weight == 1).all()
        for member in range(2):
            for example in range(3):
                start = int(np.flatnonzero(values == frames.input[0, member, example, 0])[0])
                starts.add(start)
                for step in range(8):
                    now, after = values[start + step], values[start + step + ahead]
                    assert frames.input[step, member, example, 0] == now
                    assert frames.target[step, member, example, 0] == pytest.approx(after - now, abs=1e-6)
    assert (min(starts), max(starts)) == (0, 48 - 8 - ahead)


def test_noise_is_on_the_inputs_alone_and_fresh(mine):
    clean, noisy = (build(mine, noise=noise).data for noise in (0.0, 0.5))
    draws = np.concatenate([np.ravel(noisy(8 * n, 8).input - clean(8 * n, 8).input) for n in range(50)])
    assert len(np.unique(draws.round(9))) > 0.99 * len(draws)
    assert abs(draws.mean()) < 4 * 0.5 / np.sqrt(len(draws))
    assert draws.std() == pytest.approx(0.5, rel=4 / np.sqrt(2 * len(draws)))
    np.testing.assert_array_equal(noisy(8, 8).target, clean(8, 8).target)


def test_members_start_apart_and_learn_alone(mine):
    experiment = build(mine)
    system, params, frames = experiment.system, experiment.params, experiment.data(0, 8)
    net = system.system.system
    weights = params["cell"]["wh"]
    assert not np.allclose(weights[0], weights[1])

    def whole(params):
        start = system.init(jax.random.key(0), params)
        return ux.unroll(system, params, start, frames, jax.random.key(1))[1].mean()

    def alone(member_params, member):
        said = [net.predict(member_params, frames.input[:, member, example]) for example in range(3)]
        return sum(((each - frames.target[:, member, n]) ** 2).mean() for n, each in enumerate(said)) / 3

    grads = jax.grad(whole)(params)
    for member in range(2):
        own = jax.grad(alone)(jax.tree.map(lambda leaf, m=member: leaf[m], params), member)
        jax.tree.map(
            lambda grad, one, m=member: np.testing.assert_allclose(grad[m], one / 2, rtol=1e-4, atol=1e-6), grads, own
        )


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("scale", ["linear", "root"])
def test_a_forecast_is_the_present_value_and_the_mean_change_on_the_scale(mine, scale, ahead):
    experiment = build(mine, ahead=ahead, scale=scale)
    net, values = experiment.system.system.system, wave()
    function, inverse = (np.sqrt, np.square) if scale == "root" else (lambda x: x, lambda x: x)
    mean, std = function(values[:48]).mean(), function(values[:48]).std()
    standard = (function(values) - mean) / std
    (columns,) = experiment.artifacts(experiment.params).values()
    for i in (48, 51, 59):
        known = jnp.asarray(standard[: i - ahead + 1, None])
        members = [jax.tree.map(lambda leaf, m=member: leaf[m], experiment.params) for member in range(2)]
        change = np.mean([net.predict(member, known)[-1, 0] for member in members])
        expected = inverse(mean + std * (standard[i - ahead] + change))
        assert columns["forecast"][i - 48] == pytest.approx(expected, rel=1e-4)
        assert columns["truth"][i - 48] == values[i]
        assert columns["row"][i - 48] == i + 1


def test_scores_are_those_of_a_literal_loop(mine):
    experiment = build(mine, ar=2, scale="root")
    (columns,) = experiment.artifacts(experiment.params).values()
    scores = experiment.evaluate(experiment.params)
    values = wave()
    rows = {"test RMSE": columns["forecast"], "test RMSE, persistence": values[47:59]}
    rows |= {f"test RMSE, {name}": columns[name] for name in ("AR(2)", "AR(2) of roots")}
    rows["test RMSE, mean with AR(2) of roots"] = [
        ((np.sqrt(ours) + np.sqrt(theirs)) / 2) ** 2
        for ours, theirs in zip(columns["forecast"], columns["AR(2) of roots"], strict=True)
    ]
    assert set(scores) == set(rows)
    for name, row in rows.items():
        total = sum((forecast - truth) ** 2 for forecast, truth in zip(row, values[48:], strict=True))
        assert scores[name] == pytest.approx(np.sqrt(total / 12), rel=1e-6), name


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_forecast_sees_the_future(tmp_path, ahead):
    """Whatever comes from value 53 on, all that is forecast up to value 52 + ahead stays, and so does what is learned."""
    changed = wave()
    changed[53:] += 10 + np.arange(7)
    pair = [build(write(tmp_path, each.tolist(), f"{n}.csv"), ahead=ahead) for n, each in enumerate((wave(), changed))]
    for t in (0, 8, 800):
        jax.tree.map(np.testing.assert_array_equal, *(each.data(t, 8) for each in pair))
    jax.tree.map(np.testing.assert_array_equal, *(each.params for each in pair))
    one, two = (next(iter(each.artifacts(each.params).values())) for each in pair)
    forecasts = set(one) - {"row", "truth"}
    assert len(forecasts) >= 2
    for name in forecasts:
        same = np.isclose(one[name], two[name], rtol=1e-12, atol=0)
        assert same[: 53 - 48 + ahead].all(), name
        assert not same[53 - 48 + ahead :].any(), name
    assert pair[0].evaluate(pair[0].params) != pair[1].evaluate(pair[1].params)


def test_a_short_run_learns_to_beat_persistence(mine):
    with jax.enable_x64(False):
        experiment = build(mine, members=4, hidden=8, length=40)
        data = Windows(experiment.data, 40)
        run = ux.fit(
            experiment.estimator, experiment.optimizer, experiment.params, data, key=jax.random.key(0), steps=150
        )
        scores = experiment.evaluate(run.params)
    assert scores["test RMSE"] < 0.6 * scores["test RMSE, persistence"]


# The command line


def train(*arguments):
    return CliRunner().invoke(app, ["train", "forecast", "-q", *arguments], catch_exceptions=False)


def test_a_run_leaves_its_forecasts_and_draws_them(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = [f"--set={name}={item}" for name, item in {**SMALL, "path": mine, "target": "load", "ar": 2}.items()]
    result = train(*setting, "--steps", "4", "--json", "--out", "r")
    assert result.exit_code == 0
    row = json.loads(result.stdout)
    assert {"test_RMSE", "test_RMSE_AR_2", "test_RMSE_persistence"} <= set(row)
    with Path("r/test-span.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(each["row"]) for each in rows] == list(range(49, 61))
    error = rmse(*(np.array([float(each[name]) for each in rows]) for name in ("forecast", "truth")))
    assert row["test_RMSE"] == pytest.approx(error, rel=1e-6)
    report = Path("r/report.html").read_text()
    assert "<h2>test span</h2>" in report
    assert 'aria-label="test RMSE, test RMSE, mean with AR(2), AR(2), persistence against update"' in report
    again = CliRunner().invoke(app, ["train", "r/run.toml", "-q", "--out", "again"])
    assert again.exit_code == 0
    assert Path("again/test-span.csv").read_bytes() == Path("r/test-span.csv").read_bytes()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (["path=nowhere.csv"], "forecast: path: there must be such a file, got 'nowhere.csv'."),
        (["path=my.csv", "target=laod"], "got 'laod'. Did you mean load?"),
        (["path=my.csv"], "got none. The choices are day, load."),
        (["cell=lstn"], "forecast: cell: input should be 'lstm', 'gru', 'rnn' or 'mingru', got 'lstn'."),
    ],
)
def test_a_wrong_setting_is_answered_with_one_line(tmp_path, monkeypatch, setting, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, wave().tolist())
    result = train(*(f"--set={each}" for each in setting))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert not Path("runs").exists()


@pytest.mark.slow
def test_on_the_validation_span_the_networks_beat_all_that_is_linear(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False):
        row = json.loads(train("--set", "score=validation", "--json").stdout)
    others = [item for name, item in row.items() if name.startswith("validation_RMSE_") and "mean" not in name]
    assert len(others) == 3
    assert row["validation_RMSE"] < 0.9 * min(others)
