"""Train and serve mixture-of-experts language models: libmoenn for Python.

    import moenn

    data = moenn.Dataset.open_text("book.txt", batch=4, seq_len=256, shuffle=True)
    with moenn.Device() as device, moenn.Model(device, "small", seed=1) as model:
        model.prepare(batch=4, seq_len=256)
        adamw = moenn.Optimizer(model, weight_decay=0.1, grad_clip=1.0)
        for step, (tokens, targets) in zip(range(1000), data):
            model.zero_grad()
            loss = model.backward(tokens, targets)
            adamw.step(lr=1e-3)
            print(step, loss.loss)
        model.save("my-model")

What moenn.h says of a function holds for the method that calls it. Every failure is a MoennError.
Handles may be shared by threads: they take turns. Ctrl-C, or whatever else a signal handler raises,
cancels the call that the main thread waits for.
"""
from ._config import Config, Plan, Schedule
from ._device import Device, DeviceInfo, Memory
from ._errors import (AllocationError, ArgumentError, CancelledError, CapacityError, ClosedError,
                      DeviceError, FileError, FormatError, MoennError, NonfiniteError,
                      NotFoundError, StateError, StructSizeError, UnsupportedError)
from ._library import version
from ._model import ExpertStats, Loss, Model
from ._optim import Optimizer
from ._raw import (AuxLoss, Bias, ByteToken, CpuPath, DType, Family, Ffn, GroupScore, Moment, Norm,
                   Position, QkNorm, Recompute, RopeScaling, RouterNorm, ScheduleKind, Score,
                   SpecialToken, Status, Stop, TokenizerKind)
from ._session import Completion, Generation, Sampling, Session
from ._tensor import Tensor, dtype_bytes
from ._text import Dataset, DatasetInfo, Tokenizer

__version__ = version()

__all__ = [
    "AllocationError", "ArgumentError", "AuxLoss", "Bias", "ByteToken", "CancelledError",
    "CapacityError", "ClosedError", "Completion", "Config", "CpuPath", "DType", "Dataset",
    "DatasetInfo", "Device", "DeviceError", "DeviceInfo", "ExpertStats", "Family", "Ffn",
    "FileError", "FormatError", "Generation", "GroupScore", "Loss", "Memory", "Model", "MoennError",
    "Moment", "NonfiniteError", "Norm", "NotFoundError", "Optimizer", "Plan", "Position", "QkNorm",
    "Recompute", "RopeScaling", "RouterNorm", "Sampling", "Schedule", "ScheduleKind", "Score",
    "Session", "SpecialToken", "StateError", "Status", "Stop", "StructSizeError", "Tensor",
    "Tokenizer", "TokenizerKind", "UnsupportedError", "dtype_bytes", "version",
]
