import pathlib
import re

import torch

from fullspectrum_ext import dynamic

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "dynamic.md"


def test_the_page_s_python_runs_and_names_every_method(capsys, monkeypatch):
    monkeypatch.setattr(dynamic.method, "_METHODS", dict(dynamic.method._METHODS))
    text = DOCS.read_text()
    table = set(re.findall(r"^\| `([a-z:]+)` \|", text, re.MULTILINE))
    assert table == set(dynamic.methods())
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(DOCS), "exec"), namespace)
    said = re.search(r"print\(dynamic\.masks\)  # (.*)", text)
    assert said.group(1) in capsys.readouterr().out

    # the method of one's own: exact counts, in training
    found, model, optimizer = (namespace[name] for name in ("dynamic", "model", "optimizer"))
    before = found.masks
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(32, 64)).square().mean().backward()
        optimizer.step()
        changed = found.step()
    assert changed
    assert found.masks != before
    assert found.masks.nnz == before.nnz
