"""The pickle of a `.pt`, walked before torch sees it: a program that only builds tables of tensors.

torch's own reader of weights runs no code of strangers, and it still allocates what a program asks for: a pickle of 50 bytes is a
`bytearray(8 << 30)`. So each opcode is followed here with the kinds of its values in place of values.
"""

import io
import pickletools
import re
from typing import NamedTuple

from qsjax.errors import CheckpointError
from qsjax.untrusted import shown

LARGEST = 16 << 20
"""Bytes of a pickle; 1264 tensors need about 0.2 MB."""
_MOST_OPCODES = 500_000
"""A tensor takes about 30."""
_PLAIN = {
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"), "plain"),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), "integer"),
    **dict.fromkeys(("BINUNICODE", "BINSTRING", "SHORT_BINSTRING"), "text"),
    **{"EMPTY_TUPLE": "()", "EMPTY_LIST": "list", "EMPTY_DICT": "dict", "MARK": "mark"},
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = ("text", "integer", "plain")
_REBUILD = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"}
_DTYPE = re.compile(r"bool|(b?float|u?int|complex)\d+\w*")


class _Global(NamedTuple):
    name: str


_Value = str | _Global


class _Refused(Exception):
    """Why, in a few words."""


def check_pickle(program: bytes, what: str) -> None:
    """Refuse a program that does anything but build dictionaries, lists and tuples of tensors, numbers and text.

    Args:
        program: the content of `data.pkl`.
        what: the file, for the message.

    Raises:
        CheckpointError: it asks for something else, is too long, or is damaged.
    """
    try:
        if len(program) > LARGEST:
            raise _Refused(f"has {len(program)} bytes, more than weights need")
        _Walk().run(program)
    except _Refused as error:
        raise CheckpointError(
            f"{what}: its pickle {error}; it was not executed, get the bare state dict or safetensors"
        ) from error
    except Exception as error:  # `genops` raises nearly anything, the walk misses its stack
        reason = shown(str(error) or type(error).__name__, 120)
        raise CheckpointError(
            f"{what}: torch cannot read its pickle, which is damaged ({reason}); download it again or get safetensors"
        ) from error


class _Walk:
    """What torch's unpickler has on its stack, by kind. Numbers and texts are bounded by the program's own size."""

    def __init__(self) -> None:
        self._stack: list[_Value] = []
        self._memo: dict[int, _Value] = {}

    def run(self, program: bytes) -> None:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(program))):
            if count > _MOST_OPCODES:
                raise _Refused(f"has more than {_MOST_OPCODES} steps, more than weights need")
            self._step(opcode.name, argument)

    def _step(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in _PLAIN:
            if isinstance(argument, int) and argument.bit_length() > 63:
                raise _Refused("holds an integer of more than 64 bits")
            stack.append(_PLAIN[name])
        elif name in ("BINPUT", "LONG_BINPUT") and isinstance(argument, int):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            del stack[len(stack) - _TUPLES[name] :]
            stack.append("tuple")
        elif name == "TUPLE":
            self._marked()
            stack.append("tuple")
        elif name in ("APPEND", "APPENDS"):
            self._added(name == "APPENDS")
            self._require(stack[-1] == "list", "appends to what is no list")
        elif name in ("SETITEM", "SETITEMS"):
            added = self._added(name == "SETITEMS", 2)
            self._require(stack[-1] in ("dict", "ordered"), "sets items of what is no dictionary")
            self._require(all(key in _KEYS for key in added[::2]), "has a key that is no name")
        elif name == "GLOBAL":
            stack.append(_global(str(argument)))
        elif name == "BINPERSID":
            self._require(stack.pop() == "tuple", "names a storage in another way than torch does")
            stack.append("storage")
        elif name == "REDUCE":
            self._call()
        elif name == "BUILD":
            # A state dict carries its versions so.
            self._require(stack.pop() == "dict" and stack[-1] == "ordered", "changes an object")
        elif name not in ("PROTO", "STOP"):
            raise _Refused(f"has the step {name}, which weights never need")

    def _call(self) -> None:
        stack = self._stack
        arguments, function = stack.pop(), stack.pop()
        if not isinstance(function, _Global):
            raise _Refused("calls what is no function")
        # A dictionary is made empty: the keys of one that is made of a list could not be looked at here.
        if function.name == "collections.OrderedDict" and arguments == "()":
            stack.append("ordered")
        elif function.name == "torch.Size" and arguments == "tuple":
            stack.append("tuple")
        elif function.name.rpartition(".")[2] in _REBUILD and arguments == "tuple":
            stack.append("tensor")
        else:
            raise _Refused(f"calls {function.name} in a way that makes no tensor")

    def _added(self, marked: bool, count: int = 1) -> list[_Value]:
        if marked:
            return self._marked()
        added = self._stack[-count:]
        del self._stack[-count:]
        return added

    def _marked(self) -> list[_Value]:
        """What lies above the last mark, taken off with it."""
        items: list[_Value] = []
        while (item := self._stack.pop()) != "mark":
            items.append(item)
        return items[::-1]

    def _require(self, right: bool, fault: str) -> None:
        if not right:
            raise _Refused(fault)


def _global(argument: str) -> _Global:
    """What a program may name: types of storages and elements, and the functions that make tensors of them."""
    module, _, name = argument.partition(" ")
    known = (
        (module == "collections" and name == "OrderedDict")
        or (
            module == "torch"
            and (name == "Size" or name.endswith("Storage") or bool(_DTYPE.fullmatch(name)))
        )
        or (module == "torch.storage" and name in ("UntypedStorage", "TypedStorage"))
        or (module == "torch._utils" and name in _REBUILD)
    )
    if not known:
        raise _Refused(
            f"asks for {shown(f'{module}.{name}')[1:-1]}, which is no part of a tensor and could run code"
        )
    return _Global(f"{module}.{name}")
