"""Every status is an exception of its own; handles end well whatever the order."""
import ctypes
import ctypes.util
import gc
import statistics
import unittest
from typing import Any, Type

import moenn
import numpy as np
from common import SHAPE, Case, batch, python
from moenn import _library, _raw


class ErrorTest(Case):
    def fails(self, kind: Type[moenn.MoennError], pattern: str = ".") -> Any:
        return self.assertRaisesRegex(kind, pattern)  # with a message, whatever it says

    def test_argument(self) -> None:
        with self.fails(moenn.ArgumentError, "threads") as raised:
            moenn.Device(threads=-1)
        self.assertIsInstance(raised.exception, ValueError)
        self.assertEqual(raised.exception.status, moenn.Status.ARGUMENT)
        self.assertEqual(str(raised.exception), raised.exception.message)
        with self.fails(moenn.ArgumentError, "seed"):
            moenn.Model(self.device, "tiny", seed=-1)
        with self.fails(moenn.ArgumentError, "affinity"):
            moenn.Device(affinity=[0], threads=2)

    def test_enums(self) -> None:
        name = self.model.parameter_names[0]
        optim = moenn.Optimizer(self.model)
        word: Any = "bf16"
        for call in (lambda: moenn.Model(self.device, "tiny", dtype=word),
                     lambda: moenn.Model.load(self.device, self.folder, dtype=word),
                     lambda: moenn.Tensor(self.device, (1,), word),
                     lambda: moenn.Tensor.from_address(self.device, 0, (1,), word),
                     lambda: moenn.Plan.training(self.device, "tiny", dtype=word),
                     lambda: moenn.Plan.inference(self.device, "tiny", dtype=word),
                     lambda: optim.moment(name, word)):
            with self.assertRaisesRegex(ValueError, "'bf16' is not a valid"):
                call()

    def test_struct_size(self) -> None:
        memory = _raw.nn_memory_t(3)
        with self.fails(moenn.StructSizeError):
            self.device._call(_library.lib.nn_device_memory, ctypes.byref(memory))

    def test_memory(self) -> None:
        with self.fails(moenn.AllocationError) as raised:
            moenn.Tensor(self.device, (1 << 56,))
        self.assertIsInstance(raised.exception, MemoryError)

    def test_io(self) -> None:
        (self.folder / "file").write_text("in the way")
        with self.fails(moenn.FileError) as raised:
            self.model.save(self.folder / "file" / "model")
        self.assertIsInstance(raised.exception, OSError)
        self.assertIn("file", str(raised.exception))

    def test_format(self) -> None:
        with self.fails(moenn.FormatError):
            moenn.Config.from_json("{")

    def test_unsupported(self) -> None:
        with self.fails(moenn.UnsupportedError):
            moenn.Config.from_json('{"model_type": "unheard-of"}')

    def test_state(self) -> None:
        with moenn.Model(self.device, "tiny") as model:
            with self.fails(moenn.StateError):
                model.backward(*batch())
            with self.fails(moenn.StateError):
                moenn.Optimizer(model)
            with self.fails(moenn.StateError):
                model.gradient(model.parameter_names[0])

    def test_not_found(self) -> None:
        for call in (lambda: moenn.Config.preset("nothing"), lambda: moenn.Device("abacus"),
                     lambda: self.model.parameter("nothing"),
                     lambda: moenn.Model.load(self.device, self.folder / "nothing")):
            with self.fails(moenn.NotFoundError) as raised:
                call()
            self.assertIsInstance(raised.exception, LookupError)

    def test_nonfinite(self) -> None:
        np.asarray(self.model.parameter(self.model.parameter_names[0]))[:] = np.nan
        with self.fails(moenn.NonfiniteError):
            self.model.backward(*batch())
        with self.fails(moenn.StateError):
            self.model.backward(*batch())
        self.model.zero_grad()

    def test_cancelled(self) -> None:
        self.device.cancel()
        with self.fails(moenn.CancelledError):
            self.model.evaluate(*batch())
        with self.fails(moenn.CancelledError):  # until it is cleared
            self.model.evaluate(*batch())
        self.device.cancel(False)
        self.model.evaluate(*batch())

    def test_capacity(self) -> None:
        with moenn.Session(self.model, max_len=2) as session, self.fails(moenn.CapacityError):
            session.prefill([1, 2, 3])

    def test_device_and_unknown(self) -> None:
        self.assertIsInstance(_library.failure(moenn.Status.DEVICE), moenn.DeviceError)
        unknown = _library.failure(-99)
        self.assertIs(type(unknown), moenn.MoennError)
        self.assertIn("unknown status", str(unknown))

    def test_library_that_cannot_be_used(self) -> None:
        for path in ("/nothing/libmoenn.so", ctypes.util.find_library("c") or "libc.so.6"):
            run = python("import os; os.environ['MOENN_LIBRARY'] = __import__('sys').argv[1]\n"
                         "try:\n import moenn\nexcept ImportError as error: print(error)", path)
            self.assertIn("libmoenn cannot be used", run.stdout, run.stderr)

    def test_messages_go_to_logging(self) -> None:
        missing = [path for path in moenn.CpuPath if path not in self.device.info.cpu_paths]
        if not missing:
            self.skipTest("a warning needs a CPU path that this processor or build lacks")
        with self.assertLogs("moenn", "WARNING") as logs:
            moenn.Device(cpu_paths=missing[0]).close()
        self.assertIn("was asked for", logs.output[0])

    def test_log_levels(self) -> None:
        from moenn import _device
        for level, name in ((1, "ERROR"), (2, "WARNING"), (3, "INFO"), (4, "DEBUG")):
            with self.assertLogs("moenn", "DEBUG") as logs:
                _device._log_callback(level, b"caf\xc3\xa9 \xff", None)
            self.assertEqual(logs.output, [f"{name}:moenn:café \ufffd"])


class LifetimeTest(Case):
    def test_use_after_close(self) -> None:
        name = self.model.parameter_names[0]
        adamw, session = moenn.Optimizer(self.model), moenn.Session(self.model)
        tensor, tokenizer = self.model.parameter(name), moenn.Tokenizer()
        data = moenn.Dataset.from_tokens(range(100), seq_len=4)
        device = moenn.Device(threads=1)
        tokens = session.generate([1])
        for handle in (adamw, session, tensor, tokenizer, data, device, self.model):
            self.assertFalse(handle.closed)
            handle.close()
            handle.close()
            self.assertTrue(handle.closed)
            with self.assertRaises(moenn.ClosedError), handle:
                pass
        for use in (lambda: adamw.step(1.0), lambda: adamw.steps, lambda: adamw.save("x"),
                    lambda: adamw.moment(name, moenn.Moment.FIRST), lambda: session.prefill([1]),
                    lambda: session.length(), lambda: session.sample(), lambda: next(tokens),
                    lambda: session.complete([1]), lambda: tensor.numpy(), lambda: tensor.shape,
                    lambda: tensor.slice(0, 0, 1), lambda: tensor.__dlpack__(),
                    lambda: tensor.address, lambda: tokenizer.encode("a"),
                    lambda: tokenizer.vocab_size, lambda: data.next(), lambda: data.info,
                    lambda: data.position, lambda: device.info, lambda: device.memory,
                    lambda: device.cancel(), lambda: moenn.Tensor(device, ()),
                    lambda: moenn.Model(device, "tiny"), lambda: self.model.forward([1]),
                    lambda: self.model.config, lambda: self.model.parameter_names,
                    lambda: self.model.save("x"), lambda: self.model.zero_grad(),
                    lambda: moenn.Session(self.model), lambda: moenn.Optimizer(self.model),
                    lambda: moenn.Plan.training(device, "tiny"),
                    lambda: moenn.Dataset.open_text("x", tokenizer, seq_len=1)):
            with self.assertRaisesRegex(moenn.ClosedError, "closed"):
                use()

    def test_any_order(self) -> None:
        device = moenn.Device(threads=1)
        model = moenn.Model(device, "tiny", seed=1)
        model.prepare(**SHAPE)
        adamw, session = moenn.Optimizer(model), moenn.Session(model)
        parameter = model.parameter(model.parameter_names[0])
        device.close()
        model.backward(*batch())
        model.close()
        adamw.step(1e-3)
        adamw.close()
        session.prefill([1, 2])
        self.assertTrue(parameter.copy().any())
        session.close()
        self.assertTrue(parameter.copy().any())

    def test_context_managers(self) -> None:
        with moenn.Device(threads=1) as device, moenn.Model(device, "tiny") as model:
            pass
        self.assertTrue(device.closed and model.closed)

    def test_what_is_dropped_is_given_back(self) -> None:
        before = self.device.memory.current_bytes
        moenn.Session(moenn.Model(self.device, "tiny"))
        gc.collect()
        self.assertEqual(self.device.memory.current_bytes, before)

    def test_failures_keep_nothing_alive(self) -> None:
        def raises(done: int, total: int) -> None:
            raise KeyError
        before = self.device.memory.current_bytes
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for call in (lambda model: model.forward([5000]), lambda model: model.parameter("nothing"),
                     lambda model: model.save(self.folder / "model", progress=raises),
                     lambda model: moenn.Session(model, max_len=-1),
                     lambda model: moenn.Session(model).prefill([])):
            model = moenn.Model(self.device, "tiny")
            model.prepare(**SHAPE)
            failed = False
            try:  # assertRaises() would clear the frames that are looked for here
                call(model)
            except (moenn.MoennError, KeyError):
                failed = True
            del model
            self.assertTrue(failed)
            self.assertEqual(self.device.memory.current_bytes, before)

    # What is held, not what is resident: the kernel makes huge pages of memory when it likes, which
    # are resident as a whole. Without caches of its threads malloc() says exactly what is held.
    @unittest.skipUnless(hasattr(ctypes.CDLL(None), "mallinfo2"), "needs glibc 2.33: mallinfo2()")
    def test_memory_is_flat(self) -> None:
        run = python("""
import ctypes, gc, moenn, numpy as np, sys

def round():
    with moenn.Device(threads=1) as device:
        model = moenn.Model(device, "tiny")
        model.prepare(batch=1, seq_len=8)
        adamw, session = moenn.Optimizer(model), moenn.Session(model, max_len=16)
        data = moenn.Dataset.from_tokens(range(100), seq_len=8)
        model.backward(*next(data))
        adamw.step(1e-3)
        list(session.generate([1], max_tokens=2))
        session.complete([1], max_tokens=2, on_token=lambda token, index: False)
        tensor = model.parameter(model.parameter_names[0])
        np.from_dlpack(moenn.Tensor.from_numpy(device, tensor.numpy()))
        moenn.Tokenizer().decode(moenn.Tokenizer().encode("text"))
        try:
            model.parameter("nothing")
        except moenn.NotFoundError:
            pass

class MallocInfo(ctypes.Structure):  # struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = MallocInfo
for _ in range(6):
    for _ in range(50):
        round()
    gc.collect()
    info = mallinfo()
    print(info.uordblks + info.hblkhd, sys.getallocatedblocks())
""", GLIBC_TUNABLES="glibc.malloc.tcache_count=0")
        self.assertEqual(run.stderr, "")
        held = [[int(word) for word in line.split()] for line in run.stdout.splitlines()]
        self.assertEqual(len(held), 6)
        # Something lost in each of 50 rounds is a block of Python's, or one of malloc()'s, which
        # has 32 bytes at least. In one figure or another there may be a model that the worker
        # thread has not dropped yet, or a cache that grew.
        for which, least in (0, 50 * 32), (1, 50):
            grown = [after[which] - before[which] for before, after in zip(held, held[1:])]
            self.assertLess(statistics.median(grown), least, grown)

    def test_a_child_leaves_its_parents_handles(self) -> None:
        run = python("""
import gc, os, moenn
device = moenn.Device(threads=2)
model = moenn.Model(device, "tiny")
child = os.fork()
if not child:
    try:
        model.config
        os._exit(1)
    except moenn.StateError:
        pass
    del model, device
    gc.collect()
    with moenn.Device(threads=2) as device, moenn.Model(device, "tiny") as own:
        own.prepare(batch=1, seq_len=4)
        own.forward([1, 2])
    os._exit(0)
_, status = os.waitpid(child, 0)
print("status", status, model.config.layers)
""")
        self.assertEqual(run.stdout, "status 0 2\n", run.stderr)

    def test_an_interpreter_ends_with_handles_open(self) -> None:
        run = python("import moenn\ndevice = moenn.Device(threads=2)\n"
                     "model = moenn.Model(device, 'tiny')\nmodel.prepare(batch=1, seq_len=8)\n"
                     "tensor = model.parameter(model.parameter_names[0])\nview = tensor.numpy()\n"
                     "capsule = tensor.__dlpack__()\nsession = moenn.Session(model)\n"
                     "tokens = session.generate([1]); next(tokens); print('end')")
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, "end\n", ""))


if __name__ == "__main__":
    unittest.main()
