"""Handles shared by threads, and calls that signals interrupt."""
import signal
import subprocess
import sys
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, Callable, List, Optional

import moenn
import numpy as np
from common import SLOW, Case, batch


def at_once(count: int, function: Callable[[int], Any]) -> List[Any]:
    """The results of function(0), function(1), ... in as many threads, which begin together."""
    gate = threading.Barrier(count)

    def run(index: int) -> Any:
        gate.wait()
        return function(index)
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(run, i) for i in range(count)]]


class ThreadTest(Case):
    def test_one_model_in_many_threads(self) -> None:
        expected = self.model.evaluate(*batch())
        for losses in at_once(4, lambda i: [self.model.evaluate(*batch()) for _ in range(10)]):
            self.assertEqual(losses, [expected] * 10)

    def test_sessions_beside_training(self) -> None:
        adamw = moenn.Optimizer(self.model)

        def work(index: int) -> int:
            if index == 0:
                for _ in range(20):
                    self.model.zero_grad()
                    self.model.backward(*batch())
                    adamw.step(1e-3)
                return 0
            with moenn.Session(self.model) as session:
                return len(list(session.generate([index], max_tokens=30)))
        self.assertEqual(at_once(4, work), [0, 30, 30, 30])

    def test_one_session_in_many_threads(self) -> None:
        session = moenn.Session(self.model)
        at_once(4, lambda i: [session.prefill([i, 1, 2]) for _ in range(10)])
        self.assertEqual(session.length(), 120)

    def test_messages_belong_to_their_threads(self) -> None:
        def work(index: int) -> None:
            for _ in range(200):
                with self.assertRaisesRegex(moenn.NotFoundError, f"nothing-{index}"):
                    moenn.Config.preset(f"nothing-{index}")
        at_once(8, work)

    def test_tokenizer_and_device_in_many_threads(self) -> None:
        tokenizer = moenn.Tokenizer()

        def work(index: int) -> None:
            text = str(index) * 100
            for _ in range(100):
                self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)
                self.device.memory
        at_once(8, work)

    def test_close_during_calls(self) -> None:
        for _ in range(10):
            model = moenn.Model(self.device, "tiny")
            model.prepare(batch=2, seq_len=16)

            def work(index: int) -> None:
                if index == 0:
                    time.sleep(0.002)
                    model.close()
                    return
                with self.assertRaises(moenn.ClosedError):
                    while True:
                        model.evaluate(*batch())
            at_once(3, work)

    def test_tensors_dropped_during_calls(self) -> None:
        name = self.model.parameter_names[0]

        def work(index: int) -> None:
            for _ in range(50):
                if index == 0:
                    self.model.evaluate(*batch())
                else:
                    self.model.parameter(name).slice(0, 0, 1).numpy()
        at_once(4, work)

    def test_python_runs_during_a_call(self) -> None:
        device = moenn.Device(threads=1, cpu_paths=moenn.CpuPath.REFERENCE)
        model = moenn.Model(device, SLOW)
        model.prepare(batch=1, seq_len=512)
        count, calls = 0, threading.Thread(target=model.forward, args=(np.ones(64, np.int32),))
        calls.start()
        while calls.is_alive():
            count += 1
        self.assertGreater(count, 1000)

    def test_cancel_from_another_thread(self) -> None:
        with moenn.Device(threads=1, cpu_paths=moenn.CpuPath.REFERENCE) as device:
            model = moenn.Model(device, SLOW)
            model.prepare(batch=4, seq_len=512)
            ids = np.ones((4, 512), np.int32)
            timer = threading.Timer(0.3, device.cancel)
            timer.start()
            start = time.monotonic()
            with self.assertRaises(moenn.CancelledError):
                model.backward(ids, ids)
            self.assertLess(time.monotonic() - start, 3)
            timer.join()
            device.cancel(False)
            model.zero_grad()
            model.evaluate(ids[:1, :4], ids[:1, :4])


INTERRUPTED = """
import os, signal, sys, time, moenn, numpy as np
sys.path.insert(0, sys.argv[1])
from common import SLOW
# Python leaves the signal ignored where a shell's background job inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
device = moenn.Device(threads=1, cpu_paths=moenn.CpuPath.REFERENCE)
model = moenn.Model(device, SLOW, seed=1)
model.prepare(batch=4, seq_len=512)
adamw = moenn.Optimizer(model)
ids = np.ones((4, 512), np.int32)
print("ready", flush=True)
try:
    while True:
        model.backward(ids, ids)
        adamw.step(1e-3)
except KeyboardInterrupt:
    print("interrupted", flush=True)
model.zero_grad()
print(model.evaluate(ids[:1, :4], ids[:1, :4]).targets)
"""


class InterruptTest(unittest.TestCase):
    """What a signal handler raises cancels the main thread's call; what it does not raise does
    not."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.device = moenn.Device(threads=1, cpu_paths=moenn.CpuPath.REFERENCE)
        cls.model = moenn.Model(cls.device, SLOW)
        cls.model.prepare(batch=4, seq_len=512)
        cls.ids = np.ones((4, 512), np.int32)

    def alarm(self, seconds: float, handler: Callable[[int, Optional[FrameType]], Any]) -> None:
        before = signal.signal(signal.SIGALRM, handler)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def interrupt(self, number: int, frame: Optional[FrameType]) -> None:
        raise KeyboardInterrupt

    def test_keyboard_interrupt_of_a_program(self) -> None:
        folder = __file__.rpartition("/")[0] or "."
        with subprocess.Popen([sys.executable, "-c", INTERRUPTED, folder], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None and program.stderr is not None
            self.assertEqual(program.stdout.readline(), "ready\n", )
            time.sleep(0.5)
            start = time.monotonic()
            program.send_signal(signal.SIGINT)
            self.assertEqual(program.stdout.readline(), "interrupted\n")
            self.assertLess(time.monotonic() - start, 2)
            self.assertEqual(program.stdout.read(), "4\n")
            self.assertEqual(program.stderr.read(), "")
            self.assertEqual(program.wait(), 0)

    def test_interrupted_calls_leave_the_device_usable(self) -> None:
        for seconds in (0.2, 0.01, 0.001):
            self.alarm(seconds, self.interrupt)
            start = time.monotonic()
            with self.assertRaises(KeyboardInterrupt):
                self.model.forward(self.ids)
            self.assertLess(time.monotonic() - start, 3)
            self.model.forward(self.ids[:1, :4])

    def test_signals_that_another_thread_receives(self) -> None:
        """They do not end the main thread's waiting; nor does one that comes just before it."""
        def send() -> None:
            time.sleep(0.2)
            idents = [thread.ident for thread in threading.enumerate() if thread.name == "moenn"]
            assert idents[0] is not None
            signal.pthread_kill(idents[0], signal.SIGALRM)

        self.alarm(0, self.interrupt)
        sender = threading.Thread(target=send)
        sender.start()
        start = time.monotonic()
        with self.assertRaises(KeyboardInterrupt):
            self.model.forward(self.ids)
        self.assertLess(time.monotonic() - start, 3)
        sender.join()

    def test_interrupted_generation(self) -> None:
        session = moenn.Session(self.model)
        for call in (lambda: session.complete([1]), lambda: list(session.generate([1])),
                     lambda: session.prefill(self.ids[0])):
            self.alarm(0.1, self.interrupt)
            with self.assertRaises(KeyboardInterrupt):
                call()
            session.truncate()
        session.prefill([1])

    def test_interrupted_callback(self) -> None:
        session = moenn.Session(self.model)
        self.alarm(0.1, self.interrupt)
        with self.assertRaises(KeyboardInterrupt):
            session.complete([1], on_token=lambda token, index: time.sleep(0.01))

    def test_a_handler_that_does_not_raise(self) -> None:
        seen: List[float] = []
        start = time.monotonic()
        self.alarm(0.05, lambda number, frame: seen.append(time.monotonic() - start))
        self.model.forward(self.ids[:1])
        self.assertLess(seen[0], time.monotonic() - start)

    def test_a_handler_that_uses_the_library(self) -> None:
        seen: List[Any] = []

        def handler(number: int, frame: Optional[FrameType]) -> None:
            with moenn.Device(threads=1) as device, moenn.Model(device, "tiny") as other:
                seen.append(other.config.layers)
            seen.append(self.model.config.layers)
        self.alarm(0.05, handler)
        self.model.forward(self.ids[:1])
        self.assertEqual(seen, [2, 16])

    def test_the_applications_own_cancel_stays(self) -> None:
        def handler(number: int, frame: Optional[FrameType]) -> None:
            self.device.cancel()
            raise KeyboardInterrupt
        self.alarm(0.1, handler)
        with self.assertRaises(KeyboardInterrupt):
            self.model.forward(self.ids)
        with self.assertRaises(moenn.CancelledError):
            self.model.forward(self.ids[:1, :4])
        self.device.cancel(False)
        self.model.forward(self.ids[:1, :4])

    def test_interruptions_at_any_moment(self) -> None:
        ids = batch()
        with moenn.Device(threads=1) as device, moenn.Model(device, "tiny") as model:
            model.prepare(batch=2, seq_len=16)

            def work() -> None:
                while True:
                    adamw = moenn.Optimizer(model)
                    model.zero_grad()
                    model.backward(*ids)
                    adamw.step(1e-3)
                    model.parameter(model.parameter_names[0]).numpy()
                    with moenn.Session(model) as session:
                        session.complete([1], max_tokens=3, on_token=lambda token, index: False)
            before = signal.signal(signal.SIGALRM, self.interrupt)
            unraisable = sys.unraisablehook
            sys.unraisablehook = lambda lost: None  # in a destructor
            try:
                for i in range(200):
                    with self.assertRaises(KeyboardInterrupt):
                        signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.00005 * i, 0.5)
                        work()
                    signal.setitimer(signal.ITIMER_REAL, 0)
            finally:
                sys.unraisablehook = unraisable
                signal.signal(signal.SIGALRM, before)
            model.zero_grad()
            model.evaluate(*ids)


if __name__ == "__main__":
    unittest.main()
