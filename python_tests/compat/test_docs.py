import pathlib
import re

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "coming_from_elsewhere.md"


def test_the_page_s_python_runs(capsys):
    text = DOCS.read_text()
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        # the second half begins with a dense model again, as its own page would
        if "WeightNormSparsifier" in block:
            namespace["model"] = namespace["fs"].densify(namespace["model"])
        exec(compile(block, str(DOCS), "exec"), namespace)
    said = re.search(r"print\(mask\.masks\)  # (.*)", text)
    assert said.group(1) in capsys.readouterr().out
    assert 0.05 < namespace["total_fired_weights"] < 1
    kept = (namespace["model"][0].weight != 0).view(-1, 4).sum(1)
    assert (kept <= 2).all()
