"""Speed of rules, online learning and import: `make bench`, or `python tests/bench.py`.

Every cell is a network and a batch. Its steps, one of a plain network with autograd and
torch.optim.SGD among them, are called in turn, so that load from elsewhere meets all of them alike;
10th percentiles are compared, of the thread's own time and of wall-clock time. One thread, single
precision. `bare products` are the matrix products of the step and nothing else, each into a tensor
that is already there.

BioTorch 0.0.16 is measured in the same process where --peer names a folder that holds it
(`pip install --no-deps --target FOLDER biotorch==0.0.16`; it needs no torchvision for this).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import itertools
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fabook
from fabook import networks
from fabook.measuring import step_times
from fabook.theory.refinetti2021 import online, reduced, simulation
from fabook.theory.song2021 import reduction

LR = 1e-3
BOOK = Path(__file__).resolve().parent.parent / "book"
PEER_MODES = {"FA": "fa", "DFA": "dfa", "uSF": "usf", "frSF": "frsf", "brSF": "brsf"}
Step = Callable[[], Any]
Cell = tuple[nn.Module, Tensor, Tensor]

# this thread's own time, where the clock is fine enough for a step of milliseconds
_fine = time.get_clock_info("thread_time").resolution < 1e-5
CLOCK = time.thread_time if _fine else time.perf_counter


# --- networks ------------------------------------------------------------------------------------


def _images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=fabook.stream(0, "images"))


def _mlp(width: int, n: int) -> Cell:
    net = fabook.mlp([784, width, width, width, 10], generator=fabook.stream(0, "weights"))
    return net, torch.randn(n, 784, generator=fabook.stream(0, "data")), _labels(n)


def _deep(n: int) -> Cell:
    net = fabook.mlp([1024] * 6 + [10], generator=fabook.stream(0, "weights"))
    return net, torch.randn(n, 1024, generator=fabook.stream(0, "data")), _labels(n)


def _labels(n: int) -> Tensor:
    return torch.randint(10, (n,), generator=fabook.stream(0, "labels"))


def _convnet(n: int) -> Cell:
    net = fabook.convnet(
        (3, 32, 32),
        [32, 64],
        [128],
        10,
        pool=2,
        activation="relu",
        generator=fabook.stream(0, "weights"),
    )
    return net, _images(n), _labels(n)


def _normed(n: int) -> Cell:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, width, pool in ((3, 32, False), (32, 32, True), (32, 64, False), (64, 64, True)):
        layers += [
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 10)), _images(n), _labels(n)


def _resnet(n: int) -> Cell:
    """ResNet-20 (He et al. 2016), 0.27 million parameters."""
    g = fabook.stream(0, "weights")
    return networks.resnet(3, [16, 32, 64], 10, blocks=3, generator=g), _images(n), _labels(n)


def _transformer(n: int) -> Cell:
    """Two encoder layers of width 128 over 64 positions; the classes from their mean."""
    g = fabook.stream(0, "weights")
    net = networks.transformer(100, 64, 10, width=128, hidden=512, pool=True, generator=g)
    words = torch.randint(100, (n, 64), generator=fabook.stream(0, "words"))
    return net, words, _labels(n)


CELLS: dict[str, Callable[[], Cell]] = {
    **{
        f"MLP 784-{w}-{w}-{w}-10, batch {n}": lambda w=w, n=n: _mlp(w, n)
        for w, n in itertools.product((100, 512, 2048), (64, 512))
    },
    "two convolutions, batch 64": lambda: _convnet(64),
    "four convolutions with batch norm, batch 64": lambda: _normed(64),
    "ResNet-20, batch 64": lambda: _resnet(64),
    "Transformer, batch 32": lambda: _transformer(32),
}
HEAVY = {"MLP 1024, six layers, batch 8192": lambda: _deep(8192)}  # for memory alone
# (cell, step): most, in units of the plain step; the last for the part of the limit that is reached
TARGETS = {
    **{
        ("MLP 784-512-512-512-10, batch 512", name): most
        for name, most in (
            *(("BP in place", 1.0), ("FA in place", 1.0), ("DFA in place", 0.82)),
            *(("uSF", 1.05), ("frSF", 1.05), ("KP", 1.05)),
        )
    },
    **{
        (f"{net}, batch 64", name): most
        for net in ("two convolutions", "four convolutions with batch norm")
        for name, most in (("BP", 1.05), ("FA", 1.05), ("DFA", 0.95))
    },
    ("ResNet-20, batch 64", "FA"): 1.1,
    ("Transformer, batch 32", "FA"): 1.1,
    ("ResNet-20, batch 64", "DFA"): 0.95,
}
REDUCED = 150  # ns
NOISE = 1.02  # a ratio up to here may be the measurement's own
LIMIT = ("MLP 784-512-512-512-10, batch 512", 0.85)


# --- steps ---------------------------------------------------------------------------------------


def _to(cell: Cell, device: str) -> Cell:
    net, x, y = cell
    return net.to(device), x.to(device), y.to(device)


def plain_step(
    net: nn.Module, x: Tensor, y: Tensor, call: Callable[..., Any] | None = None
) -> Step:
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy((call or net)(x), y).backward()
        optimizer.step()

    return step


def rule_steps(name: str, cell: Cell) -> dict[str, Step]:
    """The rule with an optimizer and, on a stack, in place."""
    net, x, y = cell
    g = fabook.stream(0, "feedback")
    rule = fabook.RULES[name](net, generator=g, example=x[:2].cpu() if x.is_cpu else x[:2])
    optimizer = torch.optim.SGD(rule.parameters(), lr=LR)

    def step() -> None:
        rule.backward(x, y)
        optimizer.step()

    found: dict[str, Step] = {name: step}
    if rule.is_stack and name in ("BP", "FA", "DFA"):
        found[f"{name} in place"] = lambda: rule.sgd_step(x, y, LR)
    return found


def peer_steps(cell: Cell) -> dict[str, Step]:
    """BioTorch's rules, or nothing where it is not installed or fails."""
    try:
        peer = importlib.import_module("biotorch.module.biomodule").BioModule
    except ImportError:
        return {}
    net, x, y = cell
    found: dict[str, Step] = {}
    for name, mode in PEER_MODES.items():
        direct = mode == "dfa"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                own = peer(
                    copy.deepcopy(net).cpu(), mode=mode, **({"output_dim": 10} if direct else {})
                )
            own = own.to(x.device)
            call = (lambda x, own=own: own(x, y, F.cross_entropy)) if direct else own
            step = plain_step(own, x, y, call)
            step()
        except Exception as error:
            print(f"BioTorch {name} fails: {type(error).__name__}: {str(error)[:80]}")
            continue
        found[f"{name} BioTorch"] = step
    return found


def bare_products(net: nn.Module, x: Tensor) -> dict[str, Step]:
    """The matrix products of a step: all three of each layer, or without the way down."""
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    n = len(x)
    ups, own, downs = [], [], []
    for index, layer in enumerate(layers):
        w = layer.weight.detach()
        m, k = w.shape
        h, z = x.new_ones(n, k), x.new_ones(n, m)
        ups.append((h, w.t(), x.new_empty(n, m)))
        own.append((z.t(), h, x.new_empty(m, k)))
        if index:
            downs.append((z, w, x.new_empty(n, k)))

    def run(products: list[Any]) -> None:
        for a, b, out in products:
            torch.mm(a, b, out=out)

    return {
        "bare products": lambda: run([*ups, *own, *downs]),
        "bare products, none down": lambda: run([*ups, *own]),
    }


def steps_of(label: str, device: str) -> dict[str, Step]:
    cell = _to(CELLS[label](), device)
    net, x, y = cell
    steps: dict[str, Step] = {"plain": plain_step(copy.deepcopy(net), x, y)}
    for name in fabook.RULES:
        steps |= rule_steps(name, (copy.deepcopy(net), x, y))
    steps |= peer_steps((copy.deepcopy(net), x, y))
    return steps | (bare_products(net, x) if label.startswith("MLP") else {})


def interleaved(steps: dict[str, Step], seconds: float, device: str) -> dict[str, dict[str, float]]:
    """Milliseconds of each step: 10th percentiles of the thread's and of wall-clock time."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    for _, step in itertools.product(range(2), steps.values()):
        step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    end, rounds = time.monotonic() + seconds, 0
    while rounds < 5 or (time.monotonic() < end and rounds < 300):
        for name, step in steps.items():
            wait()
            wall, own = time.perf_counter(), CLOCK()
            step()
            wait()
            times[name].append((CLOCK() - own, time.perf_counter() - wall))
        rounds += 1
    tenth = {name: 1e3 * np.quantile(t, 0.1, axis=0) for name, t in times.items()}
    return {name: {"thread": float(t[0]), "wall": float(t[1])} for name, t in tenth.items()}


def peak_mib(device: str, *, reset: bool = False) -> float:
    """High-water mark of memory; `reset` begins a new one. Linux, or CUDA; else NaN.

    getrusage will not do: a new process inherits its parent's mark.
    """
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.max_memory_allocated()) / 2**20
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    return float("nan")


def memory(label: str, name: str, device: str) -> float:
    """MiB that three steps take over what was there before; call it in a fresh process."""
    cell = _to((CELLS | HEAVY)[label](), device)
    net, x, y = cell
    step = plain_step(net, x, y) if name == "plain" else rule_steps(name, cell)[name]
    before = peak_mib(device, reset=True)
    for _ in range(3):
        step()
    return peak_mib(device) - before


def memories(device: str) -> dict[str, dict[str, float]]:
    labels = [*HEAVY, "four convolutions with batch norm, batch 64"]
    labels += ["ResNet-20, batch 64", "Transformer, batch 32"]
    found: dict[str, dict[str, float]] = {}
    for label in labels:
        for name in ("plain", "BP", "FA", "DFA"):
            command = [sys.executable, __file__, "--memory", label, name, "--device", device]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.setdefault(label, {})[name] = float(done.stdout.split()[-1])
    return found


# --- online learning, reductions, import ---------------------------------------------------------


def online_microseconds(repeats: int, runs: int, device: str, steps: int = 500) -> float:
    """Time of one step of one of many stacked runs (N=500, K=4, M=2)."""
    start = simulation.initial_conditions(range(runs), 500, 4, 2)
    options = {"rule": "DFA", "lr": 0.1, "steps": steps, "probe_at": [steps], "progress": False}

    def run() -> None:
        simulation.train_online(start, generator=fabook.stream(0, "inputs"), **options)

    return 1e6 * step_times({"run": run}, repeats=repeats, clock=CLOCK)["run"] / (runs * steps)


def reduced_nanoseconds(repeats: int, N: int = 20_000) -> dict[str, float]:
    """A step of one of 4,096 reduced runs (K=M=2), and of one of 8 direct runs, in nanoseconds."""
    many, few, options = range(4096), range(8), {"rule": "DFA", "lr": 0.5, "progress": False}
    steps: dict[str, Step] = {}
    for name, dtype in (("double", torch.float64), ("single", torch.float32)):
        start = reduced.initial_conditions(many, N, 2, 2, dtype=dtype)
        steps[name] = lambda start=start: reduced.train_online(
            start, steps=100, probe_at=[100], generator=fabook.stream(0, "inputs"), **options
        )
        direct = simulation.initial_conditions(few, N, 2, 2, dtype=dtype)
        steps[f"direct, {name}"] = lambda direct=direct: simulation.train_online(
            direct, steps=20, probe_at=[20], generator=fabook.stream(0, "inputs"), **options
        )
    seconds = step_times(steps, repeats=repeats, clock=CLOCK)
    each = {name: 20 * len(few) if "direct" in name else 100 * len(many) for name in steps}
    return {name: 1e9 * t / each[name] for name, t in seconds.items()}


def reduction_ratios(repeats: int, width: int = 12_800, steps: int = 20) -> dict[str, float]:
    """Steps of FA on 150-12800-1 with 50 samples, in units of autograd's on the same network."""
    ratios = {}
    for activation in ("linear", "relu", "tanh"):
        g = fabook.streams(0, activation)
        net = fabook.two_layer(150, width, activation=activation, generator=g.weights)
        rule = fabook.FA(net, init="standard_normal", generator=g.feedback)
        x = torch.randn(50, 150, generator=g.data)
        y = x[:, :1].clone()
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)

        def plain(net: nn.Module = net, optimizer: Any = optimizer, x: Any = x, y: Any = y) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                F.mse_loss(net(x), y).backward()
                optimizer.step()

        def in_place(rule: Any = rule, x: Any = x, y: Any = y) -> None:
            for _ in range(steps):
                rule.sgd_step(x, y, LR, loss="mse")

        runs = {
            "plain": plain,
            "FA in place": in_place,
            "pre-activations": lambda rule=rule, x=x, y=y: reduction.train_two_layer(
                rule, x, y, lr=LR, steps=steps
            ),
        }
        if activation == "linear":
            start = reduction.linear_runs([rule] * 10, [x] * 10, [y] * 10)
            runs["10 runs of n-vectors"] = lambda start=start: reduction.train_linear(
                start, lr=LR, steps=steps
            )
        seconds = step_times(runs, repeats=repeats, clock=CLOCK)
        plain_seconds = seconds.pop("plain")
        ratios |= {f"{activation}, {name}": t / plain_seconds for name, t in seconds.items()}
    return ratios


IMPORTS = {
    "torch": "import torch",
    "import fabook": "import fabook",
    "fabook, all that computes": (
        "from fabook.theory.refinetti2021 import online, reduced, simulation"
    ),
}


def import_seconds(repeats: int) -> dict[str, float]:
    """The least time of each import, each in a fresh process, in turn."""

    def seconds(statement: str) -> float:
        code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return float(done.stdout)

    times = [{name: seconds(code) for name, code in IMPORTS.items()} for _ in range(repeats)]
    return {name: min(t[name] for t in times) for name in IMPORTS}


def ode_milliseconds(repeats: int) -> float:
    """The order parameters' equations of one run, K=4 and M=2, to time 100."""
    start = simulation.initial_conditions([0], 500, 4, 2).order_parameters()
    times = [0.0, 100.0]

    def solve() -> None:
        online.online_dynamics(**start, lr=0.1, times=times)

    return 1e3 * step_times({"solve": solve}, repeats=repeats, clock=CLOCK)["solve"]


def machine(device: str) -> dict[str, Any]:
    """What the numbers belong to."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def measure(seconds: float, device: str) -> dict[str, Any]:
    cells = {}
    for label in CELLS:
        print(label, flush=True)
        cells[label] = interleaved(steps_of(label, device), seconds, device)
    found = {"machine": machine(device), "cells": cells, "memory": memories(device)}
    repeats = max(3, round(seconds / 4))
    found["online"] = {str(n): online_microseconds(repeats, n, device) for n in (1, 64, 1024)}
    found["ode"] = ode_milliseconds(repeats)
    found["reduced"] = reduced_nanoseconds(repeats)
    found["reductions"] = reduction_ratios(repeats)
    found["imports"] = import_seconds(repeats)
    return found


# --- what the page shows -------------------------------------------------------------------------


def ratios(cell: dict[str, dict[str, float]], clock: str = "thread") -> dict[str, float]:
    return {name: t[clock] / cell["plain"][clock] for name, t in cell.items()}


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def missed(found: dict[str, Any]) -> list[str]:
    """Targets that are not met, and cells in which BioTorch is faster, in words."""
    lines = []
    for (label, name), most in TARGETS.items():
        got = ratios(found["cells"][label])[name]
        if got > most:
            lines.append(f"{label}: {name} takes {got:.2f} of autograd; at most {most} was wanted.")
    label, least = LIMIT
    cell = found["cells"][label]
    for name in ("BP", "FA", "DFA"):
        limit = "bare products" + (", none down" if name == "DFA" else "")
        part = cell[limit]["thread"] / cell[f"{name} in place"]["thread"]
        if part < least:
            lines.append(
                f"{label}: {name} in place reaches {part:.1%} of the {limit}; "
                f"{least:.0%} was wanted."
            )
    for kind in ("double", "single"):
        if found["reduced"][kind] > REDUCED:
            lines.append(
                f"reduced simulation: {found['reduced'][kind]:.0f} ns a step in {kind} precision; "
                f"at most {REDUCED} was wanted."
            )
    for label, cell in found["cells"].items():
        for name in PEER_MODES:
            peer = cell.get(f"{name} BioTorch")
            if peer and peer["thread"] < cell[name]["thread"]:
                part = peer["thread"] / cell[name]["thread"]
                lines.append(f"{label}: BioTorch's {name} takes {part:.2f} of ours.")
        ours = {
            n: r for n, r in ratios(cell).items() if n.removesuffix(" in place") in fabook.RULES
        }
        lines += _above(label, "slower than autograd", ours)
    for label, of in found["memory"].items():
        parts = {name: mib / of["plain"] for name, mib in of.items()}
        lines += _above(label, "more memory than autograd", parts)
    return lines


def _above(label: str, what: str, parts: dict[str, float]) -> list[str]:
    """Every ratio above 1 by more than the measurement's noise, in one line."""
    shown = ", ".join(f"{name} {part:.2f}" for name, part in parts.items() if part > NOISE)
    return [f"{label}: {what}: {shown}."] if shown else []


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _rule_tables(cells: dict[str, Any], names: list[str]) -> list[str]:
    parts = []
    titles = {
        "thread": "The nine rules, with an optimizer",
        "wall": "The same by the clock on the wall",
    }
    for clock, title in titles.items():
        rows = []
        for label, cell in cells.items():
            r = ratios(cell, clock)
            rows.append([label, f"{cell['plain'][clock]:.1f}", *(_shown(r[n]) for n in names)])
        parts.append(f"## {title}\n\n" + _table(["", "autograd, ms", *names], rows))
    return parts


def _stack_table(cells: dict[str, Any]) -> str:
    rows = []
    for label, cell in cells.items():
        if "BP in place" not in cell:
            continue
        r, reached = ratios(cell), []
        for limit, name in (("bare products", "FA"), ("bare products, none down", "DFA")):
            part = (
                cell[limit]["thread"] / cell[f"{name} in place"]["thread"] if limit in cell else 0
            )
            reached.append(f"{part:.0%}" if part else "")
        rows.append([label, *(_shown(r[f"{n} in place"]) for n in ("BP", "FA", "DFA")), *reached])
    header = ["", "BP", "FA", "DFA", "FA: part of the limit", "DFA: part of the limit"]
    what = (
        "In units of autograd with SGD. *Part of the limit*: the time of the step's matrix "
        "products alone, timed apart, over that of the step; above 100 % the products alone were "
        "slower.\n\n"
    )
    return "## Stacks, plain gradient descent in place\n\n" + what + _table(header, rows)


def _peer_table(cells: dict[str, Any]) -> list[str]:
    rows = []
    for label, cell in cells.items():
        if any(f"{n} BioTorch" in cell for n in PEER_MODES):
            both = [(cell.get(f"{n} BioTorch"), cell[n]) for n in PEER_MODES]
            rows.append([label, *(_shown(p and p["thread"] / own["thread"]) for p, own in both)])
    title = (
        "## BioTorch 0.0.16, in units of ours\n\nIt is installed without the PyTorch that it pins, "
        "and runs in the same process under ours.\n\n"
    )
    return [title + _table(["", *PEER_MODES], rows)] if rows else []


def tables(found: dict[str, Any]) -> str:
    """The tables of the page, in Markdown."""
    cells = found["cells"]
    parts = [*_rule_tables(cells, list(fabook.RULES)), _stack_table(cells), *_peer_table(cells)]
    first = next(iter(found["memory"].values()))
    rows = [
        [label, *(f"{v:.0f}" for v in cell.values())] for label, cell in found["memory"].items()
    ]
    parts.append("## Peak memory of three steps, MiB\n\n" + _table(["", *first], rows))
    header = ["µs for a step of one run, of as many", *found["online"], "ODE to time 100, ms"]
    row = ["teacher-student, N=500, K=4, M=2", *(f"{v:.1f}" for v in found["online"].values())]
    parts.append("## Online learning\n\n" + _table(header, [[*row, f"{found['ode']:.0f}"]]))
    law = found["reduced"]
    rows = [
        [kind, f"{law[kind]:.0f}", f"{law[f'direct, {kind}'] / law[kind]:.0f}"]
        for kind in ("double", "single")
    ]
    header = ["reduced simulation, N=20,000, K=M=2, 4,096 runs", "ns", "of a direct step, one in"]
    parts.append(_table(header, rows))
    imports = found["imports"]
    rows = [[name, f"{t:.2f}", f"{t / imports['torch']:.2f}"] for name, t in imports.items()]
    parts.append("## Import\n\n" + _table(["", "s", "of torch"], rows))
    lines = missed(found) or ["Nowhere in this run."]
    parts.append(
        f"## Where we are not ahead\n\nRatios up to {NOISE}, which may be noise, are left out.\n\n"
        + "\n".join(f"- {line}" for line in lines)
    )
    m, where = found["machine"], _where(found["machine"])
    parts.append(
        f"Measured on {where} ({m['cores']} cores, {m['threads']} thread used), {m['system']}, "
        f"Python {m['python']}, PyTorch {m['torch']}, {m['date']}, at a load of {m['load']:.1f}."
    )
    for where, other in found.get("elsewhere", {}).items():
        parts.append(
            f"### On {where}\n\nMeasured {other['date']}, at a load of {other['load']:.1f}.\n\n"
            + "\n".join(f"- {line}" for line in other["missed"])
        )
    return "\n\n".join(parts) + "\n"


def _where(machine: dict[str, Any]) -> str:
    cpu, device = machine["cpu"], machine["device"]
    return cpu if device == "cpu" else f"{device}, {cpu}"


def elsewhere(before: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """Where we were not ahead on other machines: what the last page said, and what it kept."""
    m = before["machine"]
    last = {_where(m): {"date": m["date"], "load": m["load"], "missed": missed(before)}}
    kept = before.get("elsewhere", {}) | last
    return {where: entry for where, entry in kept.items() if where != _where(here)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to FILE")
    parser.add_argument("--page", action="store_true", help="write the numbers into the book")
    parser.add_argument("--seconds", type=float, default=20, help="for each cell, at least")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--peer", metavar="FOLDER", help="where BioTorch is installed")
    parser.add_argument("--memory", nargs=2, metavar=("CELL", "STEP"), help="that of one step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peer's
    if args.peer:
        sys.path.append(args.peer)
    if args.memory:
        print(memory(*args.memory, args.device))
        return 0
    found = measure(args.seconds, args.device)
    print(tables(found))
    if args.page:
        file = BOOK / "benchmark.json"
        found["elsewhere"] = elsewhere(json.loads(file.read_text()), found["machine"])
        file.write_text(json.dumps(found, indent=1) + "\n")
        page = BOOK / "benchmark.md"
        above = page.read_text().partition("## The nine rules")[0]
        page.write_text(above + tables(found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
