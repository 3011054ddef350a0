"""Tests of engine/kernels/triton/graphs.py: the row counts of CUDA graphs."""

from engine.kernels.triton.graphs import bucket


def test_every_size_fits_its_bucket() -> None:
    for rows in range(1, 1025):
        assert bucket(rows) >= rows
        assert bucket(bucket(rows)) == bucket(rows), "a bucket is its own bucket"
        assert bucket(rows) <= bucket(rows + 1)


def test_buckets_are_few_and_waste_little() -> None:
    assert [bucket(rows) for rows in (1, 2, 3, 5, 8, 9, 17, 33, 200)] == [1, 2, 4, 8, 8, 16, 24, 40, 208]
    assert max(bucket(rows) / rows for rows in range(16, 1025)) < 1.5
    assert max(bucket(rows) / rows for rows in range(64, 1025)) < 1.14
    assert len({bucket(rows) for rows in range(1, 257)}) < 40
