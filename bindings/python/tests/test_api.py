"""The package covers the header: what abi/api.json lists and a module lacks fails here."""
import inspect
import json
import os
import re
import subprocess
import sys
import unittest
from enum import Enum
from pathlib import Path
from typing import List

import moenn
from common import PACKAGE
from moenn import _raw

SOURCE = Path(os.environ.get("SOURCE_DIR", Path(__file__).resolve().parents[3]))
API = json.loads((SOURCE / "abi/api.json").read_text(encoding="utf-8"))

# Where the members of each struct are seen: parameters of a function, or fields of a class.
STRUCTS = {
    "nn_device_options_t": moenn.Device.__init__,
    "nn_device_info_t": moenn.DeviceInfo,
    "nn_memory_t": moenn.Memory,
    "nn_tensor_info_t": moenn.Tensor,
    "nn_model_config_t": moenn.Config,
    "nn_plan_t": moenn.Plan,
    "nn_train_options_t": moenn.Model.prepare,
    "nn_session_options_t": moenn.Session.__init__,
    "nn_file_options_t": moenn.Model.save,
    "nn_loss_t": moenn.Loss,
    "nn_expert_stats_t": moenn.ExpertStats,
    "nn_optim_options_t": moenn.Optimizer.__init__,
    "nn_schedule_t": moenn.Schedule,
    "nn_dataset_options_t": moenn.Dataset.open_text,
    "nn_dataset_info_t": moenn.DatasetInfo,
    "nn_encode_options_t": moenn.Tokenizer.encode,
    "nn_decode_options_t": moenn.Tokenizer.decode,
    "nn_decode_stream_t": moenn.Tokenizer.stream,
    "nn_sample_options_t": moenn.Sampling,
    "nn_generate_options_t": moenn.Session.complete,
    "nn_tokenizer_train_options_t": moenn.Tokenizer.train,
}
# Members that have another form in Python, and padding.
ELSEWHERE = {
    "struct_size", "log", "log_user", "log_level", "unused", "progress_user", "on_token_user",
    "stop_count", "special_count", "first", "given"
}
# Functions that others do with more: their namesakes with options.
COVERED = {"nn_tokenizer_encode", "nn_tokenizer_decode"}
RENAMED = {"data": "address"}


class ApiTest(unittest.TestCase):
    def test_raw_layer_is_what_the_description_gives(self) -> None:
        fresh = subprocess.run([sys.executable, str(SOURCE / "bindings/python/raw.py"), "--print"],
                               capture_output=True, text=True, check=True).stdout
        self.assertEqual((PACKAGE / "_raw.py").read_text(encoding="utf-8"), fresh)

    def test_every_function_is_used(self) -> None:
        code = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")
                       if path.name != "_raw.py")
        used = set(re.findall(r"\b(?:lib|library)\.(nn_\w+)", code))
        self.assertEqual({entry["name"] for entry in API["functions"]} - used, COVERED)

    def test_every_struct_member_has_a_place(self) -> None:
        self.assertEqual({entry["name"] for entry in API["structs"]}, set(STRUCTS))
        for entry in API["structs"]:
            place = STRUCTS[entry["name"]]
            names = set(dir(place)) if inspect.isclass(place) else set()
            if not inspect.isclass(place) or hasattr(place, "__dataclass_fields__"):
                names |= set(inspect.signature(place).parameters)
            for member in entry["members"]:
                name = RENAMED.get(member["name"], member["name"])
                if name not in ELSEWHERE:
                    self.assertIn(name, names, entry["name"])

    def test_every_enumerator_has_its_value(self) -> None:
        values = [value["value"] for entry in API["enums"] for value in entry["values"]]
        members: List[int] = []
        for name, kind in vars(_raw).items():
            if inspect.isclass(kind) and issubclass(kind, Enum) and kind.__members__:
                members += [member.value for member in kind.__members__.values()]
                if name != "LogLevel":  # logging has levels of its own
                    self.assertIn(name, moenn.__all__)
        self.assertEqual(sorted(members), sorted(values))

    def test_every_handle_has_a_class(self) -> None:
        classes = {
            "nn_device_t": moenn.Device, "nn_tensor_t": moenn.Tensor, "nn_model_t": moenn.Model,
            "nn_optim_t": moenn.Optimizer, "nn_session_t": moenn.Session,
            "nn_tokenizer_t": moenn.Tokenizer, "nn_dataset_t": moenn.Dataset
        }
        self.assertEqual({entry["name"] for entry in API["handles"]}, set(classes))

    def test_every_status_has_an_exception(self) -> None:
        from moenn._errors import BY_STATUS
        self.assertEqual(set(BY_STATUS), set(moenn.Status) - {moenn.Status.OK})

    def test_all_is_there_and_documented(self) -> None:
        for name in moenn.__all__:
            self.assertTrue(getattr(moenn, name).__doc__, name)

    def test_version(self) -> None:
        self.assertEqual(moenn.version(), "{NN_VERSION_MAJOR}.{NN_VERSION_MINOR}.{NN_VERSION_PATCH}"
                         .format(**vars(_raw)))


if __name__ == "__main__":
    unittest.main()
