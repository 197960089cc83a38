#!/usr/bin/env python3
"""Times on a GPU, in PyTorch, what docs/performance.md puts beside the library's own times.

    python3 bench/beside_torch.py     # needs torch, and transformers for GPT-2; prints milliseconds

Medians of seven runs of 20 calls (GPT-2: 5), by events; inputs are random.
"""
import statistics
import sys

import torch
import torch.nn.functional as F

GPU = torch.device("cuda:0")


def show(what, call, calls=20, per_second=None):
    """per_second: a name and how much of it a call does."""
    for _ in range(3):
        call()
    times = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    median = statistics.median(times)
    rate = f"{per_second[1] / median * 1e3:.4g} {per_second[0]}/s" if per_second else ""
    print(f"{what:60} {median:9.3f} ms  {rate}", flush=True)


def normal(*shape, grad=False):
    return torch.randn(*shape, device=GPU, dtype=torch.bfloat16, requires_grad=grad)


def products():
    a, b = normal(8192, 8192), normal(8192, 8192)
    show("product of 8192 x 8192 bf16", lambda: a @ b.T, per_second=("FLOP", 2 * 8192**3))
    x, up, down = normal(16, 4096, 768), normal(16, 768, 12288), normal(16, 6144, 768)
    show("bmm of 16 x 4096 rows, 768 to 2 x 6144", lambda: torch.bmm(x, up))
    h = normal(16, 4096, 6144)
    show("bmm of 16 x 4096 rows, 6144 to 768", lambda: torch.bmm(h, down))


def attention():
    q, k, v = (normal(4, 12, 4096, 64, grad=True) for _ in range(3))
    show("scaled_dot_product_attention, 4 x 4096, 12 heads of 64, causal",
         lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    dout = torch.randn_like(out)
    show("its backward", lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))


def adamw():
    count = 10**9
    parameter = torch.nn.Parameter(torch.randn(count, device=GPU))
    parameter.grad = torch.randn(count, device=GPU)
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, fused=True)
    show("AdamW, fused, 1e9 fp32", optimizer.step, per_second=("byte", 28 * count))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.set_float32_matmul_precision("high")
    dropout = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    model = GPT2LMHeadModel(GPT2Config(**dropout)).to(GPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, 50257, (4, 1024), device=GPU)

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    show("GPT-2 124M, TF32, batch 4 x 1024, a training step, eager", step, calls=5,
         per_second=("token", 4 * 1024))


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU")
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    for part in (products, attention, adamw, gpt2):
        part()
        torch.cuda.empty_cache()
