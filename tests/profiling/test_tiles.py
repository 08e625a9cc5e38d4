"""profiling/tiles.py, on a small model and small pictures."""

import csv

import torch
from tiny_models import model

from profiling import tiles


def test_the_cost_of_tiles_is_measured(monkeypatch, tmp_path, image_folder, capsys):
    made = model()
    torch.save(made.state_dict(), tmp_path / "x2.pth")
    monkeypatch.setattr(tiles, "FILE", tmp_path / "tiles.csv")
    monkeypatch.setattr(tiles, "TILES", (12,))
    monkeypatch.setattr(tiles, "load_model", lambda path, device: made)
    for what in ("pad", "precision", "pad"):
        folder = image_folder(2, (70, 60), f"{len(list(tmp_path.iterdir()))}")
        assert tiles.main([what, "--data", str(folder), "--device", "cpu"]) == 0
    assert tiles.main(["pad"]) == 2
    assert "--data DIR is missing" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "tiles.csv").open(encoding="utf-8")))
    assert [row["what"] for row in rows] == ["precision"] * 5 + ["pad"] * len(tiles.PADS)
    of_pad = {row["tile_pad"]: row for row in rows if row["what"] == "pad"}
    assert int(of_pad["0"]["max_level"]) > int(of_pad["5"]["max_level"]) > int(of_pad["exact"]["max_level"])
    assert int(of_pad["exact"]["max_level"]) <= 1
    low = {(row["level"], row["dtype"]): float(row["loss_y"]) for row in rows if row["what"] == "precision"}
    assert low["O0", "float32"] == 0
    assert all((row["kind"] == "simulated") == (row["level"] in ("O1", "O2")) for row in rows)
    assert all(low[level, dtype] != 0 for level in ("O1", "O2") for dtype in ("float16", "bfloat16"))
