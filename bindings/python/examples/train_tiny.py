"""Trains a small mixture-of-experts model on the bytes of a text, as examples/train_tiny.c does:
with the same seed and build it has the same losses, to the last bit."""
import argparse
import os
import sys
import time
from pathlib import Path
from typing import List, Optional

import numpy as np

import moenn

BATCH, LENGTH = 4, 256  # sequences in a step, bytes in a sequence
PARTS, SHORT_CHECK = 20, 16  # progress lines; batches of a validation on the way


def read_settings(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="the first 90 %% train, the last 10 %% validate")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of weights, data and sample")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:0")
    parser.add_argument("--threads", type=int, default=0, help="that compute; 0: one per core")
    parser.add_argument("--out", type=Path, default=Path("tiny-model"),
                        help="where the model is saved")
    settings = parser.parse_args(arguments)
    if settings.steps < 1:
        parser.error("--steps takes a number of at least 1")
    return settings


def validate(model: moenn.Model, data: moenn.Dataset, batches: int) -> float:
    """Nats per byte over the validation part, or its first batches."""
    nats, count = 0.0, 0
    data.seek(0)
    for _ in range(min(batches, data.info.batches)):
        loss = model.evaluate(*data.next())
        nats, count = nats + loss.loss * loss.targets, count + loss.targets
    return nats / count


def train(settings: argparse.Namespace, device: moenn.Device, model: moenn.Model,
          data: moenn.Dataset, valid: moenn.Dataset) -> None:
    schedule = moenn.Schedule(moenn.ScheduleKind.COSINE, lr=1.5e-3, min_lr=1.5e-5, warmup_steps=50,
                              total_steps=1000)
    adamw = moenn.Optimizer(model, weight_decay=0.1, grad_clip=1.0)
    megabytes, start, share, lines = 1e-6 * device.memory.current_bytes, time.monotonic(), 0.0, 0
    for step in range(1, settings.steps + 1):
        tokens, targets = data.next()
        model.zero_grad()
        loss = model.backward(tokens, targets)
        adamw.step(schedule(int(share * 1000)))
        seconds, share = time.monotonic() - start, step / settings.steps
        if share * PARTS >= lines + 1:
            lines += 1
            rate = step * BATCH * LENGTH / seconds
            print(
                f"step {step:4d}  loss {loss.loss:.4f}  {rate:.0f} tokens/s"
                f"  {megabytes:.0f} MB  {seconds / share - seconds:.0f} s left", flush=True)
            if lines % 5 == 0 and share < 1:
                print(f"validation loss about {validate(model, valid, SHORT_CHECK):.4f}",
                      flush=True)


def measure(model: moenn.Model, valid: moenn.Dataset) -> None:
    """Validation loss, and how evenly it used the experts."""
    model.reset_expert_stats()
    print(f"validation loss {validate(model, valid, sys.maxsize):.4f} nats per byte")
    for layer in range(model.config.layers):
        use = model.expert_stats(layer)
        print(f"layer {layer}: entropy of expert use {use.entropy:.3f} of 1, the busiest has "
              f"{use.max_load:.2f} times its share")


def write_sample(model: moenn.Model, seed: int) -> None:
    with moenn.Session(model) as session:
        sampling = moenn.Sampling(temperature=0.8, seed=seed)
        for piece in session.write(moenn.Tokenizer(), "\n", sampling=sampling):
            print(piece, end="", flush=True)
    print("\n")


def save_and_prove(settings: argparse.Namespace, device: moenn.Device, model: moenn.Model,
                   data: moenn.Dataset) -> None:
    """Saves, loads, and compares every logit of a batch, bit for bit."""
    model.save(settings.out)
    tokens, _ = data.next()
    with moenn.Model.load(device, settings.out) as loaded:
        loaded.prepare(batch=BATCH, seq_len=LENGTH)
        if not np.array_equal(model.forward(tokens), loaded.forward(tokens)):
            raise SystemExit(f"{settings.out}: other logits")
    print(f"saved in {settings.out}; reloaded, it gives the same logits, bit for bit")


def main(arguments: Optional[List[str]] = None) -> int:
    settings = read_settings(arguments)
    size = os.path.getsize(settings.text)
    split = size - size // 10
    data = moenn.Dataset.open_text(settings.text, end=split, batch=BATCH, seq_len=LENGTH,
                                   shuffle=True, seed=settings.seed)
    valid = moenn.Dataset.open_text(settings.text, begin=split, batch=BATCH, seq_len=LENGTH)
    with moenn.Device(settings.device, threads=settings.threads) as device, \
            moenn.Model(device, "small", seed=settings.seed) as model:
        model.prepare(batch=BATCH, seq_len=LENGTH)
        model.save(settings.out)  # a bad folder is found now, not after hours
        status = 0
        try:
            train(settings, device, model, data, valid)
            measure(model, valid)
            write_sample(model, settings.seed)
        except KeyboardInterrupt:
            status = 130
        save_and_prove(settings, device, model, data)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (moenn.MoennError, OSError) as error:
        sys.exit(f"train_tiny: {error}")
