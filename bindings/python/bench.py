#!/usr/bin/env python3
"""What the package costs on top of the library: a trivial getter, a long call's way to the worker
thread and back, a training step of `small`; and the example against the C program, where BUILD_DIR
holds one.

    MOENN_LIBRARY=.../libmoenn.so BUILD_DIR=... python bench.py [--threads N] [--steps N] [--check]

--check fails where a getter takes more than 5 microseconds, or the package more than 3 % of a step.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path
from typing import Any, Callable, List

import numpy as np

import moenn
from moenn import _handle, _library

HERE = Path(__file__).resolve().parent
GETTER_US, STEP_SHARE = 5.0, 0.03


def microseconds(call: Callable[[], Any], number: int = 20000) -> float:
    return 1e6 * min(timeit.repeat(call, number=number, repeat=5)) / number


def getters(device: moenn.Device, model: moenn.Model) -> float:
    tokenizer, session = moenn.Tokenizer(), moenn.Session(model)
    adamw, parameter = moenn.Optimizer(model), model.parameter(model.parameter_names[0])
    data = moenn.Dataset.from_tokens(range(100), seq_len=4)
    slowest = 0.0
    for name, call in (("tokenizer.vocab_size", lambda: tokenizer.vocab_size),
                       ("optimizer.steps", lambda: adamw.steps),
                       ("session.length()", lambda: session.length()),
                       ("dataset.position", lambda: data.position),
                       ("tensor.shape", lambda: parameter.shape)):
        cost = microseconds(call)
        slowest = max(slowest, cost)
        print(f"{name:24} {cost:6.2f} us")
    print(
        f"{'device.memory':24} {microseconds(lambda: device.memory):6.2f} us, a struct of numbers")
    return slowest


class Inside:
    """Adds up the time within functions of the library."""

    def __init__(self, names: List[str]) -> None:
        self.seconds = 0.0
        for name in names:
            setattr(_library.lib, name, self.timed(getattr(_library.lib, name)))

    def timed(self, function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            start = time.perf_counter()
            status = function(*arguments)
            self.seconds += time.perf_counter() - start
            return status
        return call


def step_share(model: moenn.Model, steps: int) -> float:
    """The package's share of a training step: all of it but what passes within the library."""
    adamw = moenn.Optimizer(model, grad_clip=1.0)
    data = moenn.Dataset.from_tokens(np.arange(100000) % 251, batch=4, seq_len=256, shuffle=True)
    inside = Inside(["nn_dataset_next", "nn_model_zero_grad", "nn_model_backward", "nn_optim_step"])
    shares = []
    for _ in range(steps):
        inside.seconds, start = 0.0, time.perf_counter()
        tokens, targets = data.next()
        model.zero_grad()
        model.backward(tokens, targets)
        adamw.step(1e-3)
        total = time.perf_counter() - start
        shares.append((total - inside.seconds) / total)
    return float(np.median(shares))


def tokens_per_second(command: List[object], folder: Path) -> float:
    said = subprocess.run([str(part) for part in command], cwd=folder, check=True, text=True,
                          errors="replace", stdout=subprocess.PIPE).stdout
    return float(re.findall(r"(\d+) tokens/s", said)[-1])


def against_c(program: Path, steps: int, threads: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").write_text("the quick brown fox jumps over the lazy dog\n" * 1000)
        options = ["text", "--steps", steps, "--threads", threads or os.cpu_count()]
        rounds = [(tokens_per_second([program, *options], folder),
                   tokens_per_second([sys.executable, HERE / "examples/train_tiny.py", *options],
                                     folder)) for _ in range(3)]
    c, python = (max(speeds) for speeds in zip(*rounds))
    print(f"train_tiny, best of 3    C {c:.0f} tokens/s, Python {python:.0f}: "
          f"{100 * (c / python - 1):+.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--check", action="store_true")
    settings = parser.parse_args()
    with moenn.Device(threads=settings.threads) as device, moenn.Model(device, "small") as model:
        model.prepare(batch=4, seq_len=256)
        slowest = getters(device, model)
        cost = microseconds(lambda: _handle.run(model._device, lambda: None), 2000)
        print(f"{'to the worker and back':24} {cost:6.2f} us")
        share = step_share(model, settings.steps)
        print(f"{'training step of small':24} {100 * share:6.2f} % is the package's")
    program = Path(os.environ.get("BUILD_DIR", "nothing")) / "train_tiny"
    if program.exists():
        against_c(program, settings.steps, settings.threads)
    if settings.check and (slowest > GETTER_US or share > STEP_SHARE):
        sys.exit(f"bench: more than {GETTER_US} us a getter or {100 * STEP_SHARE:g} % a step")


if __name__ == "__main__":
    main()
