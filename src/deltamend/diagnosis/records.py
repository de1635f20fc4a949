"""The numbers of a diagnosis, in a form a program can read."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from deltamend.checkpoint.architecture import Kind
from deltamend.records import Record

Verdict = Literal[
    "almost unchanged",
    "low-rank by construction",
    "rounding-dominated",
    "noise-like bulk",
    "structured residual",
    "too small to tell",
]


class Bulk(Record):
    """What lies at or below τ against the Marchenko–Pastur law; see `spectrum.goodness_of_fit`."""

    size: int = Field(description="Singular values tested.")
    noise: float = Field(description="Standard deviation of one entry, fitted by the median of what is tested.")
    edges: tuple[float, float] = Field(description="Where the law begins and ends.")
    ks: float = Field(description="Kolmogorov–Smirnov distance, 0 to 1.")
    ks_p: float = Field(description="Its p-value by simulation.")
    ad: float = Field(description="Anderson–Darling distance A².")
    ad_p: float = Field(description="Its p-value by simulation.")
    beyond_edge: int = Field(description="Singular values beyond the 99% Tracy–Widom edge of this noise.")
    quantiles: tuple[tuple[float, float], ...] = Field(description="Quantiles of the law and of the values.")


class Tail(Record):
    """The power law that the upper eigenvalues σ² follow best; see `spectrum.tails`."""

    exponent: float
    start: float
    count: int
    distance: float = Field(description="Kolmogorov–Smirnov distance of the fit.")


class Histogram(Record):
    """Counts of singular values in bins of one width from 0 to `high`."""

    high: float
    counts: tuple[int, ...]
    above: int = Field(description="Singular values above `high`.")


class SpectrumFacts(Record):
    """The singular values of Δ and what the rules make of them."""

    largest: float
    median: float
    smallest: float
    stable_rank: float = Field(description="‖Δ‖²/σ₁², from 1 to the shorter side.")
    threshold: float | None = Field(description="τ of DG-Hard; none where there is no noise floor to measure.")
    noise: float | None = Field(description="Standard deviation of one entry of the noise by the median, as DG-Hard.")
    rank: int = Field(description="Singular values DG-Hard keeps; all of them where there is no noise floor.")
    energy: float = Field(description="Share of ‖Δ‖² that DG-Hard keeps.")
    ranks: dict[str, int] = Field(description="Singular values above each rule.")
    numerical_rank: int = Field(description="Singular values above rounding of the stored dtype and 1e-7·σ₁.")
    residue: float = Field(description="Share of ‖Δ‖² in the values that the numerical rank leaves out.")
    tail: Tail | None
    histogram: Histogram
    values: tuple[float, ...] | None = Field(description="All singular values, where they were asked for.")
    route: str = Field(description="Algorithm and precision.")


class Controls(Record):
    """The bulk test on parts of Δ that were made iid on purpose; see `diagnosis.controls`."""

    shape: tuple[int, int]
    shuffled: Bulk | None = Field(description="All entries in random order: iid, with the entries' own law.")
    flipped: Bulk | None = Field(description="Every entry with a random sign: sizes stay where they are.")


class Spread(Record):
    """Whether rows, or columns, have one variance and are uncorrelated with their neighbours."""

    variation: float = Field(description="Coefficient of variation of the variances beyond chance.")
    variation_p: float
    correlation: float = Field(description="Mean correlation between neighbours.")
    correlation_p: float
    quantiles: tuple[float, ...] = Field(description="Quantiles of the variances, relative to their mean.")


class Entries(Record):
    """The entries of Δ; see `spectrum.entry_tests`."""

    rows: Spread
    columns: Spread
    kurtosis: float = Field(description="Excess kurtosis; 0 for a normal law.")
    kurtosis_p: float
    zeros: float = Field(description="Share that is exactly 0.")


class Rounding(Record):
    """What rounding to the stored dtype does to Δ, and what writing will do to Δ*."""

    stored: str
    floor: float = Field(
        description="Standard deviation of the rounding of one entry if its errors were even: ulp/√12."
    )
    share: float | None = Field(
        description="floor²/noise²: the share of the bulk that rounding explains; may exceed 1."
    )
    written: str
    lost: float | None = Field(description="‖cast(W*) − W_base − Δ*‖/‖Δ*‖: how much of Δ* writing changes.")
    unmoved: float = Field(description="Share of entries where the written weight would equal the base's.")


class AgainstBase(Record):
    """Δ and W_ft against the base's singular directions on the shorter side."""

    relative_norm: float | None = Field(description="‖Δ‖/‖W_base‖.")
    relative_largest: float | None = Field(description="σ₁(Δ)/σ₁(W_base).")
    directions: int = Field(description="Leading directions of the base that make its top subspace.")
    overlap: float | None = Field(description="Share of ‖Δ*‖² inside that subspace.")
    by_chance: float = Field(description="The overlap of an update that knows nothing of the base.")
    examined: int = Field(description="Leading directions of W_ft that were examined.")
    intruders: int | None = Field(description="Those of them that no leading direction of the base resembles.")


class Measured(Record):
    """Everything measured on one matrix. Parts are none where Δ = 0."""

    name: str
    kind: Kind
    layer: int | None
    module: str = Field(description="The name without the layer and `.weight`.")
    shape: tuple[int, int] = Field(description="Of the part both sides hold.")
    dtypes: tuple[str, str] = Field(description="Of BASE and of FINETUNED, as stored.")
    update_rank: int | None = Field(description="Rank of the adapter that makes the difference, where it is known.")
    norm: float = Field(description="‖Δ‖.")
    spectrum: SpectrumFacts | None
    bulk: Bulk | None
    controls: Controls | None
    entries: Entries | None
    rounding: Rounding | None
    base: AgainstBase | None

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]


class MatrixDiagnosis(Measured):
    """One matrix, and what its numbers say."""

    verdict: Verdict
    reasons: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """The numbers as one flat row."""
        spectrum, bulk, entries, rounding, base = self.spectrum, self.bulk, self.entries, self.rounding, self.base
        controls = self.controls
        shuffled = None if controls is None else controls.shuffled
        flipped = None if controls is None else controls.flipped
        tail = None if spectrum is None else spectrum.tail
        return {
            "name": self.name,
            "layer": self.layer,
            "kind": self.kind,
            "module": self.module,
            "rows": self.shape[0],
            "columns": self.shape[1],
            "base_dtype": self.dtypes[0],
            "finetuned_dtype": self.dtypes[1],
            "verdict": self.verdict,
            "update_rank": self.update_rank,
            "norm": self.norm,
            **{key: getattr(spectrum, key, None) for key in _SPECTRUM},
            **{
                f"rank_{rule.replace('-', '_')}": None if spectrum is None else spectrum.ranks.get(rule)
                for rule in RULES_COMPARED
            },
            "tail_exponent": getattr(tail, "exponent", None),
            **{key: getattr(bulk, key, None) for key in ("ks", "ks_p", "ad", "ad_p", "beyond_edge")},
            "edge_low": None if bulk is None else bulk.edges[0],
            "edge_high": None if bulk is None else bulk.edges[1],
            "bulk_noise": getattr(bulk, "noise", None),
            "shuffled_ks": getattr(shuffled, "ks", None),
            "shuffled_ks_p": getattr(shuffled, "ks_p", None),
            "flipped_ks": getattr(flipped, "ks", None),
            "flipped_ks_p": getattr(flipped, "ks_p", None),
            **{
                f"{side}_{key}": None if entries is None else getattr(getattr(entries, side), key)
                for side in ("rows", "columns")
                for key in ("variation", "variation_p", "correlation", "correlation_p")
            },
            **{key: getattr(entries, key, None) for key in ("kurtosis", "kurtosis_p", "zeros")},
            "rounding_floor": getattr(rounding, "floor", None),
            "rounding_share": getattr(rounding, "share", None),
            "written_dtype": getattr(rounding, "written", None),
            "lost_in_cast": getattr(rounding, "lost", None),
            "unmoved": getattr(rounding, "unmoved", None),
            **{key: getattr(base, key, None) for key in _BASE},
        }


_SPECTRUM = (
    "largest", "median", "smallest", "stable_rank", "threshold", "noise", "rank", "energy", "numerical_rank",
)  # fmt: skip
_BASE = ("relative_norm", "relative_largest", "overlap", "by_chance", "intruders")
RULES_COMPARED = ("dg-hard", "q25", "bulk-fit", "edge", "tracy-widom", "screenot", "rounding-floor")
"""The rules whose ranks are compared: those that `--method dg-hard --set noise=…` and `--set rule=…` choose."""


class Group(Record):
    """The matrices of one kind, of one layer, or all of them; shares and means are weighted by the number of entries."""

    name: str
    matrices: int
    entries: int
    rank: float | None = Field(description="Mean of rank/shorter side.")
    energy: float | None = Field(description="Share of Σ‖Δ‖² that DG-Hard keeps.")
    ks: float | None
    rounding: float | None = Field(description="Mean share of the bulk that rounding explains, each cut at 1.")
    relative_norm: float | None = Field(description="√(Σ‖Δ‖²/Σ‖W_base‖²), over the matrices whose base is not 0.")
    verdict: Verdict = Field(description="The verdict that holds for most of the entries.")


class Diagnosis(Record):
    """A whole update."""

    base: str
    finetuned: str
    written: str = Field(description="The dtype that the realised delta was predicted for: a name, or as stored.")
    matrices: tuple[MatrixDiagnosis, ...] = Field(description="In the order of FINETUNED.")
    left_out: dict[str, int] = Field(description="Why tensors were not diagnosed, and how many.")
    notes: tuple[str, ...] = Field(description="What a person should know of how the inputs were read.")
    verdict: Verdict = Field(description="The verdict that holds for most of the entries.")
    sentences: tuple[str, ...] = Field(description="What is found, for a person.")
    commands: tuple[str, ...] = Field(description="What to run next; BASE, FINETUNED and OUT stand for folders.")
    seconds: float

    def table(self) -> list[dict[str, Any]]:
        """A flat row for each matrix, as `pandas.DataFrame(…)` and `polars.DataFrame(…)` take it."""
        return [matrix.row() for matrix in self.matrices]

    @cached_property
    def verdicts(self) -> Counter[Verdict]:
        """How many matrices have each verdict."""
        return Counter(matrix.verdict for matrix in self.matrices)
