"""Triton's interpreter in less time: a pytest plugin of the processes of test_triton_numerics.py.

For each launch it puts interpreted functions in place of triton.language's, and does so again whenever one
jit function calls another, with the same functions and for half of the time that a kernel takes. Here it
leaves a module alone whose functions are in place.
"""

from __future__ import annotations

import functools
from types import FunctionType, ModuleType
from typing import Any

from triton import language
from triton.runtime import interpreter

_AS_IMPORTED = {module: module.range for module in (language, language.core)}
_patch = interpreter._patch_lang  # of the version that pyproject.toml pins


@functools.cache
def _seen_by(function: FunctionType) -> tuple[ModuleType, ...]:
    seen = [value for value in function.__globals__.values() if isinstance(value, ModuleType)]
    return tuple(module for module in _AS_IMPORTED if module in seen)


def _patch_once(function: FunctionType) -> Any:
    modules = _seen_by(function)
    if modules and all(module.range is not _AS_IMPORTED[module] for module in modules):
        return interpreter._LangPatchScope()  # nothing to restore
    return _patch(function)


interpreter._patch_lang = _patch_once
