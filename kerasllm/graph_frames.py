"""What TensorFlow remembers of how each operation of a graph came about."""

import contextlib
import sys

import keras

FORGOTTEN = ("keras.", "tensorflow.", "kerasllm.layers.")
# Of each operation TensorFlow drops the last three frames itself, which are in these, and crashes if none is left then.
KEPT = ("tensorflow.python.framework.ops", "tensorflow.python.framework.func_graph")


def short_frames():
    """A context in which TensorFlow's new operations do not remember the lines of libraries that made them.

    TensorFlow keeps the Python frames of each operation, some sixty, twice and as text: 20 KB of the 26 that an
    operation takes, half a gigabyte for a step of twelve blocks. The caller's own lines stay; which layer it was, the
    operation's name tells. On other backends it does nothing.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    if not tf.inside_function():
        return contextlib.nullcontext()
    try:
        from tensorflow.python.util.tf_stack import StackTraceFilter  # No public name does this.
    except ImportError:
        return contextlib.nullcontext()

    files = {
        module.__file__
        for name, module in list(sys.modules.items())
        if name.startswith(FORGOTTEN) and name not in KEPT and getattr(module, "__file__", None)
    }

    class ShortFrames(StackTraceFilter):
        def get_filtered_filenames(self):
            return files | self.parent.get_filtered_filenames()

    return ShortFrames()
