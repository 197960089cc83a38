"""Each comparison fails where one side is a little wrong: what passes in test_architectures.py was
compared."""

import json
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Callable

import cases
import choices
import compare
import here
import moenn
import numpy as np
import peer
import rounding
import steps
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

CASE = cases.Case("mixtral", {})
ROUTER = "model.layers.1.block_sparse_moe.gate.weight"
VALUES = "model.layers.0.self_attn.v_proj.weight"


def edit_config(folder: Path, edit: Callable[[dict], None]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


# Other keys lean on these, and every shape shows them.
SIZES = {"num_hidden_layers", "head_dim"}


class NarrowSums(TorchDispatchMode):
    """Matrix products whose sums are rounded at every term."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is not torch.ops.aten.mm.default:
            return function(*args, **(kwargs or {}))
        a, b = args
        total = torch.zeros(len(a), b.shape[1], dtype=a.dtype)
        for i in range(len(b)):
            total = (total.float() + a[:, i : i + 1].float() * b[i].float()).to(a.dtype)
        return total


class ComparisonTest(unittest.TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        self.theirs = peer.build(CASE)
        self.batch = choices.choose_batch(self.theirs, CASE)
        peer.write(self.theirs, self.folder / "model")

    def ours(self) -> moenn.Model:
        return here.read(self.folder / "model")

    def edit_config(self, edit: Callable[[dict], None]) -> None:
        edit_config(self.folder / "model", edit)

    def nudge(self, model: moenn.Model, name: str, part: float) -> None:
        """Moves the largest element of a parameter by a part of itself."""
        tensor = model.parameter(name)
        values = tensor.copy()
        values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 1 + part
        tensor.assign(values)

    def test_right_as_it_is(self) -> None:
        steps.passes(self.ours(), self.theirs, self.batch)

    def test_logits_notice_a_weight(self) -> None:
        ours = self.ours()
        self.nudge(ours, VALUES, 1e-3)
        with self.assertRaisesRegex(compare.Mismatch, "^logits: differs"):
            steps.passes(ours, self.theirs, self.batch)

    def test_logits_notice_theta(self) -> None:
        self.edit_config(lambda config: config["rope_parameters"].update(rope_theta=10100.0))
        with self.assertRaisesRegex(compare.Mismatch, "^logits: differs"):
            steps.passes(self.ours(), self.theirs, self.batch)

    def test_loss_notices_a_target(self) -> None:
        labels = self.batch.labels.copy()
        labels[0, 3] = (labels[0, 3] + 1) % 61
        a = here.run(self.ours(), self.batch)
        b = peer.run(self.theirs, replace(self.batch, labels=labels))
        compare.close("logits", a.logits, b.logits, compare.LOGITS)
        with self.assertRaises(compare.Mismatch):
            compare.close("loss", a.loss, b.loss, compare.LOGITS)

    def test_auxiliary_loss_and_gradients_notice_the_coefficient(self) -> None:
        self.edit_config(lambda config: config.update(router_aux_loss_coef=0.02001))
        a, b = here.run(self.ours(), self.batch), peer.run(self.theirs, self.batch)
        compare.close("logits", a.logits, b.logits, compare.LOGITS)
        with self.assertRaises(compare.Mismatch):
            compare.close("auxiliary loss", a.aux, b.aux, compare.LOGITS)
        self.edit_config(lambda config: config.update(output_router_logits=False))
        a = here.run(self.ours(), self.batch)
        with self.assertRaisesRegex(compare.Mismatch, "^gradient of model"):
            compare.all_close("gradient", a.gradients, b.gradients, compare.GRADIENTS)

    def test_gradients_notice_one_that_is_lost(self) -> None:
        a, b = here.run(self.ours(), self.batch), peer.run(self.theirs, self.batch)
        compare.all_close("gradient", a.gradients, b.gradients, compare.GRADIENTS)
        a.gradients[ROUTER][2] = 0
        with self.assertRaisesRegex(compare.Mismatch, "^gradient of " + ROUTER):
            compare.all_close("gradient", a.gradients, b.gradients, compare.GRADIENTS)
        del a.gradients[ROUTER]
        with self.assertRaisesRegex(compare.Mismatch, "only there"):
            compare.all_close("gradient", a.gradients, b.gradients, compare.GRADIENTS)

    def test_every_key_counts(self) -> None:
        """Of each model with keys of its own: without one of them it is another one, or none."""
        for case in cases.CASES:
            keys = set() if case.idle else case.keys.keys() - SIZES
            theirs = peer.build(case) if keys else None
            batch = choices.choose_batch(theirs, case) if keys else None
            for key in sorted(keys):
                with self.subTest(case=case.name, key=key), tempfile.TemporaryDirectory() as folder:
                    peer.write(theirs, Path(folder))
                    rest = {name: value for name, value in case.config.items() if name != key}
                    usual = cases.FAMILIES[case.model_type].get(key)
                    rest |= {} if usual is None else {key: usual}
                    peer.configuration(case.model_type, rest).save_pretrained(folder)
                    with self.assertRaises((compare.Mismatch, moenn.MoennError)):
                        steps.passes(here.read(Path(folder)), theirs, batch)

    def test_every_tensor_has_a_gradient(self) -> None:
        """One that no logit depends on would be compared in vain."""
        for name, gradient in peer.run(self.theirs, self.batch).gradients.items():
            self.assertGreater(np.abs(gradient).max(), 1e-5, name)

    def test_greedy_text_notices_a_weight(self) -> None:
        ours = self.ours()
        self.nudge(ours, VALUES, 1.0)
        with self.assertRaises(compare.Mismatch):
            steps.greedy(ours, self.theirs)

    def test_training_notices_its_options(self) -> None:
        for wrong in (
            dict(weight_decay=0.09),
            dict(eps=2e-3),
            dict(beta2=0.96),
            dict(grad_clip=1.5),
        ):
            peer_model = peer.build(CASE)
            with self.subTest(**wrong), self.assertRaises(compare.Mismatch):
                steps.training(
                    self.ours(), peer_model, self.batch, replace(steps.TRAINING, **wrong)
                )

    def sixteen_bits(self) -> tuple:
        """The model rounded to bf16: here, there in bf16, there in fp32."""
        folder = self.folder / "bf16"
        peer.write(self.theirs, folder, "BF16")
        return here.read(folder), peer.read(folder, "BF16"), peer.read(folder)

    def test_sixteen_bits_notice_a_weight(self) -> None:
        ours, *sides = self.sixteen_bits()
        steps.half("BF16", ours, *sides, self.batch)
        tensor = ours.parameter(VALUES)
        bits = tensor.copy()
        bits[3] ^= 0x8000  # the signs of a row
        tensor.assign(bits)
        with self.assertRaisesRegex(compare.Mismatch, "^BF16 logits"):
            steps.half("BF16", ours, *sides, self.batch)

    def test_sixteen_bits_notice_sums_of_theirs(self) -> None:
        """Transformers' own pass is within the bounds, and is not with sums of bf16 in its
        products."""
        _, theirs, exact = self.sixteen_bits()
        drawn = [steps.tensors(one) for one in rounding.passes(theirs, self.batch, steps.DRAWN)]
        reference = steps.tensors(peer.run(exact, self.batch))
        plain = steps.tensors(peer.run(theirs, self.batch))
        compare.rounded("BF16", plain, drawn, reference)
        with NarrowSums():
            narrow = steps.tensors(peer.run(theirs, self.batch))
        with self.assertRaises(compare.Mismatch):
            compare.rounded("BF16", narrow, drawn, reference)

    def test_sixteen_bits_notice_a_gradient_of_another_token(self) -> None:
        ours, theirs, exact = self.sixteen_bits()
        drawn = [steps.tensors(one) for one in rounding.passes(theirs, self.batch, steps.DRAWN)]
        reference = steps.tensors(peer.run(exact, self.batch))
        labels = self.batch.labels.copy()
        labels[1, 7] = (labels[1, 7] + 1) % 61
        moved = steps.tensors(here.run(ours, replace(self.batch, labels=labels)))
        with self.assertRaises(compare.Mismatch):
            compare.rounded("BF16", moved, drawn, reference)

    def test_files_notice_a_tensor(self) -> None:
        self.ours().save(self.folder / "saved")
        peer.read(self.folder / "saved")
        file = self.folder / "saved" / "model.safetensors"
        tensors = load_file(file)
        for wrong in (
            {"extra": tensors[ROUTER].clone()},
            {ROUTER: tensors[ROUTER][:2].clone()},
            {ROUTER: None},
        ):
            changed = {
                name: value for name, value in (tensors | wrong).items() if value is not None
            }
            save_file(changed, file, metadata={"format": "pt"})
            with self.subTest(wrong=list(wrong)), self.assertRaises((AssertionError, RuntimeError)):
                peer.read(self.folder / "saved")


if __name__ == "__main__":
    unittest.main()
