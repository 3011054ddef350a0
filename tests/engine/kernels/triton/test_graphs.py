"""engine/kernels/triton/graphs.py: which recorded steps there are."""

from engine.kernels.triton.graphs import bucket


def test_every_size_fits_its_bucket() -> None:
    for rows in range(1, 1025):
        assert bucket(rows) >= rows
        assert bucket(bucket(rows)) == bucket(rows), "a bucket is its own"
        assert bucket(rows) <= bucket(rows + 1)


def test_little_is_wasted_and_few_are_recorded() -> None:
    assert [bucket(rows) for rows in (1, 2, 3, 5, 8, 9, 17, 33, 200)] == [1, 2, 4, 8, 8, 16, 24, 40, 208]
    assert max(bucket(rows) / rows for rows in range(16, 1025)) < 1.5
    assert max(bucket(rows) / rows for rows in range(64, 1025)) < 1.14
    assert len({bucket(rows) for rows in range(1, 257)}) < 40
