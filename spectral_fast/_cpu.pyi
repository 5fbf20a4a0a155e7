from collections.abc import Sequence

element_types: dict[str, int]
info_nonfinite: int

def svdvals(
    data: int,
    element: int,
    shape: Sequence[int],
    strides: Sequence[int],
    values: int,
    info: int,
    threads: int,
) -> bool: ...
def stages(rows: int, cols: int, batch: int) -> list[str]: ...
def svdvals_stages(
    data: int,
    element: int,
    rows: int,
    cols: int,
    row_stride: int,
    col_stride: int,
    values: int,
    threads: int,
) -> dict[str, tuple[float, str, float]]: ...
def peak(unit: str, threads: int) -> float: ...
def built_isas() -> list[str]: ...
def runnable_isas() -> list[str]: ...
def current_isa() -> str: ...
def use_isa(name: str) -> None: ...
