"""data/h5.py: a memory map that equals h5py's reads, and a clear line for every file that cannot be used."""

import h5py
import numpy as np
import pytest

from rdn_fast.data.h5 import Pairs
from rdn_fast.errors import UserError

SCALE = 2


@pytest.fixture
def pairs(photograph):
    """Twelve pairs of different sizes: 8 x 6 LR pixels and larger."""
    return [(photograph(8 + i, 6 + 2 * i, seed=i), photograph(16 + 2 * i, 12 + 4 * i, seed=100 + i)) for i in range(12)]


@pytest.fixture
def refused(tmp_path):
    """refused(path): the one-line message of a file that must be refused; it must begin with the file's name."""

    def message(path, scale=SCALE):
        with pytest.raises(UserError) as caught:
            Pairs(path, scale)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert "\n" not in text
        return text.removeprefix(f"{path}: ")

    return message


def test_views_equal_what_h5py_reads(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs)
    mapped = Pairs(path, SCALE)
    assert len(mapped) == len(pairs)
    with h5py.File(path) as file:
        for i, (lr, hr) in enumerate(pairs):
            for view, name, written in ((mapped.lr[i], f"lr/{i}", lr), (mapped.hr[i], f"hr/{i}", hr)):
                assert view.dtype == np.uint8
                np.testing.assert_array_equal(view, file[name][()], err_msg=name)
                np.testing.assert_array_equal(view, written, err_msg=name)


def test_views_of_a_prepared_file_equal_what_h5py_reads(prepared):
    for path in (prepared.train, prepared.eval):
        mapped = Pairs(path, SCALE)
        with h5py.File(path) as file:
            assert len(mapped) == len(file["lr"])
            for i in range(len(mapped)):
                np.testing.assert_array_equal(mapped.lr[i], file[f"lr/{i}"][()])
                np.testing.assert_array_equal(mapped.hr[i], file[f"hr/{i}"][()])


def test_a_user_block_before_the_data_is_skipped(tmp_path, pairs):
    path = tmp_path / "block.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["lr/0"], file["hr/0"] = pairs[0]
    np.testing.assert_array_equal(Pairs(path, SCALE).lr[0], pairs[0][0])


def test_views_cannot_change_the_file(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        Pairs(path, SCALE).lr[0][0, 0, 0] = 1
    assert path.read_bytes() == before


def test_keys_are_in_numeric_order(tmp_path, make_h5, pairs):
    shuffled = [10, 2, 0, 11, 9, 1, 5, 3, 8, 4, 7, 6]  # by name, "10" and "11" would come before "2"
    mapped = Pairs(make_h5(tmp_path / "a.h5", {str(i): pairs[i] for i in shuffled}), SCALE)
    assert mapped.names == [str(i) for i in range(12)]
    for i, (lr, _) in enumerate(pairs):
        np.testing.assert_array_equal(mapped.lr[i], lr)


def test_keys_that_are_no_numbers_come_last(tmp_path, make_h5, pairs):
    mapped = Pairs(make_h5(tmp_path / "a.h5", {"butterfly": pairs[0], "10": pairs[1], "baby": pairs[2], "9": pairs[3]}), SCALE)
    assert mapped.names == ["9", "10", "baby", "butterfly"]
    np.testing.assert_array_equal(mapped.lr[3], pairs[0][0])


def test_names_are_the_attributes_where_there_are_any(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs[:3])
    with h5py.File(path, "r+") as file:
        file["hr/1"].attrs["name"] = "zebra"
    assert Pairs(path, SCALE).names == ["0", "zebra", "2"]


def test_missing_file(tmp_path, refused):
    path = tmp_path / "none.h5"
    message = refused(path)
    assert "no such file" in message
    assert f"rdn-fast prepare --images-dir FOLDER --output-path {path} --scale 2" in message


def test_folder_instead_of_a_file(tmp_path, refused):
    assert "prepare" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)], ids=["empty", "text", "only a signature"])
def test_file_that_is_not_hdf5(tmp_path, refused, content):
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    message = refused(path)
    assert "not a readable HDF5 file" in message
    assert "prepare it again" in message


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.999])
def test_truncated_file(tmp_path, make_h5, pairs, refused, part):
    path = make_h5(tmp_path / "a.h5", pairs)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    message = refused(path)
    assert "truncated" in message or "not a readable HDF5 file" in message
    assert "prepare it again" in message


@pytest.mark.parametrize("damage", ["group index", "dataset header", "dangling link"])
def test_damaged_file(tmp_path, make_h5, pairs, refused, damage):
    path = make_h5(tmp_path / "a.h5", pairs)
    with h5py.File(path, "r+") as file:
        header = h5py.h5o.get_info(file["lr/3"].id).addr
        if damage == "dangling link":
            for group in ("lr", "hr"):
                file[f"{group}/12"] = h5py.SoftLink("/nowhere")
    content = bytearray(path.read_bytes())
    if damage == "group index":
        index = content.rindex(b"SNOD")  # the signature of a group's index
        content[index : index + 4] = b"XXXX"
    elif damage == "dataset header":
        content[header : header + 16] = bytes(16)
    path.write_bytes(content)
    assert "prepare it again" in refused(path)


@pytest.mark.parametrize("group", ["lr", "hr"])
@pytest.mark.parametrize("how", ["missing", "a dataset"])
def test_missing_group(tmp_path, make_h5, pairs, refused, group, how):
    path = make_h5(tmp_path / "a.h5", pairs)
    with h5py.File(path, "r+") as file:
        del file[group]
        if how == "a dataset":
            file[group] = pairs[0][0]
    message = refused(path)
    assert f"no group `{group}`" in message
    assert "rdn-fast prepare" in message


def test_empty_groups(tmp_path, make_h5, refused):
    message = refused(make_h5(tmp_path / "a.h5", []))
    assert "empty" in message
    assert "prepare it again" in message


def test_different_counts(tmp_path, make_h5, pairs, refused):
    path = make_h5(tmp_path / "a.h5", pairs)
    with h5py.File(path, "r+") as file:
        del file["lr/7"]
    message = refused(path)
    assert "11 lr and 12 hr images" in message
    assert "7 has no partner" in message
    assert "prepare it again" in message


@pytest.mark.parametrize("scale", [3, 4])
def test_file_of_another_scale(tmp_path, make_h5, pairs, refused, scale):
    message = refused(make_h5(tmp_path / "a.h5", pairs), scale)
    assert f"pair 0: hr 12x16 is not {scale} times lr 6x8" in message
    assert "--scale" in message


@pytest.mark.parametrize("smaller", [np.s_[:-1], np.s_[:, 1:]], ids=["height", "width"])
def test_one_pair_of_wrong_size_is_named(tmp_path, make_h5, pairs, refused, smaller):
    pairs[5] = (pairs[5][0], pairs[5][1][smaller])
    assert "pair 5: " in refused(make_h5(tmp_path / "a.h5", pairs))


SPOILT = {
    "float": (lambda image: image.astype(np.float32), "float32 [9, 8, 3]"),
    "grey": (lambda image: image[..., 0], "uint8 [9, 8]"),
    "alpha": (lambda image: np.dstack([image, image[..., :1]]), "uint8 [9, 8, 4]"),
    "channels first": (lambda image: image.transpose(2, 0, 1), "uint8 [3, 9, 8]"),
    "no pixels": (lambda image: image[:0], "[0, 8, 3]"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_dataset_that_is_no_uint8_rgb_image(tmp_path, make_h5, pairs, refused, kind):
    spoil, found = SPOILT[kind]
    pairs[1] = (spoil(pairs[1][0]), pairs[1][1])
    message = refused(make_h5(tmp_path / "a.h5", pairs))
    assert "/lr/1 is " in message
    assert found in message
    assert "prepare the file from the images again" in message


def test_group_in_a_datasets_place(tmp_path, make_h5, pairs, refused):
    path = make_h5(tmp_path / "a.h5", pairs)
    with h5py.File(path, "r+") as file:
        del file["hr/2"]
        file.create_group("hr/2")
    assert "/hr/2 is a group, not uint8 [H, W, 3]" in refused(path)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"chunks": True}, "chunked"), ({"compression": "gzip"}, "compressed (gzip)"), ({"chunks": True, "shuffle": True}, "chunked")],
    ids=["chunked", "compressed", "filtered"],
)
def test_dataset_that_cannot_be_mapped(tmp_path, make_h5, pairs, refused, options, word):
    path = make_h5(tmp_path / "a.h5", pairs, **options)
    message = refused(path)
    assert f"/lr/0 is {word}" in message
    assert f"h5repack -l CONTI -f NONE {path} NEW.h5" in message


def test_dataset_whose_values_were_never_written(tmp_path, make_h5, pairs, refused):
    path = make_h5(tmp_path / "a.h5", pairs[:1])
    with h5py.File(path, "r+") as file:
        del file["hr/0"]
        file["hr"].create_dataset("0", pairs[0][1].shape, np.uint8)
    assert "/hr/0 " in refused(path)
