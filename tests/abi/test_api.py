"""abi/api.json is what moenn.h says, lists what the shared object exports, and tools/api.py sees
every kind of change and refuses what it cannot read."""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(os.environ.get("SOURCE_DIR", Path(__file__).resolve().parents[2]))
HEADER = (ROOT / "include/moenn.h").read_text(encoding="utf-8")


def check(header=HEADER):
    """Runs tools/api.py --check on a header's text: its exit status and what it said."""
    with tempfile.NamedTemporaryFile("w", suffix=".h", encoding="utf-8") as file:
        file.write(header)
        file.flush()
        run = subprocess.run([sys.executable, str(ROOT / "tools/api.py"), "--check", "--header",
                              file.name], capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


class Api(unittest.TestCase):
    def test_description_is_the_header(self):
        self.assertEqual(check(), (0, ""))

    def test_functions_are_the_exported_ones(self):
        api = json.loads((ROOT / "abi/api.json").read_text(encoding="utf-8"))
        lines = (ROOT / "abi/symbols.txt").read_text().split()
        self.assertEqual(sorted(f["name"] for f in api["functions"]),
                         sorted(line.split("@")[0] for line in lines))

    def test_everything_has_a_comment(self):
        def entries(value):
            for item in value if isinstance(value, list) else value.values():
                if isinstance(item, (list, dict)):
                    yield item
                    yield from entries(item)
        api = json.loads((ROOT / "abi/api.json").read_text(encoding="utf-8"))
        bare = [e for e in entries(api) if isinstance(e, dict) and e.get("comment") == ""]
        self.assertEqual(bare, [])

    def test_every_change_is_seen(self):
        for old, new in (
                ("NN_API int32_t nn_abi_version(void);",
                 "NN_API int32_t nn_abi_version(void);\nNN_API void nn_new(const char *name);"),
                ("  NN_BOOL = 9,", "  NN_BOOL = 9,\n  NN_NEW = 10,"),
                ("  NN_OK = 0,", "  NN_OK = 1,"),
                ("  float beta2; ", "  float beta2;\n  float beta3; "),
                ("  float beta2; ", "  double beta2; "),
                ("#define NN_MAX_DIMS 8", "#define NN_MAX_DIMS 9"),
                ("(int32_t token, int64_t index, void *user)", "(int32_t token, void *user)"),
                ("typedef int32_t nn_status_t;", "typedef int64_t nn_status_t;")):
            with self.subTest(new=new):
                self.assertIn(old, HEADER)
                status, said = check(HEADER.replace(old, new, 1))
                self.assertEqual(status, 1)
                self.assertIn("tools/api.py writes it anew", said)

    def test_what_cannot_be_read_is_refused(self):
        for line in ("NN_API void nn_new(unknown_t *x);", "NN_API void nn_new(int32_t);",
                     "NN_API void nn_new(unsigned long x);", "#define NN_NEW (1 + 2)",
                     "enum { NN_NEW };", "union nn_new { int32_t x; };", "int32_t nn_new(void);",
                     "typedef struct nn_new_t { int32_t x : 1; } nn_new_t;"):
            with self.subTest(line=line):
                status, said = check(HEADER.replace("#ifdef __cplusplus\n}",
                                                    line + "\n#ifdef __cplusplus\n}"))
                self.assertEqual(status, 1)
                self.assertNotIn("writes it anew", said)


if __name__ == "__main__":
    unittest.main()
