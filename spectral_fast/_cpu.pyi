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
    gram: bool = False,
) -> bool: ...
def spectral_stats(
    data: int,
    element: int,
    shape: Sequence[int],
    strides: Sequence[int],
    values: int,
    info: int,
    edge: tuple[float, float],
    smooth: int,
    fitted: int,
    threads: int,
    gram: bool = False,
) -> None: ...
def stats_from_svdvals(
    values: int,
    element: int,
    count: int,
    n: int,
    edge: tuple[float, float],
    smooth: int,
    fitted: int,
    threads: int,
) -> None: ...
def fit_powerlaw(
    values: int,
    element: int,
    count: int,
    n: int,
    xmin: int,
    fit: int,
    n_tail: int,
    threads: int,
) -> None: ...
def ranksize_slope(values: int, element: int, count: int, n: int, slopes: int, threads: int) -> None: ...
def hill_alpha(values: int, element: int, count: int, n: int, k: int, alphas: int, threads: int) -> None: ...
def gram_product(
    data: int,
    element: int,
    shape: Sequence[int],
    strides: Sequence[int],
    x: int,
    columns: int,
    z: int,
    energy: int,
    threads: int,
) -> None: ...
def vectors(
    data: int,
    element: int,
    shape: Sequence[int],
    strides: Sequence[int],
    u: int,
    v: int,
    info: int,
    threads: int,
) -> None: ...
def block_lanczos(
    data: int,
    element: int,
    shape: Sequence[int],
    strides: Sequence[int],
    start: int,
    vectors: int,
    steps: int,
    along: int,
    first: int,
    second: int,
    energy: int,
    threads: int,
) -> None: ...
def look(
    places: Sequence[tuple[int, int, int]],
    element: int,
    rows: int,
    cols: int,
    counts: Sequence[int],
    of_vectors: Sequence[int],
    of_probes: Sequence[int],
    repeat: tuple[float, int, int],
    out: Sequence[int],
    threads: int,
) -> None: ...
def stages(rows: int, cols: int, batch: int) -> list[str]: ...
def gram_stages(rows: int, cols: int) -> list[str]: ...
def svdvals_stages(
    data: int,
    element: int,
    rows: int,
    cols: int,
    row_stride: int,
    col_stride: int,
    values: int,
    threads: int,
    gram: bool = False,
) -> dict[str, tuple[float, str, float]]: ...
def peak(unit: str, threads: int) -> float: ...
def built_isas() -> list[str]: ...
def runnable_isas() -> list[str]: ...
def current_isa() -> str: ...
def use_isa(name: str) -> None: ...
