"""Every model of cases.py on both sides: passes, greedy text, training, files.

    run.sh test_architectures.py [--quick] [NAME...]

--quick takes the first model of each family, a NAME those whose name begins with it. Each line
gives the largest distance met, and in 16 bits the largest and the median error beside that of drawn
roundings (see compare.py)."""

import argparse
import multiprocessing
import os
import sys
import tempfile
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from typing import Iterator

import cases
import choices
import compare
import here
import moenn
import peer
import steps


def compare_case(case: cases.Case) -> tuple[str, str]:
    """The distances, and what went wrong."""
    found: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            compare_sides(case, Path(folder), found)
        wrong = ""
    except (compare.Mismatch, moenn.MoennError) as error:
        wrong = f"{type(error).__name__}: {error}"
    except Exception:
        wrong = traceback.format_exc()
    return " ".join(f"{name} {value:.1e}" for name, value in found.items()), wrong


def compare_sides(case: cases.Case, folder: Path, found: dict[str, float]) -> None:
    theirs = peer.build(case)
    peer.write(theirs, folder / "published")
    ours = here.read(folder / "published")
    compare.same_bits("published names", here.parameters(ours), peer.tensors(folder / "published"))
    batch = choices.choose_batch(theirs, case)
    found |= steps.passes(ours, theirs, batch)
    found |= steps.greedy(ours, theirs)
    if ours.config.rope_scaling in steps.STRETCHED:
        found["stretched"] = steps.stretched(ours, theirs)
    steps.types(theirs, folder)
    steps.layouts(ours, theirs, folder)
    for dtype in ("BF16", "F16"):
        half = folder / dtype
        sides = here.read(half), peer.read(half, dtype), peer.read(half)
        shares = steps.half(dtype, *sides, batch)
        found |= {f"{dtype} {name}": share for name, share in shares.items()}
    found["trained"] = steps.training(ours, theirs, batch)
    found["saved"] = steps.saved(ours, batch, folder / "saved")


def outcomes(taken: list[cases.Case]) -> Iterator[tuple[cases.Case, str, str]]:
    """What compare_case() found, as each ends. Every case has a process of its own: one that dies
    is that case's failure."""
    fork = multiprocessing.get_context("fork")
    waiting, running = list(taken), {}
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            case = waiting.pop(0)
            pipe, end = fork.Pipe(duplex=False)
            process = fork.Process(target=lambda: end.send(compare_case(case)))
            process.start()
            end.close()
            running[pipe] = case, process
        for pipe in wait(list(running)):
            case, process = running.pop(pipe)
            try:
                found, wrong = pipe.recv()
            except EOFError:
                process.join()
                found, wrong = "", f"its process died with exit code {process.exitcode}"
            process.join()
            yield case, found, wrong


def chosen(arguments: argparse.Namespace) -> list[cases.Case]:
    taken, families = [], set()
    for case in cases.CASES:
        if not (arguments.quick and case.model_type in families):
            taken.append(case)
        families.add(case.model_type)
    return [c for c in taken if not arguments.names or c.name.startswith(tuple(arguments.names))]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    taken = chosen(parser.parse_args())
    failed = 0
    for case, found, wrong in outcomes(taken):
        print(f"{case.name}: {found}", flush=True)
        if wrong:
            print(f"  FAILED {wrong}", flush=True)
        failed += bool(wrong)
    print(f"{len(taken)} models, {failed} failed")
    return 1 if failed or not taken else 0


if __name__ == "__main__":
    sys.exit(main())
