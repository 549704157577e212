"""nanoGPT's `meta.pkl` read as data: a pickle's opcodes are followed here, and none can run code.

Python's own unpickler, even one that refuses every name, can be made to ask for gigabytes by a few
bytes; here time and memory are bounded by the size of the file.
"""

import io
import pickletools

_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE"}
_READ = _VALUES | {"PROTO", "FRAME", "EMPTY_DICT", "MARK", "SETITEM", "SETITEMS", "STOP"}
_READ |= {"MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}


def read_plain_pickle(content: bytes):
    """The value of a pickle of dicts, texts and whole numbers; `ValueError` for any other."""
    stack: list = []
    marks: list[int] = []  # where in the stack the items of a dict begin
    memo: dict = {}
    stream = io.BytesIO(content)
    try:
        while code := stream.read(1):
            opcode = pickletools.code2op.get(code.decode("latin-1"))
            if opcode is None or opcode.name not in _READ:
                raise ValueError("it holds more than dicts, texts and whole numbers")
            name, argument = opcode.name, opcode.arg and opcode.arg.reader(stream)
            if name in _VALUES:
                stack.append(argument)
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("SETITEM", "SETITEMS"):
                start = len(stack) - 2 if name == "SETITEM" else marks.pop()
                items = stack[start:]
                del stack[start:]
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "STOP":
                return stack.pop()
    except (IndexError, KeyError, AttributeError, TypeError):
        pass  # no such place in the stack or the memo, items for what is no dict, a dict as a key
    raise ValueError("it is no whole pickle")
