"""From a jaxpr to a flat program: calls inlined, aliases followed, constants worked out, equal operations merged."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from jax.interpreters import partial_eval

from unrollax.plain._fold import bound, counts, decided, folded, unchanged
from unrollax.plain._frames import frames_of, inside_call
from unrollax.plain._index import indexed
from unrollax.plain._program import Frame, Op, Program, Value
from unrollax.plain._text import is_short

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}
ALIASES = {
    *("stop_gradient", "copy", "copy_p", "optimization_barrier", "sharding_constraint", "device_put", "name", "pvary"),
    *("layout_constraint", "unrollax_forward", "unrollax_jvp", "unrollax_vjp"),
}
DROPPED = {"debug_callback", "debug_print"}
Missing = list[tuple[str, tuple[Frame, ...]]]


def flatten(closed: Any, supported: Collection[str]) -> tuple[Program, Missing]:
    """Return a closed jaxpr as a program, and the primitives in it that are not supported."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    missing: Missing = []
    flattener = _Flattener(supported, missing, {})
    avals: list[Any] = [var.aval for var in jaxpr.invars]
    ins = [Value(aval.shape, aval.dtype) for aval in avals]
    outs = flattener.run(jaxpr, closed.consts, ins, ())
    program = Program(ins, flattener.ops, outs)
    program.prune()
    return program, missing


class _Flattener:
    def __init__(self, supported: Collection[str], missing: Missing, consts: dict[int, Value]) -> None:
        self.supported, self.missing, self.consts = supported, missing, consts
        self.ops: list[Op] = []
        self.seen: dict[Any, list[Value]] = {}

    def run(self, jaxpr: Any, consts: Any, args: list[Value], site: tuple[Frame, ...]) -> list[Value]:
        """Take in the equations of a jaxpr; return its outputs. `site` is the line that called it."""
        values = dict(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Value:
            return Value.of(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

        for eqn in jaxpr.eqns:
            outs = self.equation(
                eqn, [read(atom) for atom in eqn.invars], inside_call(site, frames_of(eqn.source_info))
            )
            values.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def constant(self, const: Any) -> Value:
        """Return the value of a constant; the same for the same array."""
        if id(const) not in self.consts:
            self.consts[id(const)] = const if isinstance(const, Value) else Value.of(const)
        return self.consts[id(const)]

    def equation(self, eqn: Any, ins: list[Value], frames: tuple[Frame, ...]) -> list[Value]:
        name, params = eqn.primitive.name, dict(eqn.params)
        if name in ALIASES:
            return ins
        if name == "platform_index":  # what is written for the CPU, or for any platform
            fit = [n for n, names in enumerate(params["platforms"]) if names is None or "cpu" in names]
            return [Value.of(fit[0], np.int32)]
        if name in DROPPED:
            return [Value((), np.bool_) for _ in eqn.outvars]
        if name in CALLS:
            solved = self.solve(params, ins, eqn, frames)
            return solved if solved else self.call(params[CALLS[name]], ins, frames)
        if name == "custom_linear_solve":
            return self.linear_solve(params, ins, frames)
        if name in ("scan", "while", "cond"):
            return getattr(self, f"{name}_op")(eqn, params, ins, frames)
        if name not in self.supported:
            self.missing.append((name, frames))
        kinds = [getattr(var.aval, "dtype", np.dtype(bool)) for var in eqn.outvars]
        if any(not isinstance(dtype, np.dtype) or dtype.kind not in "biufc" for dtype in kinds):
            self.missing.append((f"{name} of {kinds[0]}", frames))
            return [Value(var.aval.shape, np.bool_) for var in eqn.outvars]
        return self.emit(name, params, ins, [Value(var.aval.shape, var.aval.dtype) for var in eqn.outvars], frames)

    def emit(
        self, name: str, params: dict[str, Any], ins: list[Value], outs: list[Value], frames: tuple[Frame, ...]
    ) -> list[Value]:
        """Return what an operation gives: a value that there is already, or the outputs of a new operation."""
        if len(outs) == 1:
            out = outs[0]
            known = folded(name, params, ins, out)
            if known is not None and known.known is not None and not is_short(known.known):
                out.known, known = known.known, None  # worth knowing, but written as it is worked out
            known = known or decided(name, ins, out) or unchanged(name, params, ins, out)
            if known is not None:
                return [known]
            bound(name, params, ins, out)
            name, params, ins = indexed(name, params, ins)
        key = (name, repr(sorted(params.items(), key=lambda item: item[0])), tuple(map(id, ins)))
        if key not in self.seen:
            op = Op(name, params, ins, outs, frames)
            for out in outs:
                out.maker = op
            self.ops.append(op)
            self.seen[key] = outs
        return self.seen[key]

    def call(self, jaxpr: Any, args: list[Value], frames: tuple[Frame, ...]) -> list[Value]:
        """Inline a jaxpr."""
        return self.run(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), args, frames)

    def solve(self, params: dict[str, Any], ins: list[Value], eqn: Any, frames: tuple[Frame, ...]) -> list[Value]:
        """Take `jnp.linalg.solve` of one matrix as a whole, rather than as its pivots."""
        if params.get("name") != "solve" or len(ins) != 2 or ins[0].shape[-1] != ins[0].shape[-2]:
            return []
        names = [inner.primitive.name for inner in params["jaxpr"].jaxpr.eqns]
        plain = {
            "stop_gradient",
            "lu",
            "custom_linear_solve",
            "transpose",
            "reshape",
            "broadcast_in_dim",
            "squeeze",
            "jit",
        }
        if not {"lu", "custom_linear_solve"} <= set(names) <= plain:
            return []
        out = eqn.outvars[0].aval
        return self.emit("solve", {}, ins, [Value(out.shape, out.dtype)], frames)

    def linear_solve(self, params: dict[str, Any], ins: list[Value], frames: tuple[Frame, ...]) -> list[Value]:
        """Inline the solver of a linear solve with a derivative of its own."""
        lengths = params["const_lengths"]
        start = lengths.matvec + lengths.vecmat
        used = ins[start : start + lengths.solve]
        return self.call(params["jaxprs"].solve, [*used, *ins[sum(lengths) :]], frames)

    def program(self, jaxpr: Any, captured: list[Value], ins: list[Value], frames: tuple[Frame, ...]) -> Program:
        """Return a closed jaxpr as an inner program; it sees what it captures from around."""
        inner = _Flattener(self.supported, self.missing, self.consts)
        outs = inner.call(jaxpr, [*captured, *ins], frames)
        return Program(ins, inner.ops, outs)

    def new(self, op: Op) -> list[Value]:
        """Take in an operation with programs inside."""
        for inner in op.inner:
            inner.prune()
        for out in op.outs:
            out.maker = op
        self.ops.append(op)
        return op.outs

    def scan_op(self, eqn: Any, params: dict[str, Any], ins: list[Value], frames: tuple[Frame, ...]) -> list[Value]:
        consts, carried, length = params["num_consts"], params["num_carry"], params["length"]
        captured, inits, xs = ins[:consts], ins[consts : consts + carried], ins[consts + carried :]
        body = params["jaxpr"].jaxpr
        states = [Value(init.shape, init.dtype) for init in inits]
        fixed = [out is var for out, var in zip(body.outvars, body.invars[consts:], strict=False)][:carried]
        counters = [] if length == 0 else [n for n in range(carried) if counts(body, consts + n, n, inits[n])]
        for n in counters:
            first = int(inits[n].known)  # type: ignore[arg-type]
            states[n].bounds = first, first + length - 1
        rows = [Value(x.shape[1:], x.dtype) for x in xs]
        for row, x in zip(rows, xs, strict=True):
            row.bounds = x.bounds
        given = [init if same else state for init, same, state in zip(inits, fixed, states, strict=True)]
        inner = self.program(params["jaxpr"], captured, [*given, *rows], frames)
        outs = [Value(var.aval.shape, var.aval.dtype) for var in eqn.outvars]
        loose = [n for n in range(carried) if n not in counters and not fixed[n]]
        for n in counters:
            outs[n] = Value.of(int(inits[n].known) + length, inits[n].dtype)  # type: ignore[arg-type]
        for n in (n for n in range(carried) if fixed[n]):
            outs[n] = inits[n]
        inner.outs = [inner.outs[n] for n in loose] + inner.outs[carried:]
        inner.ins = [states[n] for n in loose] + rows
        kept = {
            "length": length,
            "reverse": params["reverse"],
            "carried": len(loose),
            "counters": [(states[n], int(inits[n].known)) for n in counters],  # type: ignore[arg-type]
        }
        new = [outs[n] for n in loose] + outs[carried:]
        self.new(Op("scan", kept, [*(inits[n] for n in loose), *xs], new, frames, (inner,)))
        return outs

    def while_op(self, eqn: Any, params: dict[str, Any], ins: list[Value], frames: tuple[Frame, ...]) -> list[Value]:
        ahead, body = params["cond_nconsts"], params["body_nconsts"]
        inits = ins[ahead + body :]
        states = [Value(init.shape, init.dtype) for init in inits]
        same = [
            out is var
            for out, var in zip(
                params["body_jaxpr"].jaxpr.outvars, params["body_jaxpr"].jaxpr.invars[body:], strict=True
            )
        ]
        given = [init if fixed else state for init, fixed, state in zip(inits, same, states, strict=True)]
        test = self.program(params["cond_jaxpr"], ins[:ahead], given, frames)
        step = self.program(params["body_jaxpr"], ins[ahead : ahead + body], given, frames)
        if test.outs[0].shape:  # under `vmap` each has a test of its own, and those that are done stay as they are
            test, step = self.each_for_itself(params, ins, given, frames)
        loose = [n for n, fixed in enumerate(same) if not fixed]
        outs = [init if fixed else Value(init.shape, init.dtype) for init, fixed in zip(inits, same, strict=True)]
        step.outs = [step.outs[n] for n in loose]
        step.ins = test.ins = [states[n] for n in loose]
        self.new(Op("while", {}, [inits[n] for n in loose], [outs[n] for n in loose], frames, (test, step)))
        return outs

    def each_for_itself(
        self, params: dict[str, Any], ins: list[Value], given: list[Value], frames: tuple[Frame, ...]
    ) -> tuple[Program, Program]:
        """Return the test and the body of a loop that runs until all tests fail."""
        ahead, body = params["cond_nconsts"], params["body_nconsts"]
        test = _Flattener(self.supported, self.missing, self.consts)
        go = test.call(params["cond_jaxpr"], [*ins[:ahead], *given], frames)[0]
        any_go = test.emit("reduce_or", {"axes": tuple(range(len(go.shape)))}, [go], [Value((), np.bool_)], frames)
        step = _Flattener(self.supported, self.missing, self.consts)
        go = step.call(params["cond_jaxpr"], [*ins[:ahead], *given], frames)[0]
        outs: list[Value] = []
        new = step.call(params["body_jaxpr"], [*ins[ahead : ahead + body], *given], frames)
        for before, after in zip(given, new, strict=True):
            wide = {"shape": after.shape, "broadcast_dimensions": tuple(range(len(go.shape)))}
            mask = step.emit("broadcast_in_dim", wide, [go], [Value(after.shape, np.bool_)], frames)
            outs += step.emit("select_n", {}, [*mask, before, after], [Value(after.shape, after.dtype)], frames)
        return Program([], test.ops, any_go), Program([], step.ops, outs)

    def cond_op(self, eqn: Any, params: dict[str, Any], ins: list[Value], frames: tuple[Frame, ...]) -> list[Value]:
        index, operands = ins[0], ins[1:]
        chosen = params["branches"]
        if index.known is not None:
            return self.call(chosen[int(np.clip(index.known, 0, len(chosen) - 1))], operands, frames)
        maker = index.maker
        if len(chosen) == 2 and maker is not None and maker.name == "convert_element_type":
            index = maker.ins[0] if maker.ins[0].dtype.kind == "b" else index  # a truth is one again
        inner = tuple(self.program(branch, operands, [], frames) for branch in chosen)
        outs = [Value(var.aval.shape, var.aval.dtype) for var in eqn.outvars]
        return self.new(Op("cond", {}, [index], outs, frames, inner))
