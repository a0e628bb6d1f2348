"""`make notebooks`: run the notebooks and store what they print and draw.

    python notebooks/store_outputs.py [NAME ...]

Only notebooks on made-up posts are stored; temporary folders are told as FOLDER, so that no path of
the machine is in an output.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def main(names: list[str]) -> None:
    """Run the named notebooks, or all but the one that trains for minutes."""
    for path in sorted(HERE.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        place = {"metadata": {"path": str(HERE.parent)}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it ran
            if cell.cell_type == "code":
                cell.outputs = [_cleaned(output) for output in cell.outputs if _is_news(output)]
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"stored: {path.name}")


def _is_news(output: Any) -> bool:
    """Whether an output is of the notebook: libraries warn on standard error."""
    return output.get("name") != "stderr"


def _cleaned(output: Any) -> Any:
    """The output without paths of this machine."""
    folder = re.escape(tempfile.gettempdir()) + r"/\w+"
    data = output.get("data", {})
    for holder, key in ((output, "text"), (data, "text/plain"), (data, "text/html")):
        if isinstance(holder.get(key), str):
            holder[key] = re.sub(folder, "FOLDER", holder[key]).replace(str(HERE.parent), ".")
    return output


if __name__ == "__main__":
    main(sys.argv[1:])
