"""`unrollax sample`: the text goes on as the network says, from its seed, and what can't be read says why."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import unrollax as ux
from unrollax.cli import _sample
from unrollax.cli._app import app
from unrollax.cli._config import parse_set, resolve
from unrollax.cli._text_run import TextRun
from unrollax.recipes import _text
from unrollax.recipes._options import Text

TEXT = "the quick brown fox jumps over the lazy dog, «twice» 🙂.\n" * 30
ALPHABET = "".join(sorted(set(TEXT)))


def command(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def trained(folder, *setting):
    (folder / "my.txt").write_text(TEXT, encoding="utf-8")
    pairs = [f"--set={pair}" for pair in (f"path={folder / 'my.txt'}", "hidden=5", "batch=2", "window=5", *setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unrollax.cli._train.render", lambda *parts: "")
        result = command("train", "text", "-q", "--steps", 30, "--out", folder / "run", *pairs)
    assert result.exit_code == 0, result.stderr
    (folder / "my.txt").unlink()  # sampling needs no text
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with jax.enable_x64(False):
        return trained(tmp_path_factory.mktemp("sample"))


@pytest.fixture(autouse=True)
def in_single_precision():
    with jax.enable_x64(False):
        yield


def sampled(run, *arguments, prompt="the "):
    result = command("sample", run, "--prompt", prompt, "--length", 40, *arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(prompt)
    assert result.stdout.endswith("\n")
    return result.stdout[len(prompt) : -1]


def parameters(run):
    net = _text.model(Text(hidden=5), len(ALPHABET))
    return jax.tree.map(np.asarray, ux.load_params(run / "params.safetensors", like=net.params(jax.random.key(0))))


def test_a_run_keeps_its_alphabet(run):
    assert json.loads((run / "alphabet.json").read_text(encoding="utf-8")) == ALPHABET


def test_a_text_is_that_of_its_seed(run):
    texts = [sampled(run, "--seed", seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert {len(text) for text in texts} == {40}
    assert set("".join(texts)) <= set(ALPHABET)
    assert sampled(run, "--seed", 0, "--temperature", 5) != texts[0]


def test_a_longer_text_begins_with_the_shorter_one(run):
    short = command("sample", run, "--prompt", "the ", "--length", 10).stdout
    assert command("sample", run, "--prompt", "the ", "--length", 20).stdout.startswith(short[:-1])


def literal_lstm(params, text):
    """The logits after the last character of a text, in NumPy."""
    cell, readout = params["cell"], params["readout"]
    h = c = np.zeros(5)
    for character in text:
        gates = cell["wx"][ALPHABET.index(character)] + h @ cell["wh"] + cell["b"]
        i, f, o, g = np.split(gates, 4)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
    return h @ readout["w"] + readout["b"]


def test_at_temperature_0_each_character_is_the_likeliest_after_all_before_it(run):
    params, text = parameters(run), "the quick"
    for _ in range(40):
        text += ALPHABET[literal_lstm(params, text).argmax()]
    for temperature in (0, 1e-6):
        assert "the quick" + sampled(run, "--temperature", temperature, prompt="the quick") == text


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_characters_are_drawn_from_the_softmax_of_logits_over_temperature(temperature):
    logits, count = np.array([0.3, -1.0, 1.2, 0.0]), 4000
    draw = jax.vmap(lambda key: _text._draw(key, jnp.asarray(logits), temperature))
    seen = np.bincount(draw(jax.random.split(jax.random.key(0), count)), minlength=4) / count
    odds = np.exp(logits / temperature)
    odds /= odds.sum()
    assert (np.abs(seen - odds) < 4.5 * np.sqrt(odds * (1 - odds) / count)).all()


def test_json_holds_the_text_and_what_it_came_of(run):
    text = sampled(run, "--seed", 3)
    result = command("sample", run, "--prompt", "the ", "--length", 40, "--seed", 3, "--json")
    assert json.loads(result.stdout) == {
        "run": str(run),
        "prompt": "the ",
        "temperature": 0.8,
        "seed": 3,
        "text": text,
    }


def test_characters_are_written_as_they_come_and_ctrl_c_ends_it(run, monkeypatch):
    written = []

    def endless(*arguments):
        for number in range(100):
            assert written[1:] == [ALPHABET[1]] * number
            if number == 3:
                raise KeyboardInterrupt
            yield 1

    echo = _sample.typer.echo
    monkeypatch.setattr(_sample.typer, "echo", lambda *text, **options: [written.extend(text), echo(*text, **options)])
    monkeypatch.setattr(_text, "continuation", endless)
    result = command("sample", run, "--prompt", "the ")
    assert (result.exit_code, result.stderr) == (130, "")
    assert result.stdout == "the " + 3 * ALPHABET[1] + "\n"


def test_the_prompt_is_a_line_end_by_default(run):
    assert command("sample", run, "--length", 3).stdout[0] == "\n"


@pytest.mark.parametrize(("alphabet", "opening"), [("\n ab", "\n"), ("ab ", " "), ("ba", "b")])
def test_without_line_ends_the_prompt_is_a_blank_or_what_sorts_first(alphabet, opening):
    assert TextRun(Path(), Text(), alphabet).opening == opening


def test_a_run_is_named_by_its_run_toml_too(run):
    assert command("sample", run / "run.toml", "--length", 3).stdout == command("sample", run, "--length", 3).stdout


def test_a_string_option_may_look_like_a_number_or_a_date(tmp_path):
    """A column called 2019 is no number, one in quotes stands for what they hold, and other options stay what they are."""
    pairs = ["target=2019", "ahead=2", "noise=1e-1", "scale=log"]
    assert parse_set(pairs, "forecast")[0] == {"target": "2019", "ahead": 2, "noise": 0.1, "scale": "log"}
    for text in ("1e3", "007", "2019-01-01", "true", "1.50"):
        assert parse_set([f"target={text}"], "forecast")[0] == {"target": text}
    assert parse_set(['target="20"', "path=5"], "forecast")[0] == {"target": "20", "path": "5"}
    (tmp_path / "run.toml").write_text('target = "forecast"')
    assert parse_set(["target=2019"], str(tmp_path / "run.toml"))[0] == {"target": "2019"}
    assert parse_set(["target=2019"], "my.py:make")[0] == {"target": 2019}
    nothing = {"estimator": {"name": None}, "optimizer": {"lr": None}, "steps": None, "seed": None}
    assert resolve("forecast", nothing, {"target": "2019"}).options["target"] == "2019"


def test_layers_of_another_cell_write_too(tmp_path):
    assert len(sampled(trained(tmp_path, "cell=mingru", "layers=2"))) == 40


def test_a_prompt_of_strange_characters_is_refused(run):
    result = command("sample", run, "--prompt", "Thé end")
    assert result.exit_code == 2
    assert result.stderr == "unrollax: --prompt must be of characters that the run's text has, got 'T', 'é'.\n"
    assert result.stdout == ""


def damage(run, name, text):
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("run.toml", None, "is no run folder: it has no run.toml. Make one with: unrollax train text"),
        ("run.toml", "target = ", "must be TOML: "),
        ("run.toml", "target = 'adding'", "must be a run of the recipe text, got one of 'adding'."),
        ("run.toml", "target = 'text'\noptions = 3", "options must be a table, got 3."),
        ("run.toml", "target = 'text'\n[options]\nhiden = 3", "there is no option 'hiden'. Did you mean hidden?"),
        ("run.toml", "target = 'text'\n[options]\nhidden = 6", "leaf cell/b must be float32[24], got float32[20]."),
        ("alphabet.json", None, "has no alphabet.json: its run kept none."),
        ("alphabet.json", "abc", "must hold one JSON string, got damage: "),
        ("alphabet.json", "[1]", "must hold one JSON string, got '[1]'."),
        ("alphabet.json", '"the "', "must be "),
        ("params.safetensors", None, "has no params.safetensors"),
        ("params.safetensors", "x", "must be a whole safetensors file"),
    ],
)
def test_a_run_that_cannot_be_read_says_why(run, tmp_path, name, text, says):
    copy = shutil.copytree(run, tmp_path / "run")
    damage(copy, name, text)
    result = command("sample", copy, "--prompt", "the ")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "no run folder nowhere. Make one with: unrollax train text"),
        (("runs/txt-1",), "no run folder runs/txt-1. Did you mean text-1?"),
        (("mine.txt",), "no run folder mine.txt. "),
        (("runs/text-1", "--temperature", "-1"), "--temperature must be 0 or more, got -1.0."),
        (("runs/text-1", "--temperature", "nan"), "--temperature must be 0 or more, got nan."),
        (("runs/text-1", "--prompt", ""), "--prompt must have a character or more, got none."),
        (("runs/text-1", "--length", "0"), "Invalid value for '--length'"),
        (("runs/text-1", "--seed", "-1"), "Invalid value for '--seed'"),
    ],
)
def test_wrong_arguments_are_answered_with_exit_code_2(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    Path("runs/text-1").mkdir(parents=True)
    Path("runs/text-1/alphabet.json").write_text('"abc"')
    result = command("sample", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""
