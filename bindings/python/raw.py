#!/usr/bin/env python3
"""Writes moenn/_raw.py, the raw layer, from abi/api.json; --check compares, and --print only shows
it.

What the description has and this program has no rule or name for is an error, so that nothing of
the header is left out.
"""
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE / "moenn" / "_raw.py"

# The name of an enum's class, by its first member, and what of the members' names is left away.
ENUMS = {
    "NN_OK": ("Status", "IntEnum", ("NN_ERR_", "NN_")),
    "NN_LOG_DEFAULT": ("LogLevel", "IntEnum", ("NN_LOG_",)),
    "NN_CPU_DEFAULT": ("CpuPath", "IntFlag", ("NN_CPU_",)),
    "NN_F32": ("DType", "IntEnum", ("NN_DTYPE_", "NN_")),
    "NN_FAMILY_MIXTRAL": ("Family", "IntEnum", ("NN_FAMILY_",)),
    "NN_BIAS_NONE": ("Bias", "IntFlag", ("NN_BIAS_",)),
    "NN_NORM_RMS": ("Norm", "IntEnum", ("NN_NORM_",)),
    "NN_POSITION_ROPE": ("Position", "IntEnum", ("NN_POSITION_",)),
    "NN_FFN_SWIGLU": ("Ffn", "IntEnum", ("NN_FFN_",)),
    "NN_AUX_SWITCH": ("AuxLoss", "IntEnum", ("NN_AUX_",)),
    "NN_QK_NORM_NONE": ("QkNorm", "IntEnum", ("NN_QK_NORM_",)),
    "NN_SCORE_SOFTMAX": ("Score", "IntEnum", ("NN_SCORE_",)),
    "NN_ROUTER_NORM_SUM": ("RouterNorm", "IntEnum", ("NN_ROUTER_NORM_",)),
    "NN_GROUP_MAX": ("GroupScore", "IntEnum", ("NN_GROUP_",)),
    "NN_ROPE_NONE": ("RopeScaling", "IntEnum", ("NN_ROPE_",)),
    "NN_RECOMPUTE_NONE": ("Recompute", "IntEnum", ("NN_RECOMPUTE_",)),
    "NN_MOMENT_FIRST": ("Moment", "IntEnum", ("NN_MOMENT_",)),
    "NN_SCHEDULE_CONSTANT": ("ScheduleKind", "IntEnum", ("NN_SCHEDULE_",)),
    "NN_BYTE_BOS": ("ByteToken", "IntEnum", ("NN_BYTE_",)),
    "NN_TOKEN_BOS": ("SpecialToken", "IntEnum", ("NN_TOKEN_",)),
    "NN_TOKENIZER_BPE": ("TokenizerKind", "IntEnum", ("NN_TOKENIZER_",)),
    "NN_STOP_LENGTH": ("Stop", "IntEnum", ("NN_STOP_",)),
}

SCALARS = {"float": ("c_float", "float"), "double": ("c_double", "float"),
           "size_t": ("c_size_t", "int"), "nn_status_t": ("c_int32", "int")}
SCALARS.update({f"{sign}int{bits}_t": (f"c_{sign}int{bits}", "int")
                for sign in ("", "u") for bits in (8, 16, 32, 64)})

HEAD = '''\
"""The C interface as it is. Written by raw.py from abi/api.json; do not edit."""
from __future__ import annotations

import ctypes
from ctypes import (CFUNCTYPE, POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t,
                    c_uint64, c_void_p)
from enum import IntEnum, IntFlag
from typing import Any, Callable, Optional

'''


class Raw:
    def __init__(self, api):
        self.api = api
        self.callbacks = {entry["name"] for entry in api["callbacks"]}
        self.structs = {entry["name"] for entry in api["structs"]}
        self.lines = []

    def kind(self, spelled, where):
        """The ctypes type and the type hint of a C type; where: parameter, member or result."""
        bare = spelled.replace("const ", "")
        if bare in SCALARS:
            return SCALARS[bare]
        if bare == "void" and where == "result":
            return "None", "None"
        if bare in self.callbacks:
            return bare, "Any"
        if spelled == "const char *":
            return "c_char_p", "bytes" if where == "result" else "Optional[bytes]"
        if bare.endswith(" *") and bare[:-2] in self.structs and where == "parameter":
            return f"POINTER({bare[:-2]})", "Any"
        if bare.endswith("*"):
            return "c_void_p", "Any" if where == "parameter" else "Optional[int]"
        raise SystemExit(f"raw.py: no rule for the type {spelled}")

    def member(self, member):
        """The ctypes type and the type hint of a struct's member, which may be an array."""
        kind, hint = self.kind(member["type"], "member")
        if "count" not in member:
            return kind, hint
        return f"{kind} * {member['count']}", f"ctypes.Array[{kind}]"

    def add(self, *lines):
        self.lines += lines

    def enums(self):
        for entry in self.api["enums"]:
            first = entry["values"][0]["name"]
            if first not in ENUMS:
                raise SystemExit(f"raw.py: the enum that begins with {first} has no name in ENUMS")
            name, base, prefixes = ENUMS[first]
            self.add("", f"class {name}({base}):", f'    """{entry["comment"]}"""', "")
            for value in entry["values"]:
                member = value["name"]
                for prefix in prefixes:
                    if member.startswith(prefix):
                        member = member[len(prefix):]
                        break
                else:
                    raise SystemExit(f"raw.py: {member} begins with none of {prefixes}")
                self.add(f"    {member} = {value['value']}")
            self.add("")

    def prototype(self, entry):
        kinds = [self.kind(p["type"], "parameter") for p in entry["parameters"]]
        return self.kind(entry["returns"], "result"), kinds

    def write(self):
        self.add(*(f"{entry['name']} = {entry['value']}" for entry in self.api["macros"]), "")
        self.enums()
        self.add("")
        for entry in self.api["callbacks"]:
            result, kinds = self.prototype(entry)
            # A callback's pointers are plain too; its strings arrive as bytes.
            inside = ", ".join([result[0]] + [kind for kind, _ in kinds])
            self.add(f"{entry['name']} = CFUNCTYPE({inside})")
        for entry in self.api["structs"]:
            members = [(m["name"], *self.member(m)) for m in entry["members"]]
            self.add("", "", f"class {entry['name']}(ctypes.Structure):",
                     f'    """{entry["comment"]}"""', "")
            self.add(*(f"    {name}: {hint}" for name, _, hint in members))
            self.add("    _fields_ = [")
            self.add(*(f'        ("{name}", {kind}),' for name, kind, _ in members))
            self.add("    ]")
        self.add("", "", "class Library:",
                 '    """The functions of one shared object, ready to be called."""', "")
        for entry in self.api["functions"]:
            (_, result), kinds = self.prototype(entry)
            hints = ", ".join(hint for _, hint in kinds)
            self.add(f"    {entry['name']}: Callable[[{hints}], {result}]")
        self.add("", "    def __init__(self, path: str) -> None:",
                 "        library = ctypes.CDLL(path)",
                 "        for name, result, parameters in PROTOTYPES:",
                 "            function = getattr(library, name)",
                 "            function.restype = result",
                 "            function.argtypes = parameters",
                 "            setattr(self, name, function)", "", "",
                 "PROTOTYPES: list[tuple[str, Any, list[Any]]] = [")
        for entry in self.api["functions"]:
            (result, _), kinds = self.prototype(entry)
            self.add(f'    ("{entry["name"]}", {result}, [{", ".join(k for k, _ in kinds)}]),')
        self.add("]")
        return HEAD + "\n".join(self.lines) + "\n"


def main():
    api = json.loads((HERE.parents[1] / "abi" / "api.json").read_text(encoding="utf-8"))
    text = Raw(api).write()
    if "--print" in sys.argv:
        print(text, end="")
    elif "--check" not in sys.argv:
        TARGET.write_text(text, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != text:
        sys.exit("raw.py: moenn/_raw.py is not what abi/api.json says; "
                 "bindings/python/raw.py writes it anew")


if __name__ == "__main__":
    main()
