#!/usr/bin/env python3
"""Compares both crates with abi/api.json, the description of moenn.h.

moenn-sys must have every macro, enumerator, struct (its members in order), callback and function,
with the header's types; moenn must use every function, struct member and enumerator.
"""
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
API = json.loads(Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else
                 (HERE / "../../abi/api.json").read_text())
RAW = (HERE / "moenn-sys/src/bindings.rs").read_text()
SAFE = [path.read_text() for path in sorted((HERE / "moenn/src").glob("*.rs"))]

# What the safe crate says in a way of its own.
IMPLIED = {
    "NN_LOG_DEFAULT": "LogLevel's Default",
    "unused": "not read by the library",
    "struct_size": "set by sized!",
}

SCALARS = {"int32_t": "i32", "int64_t": "i64", "uint64_t": "u64", "size_t": "usize", "float": "f32",
           "double": "f64", "void": "::std::os::raw::c_void", "char": "::std::os::raw::c_char"}

faults = []


def rust(c_type):
    """`const int64_t *` as bindgen writes it: `*const i64`."""
    words = c_type.replace("*", " * ").split()
    base = next(word for word in words if word not in ("const", "*"))
    found, const = SCALARS.get(base, base), words[0] == "const"
    for at, word in enumerate(words):
        if word == "*":
            found = ("*const " if const else "*mut ") + found
            const = at + 1 < len(words) and words[at + 1] == "const"
    return found


def squeeze(text):
    return re.sub(r"\s+", " ", text).replace(",)", ")").strip()


def expect(what, wanted, found):
    if found is None:
        faults.append(f"moenn-sys has no {what}")
    elif wanted != found:
        faults.append(f"moenn-sys: {what} is {found}; the header has {wanted}")


def pairs(text):
    return [
        tuple(squeeze(part) for part in pair.split(":", 1)) for pair in text.split(",")
        if pair.strip()
    ]


def signature(function):
    return ([(p["name"], rust(p["type"])) for p in function["parameters"]],
            "" if function["returns"] == "void" else rust(function["returns"]))


def found_signature(match):
    return match and (pairs(match[1]), squeeze(match[2] or ""))


def check_raw():
    for constant in API["macros"] + [value for enum in API["enums"] for value in enum["values"]]:
        match = re.search(rf"pub const {constant['name']}: \w+ = (-?\d+);", RAW)
        expect(constant["name"], constant["value"], match and int(match[1]))
    for alias in API["aliases"]:
        match = re.search(rf"pub type {alias['name']} = (\w+);", RAW)
        expect(alias["name"], rust(alias["type"]), match and match[1])
    for handle in API["handles"]:
        match = re.search(rf"pub type {handle['name']} = (\w+);", RAW)
        expect(handle["name"], handle["tag"], match and match[1])
    for struct in API["structs"]:
        match = re.search(
            rf"#\[repr\(C\)\]\n#\[derive[^\n]*\]\npub struct {struct['name']} {{(.*?)\n}}", RAW,
            re.S)
        members = [(m["name"],
                    f"[{rust(m['type'])}; {m['count']}usize]" if "count" in m else rust(m["type"]))
                   for m in struct["members"]]
        expect(struct["name"], members, match and pairs(match[1].replace("pub ", "")))
    for callback in API["callbacks"]:
        match = re.search(
            rf"pub type {callback['name']} = ::std::option::Option<\s*unsafe extern \"C\" fn\("
            r"([^)]*)\)(?: -> ([^,>]+))?,?\s*>;", RAW)
        expect(callback["name"], signature(callback), found_signature(match))
    for function in API["functions"]:
        match = re.search(rf"pub fn {function['name']}\(([^)]*)\)(?:\s*-> ([^;]+))?;", RAW)
        expect(function["name"], signature(function), found_signature(match))
    known = {entry["name"] for entry in API["functions"]}
    for name in re.findall(r"pub fn (nn_\w+)", RAW):
        if name not in known:
            faults.append(f"moenn-sys has {name}, which the header has not")


def check_safe():
    names = [function["name"] for function in API["functions"]]
    names += [value["name"] for enum in API["enums"] for value in enum["values"]]
    names += [struct["name"] for struct in API["structs"]]
    for name in names:
        if name not in IMPLIED and not any(re.search(rf"\b{name}\b", text) for text in SAFE):
            faults.append(f"moenn does not use {name}")
    for struct in API["structs"]:
        texts = [text for text in SAFE if struct["name"] in text]
        for member in (m["name"] for m in struct["members"]):
            if member in IMPLIED:
                continue
            if not any(re.search(rf"\b{member}:|\.{member}\b", text) for text in texts):
                faults.append(f"moenn does not use {struct['name']}.{member}")


check_raw()
check_safe()
print(
    "\n".join(faults) or f"both crates have all of {len(API['functions'])} functions, "
    f"{len(API['structs'])} structs and {sum(len(e['values']) for e in API['enums'])} enumerators")
sys.exit(bool(faults))
