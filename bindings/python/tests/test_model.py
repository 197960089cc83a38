import unittest

import moenn
import numpy as np
from common import SHAPE, Case, batch


class ModelTest(Case):
    def test_same_seed_same_bits(self) -> None:
        logits = self.model.forward(batch()[0])
        with moenn.Model(self.device, "tiny", seed=1) as same, \
                moenn.Model(self.device, "tiny", seed=2) as other:
            same.prepare(**SHAPE)
            other.prepare(**SHAPE)
            self.assertTrue(np.array_equal(same.forward(batch()[0]), logits))
            self.assertFalse(np.array_equal(other.forward(batch()[0]), logits))

    def test_training_lowers_the_loss(self) -> None:
        adamw = moenn.Optimizer(self.model, grad_clip=1.0)
        first = self.model.evaluate(*batch())
        for _ in range(10):
            self.model.zero_grad()
            loss = self.model.backward(*batch())
            self.assertGreater(adamw.step(3e-3), 0)
        self.assertEqual(loss.targets, 32)
        self.assertLess(self.model.evaluate(*batch()).loss, first.loss)
        self.assertEqual(adamw.steps, 10)

    def test_gradients_accumulate(self) -> None:
        name = self.model.parameter_names[0]
        self.model.backward(*batch(), scale=0.5)
        half = self.model.gradient(name).copy()
        self.model.accumulate(*batch(), scale=0.5)
        np.testing.assert_allclose(self.model.gradient(name).copy(), 2 * half, rtol=1e-6)
        self.model.zero_grad()
        self.assertFalse(self.model.gradient(name).copy().any())

    def test_every_parameter_has_name_and_tensor(self) -> None:
        names = self.model.parameter_names
        count = sum(self.model.parameter(name).elements for name in names)
        self.assertEqual(len(set(names)), len(names))
        self.assertEqual(count, moenn.Plan.training(self.device, "tiny").parameters)

    def test_shapes_of_tokens(self) -> None:
        tokens, targets = batch()
        self.assertEqual(self.model.forward(tokens).shape, (2, 16, 1000))
        self.assertEqual(self.model.forward(tokens[0]).shape, (1, 16, 1000))
        self.assertEqual(self.model.evaluate(tokens.tolist(), targets.astype(np.int64)),
                         self.model.evaluate(tokens, targets))
        strided = np.repeat(tokens, 2, axis=1)[:, ::2]
        self.assertTrue(np.array_equal(self.model.forward(strided), self.model.forward(tokens)))
        for wrong in (tokens.astype(np.float32), tokens[None], [[2**40]], [[-1]], [[1000]], [[]]):
            with self.assertRaises(moenn.ArgumentError):
                self.model.forward(wrong)
        with self.assertRaises(moenn.ArgumentError):
            self.model.evaluate(tokens, targets[:, 1:])

    def test_save_and_load(self) -> None:
        heard = []
        self.model.save(self.folder / "model", shard_bytes=100000,
                        progress=lambda done, total: heard.append((done, total)))
        self.assertEqual(heard[-1][0], heard[-1][1])
        self.assertGreater(len(list((self.folder / "model").glob("*.safetensors"))), 1)
        with moenn.Model.load(self.device, self.folder / "model") as loaded:
            self.assertEqual(loaded.config, self.model.config)
            loaded.prepare(**SHAPE)
            self.assertTrue(
                np.array_equal(loaded.forward(batch()[0]), self.model.forward(batch()[0])))
        with moenn.Model.load(self.device, str(self.folder / "model"),
                              dtype=moenn.DType.BF16) as half:
            self.assertEqual(half.parameter(half.parameter_names[0]).dtype, moenn.DType.BF16)
            self.assertEqual(half.loss_scale, 1)
        with moenn.Model.load(self.device, self.folder / "model", dtype=moenn.DType.F16) as half:
            self.assertEqual(half.loss_scale, 65536)

    def test_llmc_checkpoint(self) -> None:
        config = moenn.Config.preset("gpt2-124m")
        config.vocab_size, config.layers, config.hidden, config.ffn = 300, 1, 64, 256
        config.heads, config.kv_heads, config.head_dim, config.context = 2, 0, 0, 16
        with moenn.Model(self.device, config, seed=3) as model:
            model.prepare(batch=1, seq_len=8)
            model.save_llmc(self.folder / "model.bin")
            with moenn.Model.load_llmc(self.device, self.folder / "model.bin") as loaded:
                loaded.prepare(batch=1, seq_len=8)
                tokens = np.arange(8)
                self.assertTrue(np.array_equal(loaded.forward(tokens), model.forward(tokens)))

    def test_progress_cancels(self) -> None:
        with self.assertRaises(moenn.CancelledError):
            self.model.save(self.folder / "model", progress=lambda done, total: True)
        self.assertFalse((self.folder / "model" / "config.json").exists())

    def test_progress_that_raises(self) -> None:
        def progress(done: int, total: int) -> None:
            raise KeyError("mine")
        self.model.save(self.folder / "model")
        with self.assertRaisesRegex(KeyError, "mine"):
            self.model.save(self.folder / "model", progress=progress)
        with self.assertRaisesRegex(KeyError, "mine"):
            moenn.Model.load(self.device, self.folder / "model", progress=progress)
        self.model.save(self.folder / "model")

    def test_optimizer_state(self) -> None:
        adamw = moenn.Optimizer(self.model)
        self.model.backward(*batch())
        adamw.step(1e-3)
        adamw.save(self.folder / "state")
        again = moenn.Optimizer(self.model)
        again.load(self.folder / "state")
        self.assertEqual(again.steps, 1)
        name = self.model.parameter_names[-1]
        for moment in moenn.Moment:
            values = adamw.moment(name, moment).copy()
            self.assertTrue(values.any())
            np.testing.assert_array_equal(again.moment(name, moment).copy(), values)
        again.steps = 5
        self.assertEqual(again.steps, 5)
        with self.assertRaises(moenn.ArgumentError):
            again.steps = -1

    def test_expert_stats(self) -> None:
        self.model.reset_expert_stats()
        self.model.forward(batch()[0])
        stats = self.model.expert_stats(1)
        self.assertEqual((stats.tokens, stats.dropped, stats.counts.sum()), (32, 0, 64))
        self.assertAlmostEqual(float(stats.mean_prob.sum()), 1, places=5)
        with self.assertRaises(moenn.ArgumentError):
            self.model.expert_stats(2)

    def test_prepare_and_unprepare(self) -> None:
        before = self.device.memory.current_bytes
        self.model.unprepare()
        self.assertLess(self.device.memory.current_bytes, before)
        with self.assertRaises(moenn.StateError):
            self.model.backward(*batch())
        self.model.prepare(**SHAPE, recompute=moenn.Recompute.BLOCK)
        self.model.backward(*batch())

    def test_steady_steps_allocate_nothing(self) -> None:
        adamw = moenn.Optimizer(self.model)
        for _ in range(3):
            self.model.zero_grad()
            self.model.backward(*batch())
            adamw.step(1e-3)
            count = self.device.memory.allocations
        self.model.zero_grad()
        self.model.backward(*batch())
        adamw.step(1e-3)
        self.assertEqual(self.device.memory.allocations, count)

    def test_config_is_a_copy(self) -> None:
        self.model.config.layers = 100
        self.assertEqual(self.model.config.layers, 2)


if __name__ == "__main__":
    unittest.main()
