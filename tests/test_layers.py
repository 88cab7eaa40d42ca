"""A module imports only from layers below it, and what answers usage errors imports no JAX."""

import ast
import functools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "unrollax"
FAMILIES = (
    "diagnosis",
    "estimators",
    "kernels",
    "local",
    "optimizers",
    "problems",
    "prox",
    "readings",
    "recipes",
    "solvers",
    "systems",
)
HEAVY = {"jax", "jaxlib", "optax", "numpy", "matplotlib", "safetensors", "sklearn"}
# What runs before the arguments are known to be right.
LIGHT = (
    "unrollax",
    "unrollax.__main__",
    "unrollax._errors",
    "unrollax.cli",
    "unrollax.cli._app",
    "unrollax.cli._config",
    "unrollax.cli._failure",
    "unrollax.cli._names",
    "unrollax.cli._search_config",
    "unrollax.cli._study",
    "unrollax.cli._study_app",
    "unrollax.cli._text_run",
    "unrollax.cli._unfold_app",
    "unrollax.cli._unfold_config",
    "unrollax.recipes",
    "unrollax.recipes._idx",
    "unrollax.recipes._options",
    "unrollax.recipes._unfold_options",
)


def path_of(module):
    path = SOURCE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(tree, module):
    """Every module that a syntax tree names in an import, `from package import member` as both."""
    for node in tree if isinstance(tree, list) else [tree]:
        for each in ast.walk(node):
            if isinstance(each, ast.Import):
                yield from (alias.name for alias in each.names)
            elif isinstance(each, ast.ImportFrom):
                assert each.level == 0, f"{module}: a relative import"
                yield from (each.module, *(f"{each.module}.{alias.name}" for alias in each.names))


@functools.cache
def named_at_once(module):
    """What a module's own lines import when it is imported: not what its functions import when called."""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    return set(imports([node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))], module))


def imported_at_once(module):
    """What importing a module imports, through all of its own, packages around them included."""
    found, waiting = set(), [module]
    while waiting:
        for each in named_at_once(waiting.pop()) - found:
            found.add(each)
            parts = each.split(".")
            own = {".".join(parts[:length]) for length in range(1, len(parts) + 1)} if parts[0] == "unrollax" else set()
            waiting += [name for name in own if name != module and path_of(name).exists()]
            found |= {name for name in own if path_of(name).exists()}
    return found


def members(family):
    return sorted(path.stem for path in (SOURCE / family).glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", LIGHT)
def test_what_answers_usage_errors_imports_nothing_heavy(module):
    assert not HEAVY & {name.split(".")[0] for name in imported_at_once(module)}


def test_the_walk_over_imports_sees_what_is_behind_other_modules():
    assert HEAVY & imported_at_once("unrollax.cli._target") >= {"optax", "jax"}
    assert "typer" in imported_at_once("unrollax.cli._app")


# A recipe may be built of what recipes share, a member of another family of nothing in its family.
SHARED = {
    "diagnosis": {
        "_candidates",
        "_comparison",
        "_costs",
        "_decay",
        "_flow",
        "_flows",
        "_gate",
        "_gradients",
        "_growth",
        "_halves",
        "_horizons",
        "_jacobians",
        "_layers",
        "_lr_reading",
        "_forward",
        "_paths",
        "_probes",
        "_quadrature",
        "_recording",
        "_reference",
        "_schedule_report",
        "_schedule_runs",
        "_sweep",
        "_table",
        "_text",
        "_verdict",
    },
    "readings": {"_words"},
    "problems": {"_problem"},
    "prox": {"_shrink"},
    "solvers": {"_algorithm", "_inner", "_least_squares", "_linear", "_selection", "_weights"},
    "estimators": {
        "_antithetic",
        "_chunks",
        "_entries",
        "_influence",
        "_moving",
        "_pairs",
        "_parts",
        "_pattern",
        "_reverse",
        "_shaping",
        "_std",
        "_trajectory",
    },
    "kernels": {"_layers", "_recurrence", "_sequence"},
    "local": {
        "_checks",
        "_conv",
        "_curvature",
        "_dense",
        "_descent",
        "_equinox_parts",
        "_flax_modules",
        "_from_modules",
        "_initial",
        "_layered",
        "_layers",
        "_passes",
        "_problem",
        "_rows",
        "_scales",
        "_transfers",
    },
    "optimizers": {"_checks", "_factors", "_net", "_output_hessian", "_quadratic", "_sides"},
    "systems": {"_checks", "_frames", "_initial", "_scan"},
    "recipes": {"_baselines", "_common", "_idx", "_images", "_options", "_series", "_unfold_common", "_unfold_options"},
}


@pytest.mark.parametrize(("family", "member"), [(family, member) for family in FAMILIES for member in members(family)])
def test_members_of_a_family_never_import_each_other(family, member):
    package = f"unrollax.{family}"
    tree = ast.parse((SOURCE / family / f"{member}.py").read_text(encoding="utf-8"))
    named = {name.removeprefix(package + ".").split(".")[0] for name in imports(tree, member) if package in name}
    assert named - {package} <= SHARED[family]


def test_import_linter_keeps_its_contracts(root):
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_the_contracts_name_every_module(root):
    contracts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = {name.strip() for layer in contracts[0]["layers"] for name in layer.split("|")}
    modules = (path for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
    present = {f"unrollax.{path.stem}" for path in modules}
    assert present - layers == {"unrollax.__init__", "unrollax.__main__"}
    independent = {name for contract in contracts[1:] for name in contract["modules"]}
    for family in FAMILIES:
        everyone = {f"unrollax.{family}.{member}" for member in members(family)}
        assert everyone - independent <= {f"unrollax.{family}.{name}" for name in SHARED[family]}
