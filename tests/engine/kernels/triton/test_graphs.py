"""Tests of engine/kernels/triton/graphs.py: the row counts of CUDA graphs."""

from engine.kernels.triton.graphs import bucket_size


def test_every_size_fits_its_bucket() -> None:
    for rows in range(1, 1025):
        assert bucket_size(rows) >= rows
        assert bucket_size(bucket_size(rows)) == bucket_size(rows), "a bucket is its own bucket"
        assert bucket_size(rows) <= bucket_size(rows + 1)


def test_buckets_are_few_and_waste_little() -> None:
    assert [bucket_size(rows) for rows in (1, 2, 3, 5, 8, 9, 17, 33, 200)] == [1, 2, 4, 8, 8, 16, 24, 40, 208]
    assert max(bucket_size(rows) / rows for rows in range(16, 1025)) < 1.5
    assert max(bucket_size(rows) / rows for rows in range(64, 1025)) < 1.14
    assert len({bucket_size(rows) for rows in range(1, 257)}) < 40
