"""`rdn-fast models`."""

import json

from rdn_fast.weights.shipped import shipped_models


def test_it_lists_every_model(cli, three_models, tmp_path):
    ended = cli("models", "--json", tmp_path / "models.json")
    assert (ended.code, ended.err) == (0, "")
    told = json.loads((tmp_path / "models.json").read_text())["models"]
    assert [each["name"] for each in told] == ["small_x2", "small_x3", "small_x4"]
    for each, model, (scale, file) in zip(told, shipped_models(), three_models.items(), strict=True):
        assert (each["scale"], each["file"], each["bytes"]) == (scale, str(file), file.stat().st_size)
        assert (each["parameters"], each["set5_psnr_y"]) == (model.parameters, float(f"3{scale}.25"))
        assert each["architecture"] == f"RDN x{scale} D2 C2 G4 G0 6"
        (row,) = [line for line in ended.out.splitlines() if line.startswith(f"│ small_x{scale} ")]
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[:2] + cells[4:] == [f"small_x{scale}", f"x{scale}", f"3{scale}.25 dB", f"licence of x{scale}"]
        assert f"small_x{scale}: learnt from pictures for x{scale}; card: {file.with_suffix('.md')}\n" in ended.out


def test_its_json_replaces_nothing_else(cli, three_models, tmp_path):
    file = tmp_path / "notes.json"
    file.write_text("{}")
    assert cli("models", "--json", file).user_error().startswith(f"--json {file}: ")
    assert file.read_text() == "{}"
    for _ in range(2):
        assert cli("models", "--json", tmp_path / "models.json").code == 0
