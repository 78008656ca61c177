"""Print digests of everything that the tiny pipeline writes: a refactor must not change them.

    python bench/golden.py                   # models/**, data/** and metrics/*.json, a line a file
    python bench/golden.py --against COMMIT  # both versions, and the files that differ; exit code 1

Each version runs the seven stages in a temporary checkout with the tests' tiny params (a minute).
Manifests name package versions and no times, so two runs on one machine give the same bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.pipeline.workspace import checkout, run
root = checkout(Path(sys.argv[2]))
run(root, "dvc", "repro", timeout=3000)
"""


def digests(source: Path, scratch: Path) -> dict[str, str]:
    """Run the tiny pipeline of the version in `source`; return path → SHA-256 of what it wrote."""
    sys.path.insert(0, str(ROOT))
    from llm.runtime.io import sha256

    checkout = scratch / "checkout"
    command = [sys.executable, "-c", RUN, str(source), str(checkout)]
    subprocess.run(command, check=True, cwd=source)
    paths = [p for top in ("data", "models") for p in (checkout / top).rglob("*") if p.is_file()]
    paths += (checkout / "metrics").glob("*.json")
    return {path.relative_to(checkout).as_posix(): sha256(path) for path in sorted(paths)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="COMMIT", help="compare with another version")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        ours = digests(ROOT, scratch / "ours")
        if not arguments.against:
            print("\n".join(f"{digest}  {path}" for path, digest in ours.items()))
            return
        other = scratch / "source"
        command = ["git", "worktree", "add", "--detach", str(other), arguments.against]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        try:
            theirs = digests(other, scratch / "theirs")
        finally:
            command = ["git", "worktree", "remove", "--force", str(other)]
            subprocess.run(command, check=True, cwd=ROOT)
    changed = [path for path in sorted(ours | theirs) if ours.get(path) != theirs.get(path)]
    print(f"{len(ours)} files, {len(changed)} differ from {arguments.against}")
    if changed:
        sys.exit("\n".join(changed))


if __name__ == "__main__":
    main()
