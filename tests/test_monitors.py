"""Observers of a training run: several at once, the gradient's flow as it changes, and what is written."""

import json
import struct
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax._log import scalars_of

KEY = jax.random.key(3)
close = partial(np.testing.assert_allclose, rtol=1e-12)


def step(params, state, x, key):
    """Linear, so that the gradient of a loss by the bias as used `lag` steps before is rate^lag."""
    state = params["rate"] * state + params["bias"]
    return state, state


net = ux.system(init=lambda key, params: jnp.zeros(()), step=step)
PARAMS = {"rate": jnp.array(0.5), "bias": jnp.array(0.0)}
PES = ux.PES(net, std=0.1, window=2, horizon=8, pairs=4)


def train(observe, estimator=PES, steps=7, every=3, **options):
    return ux.fit(
        estimator, optax.sgd(0.01), PARAMS, None, key=KEY, steps=steps, every=every, observe=observe, **options
    )


@pytest.fixture
def flows(monkeypatch):
    """Stand in for `gradient_flow`: an exact decay by the rate in params; notes what it was called with."""
    calls = []

    def gradient_flow(system, params, data, **options):
        calls.append((system, jax.tree.map(np.array, params), data, options))
        rate, lags = float(params["rate"]), np.arange(6)
        decay = SimpleNamespace(
            rate=np.log(rate), half_life=np.log(2) / -np.log(rate), lags=lags, norms=rate ** lags.astype(float)
        )
        return SimpleNamespace(losses=np.array([1.0, 3.0]), decay=decay)

    monkeypatch.setattr("unrollax.diagnosis._monitors.gradient_flow", gradient_flow)
    return calls


# --- several observers ----------------------------------------------------------------------------------------------


def test_observers_are_called_in_order_with_the_same_progress():
    seen = []
    train(ux.observers(lambda now: seen.append(("a", now)), None, lambda now: seen.append(("b", now))))
    assert [name for name, _ in seen] == ["a", "b"] * 3
    assert all(one[1] is two[1] for one, two in zip(seen[::2], seen[1::2], strict=True))
    assert [now.step for _, now in seen[::2]] == [3, 6, 7]


@pytest.mark.parametrize(("wrong", "got"), [(3, "int"), (ux.FlowMonitor, "the class FlowMonitor")])
def test_what_can_not_be_called_is_no_observer(wrong, got):
    with pytest.raises(ux.InvalidArgument, match=f"observers: each must be callable with a Progress, got {got}"):
        ux.observers(print, wrong)


# --- FlowMonitor ------------------------------------------------------------------------------------------------------


def test_the_monitor_looks_with_the_parameters_of_the_moment(flows):
    rates = []
    monitor = ux.FlowMonitor(net, None, key=KEY, horizon=6, at=[5])
    watched = ux.watch(PES)
    run = train(ux.observers(lambda now: rates.append(float(now.state.params["rate"])), monitor), watched)
    history = monitor.history
    assert history.steps.tolist() == [3, 6, 7]
    close(history.rate, np.log(rates))
    close(history.half_life, np.log(2) / -np.log(rates))
    close(history.norms, np.array(rates)[:, None] ** np.arange(6.0)[None])
    assert history.lags.tolist() == list(range(6))
    assert history.losses.tolist() == [2.0] * 3
    assert len(set(rates)) == 3, "training moved the parameters between looks"
    assert rates[-1] == run.params["rate"]
    system, _, data, options = flows[0]
    assert (system, data, options) == (net, None, {"key": KEY, "at": [5], "horizon": 6, "windows": ()})
    assert all(options["key"] is KEY for *_, options in flows)


def test_what_the_monitor_sees_is_the_gradient_by_lag():
    """The derivative of s_t = r s_(t-1) + x by r as used at step s is r^(t-s) s_(s-1), at every r of the training."""
    drive = ux.system(init=lambda key, r: jnp.ones(()), step=lambda r, s, x, key: (r * s + x, r * s + x))
    rates, x = [], 0.3 * np.arange(1.0, 9.0)
    monitor = ux.FlowMonitor(drive, jnp.array(x), key=KEY, at=[7])
    note = lambda now: rates.append(float(now.state.params))
    show = ux.observers(note, monitor)
    ux.fit(ux.BPTT(drive, 8), optax.sgd(1e-3), 0.6, lambda step: jnp.array(x), key=KEY, steps=6, every=2, observe=show)
    history = monitor.history
    for row, rate in zip(history.norms, rates, strict=True):
        states = [1.0]
        for now in x:
            states.append(rate * states[-1] + now)
        close(row, [rate**lag * states[7 - lag] for lag in range(8)], rtol=1e-10)
    assert history.lags.tolist() == list(range(8))
    assert len(set(rates)) == 3

    def last(rate):
        state = 1.0
        for now in x:
            state = rate * state + now
        return state

    close(sum(history.norms[-1]), jax.grad(last)(rates[-1]), rtol=1e-10)


def test_the_monitor_leaves_training_as_it_was(flows):
    monitored, plain = train(ux.FlowMonitor(net, None, key=KEY)), train(None)
    jax.tree.map(np.testing.assert_array_equal, monitored.params, plain.params)


@pytest.mark.parametrize(("every", "looks"), [(1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [1, 4, 5]), (9, [1, 5])])
def test_the_monitor_sees_the_first_block_every_so_many_and_the_last(flows, every, looks):
    monitor = ux.FlowMonitor(net, None, key=KEY, every=every)
    train(monitor, steps=5, every=1)
    assert monitor.history.steps.tolist() == looks
    assert monitor.last.losses.tolist() == [1.0, 3.0]


def test_the_monitor_sees_the_mean_of_a_search_distribution(flows):
    monitor = ux.FlowMonitor(net, None, key=KEY)
    learned = ux.PES(net, std=None, window=2, horizon=8, pairs=4)
    params = ux.Gaussian(PARAMS, jnp.log(0.1))
    ux.fit(learned, optax.sgd(0.0), params, None, key=KEY, steps=1, observe=monitor)
    assert jax.tree.map(float, flows[0][1]) == {"rate": 0.5, "bias": 0.0}


def test_the_monitor_tells_what_it_took(flows):
    monitor = ux.FlowMonitor(net, None, key=KEY)
    assert monitor.seconds == 0
    assert monitor.scalars() == {}
    assert monitor.history.norms.shape == (0, 0)
    train(monitor)
    close(monitor.seconds, monitor.history.seconds.sum())
    assert 0 < monitor.share < 1
    assert "3 looks" in str(monitor)


def test_the_history_prints_lags_of_powers_of_two_and_gives_plain_lists(flows):
    monitor = ux.FlowMonitor(net, None, key=KEY)
    train(monitor, steps=40, every=1)
    lines = str(monitor.history).splitlines()
    assert lines[1].split("  ")[-1].strip() == "lag 4"
    assert "lag 3" not in lines[1]
    assert len(lines) == 2 + 10
    assert [line.split()[0] for line in lines[2:]][::9] == ["1", "40"]
    told = json.loads(json.dumps(monitor.history.to_dict()))
    assert told["lags"] == list(range(6))
    assert np.shape(told["norms"]) == (40, 6)


def test_the_monitor_refuses_what_it_can_not_use():
    with pytest.raises(ux.InvalidArgument, match="FlowMonitor: every must be a positive whole number"):
        ux.FlowMonitor(net, None, key=KEY, every=0)
    with pytest.raises(ux.InvalidArgument, match="FlowMonitor: key must be a single PRNG key"):
        ux.FlowMonitor(net, None, key=3)
    with pytest.raises(ux.InvalidArgument, match="FlowMonitor: system must have init"):
        ux.FlowMonitor(PES, None, key=KEY)


# --- what is logged --------------------------------------------------------------------------------------------------


def test_scalars_are_means_over_the_block():
    seen = []
    run = train(seen.append, ux.watch(PES))
    told, info = scalars_of(seen[0]), run.metrics.info
    close(told["loss"], run.metrics.loss[:3].mean())
    close(told["grad_norm"], run.metrics.grad_norm[:3].mean())
    close(told["cosine"], info.cosine[:3].mean())
    close(told["noise_scale"], info.noise[:3].mean() / info.signal[:3].mean())
    close(told["grad_norm/rate"], info.leaves["rate"][:3].mean())
    close(told["updates_per_second"], 3 / seen[0].seconds)
    assert told["nonfinite"] == 0


def test_without_halves_nothing_is_said_of_them():
    seen = []
    train(seen.append, ux.watch(PES, halves=False), steps=1)
    train(seen.append, steps=1)
    watched, plain = map(scalars_of, seen)
    assert set(plain) == {"loss", "grad_norm", "updates_per_second", "nonfinite"}
    assert set(watched) == set(plain) | {"grad_norm/rate", "grad_norm/bias"}


def test_a_json_line_is_written_for_each_block(flows, tmp_path):
    path, monitor, seen = tmp_path / "deep" / "log.jsonl", ux.FlowMonitor(net, None, key=KEY), []
    with ux.JSONLines(path, monitors=[monitor]) as log:
        train(ux.observers(monitor, log, seen.append), ux.watch(PES))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 7]
    for line, progress in zip(lines, seen, strict=True):
        told = scalars_of(progress)
        assert {name: line[name] for name in told} == told
        assert line["flow/rate"] == pytest.approx(np.log(float(line["flow/lag_1"])), rel=1e-12)
    assert "flow/lag_3" not in lines[0]
    with ux.JSONLines(path) as log:
        train(log)
    assert len(path.read_text().splitlines()) == 6, "a file that is there is continued"
    with pytest.raises(ux.InvalidArgument, match="JSONLines: the file must be open"):
        train(log)


def test_a_json_line_has_words_for_what_is_not_finite(tmp_path):
    wild = ux.system(init=lambda k, p: (), step=lambda p, s, x, k: (s, jnp.inf + 0 * p["rate"]))
    with ux.JSONLines(tmp_path / "log.jsonl") as log:
        ux.fit(ux.BPTT(wild, 2), optax.sgd(0.0), PARAMS, None, key=KEY, steps=1, observe=log)
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == "inf"


class Writer:
    """What is used of tensorboardX.SummaryWriter."""

    made = ()

    def __init__(self, folder, flush_secs):
        self.folder, self.flush_secs, self.points, self.closed = folder, flush_secs, [], False
        Writer.made = (*Writer.made, self)

    def add_scalar(self, tag, value, step):
        assert not self.closed
        self.points.append((tag, value, step))

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    module = ModuleType("tensorboardX")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    monkeypatch.setattr(Writer, "made", ())
    return lambda: Writer.made


def test_tensorboard_gets_a_point_of_each_curve_a_block(writers, flows, tmp_path):
    monitor, seen = ux.FlowMonitor(net, None, key=KEY, every=2), []
    with ux.TensorBoard(tmp_path, monitors=[monitor], flush=3) as board:
        train(ux.observers(monitor, board, seen.append), ux.watch(PES), every=2)
    (writer,) = writers()
    assert (writer.folder, writer.closed, writer.flush_secs) == (str(tmp_path), True, 3)
    expected = [(name, number, now.step) for now in seen for name, number in scalars_of(now).items()]
    assert [point for point in writer.points if not point[0].startswith("flow/")] == expected
    assert [step for tag, _, step in writer.points if tag == "flow/half_life"] == [2, 4, 6, 7]


def test_tensorboard_without_its_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        ux.InvalidArgument, match=r"TensorBoard: tensorboardX must be .* pip install 'unrollax\[tensorb"
    ):
        ux.TensorBoard(tmp_path)


def test_logs_refuse_monitors_without_scalars(writers, tmp_path):
    with pytest.raises(ux.InvalidArgument, match=r"TensorBoard: each of monitors must have scalars\(\), got builtin_f"):
        ux.TensorBoard(tmp_path, monitors=[print])
    with pytest.raises(ux.InvalidArgument, match="JSONLines: each of monitors must have"):
        ux.JSONLines(tmp_path / "log", monitors=[3])
    with pytest.raises(ux.InvalidArgument, match="TensorBoard: flush must be a positive number"):
        ux.TensorBoard(tmp_path, flush=0)


# --- a real event file, read back byte by byte ----------------------------------------------------------------------


def fields(message):
    """The fields of a protocol buffer: (number, bytes or integer)."""
    at = 0

    def varint():
        nonlocal at
        number, shift = 0, 0
        while True:
            byte = message[at]
            at, number, shift = at + 1, number | (byte & 127) << shift, shift + 7
            if byte < 128:
                return number

    while at < len(message):
        tag = varint()
        if tag % 8 == 0:
            yield tag // 8, varint()
            continue
        length = {1: 8, 5: 4}.get(tag % 8) or varint()
        yield tag // 8, message[at : at + length]
        at += length


def points(path):
    """(tag, value, step) of each scalar in an event file: TFRecords of Event(2: step, 5: Summary(1: Value(1, 2)))."""
    records, found, at = path.read_bytes(), [], 0
    while at < len(records):
        (length,) = struct.unpack_from("<Q", records, at)
        event = dict(fields(records[at + 12 : at + 12 + length]))
        at += 16 + length
        for _, one in fields(event.get(5, b"")):
            known = dict(fields(one))
            found.append((known[1].decode(), struct.unpack("<f", known[2])[0], event.get(2, 0)))
    return found


def test_an_event_file_holds_what_was_told(tmp_path):
    pytest.importorskip("tensorboardX")
    seen = []
    with ux.TensorBoard(tmp_path) as board:
        train(ux.observers(board, seen.append), ux.watch(PES))
    (path,) = tmp_path.iterdir()
    expected = [(name, np.float32(number), now.step) for now in seen for name, number in scalars_of(now).items()]
    assert points(path) == expected


# --- the command line ------------------------------------------------------------------------------------------------

WATCHED = """
import jax.numpy as jnp, optax, unrollax as ux

net = ux.system(init=lambda key, p: jnp.ones(()), step=lambda p, s, x, key: (p * s + x, (p * s) ** 2))
estimator = ux.watch(ux.PES(net, std=0.1, window=2, horizon=8, pairs=4))
stream = ux.episodes(lambda number: jnp.ones(8), 8)
experiment = ux.Experiment(net, estimator, optax.sgd(0.001), 0.5, stream, steps=8)
log = ux.system(init=lambda key, p: jnp.ones(()), step=lambda p, s, x, key: (s, jnp.log(p)))
wild = ux.Experiment(log, ux.watch(ux.ES(log, std=1.0, window=1, pairs=4)), optax.sgd(0.1), 0.1, None)
"""


def test_the_command_line_trains_with_a_watched_estimator(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from unrollax.cli._app import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(WATCHED)
    done = CliRunner().invoke(app, ["train", "mine.py:experiment", "--json", "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["estimator"], told["updates"]) == ("Watch", 8)
    lines = (tmp_path / told["out"] / "metrics.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines][-1] == {"step", "loss", "grad_norm", "seconds"}
    done = CliRunner().invoke(app, ["train", "mine.py:wild", "--quiet"], catch_exceptions=False)
    assert done.exit_code == 4
    assert "% of the trajectories non-finite" in done.stderr
