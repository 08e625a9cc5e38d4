"""PairedH5: a map that equals h5py's reads, h5py's reads where there is none, a clear error for every unusable file."""

import gc
import os
import pickle
import re
import resource
import struct

import h5py
import numpy as np
import pytest

from rdn_fast.data.h5 import HR, LR, PairedH5
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.pairs import Pair
from rdn_fast.errors import Failure, UserError
from rdn_fast.terminal import printable

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
            PairedH5(path, scale)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert "\n" not in text
        return text.removeprefix(f"{path}: ")

    return message


def test_views_equal_what_h5py_reads(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs)
    mapped = PairedH5(path, SCALE)
    assert len(mapped) == len(pairs)
    with h5py.File(path) as file:
        for i, (lr, hr) in enumerate(pairs):
            for view, name, written in ((mapped[i].lr, f"lr/{i}", lr), (mapped[i].hr, f"hr/{i}", hr)):
                assert view.dtype == np.uint8
                np.testing.assert_array_equal(view, file[name][()], err_msg=name)
                np.testing.assert_array_equal(view, written, err_msg=name)


def test_views_of_a_prepared_file_equal_what_h5py_reads(prepared):
    for path in (prepared.train, prepared.eval):
        mapped = PairedH5(path, SCALE)
        with h5py.File(path) as file:
            assert len(mapped) == len(file["lr"])
            for i in range(len(mapped)):
                np.testing.assert_array_equal(mapped[i].lr, file[f"lr/{i}"][()])
                np.testing.assert_array_equal(mapped[i].hr, file[f"hr/{i}"][()])


def test_a_user_block_before_the_data_is_skipped(tmp_path, pairs):
    path = tmp_path / "block.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["lr/0"], file["hr/0"] = pairs[0]
    np.testing.assert_array_equal(PairedH5(path, SCALE)[0].lr, pairs[0][0])


def test_views_cannot_change_the_file(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        PairedH5(path, SCALE)[0].lr[0, 0, 0] = 1
    assert path.read_bytes() == before


def test_keys_are_in_numeric_order(tmp_path, make_h5, pairs):
    shuffled = [10, 2, 0, 11, 9, 1, 5, 3, 8, 4, 7, 6]  # by name, "10" and "11" would come before "2"
    mapped = PairedH5(make_h5(tmp_path / "a.h5", {str(i): pairs[i] for i in shuffled}), SCALE)
    assert mapped.names() == [str(i) for i in range(12)]
    for i, (lr, _) in enumerate(pairs):
        np.testing.assert_array_equal(mapped[i].lr, lr)


def test_keys_that_are_no_numbers_come_last(tmp_path, make_h5, pairs):
    mapped = PairedH5(
        make_h5(tmp_path / "a.h5", {"butterfly": pairs[0], "10": pairs[1], "baby": pairs[2], "9": pairs[3]}), SCALE
    )
    assert mapped.names() == ["9", "10", "baby", "butterfly"]
    np.testing.assert_array_equal(mapped[3].lr, pairs[0][0])


def test_names_are_the_attributes_where_there_are_any(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs[:3])
    with h5py.File(path, "r+") as file:
        file["hr/1"].attrs["name"] = "zebra"
    opened = PairedH5(path, SCALE)
    assert opened.names() == ["0", "zebra", "2"]
    assert opened.names([1, 0]) == ["zebra", "0"]
    assert [pair.name for pair in opened] == ["0", "zebra", "2"]


@pytest.mark.parametrize("name", ["née Zèbre", b"latin \xe9".decode(errors="surrogateescape"), "x" * 300])
def test_names_are_written_without_hdf5s_global_heap(tmp_path, pairs, name):
    """HDF5 loops for ever over some damaged heaps."""
    path = tmp_path / "a.h5"
    write_pairs(path, [Pair(name, *pairs[0])], {"made_from": "images"})
    assert b"GCOL" not in path.read_bytes()
    opened = PairedH5(path, SCALE)
    assert (opened.names(), opened.attribute("made_from"), opened.attribute("other")) == (
        [printable(name)],
        "images",
        None,
    )


def test_names_that_cannot_be_read_are_one_line(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs[:3])
    with h5py.File(path, "r+") as file:
        file["hr/1"].attrs["name"] = file.attrs["made_from"] = "a text of variable length"
    path.write_bytes(path.read_bytes().replace(b"GCOL", b"XXXX"))
    opened = PairedH5(path, SCALE)
    for read in (opened.names, lambda: opened.attribute("made_from")):
        with pytest.raises(UserError, match=rf"^{path}: (names|attributes) cannot be read \(.*\); prepare it again$"):
            read()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["root", "lr", "hr"])
def test_a_heap_that_would_take_all_memory_is_refused(tmp_path, make_h5, pairs, refused, cli, which):
    path = make_h5(tmp_path / "a.h5", pairs[:3])
    content = bytearray(path.read_bytes())
    heap = [found.start() for found in re.finditer(b"HEAP", content)][["root", "lr", "hr"].index(which)]
    free, data = struct.unpack_from(
        "<QQ", content, heap + 16
    )  # offset of the first free block, and where offsets begin
    struct.pack_into("<Q", content, data + free, free)  # its successor is itself
    path.write_bytes(content)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(path).startswith("not a readable HDF5 file (")
    assert "damaged" in cli("prepare", "--repack", path, tmp_path / "new.h5").user_error()
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10


def test_names_that_were_read_stay_when_the_file_is_gone(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs[:3])
    opened = PairedH5(path, SCALE)
    opened.names()
    path.unlink()
    assert opened[-1].name == "2"
    np.testing.assert_array_equal(opened[-1].hr, pairs[2][HR])


def test_the_last_image_is_the_last(tmp_path, make_h5, pairs):
    mapped = PairedH5(make_h5(tmp_path / "a.h5", pairs), SCALE)
    assert sum(1 for _ in mapped) == len(pairs)
    with pytest.raises(IndexError):
        mapped[len(pairs)]


def test_bytes_are_the_file_and_offsets_where_its_images_begin(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs)
    mapped = PairedH5(path, SCALE)
    assert mapped.unmappable is None
    assert mapped.bytes.numpy().tobytes() == path.read_bytes()
    assert mapped.size == path.stat().st_size
    for i, pair in enumerate(pairs):
        assert mapped.sizes[i].tolist() == list(pair[LR].shape[:2])
        for group in (LR, HR):
            start = mapped.offset[group, i]
            assert path.read_bytes()[start : start + pair[group].nbytes] == pair[group].tobytes()


def test_the_byte_order_of_single_bytes_is_all_one(tmp_path, pairs):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for group, image in zip(("lr", "hr"), pairs[0], strict=True):
            space = h5py.h5s.create_simple(image.shape)
            h5py.h5d.create(file.create_group(group).id, b"0", h5py.h5t.STD_U8BE, space).write(
                h5py.h5s.ALL, h5py.h5s.ALL, image
            )
    np.testing.assert_array_equal(PairedH5(path, SCALE)[0].hr, pairs[0][HR])


def test_read_into_gives_any_part_of_the_file(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs)
    whole, mapped = path.read_bytes(), PairedH5(path, SCALE)
    for start, stop in ((0, len(whole)), (0, 1), (5, 1000), (len(whole) - 3, len(whole))):
        buffer = np.zeros(stop - start, np.uint8)
        mapped.read_into(buffer, start)
        assert buffer.tobytes() == whole[start:stop]


def test_read_into_says_when_bytes_are_missing(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs)
    mapped = PairedH5(path, SCALE)
    os.truncate(path, mapped.size - 100)
    with pytest.raises(Failure, match="cut short") as caught:
        mapped.read_into(np.zeros(mapped.size, np.uint8), 0)
    assert str(caught.value).startswith(f"{path}: ")


def aged(path):
    """The file, last changed long ago: file systems count time in steps of milliseconds."""
    os.utime(path, ns=(10**18, 10**18))
    return path


def overwrite(path):
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")


@pytest.mark.parametrize(
    "change",
    [overwrite, lambda path: os.truncate(path, path.stat().st_size - 1), os.utime],
    ids=["overwritten", "cut", "touched"],
)
def test_check_sees_that_the_file_was_changed(tmp_path, make_h5, pairs, change):
    path = aged(make_h5(tmp_path / "a.h5", pairs))
    mapped = PairedH5(path, SCALE)
    mapped.check()
    change(path)
    with pytest.raises(Failure, match="was changed while it was in use") as caught:
        mapped.check()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"chunks": True}], ids=["mapped", "h5py"])
def test_a_file_put_in_its_place_changes_nothing(tmp_path, make_h5, pairs, options):
    path = make_h5(tmp_path / "a.h5", pairs, **options)
    opened = PairedH5(path, SCALE)
    make_h5(tmp_path / "b.h5", pairs[::-1], **options).replace(path)
    opened.check()
    for i, (lr, hr) in enumerate(pairs):
        np.testing.assert_array_equal(opened[i].lr, lr)
        np.testing.assert_array_equal(opened[i].hr, hr)


@pytest.mark.parametrize("options", [{}, {"chunks": True}], ids=["mapped", "h5py"])
def test_sent_to_another_process_it_opens_the_file_again(tmp_path, make_h5, pairs, options):
    opened = PairedH5(make_h5(tmp_path / "a.h5", pairs, **options), SCALE)
    np.testing.assert_array_equal(opened[0].hr, pairs[0][HR])
    sent = pickle.loads(pickle.dumps(opened))
    assert len(sent) == len(pairs)
    for i, (lr, hr) in enumerate(pairs):
        np.testing.assert_array_equal(sent[i].lr, lr)
        np.testing.assert_array_equal(sent[i].hr, hr)


def test_missing_file(tmp_path, refused):
    path = tmp_path / "none.h5"
    message = refused(path)
    assert "no such file" in message
    assert f"rdn-fast prepare --images-dir FOLDER --output-path {path} --scale 2" in message


def test_folder_instead_of_a_file(tmp_path, refused):
    assert "prepare" in refused(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)], ids=["empty", "text", "only a signature"]
)
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


@pytest.mark.parametrize("kind", [np.uint16, np.int64, np.float64, bool])
def test_other_numbers_can_be_repacked(tmp_path, make_h5, pairs, refused, kind):
    path = make_h5(tmp_path / "a.h5", [(lr.astype(kind), hr.astype(kind)) for lr, hr in pairs])
    message = refused(path)
    assert f"/lr/0 is {np.dtype(kind)} [8, 6, 3], not uint8" in message
    assert f"`rdn-fast prepare --repack {path} NEW.h5`" in message


UNMAPPABLE = [
    ({"chunks": True}, "chunked"),
    ({"compression": "gzip"}, "compressed (gzip)"),
    ({"chunks": True, "shuffle": True}, "chunked"),
]


@pytest.mark.parametrize(("options", "word"), UNMAPPABLE, ids=["chunked", "compressed", "filtered"])
def test_images_that_cannot_be_mapped_are_read_through_h5py(tmp_path, make_h5, pairs, options, word):
    path = make_h5(tmp_path / "a.h5", pairs, **options)
    opened = PairedH5(path, SCALE)
    assert opened.unmappable == f"/lr/0 is {word}"
    assert opened.names() == [str(i) for i in range(12)]
    for i, pair in enumerate(pairs):
        assert opened.sizes[i].tolist() == list(pair[LR].shape[:2])
        for group in (LR, HR):
            image = opened.image(group, i)
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image, pair[group])
            part = np.empty((5, 5, 3), np.uint8)
            opened.read_part(group, i, 2, 1, part)
            np.testing.assert_array_equal(part, pair[group][2:7, 1:6])


def test_one_image_that_cannot_be_mapped_is_named(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs)
    with h5py.File(path, "r+") as file:
        del file["hr/7"]
        file["hr"].create_dataset("7", data=pairs[7][HR], compression="lzf")
    opened = PairedH5(path, SCALE)
    assert opened.unmappable == "/hr/7 is compressed (lzf)"
    for i in (6, 7):
        np.testing.assert_array_equal(opened[i].hr, pairs[i][HR])


def test_an_image_inside_its_header_is_read_through_h5py(tmp_path, pairs):
    path = tmp_path / "a.h5"
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)
    with h5py.File(path, "w") as file:
        for group, image in zip(("lr", "hr"), pairs[0], strict=True):
            space = h5py.h5s.create_simple(image.shape)
            h5py.h5d.create(file.create_group(group).id, b"0", h5py.h5t.STD_U8LE, space, compact).write(
                h5py.h5s.ALL, h5py.h5s.ALL, image
            )
    opened = PairedH5(path, SCALE)
    assert opened.unmappable == "/lr/0 is a link or not contiguous"
    np.testing.assert_array_equal(opened[0].hr, pairs[0][HR])


@pytest.mark.parametrize("options", [{}, {"chunks": True}], ids=["contiguous", "chunked"])
def test_dataset_whose_values_were_never_written(tmp_path, make_h5, pairs, refused, options):
    path = make_h5(tmp_path / "a.h5", pairs[:1])
    with h5py.File(path, "r+") as file:
        del file["hr/0"]
        file["hr"].create_dataset("0", pairs[0][HR].shape, np.uint8, **options)
    assert refused(path) == "/hr/0 was never written; prepare the file from the images again"


@pytest.mark.parametrize("external", [True, False], ids=["another file", "the same file"])
def test_a_link_is_read_where_it_leads(tmp_path, make_h5, pairs, external):
    make_h5(tmp_path / "other.h5", pairs[::-1])
    path = make_h5(tmp_path / "a.h5", pairs)
    with h5py.File(path, "r+") as file:
        for group in ("lr", "hr"):
            del file[group]["1"]
            file[group]["1"] = h5py.ExternalLink("other.h5", f"{group}/3") if external else h5py.SoftLink(f"/{group}/3")
    opened = PairedH5(path, SCALE)
    assert opened.unmappable == "/lr/1 is a link or not contiguous"
    expected = (pairs[::-1] if external else pairs)[3]
    np.testing.assert_array_equal(opened[1].lr, expected[LR])
    np.testing.assert_array_equal(opened[1].hr, expected[HR])


@pytest.mark.parametrize("options", [{}, {"chunks": True}], ids=["mapped", "h5py"])
def test_a_file_replaced_while_it_is_opened_is_not_mixed_with_the_new_one(
    tmp_path, make_h5, pairs, refused, monkeypatch, options
):
    path, other = make_h5(tmp_path / "a.h5", pairs, **options), make_h5(tmp_path / "b.h5", pairs[::-1], **options)
    state = PairedH5._state

    def replaced(self):
        if other.exists():
            other.replace(path)
        return state(self)

    monkeypatch.setattr(PairedH5, "_state", replaced)
    assert "was replaced while it was being opened" in refused(path)


def test_an_image_that_cannot_be_unpacked_names_the_file(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs, compression="gzip")
    with h5py.File(path, "r") as file:
        chunk = file["hr/2"].id.get_chunk_info(0)
    opened = PairedH5(path, SCALE)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    os.utime(path, ns=(opened._state_at_open[1],) * 2)  # as a disk does it that fails
    with pytest.raises(Failure, match=r"a\.h5: was cut short .* or the disk failed"):
        opened.image(HR, 2)


def test_dropped_pairs_leave_no_open_file(tmp_path, make_h5, pairs):
    path = make_h5(tmp_path / "a.h5", pairs)
    gc.collect()  # files that other tests left in cycles would close meanwhile
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert len(PairedH5(path, SCALE)[0].lr)
    assert len(os.listdir("/proc/self/fd")) == before
