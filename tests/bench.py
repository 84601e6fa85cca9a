"""Speed of rules, online learning and import, against targets: `python tests/bench.py`.

Every ratio is to one step of a plain network: nn.Linear, autograd and torch.optim.SGD;
784-512-512-512-10, tanh, batch 128, single precision, one thread. All steps are called in turn, so
that load from elsewhere meets all of them alike; the 10th percentiles of the thread's own time are
compared.

Where the gain comes from: no graph, and no product that is not used.

The reductions of :mod:`fabook.theory.song2021.reduction` are compared with autograd on the same
two-layer network, 150-12800-1 with 50 samples in one batch.

BioTorch 0.0.16 is compared where it is importable (`pip install --no-deps --target FOLDER biotorch`
and PYTHONPATH=FOLDER; its linear layers need no torchvision).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fabook
from fabook.theory.refinetti2021 import reduced, simulation
from fabook.theory.song2021 import reduction
from fabook.training import step_times

LR = 1e-3
TARGETS = {  # (rule, path): largest ratio allowed
    ("DFA", ".grad + SGD"): 0.78,
    ("FA", ".grad + SGD"): 0.95,
    ("BP", ".grad + SGD"): 0.95,
    ("DFA", "in place"): 0.68,
    ("FA", "in place"): 0.85,
    ("BP", "in place"): 0.85,
}
ONLINE_TARGET, IMPORT_TARGET = 5.0, 1.2
REDUCED_TARGET, GAIN_TARGET = 150.0, 500.0  # nanoseconds at most, times cheaper at least

Step = Callable[[], Any]

# this thread's own time, where the clock is fine enough for a step of milliseconds
_fine = time.get_clock_info("thread_time").resolution < 1e-5
CLOCK = time.thread_time if _fine else time.perf_counter


def network() -> nn.Sequential:
    return fabook.mlp([784, 512, 512, 512, 10], generator=fabook.stream(0, "weights"))


def plain_step(net: nn.Module, x: Tensor, y: Tensor) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def rule_step(name: str, path: str, x: Tensor, y: Tensor) -> Step:
    net = network()
    rule = fabook.RULES[name](net, generator=fabook.stream(0, "feedback"))
    if path == "in place":
        return lambda: rule.sgd_step(x, y, LR)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def step() -> None:
        rule.backward(x, y)
        optimizer.step()

    return step


def peer_steps(x: Tensor, y: Tensor) -> dict[str, Step]:
    """BioTorch's FA and DFA, or nothing where it is not installed."""
    if importlib.util.find_spec("biotorch") is None:
        return {}
    from biotorch.module.biomodule import BioModule

    with contextlib.redirect_stdout(io.StringIO()):
        fa = BioModule(copy.deepcopy(network()), mode="fa")
        dfa = BioModule(copy.deepcopy(network()), mode="dfa", output_dim=10)
    optimizer = torch.optim.SGD([p for p in dfa.parameters() if p.requires_grad], lr=LR)

    def dfa_step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(dfa(x, y, F.cross_entropy), y).backward()
        optimizer.step()

    return {"FA BioTorch": plain_step(fa, x, y), "DFA BioTorch": dfa_step}


def step_ratios(repeats: int) -> tuple[float, dict[str, float]]:
    """Milliseconds of the plain step, and every other step in units of it."""
    g = fabook.stream(0, "data")
    x, y = torch.randn(128, 784, generator=g), torch.randint(10, (128,), generator=g)
    steps: dict[str, Step] = {"plain": plain_step(network(), x, y)}
    for name, path in TARGETS:
        steps[f"{name} {path}"] = rule_step(name, path, x, y)
    steps |= peer_steps(x, y)
    seconds = step_times(steps, repeats=repeats, clock=CLOCK)
    plain = seconds.pop("plain")
    return 1e3 * plain, {name: t / plain for name, t in seconds.items()}


def online_microseconds(repeats: int, steps: int = 1000) -> float:
    """Time of one step of one of 64 stacked runs (N=500, K=4, M=2)."""
    start = simulation.initial_conditions(range(64), 500, 4, 2)
    options = {"rule": "DFA", "lr": 0.1, "steps": steps, "probes": [steps], "progress": False}

    def run() -> None:
        simulation.train_online(start, generator=fabook.stream(0, "inputs"), **options)

    return 1e6 * step_times({"run": run}, repeats=repeats, clock=CLOCK)["run"] / (64 * steps)


def reduced_nanoseconds(repeats: int, N: int = 20_000) -> tuple[float, float]:
    """A step of one of 4,096 reduced runs (K=M=2), and the step of a direct run over it."""
    many, few, options = range(4096), range(8), {"rule": "DFA", "lr": 0.5, "progress": False}
    start = reduced.initial_conditions(many, N, 2, 2)
    direct = simulation.initial_conditions(few, N, 2, 2)
    steps: dict[str, Step] = {
        "law": lambda: reduced.train_online(
            start, steps=100, probes=[100], generator=fabook.stream(0, "inputs"), **options
        ),
        "direct": lambda: simulation.train_online(
            direct, steps=20, probes=[20], generator=fabook.stream(0, "inputs"), **options
        ),
    }
    seconds = step_times(steps, repeats=repeats, clock=CLOCK)
    law = seconds["law"] / (100 * len(many))
    return 1e9 * law, seconds["direct"] / (20 * len(few)) / law


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
    "with theory": "from fabook.theory.refinetti2021 import online, reduced, simulation",
}


def import_seconds(repeats: int) -> dict[str, float]:
    """The least time of each import, each in a fresh process, in turn."""

    def seconds(statement: str) -> float:
        code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return float(done.stdout)

    times = [{name: seconds(code) for name, code in IMPORTS.items()} for _ in range(repeats)]
    return {name: min(t[name] for t in times) for name in IMPORTS}


def measure(repeats: int) -> dict[str, Any]:
    plain, ratios = step_ratios(repeats)
    imports = import_seconds(max(3, repeats // 30))
    alone = imports.pop("torch")
    rows = [
        {
            "name": f"{name} {path}",
            "target": target,
            "measured": ratios[f"{name} {path}"],
        }
        for (name, path), target in TARGETS.items()
    ]
    rows += [
        {"name": name, "target": None, "measured": t} for name, t in ratios.items() if "Bio" in name
    ]
    online = online_microseconds(max(3, repeats // 20))
    rows.append(
        {"name": "64 online runs, us a run-step", "target": ONLINE_TARGET, "measured": online}
    )
    law, gain = reduced_nanoseconds(max(5, repeats // 8))
    rows.append(
        {"name": "4096 reduced runs, ns a run-step", "target": REDUCED_TARGET, "measured": law}
    )
    rows.append(
        {"name": "direct / reduced at N = 20,000", "at least": GAIN_TARGET, "measured": gain}
    )
    rows += [
        {"name": f"150-12800-1 {name}", "target": None, "measured": ratio}
        for name, ratio in reduction_ratios(max(3, repeats // 20)).items()
    ]
    rows += [
        {"name": f"{name} / torch", "target": IMPORT_TARGET, "measured": t / alone}
        for name, t in imports.items()
    ]
    return {
        "rows": rows,
        "plain_step_ms": plain,
        "import_torch_s": alone,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def report(found: dict[str, Any]) -> bool:
    """Print the table; say whether every target is met."""
    print(
        f"plain step {found['plain_step_ms']:.2f} ms, load {found['load']}, torch {found['torch']}"
    )
    print(f"{'':42}{'target':>8}{'measured':>10}")
    every = True
    for row in found["rows"]:
        most, least = row.get("target"), row.get("at least")
        cells = [least if most is None else most, row["measured"]]
        shown = ["" if cell is None else f"{cell:.2f}" for cell in cells]
        met = (most is None or row["measured"] <= most) and row["measured"] >= (least or 0)
        every &= met
        print(f"{row['name']:42}{shown[0]:>8}{shown[1]:>10}{'' if met else '  missed'}")
    return every


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed against targets; exits 1 if one is missed.")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to FILE")
    parser.add_argument("--repeats", type=int, default=150, help="calls of each step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peer's
    found = measure(args.repeats)
    met = report(found)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file, indent=1)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
