import pathlib
import shutil
import subprocess
import sys

import fullspectrum_ext


def test_the_bare_source_folder_says_what_to_do(tmp_path):
    package = pathlib.Path(fullspectrum_ext.__file__).parent
    sources = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(package, tmp_path / "fullspectrum_ext", ignore=sources)
    # -S: without site-packages' editable hooks; torch is put back by its path
    code = f"import sys; sys.path[1:1] = {sys.path!r}; import fullspectrum_ext"
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "not its compiled operators" in result.stderr
    assert "pip install ." in result.stderr
