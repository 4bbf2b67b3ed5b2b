"""Files of samples: every kind is read, and what is no sample is refused in one line."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from ncsn_cli.core.errors import BadSamplesError, MissingInputError
from ncsn_cli.runs.samples import read_samples, samples_file

POINTS = np.random.default_rng(0).standard_normal((7, 2))


def npz(path, **arrays):
    np.savez(path, **arrays)


def text(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def bytes_of_npy():
    file = io.BytesIO()
    np.save(file, POINTS)
    return file.getvalue()


def bytes_of_npz():
    file = io.BytesIO()
    np.savez(file, samples=POINTS)
    return file.getvalue()


def zipped(path, name, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


def rows(mark, header=""):
    return header + "".join(f"{x!r}{mark}{y!r}\n" for x, y in POINTS.tolist())


GOOD = {
    "float64.npy": lambda p: np.save(p, POINTS),
    "fortran.npy": lambda p: np.save(p, np.asfortranarray(POINTS)),
    "named.npz": lambda p: npz(p, samples=POINTS, init=POINTS[:3]),
    "alone.npz": lambda p: npz(p, x=POINTS),
    "compressed.npz": lambda p: np.savez_compressed(p, samples=POINTS),
    "plain.csv": lambda p: text(p, rows(",")),
    "header.csv": lambda p: text(p, rows(",", "x,y\n")),
    "spreadsheet.csv": lambda p: text(p, b"\xef\xbb\xbf" + rows(";", "x;y\r\n").encode()),
    "quotes.csv": lambda p: text(p, "".join(f'"{x!r}","{y!r}"\n' for x, y in POINTS.tolist())),
    "comment.txt": lambda p: text(p, "# x y\n\n" + rows(" ")),
    "tabs.tsv": lambda p: text(p, rows("\t")),
    "tensor.pt": lambda p: torch.save(torch.from_numpy(POINTS).requires_grad_(), p),
    "dict.pt": lambda p: torch.save({"samples": torch.from_numpy(POINTS), "step": 3}, p),
    "negative.pt": lambda p: torch.save((torch.from_numpy(-POINTS) * 1j).conj().imag, p),
    "UPPER.NPY": lambda p: text(p, bytes_of_npy()),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_is_read_to_the_bit(tmp_path, name):
    GOOD[name](tmp_path / name)
    x = read_samples(samples_file(str(tmp_path / name)), None, 2).x
    assert x.dtype == torch.float64
    assert np.array_equal(x.numpy(), POINTS)


def test_single_precision_integers_and_vectors(tmp_path):
    np.save(tmp_path / "single.npy", POINTS.astype(np.float32))
    assert read_samples(tmp_path / "single.npy", None, 2).x.dtype == torch.float32
    np.save(tmp_path / "half.npy", POINTS.astype(np.float16))
    np.save(tmp_path / "whole.npy", np.arange(4))
    assert read_samples(tmp_path / "half.npy", None, 2).x.dtype == torch.float64
    assert read_samples(tmp_path / "whole.npy", None, 1).x.tolist() == [[0], [1], [2], [3]]


def test_a_key_names_one_of_several_arrays(tmp_path):
    npz(tmp_path / "two.npz", mine=POINTS, other=POINTS[:2])
    assert len(read_samples(tmp_path / "two.npz", "other", 2).x) == 2


@pytest.mark.parametrize("kind", ["npy", "npz", "csv"])
def test_standard_input(monkeypatch, tmp_path, kind):
    name = {"npy": "float64.npy", "npz": "named.npz", "csv": "header.csv"}[kind]
    GOOD[name](tmp_path / name)
    data = io.BytesIO((tmp_path / name).read_bytes())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data))
    assert np.array_equal(read_samples(samples_file("-"), None, 2).x.numpy(), POINTS)


class Code:
    """A pickle of this would write a file when it is read."""

    def __reduce__(self):
        return open, ("written", "w")


def with_values(*values):
    points = POINTS.copy()
    points.flat[: len(values)] = values
    return points


BAD = {
    # name: (how it is written, what the line says)
    "nan.npy": (lambda p: np.save(p, with_values(np.nan, np.nan)), "1 of 7 rows are not finite"),
    "inf.npy": (lambda p: np.save(p, with_values(0, 0, 0, np.inf)), "first is row 2"),
    "nan.csv": (lambda p: text(p, "1,2\n3,nan\n"), "1 of 2 rows are not finite"),
    "columns.npy": (lambda p: np.save(p, np.ones((5, 3))), "choose a dataset of D = 3"),
    "columns.csv": (lambda p: text(p, "1,2,3\n4,5,6\n"), "D = 2"),
    "vector.npy": (lambda p: np.save(p, np.ones(5)), "its shape is (5,), but points in D = 2"
                   " have the shape (N, 2), a row per point; stack the points as rows"),
    "flat.npy": (lambda p: np.save(p, np.ones(6)), "in this order: x.reshape(-1, 2)"),
    "transposed.npy": (lambda p: np.save(p, POINTS.T), "its shape is (2, 7), but points in D = 2"
                       " have the shape (N, 2), a row per point; transpose it: x.T"),
    "cube.npy": (lambda p: np.save(p, np.ones((2, 2, 2))), "x.reshape(-1, 2)"),
    "scalar.npy": (lambda p: np.save(p, np.float64(1)), "its shape is ()"),
    "huge.npy": (lambda p: np.save(p, with_values(-1e100)), "1 of 7 rows have numbers of 1e+100"),
    "longer.npy": (lambda p: np.save(p, POINTS.astype("g") * np.longdouble("1e4000")), "7 of 7"),
    "rows.npy": (lambda p: np.save(p, np.ones((0, 2))), "no rows"),
    "rows.csv": (lambda p: text(p, "x,y\n"), "no rows"),
    "blank.csv": (lambda p: text(p, "\n\n"), "no rows"),
    "empty.csv": (lambda p: text(p, ""), "no rows"),
    "empty.npy": (lambda p: text(p, ""), "cannot be read"),
    "empty.npz": (lambda p: npz(p), "no array 'samples'; it has none at all"),
    "words.npy": (lambda p: np.save(p, np.array([["a", "b"]])), "real numbers"),
    "words.csv": (lambda p: text(p, "x,y\n1,2\nfoo,3\n"), "foo"),
    "ragged.csv": (lambda p: text(p, "1,2\n3\n"), "cannot be read"),
    "binary.csv": (lambda p: text(p, b"\xff\xfe\x00\x81"), "cannot be read"),
    "complex.npy": (lambda p: np.save(p, POINTS * 1j), "real numbers"),
    "bool.npy": (lambda p: np.save(p, POINTS > 0), "real numbers"),
    "records.npy": (lambda p: np.save(p, np.zeros(3, dtype=[("x", float)])), "real numbers"),
    "dates.npy": (lambda p: np.save(p, np.zeros((3, 2), "M8[s]")), "real numbers"),
    "pickled.npy": (lambda p: np.save(p, np.array([Code()]), allow_pickle=True), "cannot be read"),
    "short.npy": (lambda p: (np.save(p, POINTS), text(p, p.read_bytes()[:-8])), "cannot be read"),
    "text.npy": (lambda p: text(p, "not numpy"), "cannot be read"),
    "several.npz": (lambda p: npz(p, a=POINTS, b=POINTS), "choose key=NAME from: a, b"),
    "text.npz": (lambda p: text(p, "not a zip"), "cannot be read"),
    "short.npz": (lambda p: (npz(p, a=POINTS), text(p, p.read_bytes()[:100])), "cannot be read"),
    "code.pt": (lambda p: p.write_bytes(pickle.dumps(Code(), protocol=2)), "more than tensors"),
    "saved_code.pt": (lambda p: torch.save({"samples": Code()}, p), "cannot be read"),
    "text.pt": (lambda p: text(p, "not torch"), "cannot be read"),
    "model.pt": (lambda p: torch.save({"step": 1}, p), "no array 'samples'"),
    "integer.pt": (lambda p: torch.save(3, p), "no array 'samples'"),
    "bool.pt": (lambda p: torch.save(torch.ones(3, 2) > 0, p), "real numbers"),
    "samples.xlsx": (lambda p: text(p, "PK"), ".npy, .npz, .csv, .txt or .pt"),
    "missing.csv": (lambda p: text(p, "NA,1\n2,3\n"), "NA"),
    "blank_value.csv": (lambda p: text(p, "1,2\n,3\n"), "at row 2, column 1"),
    "really_npy.npz": (lambda p: p.write_bytes(bytes_of_npy()), "cannot be read"),
    "really_npz.npy": (lambda p: p.write_bytes(bytes_of_npz()), "cannot be read"),
    "member.npz": (lambda p: zipped(p, "readme.txt", b"text"), "no array 'samples'"),
    "cut.pt": (lambda p: text(p, b"\x80\x02."), "cannot be read"),
    "header.npy": (
        lambda p: text(p, b"\x93NUMPY\x01\x00\x1c\x00{'descr': ('<f8', 'shape': (\n"),
        "cannot be read",
    ),
    "origin.npz": (
        lambda p: npz(p, samples=POINTS, origin=np.array("x"), offsets=POINTS), "cannot be read"
    ),
    "offsets.npz": (
        lambda p: npz(p, samples=POINTS, origin=np.zeros(2), offsets=np.ones((7, 3))),
        "cannot be read",
    ),
    "noending": (lambda p: text(p, "1,2\n"), ".npy, .npz, .csv, .txt or .pt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_sample_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write, says = BAD[name]
    write(tmp_path / name)
    with pytest.raises(BadSamplesError) as refused:
        read_samples(samples_file(name), None, 2)
    line = str(refused.value)
    assert line.startswith(f"{name}: ")
    assert says in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("name", ["missing.npy", "x" * 300, "folder", ""])
def test_a_missing_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(MissingInputError, match="there is no such file"):
        samples_file(name)


def test_a_missing_key(tmp_path):
    npz(tmp_path / "two.npz", a=POINTS, b=POINTS)
    with pytest.raises(BadSamplesError, match="no array 'c'; choose key=NAME from: a, b"):
        read_samples(tmp_path / "two.npz", "c", 2)
