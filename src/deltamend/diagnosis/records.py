"""The records of a diagnosis: all its numbers, in the form in which JSON and CSV files hold them."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from deltamend.checkpoint.architecture import Kind
from deltamend.checkpoint.manifest import ParentRecord
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
    """The test of the bulk, the singular values up to τ, against the Marchenko–Pastur law; see `spectrum.goodness_of_fit`."""

    size: int = Field(description="Number of singular values in the bulk.")
    noise: float = Field(description="Standard deviation of one entry of the noise, fitted by the median of the bulk.")
    edges: tuple[float, float] = Field(description="The smallest and the largest singular value that the law allows.")
    ks: float = Field(description="Kolmogorov–Smirnov distance between the bulk and the law, 0 to 1.")
    ks_p: float = Field(description="Its p-value by simulation.")
    ad: float = Field(description="Anderson–Darling distance A² between the bulk and the law.")
    ad_p: float = Field(description="Its p-value by simulation.")
    beyond_edge: int = Field(description="Number of singular values beyond the 99% Tracy–Widom edge of this noise.")
    quantiles: tuple[tuple[float, float], ...] = Field(description="Pairs of quantiles, of the law and of the bulk.")


class Tail(Record):
    """The power law that fits the largest eigenvalues σ² best; see `spectrum.tails`."""

    exponent: float = Field(description="Exponent of the density.")
    start: float = Field(description="The smallest eigenvalue that belongs to the tail.")
    count: int = Field(description="Number of eigenvalues in the tail.")
    distance: float = Field(description="Kolmogorov–Smirnov distance of the fit.")


class Histogram(Record):
    """A histogram of the singular values, with bins of equal width from 0 to `high`."""

    high: float = Field(description="Upper end of the last bin.")
    counts: tuple[int, ...] = Field(description="Number of singular values in each bin.")
    above: int = Field(description="Number of singular values above `high`.")


class SpectrumFacts(Record):
    """The singular values of Δ, and how many of them DG-Hard and other rules keep."""

    largest: float = Field(description="The largest singular value, σ₁.")
    median: float = Field(description="The median singular value.")
    smallest: float = Field(description="The smallest singular value.")
    stable_rank: float = Field(description="‖Δ‖²/σ₁², from 1 to the shorter side.")
    threshold: float | None = Field(description="Threshold τ of DG-Hard; none if no noise floor can be measured.")
    noise: float | None = Field(
        description="Standard deviation of one entry of the noise, as DG-Hard estimates it by the median."
    )
    rank: int = Field(
        description="Number of singular values that DG-Hard keeps; all if no noise floor can be measured."
    )
    energy: float = Field(description="Share of ‖Δ‖² that DG-Hard keeps, 0 to 1.")
    ranks: dict[str, int] = Field(description="Number of singular values above the threshold of each rule.")
    numerical_rank: int = Field(
        description="Number of singular values above the rounding of the stored dtype and above 1e-7·σ₁."
    )
    residue: float = Field(description="Share of ‖Δ‖² in the singular values beyond the numerical rank.")
    tail: Tail | None = Field(description="The power law of the tail; none if the tail is too short.")
    histogram: Histogram
    values: tuple[float, ...] | None = Field(description="All singular values, if they were requested.")
    route: str = Field(description="Algorithm and precision of the decomposition.")


class Controls(Record):
    """The test of the bulk, repeated on a sample of Δ that was randomised; see `diagnosis.controls`."""

    shape: tuple[int, int] = Field(description="Shape of the sample.")
    shuffled: Bulk | None = Field(
        description="With all entries in random order, which makes them independent and identically distributed."
    )
    flipped: Bulk | None = Field(
        description="With a random sign for every entry, which keeps the sizes in their places."
    )


class Spread(Record):
    """Tests of whether all rows, or all columns, have the same variance and are uncorrelated with their neighbours."""

    variation: float = Field(description="Coefficient of variation of the variances, in excess of chance.")
    variation_p: float = Field(description="Its p-value.")
    correlation: float = Field(description="Mean correlation between neighbours.")
    correlation_p: float = Field(description="Its p-value.")
    quantiles: tuple[float, ...] = Field(description="Quantiles of the variances, relative to their mean.")


class Entries(Record):
    """Tests of the entries of Δ; see `spectrum.entry_tests`."""

    rows: Spread
    columns: Spread
    kurtosis: float = Field(description="Excess kurtosis; 0 for a normal distribution.")
    kurtosis_p: float = Field(description="Its p-value.")
    zeros: float = Field(description="Share of the entries that are exactly 0.")


class Rounding(Record):
    """How much of Δ is rounding of the stored dtype, and how much of Δ* rounding to the written dtype would lose."""

    stored: str = Field(
        description="The dtype that FINETUNED is stored in, or the format it is quantised in; and that of BASE if it is quantised."
    )
    floor: float = Field(
        description="Standard deviation of the rounding of one entry, if rounding errors were uniform: ulp/√12 of FINETUNED's dtype, and the cells of the formats that a quantised side is rounded to."
    )
    share: float | None = Field(
        description="floor²/noise²: the share of the bulk that rounding explains; it may exceed 1."
    )
    written: str = Field(description="The dtype that a repair would write.")
    lost: float | None = Field(
        description="‖cast(W*) − W_base − Δ*‖/‖Δ*‖: how much rounding to the written dtype changes Δ*."
    )
    unmoved: float = Field(description="Share of the entries in which the written weight would equal the base's.")


class AgainstBase(Record):
    """Δ and W_ft in relation to the singular directions of the base on the shorter side of the matrix."""

    relative_norm: float | None = Field(description="‖Δ‖/‖W_base‖.")
    relative_largest: float | None = Field(description="σ₁(Δ)/σ₁(W_base).")
    directions: int = Field(description="Number of leading directions of the base that make up its top subspace.")
    overlap: float | None = Field(description="Share of ‖Δ*‖² inside that subspace.")
    by_chance: float = Field(description="The overlap that an update in random directions would have.")
    examined: int = Field(description="Number of leading directions of W_ft that were examined.")
    intruders: int | None = Field(
        description="Number of intruder dimensions: examined directions unlike every leading direction of the base."
    )


class Measured(Record):
    """Everything that is measured on one matrix. The groups of measurements are None if Δ = 0."""

    name: str
    kind: Kind = Field(description="Kind of module, such as attention or mlp.")
    layer: int | None = Field(description="Number of the layer; none for a matrix outside all layers.")
    module: str = Field(description="The name without the layer and without `.weight`.")
    shape: tuple[int, int] = Field(description="Shape of the part that both sides have.")
    dtypes: tuple[str, str] = Field(description="Stored dtypes of BASE and of FINETUNED.")
    update_rank: int | None = Field(description="Rank of the adapter that makes up the update, if it is known.")
    norm: float = Field(description="‖Δ‖, the Frobenius norm of the update.")
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
    """The measurements of one matrix, and the verdict on it."""

    verdict: Verdict
    reasons: tuple[str, ...] = Field(description="Sentences with the numbers that led to the verdict.")

    def row(self) -> dict[str, Any]:
        """The numbers as one flat row of a table."""
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
"""The threshold rules whose ranks are compared; the parameters `noise` and `rule` of dg-hard choose among them."""


class Group(Record):
    """A summary of the matrices of one kind or of one layer. Means are weighted by the number of entries."""

    name: str = Field(description="The kind, or the number of the layer.")
    matrices: int = Field(description="Number of matrices.")
    entries: int = Field(description="Number of their entries.")
    rank: float | None = Field(description="Mean share of the singular values that DG-Hard keeps.")
    energy: float | None = Field(description="Share of Σ‖Δ‖² that DG-Hard keeps.")
    ks: float | None = Field(description="Mean Kolmogorov–Smirnov distance of the bulks to the law of noise.")
    rounding: float | None = Field(description="Mean share of the bulk that rounding explains; each is at most 1.")
    relative_norm: float | None = Field(description="√(Σ‖Δ‖²/Σ‖W_base‖²), over the matrices whose base is not zero.")
    verdict: Verdict = Field(description="The verdict that holds for most of the entries.")


class Diagnosis(Record):
    """The diagnosis of a whole update."""

    base: str = Field(description="Name of BASE.")
    finetuned: str = Field(description="Name of FINETUNED.")
    written: str = Field(description='The dtype for which rounding was predicted, such as bf16, or "as stored".')
    matrices: tuple[MatrixDiagnosis, ...] = Field(description="The matrices in the order of FINETUNED.")
    left_out: dict[str, int] = Field(description="Reasons why tensors were not diagnosed, each with their number.")
    notes: tuple[str, ...] = Field(description="Remarks for the user on how the inputs were read.")
    parent: ParentRecord | None = Field(default=None, description="Whether FINETUNED was made from BASE.")
    verdict: Verdict = Field(description="The verdict that holds for most of the entries.")
    sentences: tuple[str, ...] = Field(description="The findings, in sentences.")
    commands: tuple[str, ...] = Field(
        description="Commands to run next; BASE, FINETUNED and OUT are placeholders for folders."
    )
    seconds: float = Field(description="Time that the diagnosis took.")

    def table(self) -> list[dict[str, Any]]:
        """One flat row for each matrix, in the form that `pandas.DataFrame(…)` and `polars.DataFrame(…)` take."""
        return [matrix.row() for matrix in self.matrices]

    @cached_property
    def verdicts(self) -> Counter[Verdict]:
        """The number of matrices that have each verdict."""
        return Counter(matrix.verdict for matrix in self.matrices)
