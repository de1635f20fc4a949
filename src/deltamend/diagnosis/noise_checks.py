"""Whether the part of Δ below the threshold looks like noise: its singular values, its entries, and controls made from it."""

from __future__ import annotations

import numpy as np

from deltamend.diagnosis.controls import Sample
from deltamend.diagnosis.records import Bulk, Controls, Entries, Spread
from deltamend.diagnosis.spectrum_facts import KnownSpectrum
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.entry_tests import EntryTests, NeighbourTest, VarianceTest
from deltamend.spectrum.goodness_of_fit import BulkTest, check_bulk
from deltamend.spectrum.subspace import all_values
from deltamend.spectrum.thresholds import GavishDonoho

_MEASURABLE = 1e-7
"""A threshold below this share of the largest singular value is only rounding of the decomposition."""


def bulk_record(test: BulkTest | None) -> Bulk | None:
    """The record of a test of the bulk; None if there were too few singular values for one."""
    if test is None:
        return None
    return Bulk(
        size=test.size,
        noise=test.noise,
        edges=test.edges,
        ks=test.distances.ks,
        ks_p=test.ks_p,
        ad=test.distances.ad,
        ad_p=test.ad_p,
        beyond_edge=test.beyond_edge,
        quantiles=tuple((float(law), float(found)) for law, found in test.quantiles),
    )


def controls_record(sample: Sample, random: np.random.Generator, workspace: Workspace) -> Controls:
    """Test the bulk of a sample of Δ after its entries were shuffled, and after their signs were made random.

    Args:
        sample: the entries of some rows and columns of Δ.
        random: the source of the random order and signs.
        workspace: memory for the decompositions.
    """
    shape = (sample.rows.size, sample.columns.size)
    tests = []
    for matrix in (sample.shuffled(random), sample.flipped(random)):
        values = all_values(matrix, workspace)
        threshold = GavishDonoho().threshold(KnownSpectrum(shape, float(np.sum(values**2)), values)).value
        measurable = threshold > _MEASURABLE * values[0]
        tests.append(bulk_record(check_bulk(values, shape, threshold)) if measurable else None)
    return Controls(shape=shape, shuffled=tests[0], flipped=tests[1])


def entries_record(found: EntryTests) -> Entries:
    """The record of the tests of the entries of Δ."""

    def spread(variances: VarianceTest, neighbours: NeighbourTest) -> Spread:
        return Spread(
            variation=variances.variation,
            variation_p=variances.p,
            correlation=neighbours.correlation,
            correlation_p=neighbours.p,
            quantiles=tuple(float(value) for value in variances.quantiles),
        )

    return Entries(
        rows=spread(found.rows, found.neighbouring_rows),
        columns=spread(found.columns, found.neighbouring_columns),
        kurtosis=found.kurtosis,
        kurtosis_p=found.kurtosis_p,
        zeros=found.zeros,
    )
