"""Names of results and of HR pictures that belong together, as people and programs write them."""

from pathlib import Path

import pytest

from rdn_fast.data.partners import lines_on, match, scales_in
from rdn_fast.errors import UserError


def pairs(sr: str, hr: str) -> dict[str, str]:
    found, _ = match([Path(name) for name in sr.split()], [Path(name) for name in hr.split()])
    return {a.name: b.name for a, b in found}


@pytest.mark.parametrize(
    ("sr", "hr"),
    [
        ("baby.png", "baby.png"),
        ("baby.png", "baby.bmp"),
        ("baby_out.png", "baby.png"),  # ours and Real-ESRGAN's
        ("baby_x2_SR.png", "baby.png"),  # EDSR-PyTorch
        ("babyx4.png", "baby.png"),  # DIV2K's LR
        ("0801x2.png", "0801.png"),
        ("baby-rdn.png", "baby.png"),
        ("baby_rdn.png", "baby_HR.png"),
        ("baby_SR.png", "baby_GT.png"),
        ("baby.png", "baby_HR_x2.png"),  # RCAN
        ("baby_RDN_x2.png", "baby_HR_x2.png"),
        ("img_001_SRF_2_RDN.png", "img_001_SRF_2_HR.png"),  # SelfExSR
        ("img_001.png", "img_001_SRF_2_HR.png"),
        ("MÜLLER_out.png", "MÜLLER.png"),
    ],
)
def test_names_that_belong_together(sr, hr):
    assert pairs(sr, hr) == {sr: hr}


@pytest.mark.parametrize(
    ("sr", "hr"),
    [("img_10.png", "img_1.png"), ("babyface.png", "baby.png"), ("baby.png", "baby_face.png"), ("a.png", "b.png")],
)
def test_names_that_do_not(sr, hr):
    found, alone = match([Path(sr)], [Path(hr)])
    assert found == []
    assert alone == [Path(sr), Path(hr)]


def test_the_longest_name_that_fits():
    assert pairs("a_x2.png a_b_x2.png a_b_c_x2.png", "a.png a_b.png a_b_c.png") == {
        "a_x2.png": "a.png",
        "a_b_x2.png": "a_b.png",
        "a_b_c_x2.png": "a_b_c.png",
    }


def test_numbers_in_order_of_the_hr_pictures():
    sr = " ".join(f"img_{i}_out.png" for i in reversed(range(1, 101)))
    hr = " ".join(f"img_{i}.png" for i in range(1, 101))
    assert [*pairs(sr, hr).items()] == [(f"img_{i}_out.png", f"img_{i}.png") for i in range(1, 101)]


def test_two_results_of_one_picture_are_refused():
    with pytest.raises(UserError, match=r"baby_rdn\.png: baby_edsr\.png and baby_rdn\.png both look like baby\.png"):
        match([Path("baby_edsr.png"), Path("baby_rdn.png")], [Path("baby.png")])


def test_equal_names_are_never_ambiguous():
    assert pairs("a.png a_HR.png", "a.png a_HR.png a_GT.png") == {"a.png": "a.png", "a_HR.png": "a_HR.png"}
    assert pairs("0801_out.png", "0801.png 0801x2.png") == {"0801_out.png": "0801.png"}


@pytest.mark.parametrize(("sr", "hr"), [("a.png", "a.bmp a.jpg"), ("a_out.png", "a_GT.png a_HR.png")])
def test_a_result_of_two_pictures_is_refused(sr, hr):
    one, other = hr.split()
    with pytest.raises(UserError, match=f"{sr}: may belong to {one} or to {other}; rename or remove one of them"):
        pairs(sr, hr)


def test_few_are_named_and_many_counted():
    few, many = [Path(f"few/{i}.png") for i in range(5)], [Path(f"many/{i}.png") for i in range(6)]
    *named, counted = lines_on([*few, *many])
    assert named == [f"no partner: {file}" for file in few]
    assert counted == f"no partner: 6 files of many: {', '.join(f'{i}.png' for i in range(5))}, ..."
    assert lines_on([]) == []


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("0801x2.png", {2}),
        ("LRbicX3", {3}),
        ("img_SRF_4_LR.png", {4}),
        ("a_x2_x3", {2, 3}),
        ("x5", set()),
        ("x20", set()),
    ],
)
def test_scales_that_a_name_tells(name, scales):
    assert scales_in(name) == scales
