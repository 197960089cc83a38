#!/usr/bin/env python3
"""Describes include/moenn.h in abi/api.json, from which bindings are generated or checked.

    tools/api.py            writes abi/api.json
    tools/api.py --check    fails, with the difference, where abi/api.json is not the header's

The header is the source and is kept plain: what this parser does not understand is an error with
its line, never left out. Every list is in the header's order; a comment is given by its first
sentence.
"""
import argparse
import difflib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TOKEN = re.compile(r"""
    (?P<after>/\*\*<.*?\*/)            # comment of what stands before it
  | (?P<doc>/\*\*.*?\*/)               # comment of what follows
  | (?P<plain>/\*.*?\*/)
  | (?P<directive>^[ \t]*\#(?:\\\n|[^\n])*)
  | (?P<space>\s+)
  | (?P<string>"[^"\n]*")
  | (?P<word>[A-Za-z_]\w*)
  | (?P<number>[+-]?\d\w*)
  | (?P<mark>[{}()\[\];,=*])
""", re.VERBOSE | re.DOTALL | re.MULTILINE)


def sentence(comment):
    """The first sentence of a comment, on one line."""
    text = re.sub(r"^/\*\*<?|\*/$", "", comment)
    text = re.sub(r"\n\s*\*(?!/)", "\n", text)
    text = re.split(r"\n\s*\n|\s@\w+", text)[0]
    text = " ".join(text.split())
    return re.split(r"(?<=[.?!])(?<!\bal\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s", text)[0]


def number(text):
    return int(re.sub(r"[uUlL]+$", "", text), 0)


class Parser:
    def __init__(self, text, name):
        self.name = name
        self.tokens = list(self.tokenize(text))
        self.at = 0
        self.api = {kind: [] for kind in
                    ("macros", "enums", "aliases", "handles", "callbacks", "structs", "functions")}

    def tokenize(self, text):
        at, line, depth = 0, 1, 0  # depth: conditionals open, the include guard not counted
        guard = False
        while at < len(text):
            match = TOKEN.match(text, at)
            if not match:
                raise SyntaxError(f"{self.name}:{line}: cannot read {text[at:at + 20]!r}")
            kind, found = match.lastgroup, match.group()
            word = re.match(r"\s*#\s*(\w*)", found).group(1) if kind == "directive" else ""
            if word in ("if", "ifdef", "ifndef"):
                if depth == 0 and not guard:
                    guard = True
                else:
                    depth += 1
            elif word == "endif":
                depth -= 1
            elif depth <= 0 and kind not in ("space", "plain") and (kind != "directive" or
                                                                    word == "define"):
                yield kind, found, line
            at = match.end()
            line += found.count("\n")

    def fail(self, what):
        line = self.tokens[min(self.at, len(self.tokens) - 1)][2]
        raise SyntaxError(f"{self.name}:{line}: {what}")

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "", 0)

    def take(self, *wanted):
        kind, text, _ = self.peek()
        if wanted and text not in wanted:
            self.fail(f"{text!r} where {' or '.join(wanted)} was expected")
        self.at += 1
        return kind, text

    def accept(self, text):
        if self.peek()[1] == text:
            self.at += 1
            return True
        return False

    def word(self):
        kind, text = self.take()
        if kind != "word":
            self.at -= 1
            self.fail(f"{text!r} where a name was expected")
        return text

    def doc_after(self):
        kind, text, _ = self.peek()
        if kind != "after":
            return ""
        self.at += 1
        return sentence(text)

    def declarator(self):
        """A type and a name, as in `const int64_t *shape`; the name may be absent, as in (void)."""
        parts = []
        while self.peek()[0] == "word" or self.peek()[1] == "*":
            parts.append(self.take()[1])
        if not parts:
            self.fail(f"{self.peek()[1]!r} where a type was expected")
        name = ""
        types = [part for part in parts if part not in ("const", "*")]
        if parts[-1] not in ("const", "*") and len(types) > 1:
            name = parts.pop()
        if len(types) > 2 or (len(types) == 2 and not name):
            self.fail(f"the type {' '.join(parts)!r} is more than a word")
        spelled = " ".join(parts)
        return re.sub(r"(?<=\*) (?=\*)", "", spelled), name

    def parameters(self):
        self.take("(")
        if self.peek()[1] == "void" and self.tokens[self.at + 1][1] == ")":
            self.take()
        found = []
        while not self.accept(")"):
            if found:
                self.take(",")
            kind, name = self.declarator()
            if not name:
                self.fail(f"a parameter of type {kind} has no name")
            found.append({"name": name, "type": kind})
        return found

    def enum(self, doc):
        self.take("{")
        values = []
        while not self.accept("}"):
            name = self.word()
            self.take("=")
            kind, text = self.take()
            if kind != "number":
                self.fail(f"{name} is not given as a number")
            comma = self.accept(",")
            values.append({"name": name, "value": number(text), "comment": self.doc_after()})
            if not comma and self.peek()[1] != "}":
                self.fail("a comma is missing in an enum")
        self.take(";")
        self.api["enums"].append({"comment": doc, "values": values})

    def typedef(self, doc):
        if self.accept("struct"):
            tag = self.word()
            if not self.accept("{"):
                name = self.word()
                self.take(";")
                self.api["handles"].append({"name": name, "tag": tag, "comment": doc})
                return
            members = []
            while not self.accept("}"):
                kind, name = self.declarator()
                member = {"name": name, "type": kind}
                if self.accept("["):
                    member["count"] = number(self.take()[1])
                    self.take("]")
                self.take(";")
                members.append({**member, "comment": self.doc_after()})
            name = self.word()
            self.take(";")
            self.api["structs"].append({"name": name, "comment": doc, "members": members})
            return
        kind, name = self.declarator()
        if self.accept("("):
            self.take("*")
            callback = self.word()
            self.take(")")
            self.api["callbacks"].append({"name": callback, "returns": kind + name,
                                          "parameters": self.parameters(), "comment": doc})
        else:
            self.api["aliases"].append({"name": name, "type": kind, "comment": doc})
        self.take(";")

    def parse(self):
        doc = ""
        while self.at < len(self.tokens):
            kind, text = self.take()
            if kind == "doc":
                doc = sentence(text)
                continue
            if kind == "directive":
                macro = re.match(r"\s*#\s*define\s+(\w+)\s+([+-]?\d\w*)\s*$", text)
                if macro:
                    self.api["macros"].append({"name": macro.group(1),
                                               "value": number(macro.group(2)), "comment": doc})
                elif not re.match(r"\s*#\s*define\s+\w+\s*$", text):
                    self.at -= 1
                    self.fail("a macro that is not a number")
            elif text == "enum":
                self.enum(doc)
            elif text == "typedef":
                self.typedef(doc)
            elif text == "NN_API":
                returns, name = self.declarator()
                self.api["functions"].append({"name": name, "returns": returns,
                                              "parameters": self.parameters(), "comment": doc})
                self.take(";")
            else:
                self.at -= 1
                self.fail(f"{text!r} begins nothing that is known")
            doc = ""
        self.check()
        return self.api

    def check(self):
        """Every type that is used is known."""
        api = self.api
        known = {"void", "char", "float", "double", "size_t"}
        known |= {f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)}
        for kind in ("aliases", "handles", "callbacks", "structs"):
            known |= {entry["name"] for entry in api[kind]}
        used = [(entry["name"], entry["type"]) for entry in api["aliases"]]
        for entry in api["functions"] + api["callbacks"]:
            used.append((entry["name"], entry["returns"]))
            used += [(entry["name"], parameter["type"]) for parameter in entry["parameters"]]
        for entry in api["structs"]:
            used += [(entry["name"], member["type"]) for member in entry["members"]]
        for where, kind in used:
            word = re.sub(r"\bconst\b|[* ]", "", kind)
            if word not in known:
                raise SyntaxError(f"{self.name}: {where} uses the unknown type {word}")


def describe(header):
    return Parser(header.read_text(encoding="utf-8"), header.name).parse()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--header", type=Path, default=ROOT / "include/moenn.h")
    parser.add_argument("--json", type=Path, default=ROOT / "abi/api.json")
    options = parser.parse_args()
    try:
        text = json.dumps(describe(options.header), indent=1, ensure_ascii=False) + "\n"
    except (SyntaxError, OSError) as error:
        sys.exit(f"api.py: {error}")
    if not options.check:
        options.json.write_text(text, encoding="utf-8")
        return
    old = options.json.read_text(encoding="utf-8") if options.json.exists() else ""
    if old != text:
        sys.stdout.writelines(difflib.unified_diff(
            old.splitlines(True), text.splitlines(True), str(options.json.name),
            str(options.header.name)))
        sys.exit(f"api.py: {options.json.name} is not what {options.header.name} says; "
                 "tools/api.py writes it anew")


if __name__ == "__main__":
    main()
