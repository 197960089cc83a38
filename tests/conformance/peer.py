"""The reference: transformers' models on the CPU, eager attention, one thread."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from batch import Batch, Result, Training
from cases import Case
from safetensors.torch import load_file

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

# Plain loops over heads and experts; other ways of theirs compute the same with limits on widths.
EAGER = dict(attn_implementation="eager", experts_implementation="eager")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def configuration(model_type: str, keys: dict[str, Any]) -> transformers.PreTrainedConfig:
    return transformers.AutoConfig.for_model(model_type, **keys)


def build(case: Case) -> torch.nn.Module:
    """A model of random weights, all of them large enough to matter: a class's own would leave
    norms at ones, biases at zeros and scores so small that attention and routing were nearly
    even."""
    config = configuration(case.model_type, case.config)
    with torch.random.fork_rng():  # of what stays beside the noise, gpt_oss's sinks are random
        torch.manual_seed(case.seed)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, **EAGER
        ).eval()
    generator = torch.Generator().manual_seed(case.seed)
    std = config.hidden_size**-0.5
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if is_vector(name, tensor):
                tensor.add_(0.2 * noise)
            else:
                tensor.copy_(std * noise)
    return mended(model)


def mended(model: torch.nn.Module) -> torch.nn.Module:
    """Phimoe's rotation takes the short factors of LongRoPE at any length (transformers 5.23): it
    works its frequencies out without one, after those for the length were chosen. It is given the
    chosen ones, as the model's own program and earlier releases have it."""
    if model.config.model_type == "phimoe":
        rotary = model.model.rotary_emb
        rotary.rope_init_fn = lambda config: (rotary.inv_freq, rotary.attention_scaling)
    return model


def is_vector(name: str, tensor: torch.Tensor) -> bool:
    """Norm weights and biases: what AdamW's decay spares. Of experts the biases have two
    dimensions."""
    return tensor.ndim == 1 or name.endswith("bias")


def write(model: torch.nn.Module, folder: Path, dtype: str = "F32", **options) -> None:
    """save_pretrained() of a copy of the model in a dtype."""
    copy.deepcopy(model).to(DTYPES[dtype]).save_pretrained(folder, **options)


def read(folder: Path, dtype: str = "F32") -> torch.nn.Module:
    """from_pretrained(), which must use every tensor of the files and fill every parameter."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPES[dtype], output_loading_info=True, **EAGER
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    assert not wrong, f"transformers loads {folder.name} with {wrong}"
    return mended(model.eval())


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """What the files of a folder hold, as fp32."""
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    return found


def published(model: torch.nn.Module, values: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors of the model's parameters, by the names and in the shapes that its files have:
    written and read, since saving is what knows them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=values)
        return tensors(Path(folder))


def named(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Everything that its files hold: parameters, and buffers that are not trained."""
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    return dict(model.named_parameters()) | buffers


def parameters(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return published(model, {name: tensor.detach() for name, tensor in named(model).items()})


def gradients(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Zero for an expert without a token, and for what is not trained."""
    return published(
        model,
        {
            name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            for name, tensor in named(model).items()
        },
    )


def backward(model: torch.nn.Module, batch: Batch) -> Any:
    """What the model returns; its gradients are those of this batch alone."""
    model.zero_grad()
    out = model(input_ids=torch.from_numpy(batch.tokens), labels=torch.from_numpy(batch.labels))
    out.loss.backward()
    return out


def run(model: torch.nn.Module, batch: Batch) -> Result:
    """Forward and backward."""
    return result(model, backward(model, batch))


def result(model: torch.nn.Module, out: Any) -> Result:
    """Of what backward() returned."""
    aux = getattr(out, "aux_loss", None)
    weight = getattr(model.config, "router_aux_loss_coef", 0.0)
    return Result(
        logits=out.logits.detach().float().numpy(),
        loss=out.loss.item(),
        aux=0.0 if aux is None else weight * aux.item(),
        gradients=gradients(model),
    )


def greedy(model: torch.nn.Module, prompts: np.ndarray, count: int) -> np.ndarray:
    """The likeliest token, count times after each prompt, with a key-value cache."""
    made, past, ids = [], None, torch.from_numpy(prompts)
    with torch.no_grad():
        for _ in range(count):
            out = model(input_ids=ids, past_key_values=past, use_cache=True)
            past, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            made.append(ids.numpy())
    return np.concatenate(made, axis=1)


def last_logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens)[None]).logits[0, -1].numpy()


def train(model: torch.nn.Module, batch: Batch, how: Training) -> dict[str, np.ndarray]:
    """AdamW steps on one batch; the change of each parameter. Norm weights and biases do not
    decay."""
    start = parameters(model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    vectors = [p for name, p in trained if is_vector(name, p)]
    matrices = [p for name, p in trained if not is_vector(name, p)]
    groups = [
        dict(params=vectors, weight_decay=0.0),
        dict(params=matrices, weight_decay=how.weight_decay),
    ]
    adamw = torch.optim.AdamW(groups, lr=how.lr, betas=(how.beta1, how.beta2), eps=how.eps)
    for _ in range(how.steps):
        backward(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), how.grad_clip)
        adamw.step()
    return {name: value - start[name] for name, value in parameters(model).items()}
