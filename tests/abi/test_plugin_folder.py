"""libmoenn.so looks for libmoenn_cuda.so in its own folder; both are taken as they were built."""
import ctypes
import os
import sys

SKIPPED = 77
folder = os.environ["BUILD_DIR"]
if not os.path.exists(os.path.join(folder, "libmoenn_cuda.so")):
    print("skipped: this build has no CUDA")
    sys.exit(SKIPPED)
os.environ.pop("MOENN_PLUGIN_PATH", None)
library = ctypes.CDLL(os.path.join(folder, "libmoenn.so"))
library.nn_last_error.restype = ctypes.c_char_p
device = ctypes.c_void_p()
status = library.nn_device_create(b"cuda:0", None, ctypes.byref(device))
if status == 0:
    library.nn_device_destroy(device)
    sys.exit(0)
message = library.nn_last_error().decode()
print(message)
# The plugin itself speaks of GPUs and drivers; the library of a plugin that could not be opened.
sys.exit(0 if message.startswith("cuda:0: ") else 1)
